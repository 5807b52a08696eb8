"""Streaming reader of a mysqldump: chosen columns of chosen tables as Arrow tables, without a server.

One thread decompresses, this one cuts the text into statements, and a few parse them: the parser is Arrow's and runs
without Python's lock. What comes out, and in what order, does not depend on their number.
"""

from __future__ import annotations

import gzip
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from isal import igzip, igzip_lib
from pyarrow import csv

from trajmill.errors import SourceError
from trajmill.raw import sha256
from trajmill.sources.files import read_ahead
from trajmill.storage import AnyPath

_THREADS = min(os.cpu_count() or 1, 8)  # what is not parsing does not keep more of them busy
_CHUNK = 1 << 16  # small: where gzip data breaks off, igzip loses the chunk it was working on
_LONGEST_LINE = 1 << 29  # MySQL refuses statements above 1 GB; anything near that is no dump
_MASK = b"\x01"  # stands for an escaped backslash while the other escapes are undone; text holding it is read exactly
_ESCAPES = {"n": "\n", "r": "\r", "0": "\0", "Z": "\x1a", "t": "\t", "b": "\b"}
_BEGINS = re.compile(rb"CREATE TABLE |INSERT |REPLACE |UNLOCK TABLES|LOCK TABLES|DROP TABLE|/\*!")
_CREATE = re.compile(rb"CREATE TABLE (?:IF NOT EXISTS )?`([^`]+)`")
_COLUMN = re.compile(rb"^\s*`([^`]+)`\s+(\w+)", re.MULTILINE)
_INSERT = re.compile(rb"(?:INSERT(?: IGNORE)?|REPLACE) INTO `([^`]+)`\s*(\([^)]*\))?\s*VALUES\s*")
# Possessive quantifiers: an unclosed string fails at once instead of trying every way to split it.
_VALUE = re.compile(rb"\s*(?:'((?:[^'\\]++|\\.|'')*+)'|([^',()\s]++))\s*([,)])", re.DOTALL)
_ESCAPED = re.compile(rb"\\([^%_])|''", re.DOTALL)
_INTEGERS = {"tinyint", "smallint", "mediumint", "int", "integer", "bigint"}
_FLOATS = {"double", "float", "real", "decimal", "numeric"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Table:
    """A table's columns in the order of its values, with their types, and those wanted of it."""

    name: str
    types: Mapping[str, pa.DataType]
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    """The rows of an INSERT as text, `(…),(…)`."""

    table: Table
    values: bytes


class MySQLDump:
    """A mysqldump, plain or gzipped, read from front to back in memory bounded by some statements.

    Columns are found by name in each table's CREATE TABLE, so their order may differ between dumps. Integers come
    as int64, doubles as float64, everything else as text (UTF-8, else latin-1). A row that cannot be read costs that
    row: it is reported and the rest of its statement is kept. So is the end of a file that was cut off, once.

    Args:
        path: the dump.
        wanted: columns to read, by table.
        report: called with a text for each row that could not be read and once for a file that was cut off.
        progress: called with the bytes of the file that were read since the last call.
    """

    def __init__(
        self,
        path: AnyPath,
        wanted: Mapping[str, Collection[str]],
        *,
        report: Report,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.path = path
        self.wanted = wanted
        self.report = report
        self.progress = progress
        self._damage: str | None = None
        self._reported = False

    def digest(self) -> str:
        """Digest the file's bytes, which its manifest may know."""
        return sha256(self.path, self.path.parent)

    def rows(self, *names: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield (table name, rows) for each INSERT statement of these tables, in the order of the file.

        Raises:
            SourceError: not a mysqldump, or a wanted table or column is not in it.
        """
        yield from parse_in_order(self._inserts(names), self.report)
        if self._damage and not self._reported:
            self.report(self._damage)
            self._reported = True

    def _inserts(self, names: Collection[str]) -> Iterator[Statement]:
        """Yield the INSERT statements of these tables, and see to it that every wanted table is defined."""
        tables: dict[str, Table] = {}
        for name, statement in self._statements(names):
            if statement.startswith(b"CREATE"):
                tables[name] = self._define(name, statement)
            elif name not in tables:
                raise SourceError(
                    f"{self.path}: INSERT INTO `{name}` comes before its CREATE TABLE, so the column order is "
                    "unknown; make the dump without --no-create-info"
                )
            else:
                yield self._insert(tables[name], statement)
        if missing := sorted(set(self.wanted) - set(tables)):
            raise SourceError(
                f"{self.path}: no CREATE TABLE for {', '.join(missing)}; "
                + (f"{self._damage}: fetch the dump again" if self._damage else "is this a mysqldump of OQMD?")
            )

    def _chunks(self) -> Iterator[bytes]:
        """Yield the dump's text as it comes, decompressed, up to where it is readable."""
        size = seen = 0
        try:
            with self.path.open("rb") as file:
                zipped = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                text = cast("BinaryIO", igzip.open(file, "rb") if zipped else file)
                with closing(cast("Generator[bytes]", read_ahead(lambda: text, _CHUNK, ahead=64))) as chunks:
                    for chunk in chunks:
                        yield chunk
                        size += len(chunk)
                        before, seen = seen, file.tell() if zipped else size
                        self.progress(seen - before)
        except (EOFError, gzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]  # isal types the class as an instance
            self._damage = f"the gzip data ends or breaks after {size} bytes of text ({error})"
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read ({error.strerror}); name the SQL dump") from error

    def _lines(self) -> Iterator[bytes]:
        """Yield lines without their newline; refuse at the first one what is no SQL."""
        head: list[bytes] = []
        first = True
        for chunk in self._chunks():
            *lines, tail = chunk.split(b"\n")
            for line in lines:
                yield b"".join([*head, line])
                head.clear()
            head.append(tail)
            if first and (start := chunk.lstrip(b"\xef\xbb\xbf \t\r\n")):
                first = False
                if not re.match(rb"--|/\*|#|[A-Za-z]+\s", start):
                    what = "an HTML page" if start[:1] == b"<" else f"it begins with {start[:20]!r}"
                    raise SourceError(f"{self.path}: not an SQL dump ({what}); fetch it again")
            if len(head) * _CHUNK > _LONGEST_LINE:
                raise SourceError(f"{self.path}: a line longer than {_LONGEST_LINE} bytes; not a mysqldump")
        if first and not self._damage:
            raise SourceError(f"{self.path}: the file is empty; fetch the dump again")
        yield b"".join(head)

    def _statements(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (table, statement): every wanted CREATE TABLE, and each INSERT into the named tables on one line.

        A statement ends with a semicolon at a line's end outside of a string, or where another one begins (so that a
        lost quote costs one statement and not the rest of the file).
        """
        parts: list[bytes] = []
        name, in_string, create, locked = "", False, False, False
        for line in self._lines():
            if parts and _BEGINS.match(line):
                yield name, b"".join(parts)
                parts, in_string = [], False
            if not parts:
                locked = line.startswith(b"LOCK TABLES") or (locked and not line.startswith(b"UNLOCK TABLES"))
                create = line.startswith(b"CREATE")
                match = (_CREATE if create else _INSERT).match(line)
                if match is None or (name := match[1].decode("latin-1")) not in (self.wanted if create else names):
                    continue
            in_string ^= _odd_quotes(line)
            parts.append(line)
            if in_string:
                parts.append(rb"\n")
            elif create:
                parts.append(b"\n")
            if not in_string and line.rstrip().endswith(b";"):
                yield name, b"".join(parts)
                parts = []
        if not self._damage and (parts or locked):
            self._damage = f"the dump ends in the middle of table {name}"
        if parts:
            yield name, b"".join(parts)

    def _define(self, name: str, statement: bytes) -> Table:
        """Read a CREATE TABLE."""
        columns = {column.decode("latin-1"): column_type(kind) for column, kind in _COLUMN.findall(statement)}
        if missing := [column for column in self.wanted[name] if column not in columns]:
            raise SourceError(
                f"{self.path}: table {name} has no column {', '.join(missing)} (it has {', '.join(columns)}); "
                "is this a mysqldump of OQMD?"
            )
        return Table(name, columns, tuple(self.wanted[name]))

    def _insert(self, table: Table, statement: bytes) -> Statement:
        """Take the values out of an INSERT."""
        match = _INSERT.match(statement)
        if match is None:
            self.report(f"statement of table {table.name} cannot be read: {_decode(statement[:80])}")
            return Statement(table, b"")
        if match[2]:  # column names given: they decide the order
            names = [name.strip(b" `").decode("latin-1") for name in match[2][1:-1].split(b",")]
            if missing := sorted(set(table.wanted) - set(names)):
                raise SourceError(f"{self.path}: an INSERT INTO {table.name} gives no {', '.join(missing)}")
            table = Table(table.name, {name: table.types.get(name, pa.binary()) for name in names}, table.wanted)
        return Statement(table, statement[match.end() :].rstrip().removesuffix(b";").rstrip())


def parse_in_order(statements: Iterable[Statement], report: Report) -> Iterator[tuple[str, pa.Table]]:
    """Parse statements in threads and yield (table name, rows) in their order; as many wait as there are threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[tuple[str, pa.Table, list[str]]]] = deque()
        try:
            for statement in statements:
                waiting.append(pool.submit(parse, statement))
                if len(waiting) > _THREADS:
                    yield _finished(waiting.popleft(), report)
            while waiting:
                yield _finished(waiting.popleft(), report)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(parsed: Future[tuple[str, pa.Table, list[str]]], report: Report) -> tuple[str, pa.Table]:
    name, rows, problems = parsed.result()
    for problem in problems:
        report(problem)
    return name, rows


def parse(statement: Statement) -> tuple[str, pa.Table, list[str]]:
    """Read the rows of a statement, all at once when nothing is wrong with it, else row by row.

    Returns:
        The table's name, its rows, and what is wrong with the rows that could not be read.
    """
    table, values = statement.table, statement.values
    if values[:1] == b"(" and values[-1:] == b")" and _MASK not in values and b"()" not in values:
        try:
            return table.name, _parse_at_once(table, values), []
        except pa.ArrowInvalid:
            pass  # a row is wrong; the exact reader says which
    return table.name, *_parse_rows(table, values)


def _parse_rows(table: Table, values: bytes) -> tuple[pa.Table, list[str]]:
    """Read row by row, exactly, and say which rows are wrong."""
    names = list(table.types)
    places = [names.index(name) for name in table.wanted]
    good: list[list[int | float | str | None]] = []
    problems: list[str] = []
    for text, row in _rows(values):
        problem = "not closed"
        if row is not None and len(row) != len(names):
            problem = f"{len(row)} values for {len(names)} columns"
        elif row is not None:
            try:
                good.append([_convert(row[i], table.types[names[i]]) for i in places])
                continue
            except ValueError as error:
                problem = str(error)
        problems.append(f"row of table {table.name} cannot be read ({problem}): {_decode(text[:80])}")
    schema = pa.schema([(name, _arrow(table.types[name])) for name in table.wanted])
    columns = [pa.array([row[i] for row in good], field.type) for i, field in enumerate(schema)]
    return pa.table(columns, schema=schema), problems


def _odd_quotes(line: bytes) -> bool:
    """Whether a string that opens (or closes) in this line does not close (or open) in it."""
    if b"\\" in line:
        line = line.replace(rb"\\", b"").replace(rb"\'", b"")
    return line.count(b"'") % 2 == 1


def column_type(kind: bytes) -> pa.DataType:
    """Map a MySQL column type; text is bytes until its encoding is known."""
    name = kind.decode("latin-1").lower()
    return pa.int64() if name in _INTEGERS else pa.float64() if name in _FLOATS else pa.binary()


def _arrow(kind: pa.DataType) -> pa.DataType:
    return pa.string() if kind == pa.binary() else kind


def _parse_at_once(table: Table, values: bytes) -> pa.Table:
    """Read `(…),(…)` on one line with Arrow's CSV parser.

    The text holds no raw newline, so three of them can stand for `),(`: between rows they end the row and are two
    empty lines that are skipped, inside a string they are turned back. Nothing moves, which is faster than
    replacing. Quotes are doubled for the parser, the other escapes are undone column by column.

    Raises:
        pyarrow.ArrowInvalid: a row has a wrong number of values or one that is not of its column's type.
    """
    escaped = b"\\" in values
    if escaped:
        values = values.replace(rb"\\", _MASK).replace(rb"\'", b"''")
    text = np.frombuffer(values, np.uint8)[1:-1].copy()
    ends = np.flatnonzero(text[:-2] == ord(")"))
    ends = ends[(text[ends + 1] == ord(",")) & (text[ends + 2] == ord("("))]
    text[ends] = text[ends + 1] = text[ends + 2] = ord("\n")
    rows = csv.read_csv(
        pa.BufferReader(pa.py_buffer(text)),
        read_options=csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=list(table.types)),
        parse_options=csv.ParseOptions(quote_char="'", newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            check_utf8=False,
            column_types=table.types,
            include_columns=table.wanted,
            null_values=["NULL"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return pa.table(
        {
            name: _text(column, escaped=escaped) if column.type == pa.binary() else column
            for name, column in zip(table.wanted, rows.columns, strict=True)
        }
    )


def _text(column: pa.ChunkedArray, *, escaped: bool) -> pa.ChunkedArray:
    """Undo what `_parse_at_once` did to strings, then the escapes, then decode."""
    column = pc.replace_substring(column, "\n\n\n", "),(")
    if escaped:
        if pc.any(pc.match_substring(column, "\\")).as_py():
            for code, character in _ESCAPES.items():
                column = pc.replace_substring(column, "\\" + code, character)
            column = pc.replace_substring_regex(column, r"(?s)\\([^%_])", r"\1")
        column = pc.replace_substring(column, _MASK.decode(), "\\")
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.chunked_array([pa.array([v if v is None else _decode(v) for v in column.to_pylist()], pa.string())])


def _rows(values: bytes) -> Iterator[tuple[bytes, list[bytes | None] | None]]:
    """Yield each row's text and values (None for NULL), no values where a row is malformed."""
    start = values.find(b"(")
    while start >= 0:
        row: list[bytes | None] | None = []
        position, end = start + 1, b","
        while row is not None and end == b",":
            if match := _VALUE.match(values, position):
                string, bare, end = match.groups()
                row.append(_unescape(string) if string is not None else None if bare == b"NULL" else bare)
                position = match.end()
            else:  # take the row to end where the next one seems to begin
                row = None
                position = values.find(b"),(", start) + 1 or len(values)
        yield values[start:position], row
        start = values.find(b"(", position)


def _unescape(text: bytes) -> bytes:
    return _ESCAPED.sub(lambda m: _ESCAPES.get(chr(m[1][0]), chr(m[1][0])).encode("latin-1") if m[1] else b"'", text)


def _convert(value: bytes | None, kind: pa.DataType) -> int | float | str | None:
    if value is None:
        return None
    if kind == pa.int64():
        number = int(value)
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"{number} is out of range")
        return number
    return float(value) if kind == pa.float64() else _decode(value)


def _decode(text: bytes) -> str:
    """UTF-8 where it is that, else latin-1 (OQMD's tables)."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
