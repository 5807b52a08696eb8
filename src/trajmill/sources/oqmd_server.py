"""OQMD's tables from a MySQL or MariaDB server, in one consistent snapshot and in bounded memory.

The server writes each page of rows as the text that it would have in a dump, `(1,'Fe',NULL,0.5),…`, and the dump's
parser reads it; a driver that makes objects of every value takes several times as long. Doubles come with the fewest
digits that give the same number, as in a dump, which is tried out before anything is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trajmill.errors import SourceError, require
from trajmill.recipe import DatabaseAddress
from trajmill.sources.mysqldump import Report, Statement, Table, column_type, parse_in_order

if TYPE_CHECKING:
    import pymysql

_PAGE = 20_000  # rows asked for at once; fewer where they do not fit into one packet
_TIMEOUT = 600  # s without a byte from the server; it may have to read a whole table for one answer
_AS_TEXT = {
    pa.int64(): "IFNULL(`{0}`,'NULL')",
    pa.float64(): "IFNULL(CAST(`{0}` AS CHAR(40)),'NULL')",  # without the cast it may be cut off after 22 characters
    pa.binary(): "QUOTE(`{0}`)",
}
_HARD = ("-2.2250738585072014e-308", "-1.2345678901234567e-5", "0.30000000000000004")
_LOST = {2006, 2013, 2055}  # errors of a connection that broke


class MySQLServer:
    """A database, read in one transaction from beginning to end; a context.

    Args:
        address: where it is.
        wanted: columns to read, by table; each table has a column `id`, its primary key.
        report: called with a text for each row that could not be read.
        progress: called from time to time with the rows that were read, and how many there are in all.
    """

    def __init__(
        self,
        address: DatabaseAddress,
        wanted: Mapping[str, Collection[str]],
        *,
        report: Report,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self.address = address
        self.wanted = wanted
        self.report = report
        self.progress = progress
        self._done = 0
        self._counts: dict[str, int] = {}

    def __enter__(self) -> MySQLServer:
        driver = require("pymysql", extra="mysql")
        with self._explained():
            self._connection: pymysql.Connection[Any] = driver.connect(
                host=self.address.host,
                port=self.address.port,
                user=self.address.user,
                password=self.address.password,
                database=self.address.database,
                charset="utf8mb4",
                use_unicode=False,
                connect_timeout=10,
                read_timeout=_TIMEOUT,
                autocommit=True,
            )
        try:
            with self._explained():
                self._tables = {name: self._define(name) for name in self.wanted}
                self._query("SET SESSION sql_mode = '', group_concat_max_len = @@max_allowed_packet - 1024")
                self._query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                self._query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
                [[self._longest]] = self._query("SELECT @@group_concat_max_len")
                self._check_digits()
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def digest(self) -> str:
        """Digest the tables as they are in the snapshot; the server reads them for that, but sends nothing."""
        with self._explained():
            facts = [
                [name, sorted((k, str(v)) for k, v in table.types.items()), self._count(name), self._checksum(name)]
                for name, table in sorted(self._tables.items())
            ]
        return hashlib.sha256(json.dumps([self.address.database, facts]).encode()).hexdigest()

    def rows(self, *names: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield (table name, some of its rows) in the order of their ids.

        Raises:
            SourceError: the connection is lost, or the server did not send all rows.
        """
        yield from parse_in_order(self._pages(names), self.report)

    def _pages(self, names: Collection[str]) -> Iterator[Statement]:
        for name in names:
            with self._explained():
                last, page, total = None, _PAGE, 0
                while True:
                    rows, text, following = self._page(name, last, page)
                    if rows == 0:
                        break
                    if len(text) >= self._longest:
                        if page == 1:
                            raise SourceError(
                                f"{self.address}: a row of table {name} after id {last} is longer than the server may "
                                "send; raise its max_allowed_packet"
                            )
                        page = max(1, page // 8)
                        continue
                    last, total = following, total + rows
                    self._done += rows
                    self.progress(self._done, sum(map(self._count, self._tables)))
                    yield Statement(self._tables[name], text.replace(b"\n", rb"\n"))  # which QUOTE leaves as it is
                if total != self._count(name):
                    raise SourceError(
                        f"{self.address}: {total} rows of table {name} came for {self._count(name)} that it has; "
                        f"try CHECK TABLE {name}"
                    )

    def _page(self, name: str, last: int | None, limit: int) -> tuple[int, bytes, int]:
        """Return how many rows come after the id `last`, at most `limit`, their text and the last one's id."""
        table = self._tables[name]
        values = ",',',".join(_AS_TEXT[kind].format(column) for column, kind in table.types.items())
        after = "" if last is None else f"WHERE id > {last:d}"
        columns = ", ".join(f"`{column}`" for column in table.types)
        [[rows, text, following]] = self._query(
            f"SELECT COUNT(*), GROUP_CONCAT('(',{values},')' SEPARATOR ','), MAX(id) "
            f"FROM (SELECT {columns} FROM `{name}` {after} ORDER BY id LIMIT {limit:d}) AS page"
        )
        return rows, text or b"", following

    def _define(self, name: str) -> Table:
        """Look up a table's columns and refuse what cannot be read as of one moment.

        Raises:
            SourceError: the table is not there, lacks columns, or belongs to an engine without snapshots.
        """
        found = self._query(
            "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
            self.address.database, name,
        )  # fmt: skip
        if not found:
            raise SourceError(f"{self.address}: no table {name}; is this a database of OQMD?")
        columns = self._query(
            "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_KEY FROM information_schema.COLUMNS "
            "WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", self.address.database, name,
        )  # fmt: skip
        kinds = {column.decode(): (column_type(kind), key) for column, kind, key in columns}
        if missing := [column for column in self.wanted[name] if column not in kinds]:
            raise SourceError(
                f"{self.address}: table {name} has no column {', '.join(missing)} (it has {', '.join(kinds)}); "
                "is this a database of OQMD?"
            )
        if (engine := (found[0][0] or b"a view").decode()) != "InnoDB":
            raise SourceError(
                f"{self.address}: table {name} is {engine}, which cannot be read as of one moment while others write; "
                f"convert it (ALTER TABLE {name} ENGINE=InnoDB) or read a dump"
            )
        if kinds["id"][1] not in {b"PRI", b"UNI"}:
            raise SourceError(
                f"{self.address}: `id` is no key of table {name}, so it cannot be read page by page; "
                f"add one (ALTER TABLE {name} ADD PRIMARY KEY (id)) or read a dump"
            )
        wanted = tuple(self.wanted[name])
        return Table(name, {column: kinds[column][0] for column in wanted}, wanted)

    def _check_digits(self) -> None:
        """Refuse a server that cannot tell a double exactly."""
        numbers = " UNION ALL ".join(f"SELECT {number} + 0e0 AS x" for number in _HARD)
        text = _AS_TEXT[pa.float64()].format("x")
        [[told]] = self._query(f"SELECT GROUP_CONCAT({text} SEPARATOR ' ') FROM ({numbers}) AS page")
        if sorted(map(float, told.split())) != sorted(map(float, _HARD)):
            raise SourceError(f"{self.address}: this server rounds numbers ({told.decode()}); read a dump")

    def _count(self, name: str) -> int:
        if name not in self._counts:
            [[self._counts[name]]] = self._query(f"SELECT COUNT(*) FROM `{name}`")
        return self._counts[name]

    def _checksum(self, name: str) -> int:
        [[_, checksum]] = self._query(f"CHECKSUM TABLE `{name}` EXTENDED")
        return int(checksum)

    def _query(self, sql: str, *values: str) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in one line what is wrong with the server, never with the password.

        Raises:
            SourceError: the server cannot be reached, refuses, or is gone.
        """
        driver = require("pymysql", extra="mysql")
        try:
            yield
        except (driver.err.MySQLError, OSError) as error:
            code, reason = (*error.args, "")[:2] if len(error.args) > 1 else (0, str(error))
            advice = (
                "run again when it answers"
                if code in _LOST
                else "check oqmd.path, mysql://user:password@host:port/database"
            )
            raise SourceError(f"{self.address}: {reason} ({code}); {advice}") from error
