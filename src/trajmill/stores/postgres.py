"""A store in PostgreSQL: a schema with one table per role, and one that says what each asset's rows were made of.

A worker copies an asset's rows into staging tables of its own, in one transaction that is gone with the worker. The
commit moves them into the tables in another, together with the asset's line of the ledger. Each row has a
position that grows in the order they were written and also tells where batches were cut, see `POSITION`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit
from weakref import finalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajmill.errors import StoreError, require
from trajmill.recipe import digest
from trajmill.schema import DATA_MODEL_VERSION, FILE_SCHEMA, IDENTIFIERS, MATRIX, PARTITIONS, STORE_SCHEMA
from trajmill.stores import shown
from trajmill.stores.base import ROLES, Commit, DataFile, Store, as_balance

SCHEMA = "trajmill"
"""Schema of the database, unless the address names another."""

ROW, BATCH, ATTEMPT = 16, 20, 27
"""Bits of a position."""

POSITION = (
    "Place of the row: number of the attempt that wrote it, of its batch in the attempt, of the row in the batch "
    f"({ATTEMPT}, {BATCH} and {ROW} bits). Ordered by it, the rows of an asset come as they were written."
)
FLAT = "Row by row: x, y, z of the first, then of the second, ... "

GROUP_ROWS, GROUP_ASSETS = 20_000, 100
"""What is read with one query at most, where assets are small: as much as is sorted in memory."""

NUL, STAND_IN = "\0", "\U0010ffff"
"""PostgreSQL's text has no NUL, which damaged raw files can have; a character that is none stands for it."""

CONNECTING = {
    "connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3",
    "application_name": "trajmill", "client_encoding": "UTF8",
}  # fmt: skip
"""What libpq is told unless the address does; a server that is gone is noticed."""

SETTINGS = "-c client_min_messages=warning -c idle_in_transaction_session_timeout=0"
"""Of each session: libpq prints messages, and a snapshot may wait for long."""

# what a transaction that reads begins with
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresStore(Store):
    """A store in a schema of a PostgreSQL database.

    What is read is one snapshot, taken when it is first needed and anew after each commit of this object.

    Args:
        address: `postgresql://user:password@host:port/database?schema=name`, with any other option of libpq.
        create: make the schema and its tables where they are not.
        version: the version to read, which must be the newest: others are not kept.

    Raises:
        StoreError: the database cannot be reached, holds no store there, or one that cannot be read.
        MissingExtraError: the driver is not installed (extra `postgres`).
    """

    def __init__(self, address: str, *, create: bool = False, version: int | None = None) -> None:
        self.address = address
        self._server = _Server(address)
        self._session = self._server.connect()
        self._snapshot = False
        finalize(self, self._session.close)
        if create:
            self._create()
        with self._reading():
            ((found,),) = self._ask("SELECT to_regclass('store') IS NOT NULL")
            if not found:
                raise StoreError(f"{self._server}: no trajmill store here; `trajmill build` makes one")
            ((model,),) = self._ask("SELECT data_model FROM store")
        if model != DATA_MODEL_VERSION:
            raise StoreError(
                f"{self._server}: has data model {model}, this version of trajmill reads {DATA_MODEL_VERSION}"
            )
        if version not in (None, self.version):
            raise StoreError(
                f"{self._server}: version {version} is not there, only the newest, {self.version}; "
                "a Delta Lake store keeps them all"
            )

    def _create(self) -> None:
        with self._writing():
            self._run("SELECT pg_advisory_xact_lock(hashtext($1), 0)", self._server.schema)  # two that create at once
            ((there,),) = self._ask("SELECT to_regnamespace($1) IS NOT NULL", self._server.quoted)
            if not there:
                self._run(f"CREATE SCHEMA {self._server.quoted}")
            ((present,),) = self._ask("SELECT count(*) FROM pg_tables WHERE schemaname = $1", self._server.schema)
            ((found,),) = self._ask("SELECT to_regclass('store') IS NOT NULL")
            if present and not found:
                raise StoreError(f"{self._server}: not empty and no trajmill store; choose another schema")
            ((encoding,),) = self._ask("SELECT current_setting('server_encoding')")
            if encoding != "UTF8":
                raise StoreError(f"{self._server}: the database is in {encoding}; make one with ENCODING 'UTF8'")
            if not found:
                for statement in _definition():
                    self._run(statement)

    # --- sessions

    def _run(self, sql: str, *values: Any) -> None:
        with self._session.cursor() as cursor:
            cursor.execute(sql, values or None)

    def _ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._session.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Read in the snapshot of this object; take one where there is none."""
        with self._server.plain_errors():
            try:
                if not self._snapshot:
                    self._run(SNAPSHOT)
                    self._snapshot = True
                yield
            except BaseException:
                self._undo()
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Run one transaction, which is undone when it does not come to its end."""
        with self._server.plain_errors():
            try:
                self._undo()
                yield
                self._session.commit()
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        self._snapshot = False
        with suppress(self._session.Error):  # a server that is gone has undone it
            self._session.rollback()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Tell others that a build is at work. Builds go on side by side; one that is alone clears leftovers.

        Rows that wait to be committed while nobody builds are of builds that were killed.
        """
        key = f"hashtext('build ' || {_literal(self._server.schema)}), 0"
        with self._server.plain_errors(), closing(self._session.adbc_clone()) as session, session.cursor() as cursor:
            cursor.execute(f"SELECT pg_try_advisory_lock({key})")
            if cursor.fetchall() == [(True,)]:
                with self._writing():
                    for (attempt,) in self._ask("DELETE FROM staged RETURNING attempt"):
                        for role in ROLES:
                            self._run(f"DROP TABLE IF EXISTS {_staging(attempt, role)}")
                cursor.execute(f"SELECT pg_advisory_unlock({key})")
            cursor.execute(f"SELECT pg_advisory_lock_shared({key})")
            session.commit()
            yield

    # --- what is there

    @property
    def version(self) -> int:
        """The version that is read: 0 when the store was made, one more with each commit."""
        with self._reading():
            ((version,),) = self._ask("SELECT version FROM store")
        return int(version)

    def committed(self, asset: str, fingerprint: str) -> bool:
        """Tell whether the asset's rows are those of this fingerprint."""
        with self._reading():
            return self._ask("SELECT fingerprint FROM ledger WHERE asset = $1", asset) == [(fingerprint,)]

    def count(self, role: str) -> dict[str, int]:
        """Count the rows of a role by asset, sorted by asset; assets without any are left out."""
        return {asset: rows for asset, _, rows in self._places(role)}

    def _places(self, role: str, assets: Iterable[str] | None = None) -> list[tuple[str, int, int]]:
        """List the assets that have rows of a role as (asset, attempt, rows), sorted by asset."""
        names = None if assets is None else ", ".join([_literal(asset) for asset in assets] or ["NULL"])
        wanted = "" if names is None else f"AND asset IN ({names})"
        with self._reading():
            return self._ask(f"SELECT asset, attempt, {role}s FROM ledger WHERE {role}s > 0 {wanted} ORDER BY asset")

    def read(
        self,
        role: str,
        *,
        columns: Sequence[str] | None = None,
        assets: Iterable[str] | None = None,
        where: Mapping[str, str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream rows; see `Store.read`."""
        schema = FILE_SCHEMA if columns is None else pa.schema([STORE_SCHEMA.field(name) for name in columns])
        places = self._places(role, assets)
        if not places:
            return
        with self._reading():
            ((snapshot,),) = self._ask("SELECT pg_export_snapshot()")
        selected = ", ".join(f"'{role}' AS role" if name == "role" else f'"{name}"' for name in schema.names)
        conditions = "".join(f' AND "{name}" = {_literal(value)}' for name, value in (where or {}).items())
        looked_up = assets is None and not set(IDENTIFIERS).isdisjoint(where or ())  # few rows, found by an index
        # a session of its own, so that several can be read at once
        with self._server.plain_errors(), closing(self._session.adbc_clone()) as session, session.cursor() as cursor:
            cursor.execute(SNAPSHOT)
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            for group in [[]] if looked_up else _grouped(places):
                ranges = " OR ".join(_range(attempt) for attempt in group) or "true"
                alone = len(group) == 1
                order = "position" if alone else 'asset COLLATE "C", position'
                # a large asset comes along the index, row by row; without statistics the server would sort it on disk
                cursor.execute(f"SET LOCAL enable_sort TO {'off' if alone else 'on'}")
                cursor.execute(f"SELECT position, {selected} FROM {role} WHERE ({ranges}){conditions} ORDER BY {order}")
                yield from (_from_sql(batch, schema) for batch in _as_written(cursor.fetch_record_batch()))

    def commits(self) -> dict[str, Commit]:
        """Return what each asset's newest commit recorded, by asset; without its files. Not of dropped assets."""
        with self._reading():
            recipes = {key: json.loads(text) for key, text in self._ask("SELECT digest, content::text FROM recipe")}
            found = self._ask(
                "SELECT asset, fingerprint, balance::text, versions::text, raw, recipe FROM ledger ORDER BY asset"
            )
        return {
            asset: Commit(
                asset, mark, (), as_balance(json.loads(balance)), json.loads(versions), raw, recipes.get(recipe, {})
            )
            for asset, mark, balance, versions, raw, recipe in found
        }

    def upstream(self) -> dict[str, Any]:
        """Return the upstream versions that the store was last complete for, by source; empty when none is known."""
        with self._reading():
            ((text,),) = self._ask("SELECT upstream::text FROM store")
        return dict(json.loads(text))

    # --- writing

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by the address: a connection cannot."""
        return PostgresStore, (self.address,)

    def for_worker(self, asset: str) -> PostgresStore:  # noqa: ARG002 (what it has of each is looked up)
        """Return the store as a worker needs it; see `Store.for_worker`."""
        return self

    def writer(self, asset: str) -> PostgresWriter:
        """Start writing an asset's rows."""
        with self._server.plain_errors():
            return PostgresWriter(self._server, self._session.adbc_clone(), asset)

    def commit(self, commit: Commit) -> None:
        """Replace all rows of the asset in one transaction."""
        counts = {role: sum(f.rows for f in commit.files if f.role == role) for role in ROLES}
        attempt = min((_attempt(file) for file in commit.files), default=0)
        used = digest(commit.recipe)
        balance, versions = (json.dumps(x, sort_keys=True) for x in (vars(commit.balance), commit.versions))
        new_recipe = "INSERT INTO recipe VALUES ($1, $2::json) ON CONFLICT DO NOTHING"
        with self._writing():
            self._run(new_recipe, used, json.dumps(commit.recipe, sort_keys=True))
            self._remove(commit.asset)
            for file in commit.files:
                self._move(file, commit.asset)
            if attempt:
                self._run(f"DELETE FROM staged WHERE attempt = {attempt}")
            self._run(
                f"""INSERT INTO ledger VALUES ($1, $2, $3, $4, $5::json, $6::json, {attempt},
                    {", ".join(str(counts[role]) for role in ROLES)}, now())""",
                commit.asset, commit.fingerprint, commit.raw, used, balance, versions,
            )  # fmt: skip
            self._run("UPDATE store SET version = version + 1")  # last: others wait for it until the end

    def _move(self, file: DataFile, asset: str) -> None:
        """Move staged rows into the table of their role."""
        ((there,),) = self._ask("SELECT to_regclass($1) IS NOT NULL", file.path)
        moved = 0
        if there:
            with self._session.cursor() as cursor:
                cursor.execute(f"INSERT INTO {file.role} SELECT * FROM {file.path}")
                moved = cursor.rowcount
            self._run(f"DROP TABLE {file.path}")
        if moved != file.rows:  # another build cleared them, or the server crashed
            raise StoreError(
                f"{self._server}: {moved:,} of {file.rows:,} rows staged for {asset} are there; run the command again"
            )

    def _remove(self, asset: str) -> None:
        """Remove an asset's rows and its line, and keep others from it until the transaction ends."""
        self._run("SELECT pg_advisory_xact_lock(hashtext($1), hashtext($2))", self._server.schema, asset)
        for attempt, *counts in self._ask(
            "DELETE FROM ledger WHERE asset = $1 RETURNING attempt, frames, inputs, rejections", asset
        ):
            for role, rows in zip(ROLES, counts, strict=True):
                if rows:
                    self._run(f"DELETE FROM {role} WHERE {_range(attempt)}")

    def drop(self, asset: str) -> None:
        """Remove all rows of the asset in one transaction."""
        with self._writing():
            self._remove(asset)
            self._run("UPDATE store SET version = version + 1")

    def note_upstream(self, changes: Mapping[str, Any]) -> None:
        """Record which upstream versions the store is complete for; see `Store.note_upstream`."""
        with self._writing():
            ((text,),) = self._ask("SELECT upstream::text FROM store FOR UPDATE")
            before = json.loads(text)
            after = {source: known for source, known in {**before, **changes}.items() if known is not None}
            if after != before:
                self._run(
                    "UPDATE store SET version = version + 1, upstream = $1::json", json.dumps(after, sort_keys=True)
                )


class PostgresWriter:
    """Copies the rows of one asset into staging tables, in one transaction: a worker that is killed leaves nothing."""

    def __init__(self, server: _Server, session: Any, asset: str) -> None:
        self._server, self._session, self._asset = server, session, asset
        self._rows: dict[str, int] = {}
        self._batches = 0
        finalize(self, session.close)
        with server.plain_errors(), session.cursor() as cursor:
            cursor.execute("SELECT nextval('attempt')")
            self._attempt = int(cursor.fetchall()[0][0])

    def write(self, role: str, batch: pa.RecordBatch) -> None:
        """Append rows of a role."""
        table = _staging(self._attempt, role)
        with self._server.plain_errors(), self._session.cursor() as cursor:
            if role not in self._rows:
                self._rows[role] = 0
                cursor.execute(f"CREATE UNLOGGED TABLE {table} (LIKE {role})")
            for start in range(0, len(batch), 1 << ROW):
                part = batch.slice(start, 1 << ROW)
                rows = _to_sql(part, self._asset, _position(self._attempt, self._batches))
                cursor.adbc_ingest(table, rows, mode="append", db_schema_name=self._server.schema)
                self._batches += 1
        self._rows[role] += len(batch)

    def close(self, fingerprint: str, versions: dict[str, str]) -> tuple[DataFile, ...]:  # noqa: ARG002
        """Let the rows wait for their commit."""
        with self._server.plain_errors(), self._session.cursor() as cursor:
            if self._rows:
                cursor.execute(f"INSERT INTO staged VALUES ({self._attempt}, $1, now())", (self._asset,))
            self._session.commit()
        self._session.close()
        return tuple(
            DataFile(_staging(self._attempt, role), 0, role, rows, "") for role, rows in sorted(self._rows.items())
        )

    def abort(self) -> None:
        """Remove what was written: the transaction goes with the session."""
        self._session.close()


class _Server:
    """Where a store is, and how sessions with it begin and fail."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.schema = options.pop("schema", SCHEMA)
        self.quoted = '"' + self.schema.replace('"', '""') + '"'
        self._shown = shown(address) + (f", schema {self.schema}" if self.schema != SCHEMA else "")
        try:
            fits = re.fullmatch(r"[\w.:%/-]*", parts.hostname or "") and (parts.port or 1) and not parts.fragment
        except ValueError:
            fits = False
        if not fits or not parts.path.strip("/"):
            raise StoreError(
                f"{self._shown}: not an address of a database; write postgresql://user:password@host:port/database, "
                "in user and password %40 for @, %2F for /, %3A for :, %3F for ?, %23 for #"
            )
        path = self.quoted.replace("\\", r"\\").replace(" ", r"\ ")
        options["options"] = f"{options.get('options', '')} {SETTINGS} -c search_path={path}"
        self._uri = urlunsplit(parts._replace(query=urlencode(CONNECTING | options, quote_via=quote)))
        self._secrets = [unquote(s) for s in (parts.password, options.get("password")) if s]
        self._driver = require("adbc_driver_postgresql.dbapi", extra="postgres")

    def __str__(self) -> str:
        return self._shown

    def connect(self) -> Any:
        """Begin a session: `closing` ends it, and what it has not committed is undone."""
        with self.plain_errors():
            return self._driver.connect(self._uri)

    @contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Turn what the server or the connection has to say into a StoreError of one line."""
        try:
            yield
        except self._driver.Error as error:
            text = str(error).split("\nQuery was:")[0].split("\nLINE ")[0]
            text = re.sub(r"^[A-Z_]+: |\[libpq\] ", "", " ".join(text.split()))
            for secret in self._secrets:
                text = text.replace(secret, "...")
            raise StoreError(f"{self}: {text} (what was committed before is unharmed)") from error


def _definition() -> Iterator[str]:
    """Yield the statements that make an empty store."""
    yield "CREATE SEQUENCE attempt"
    yield "CREATE TABLE store (data_model int NOT NULL, version bigint NOT NULL, upstream json NOT NULL)"
    yield f"INSERT INTO store VALUES ({DATA_MODEL_VERSION}, 0, '{{}}')"
    yield "CREATE TABLE recipe (digest text PRIMARY KEY, content json NOT NULL)"
    yield "CREATE TABLE staged (attempt bigint PRIMARY KEY, asset text NOT NULL, since timestamptz NOT NULL)"
    yield """CREATE TABLE ledger (
        asset text COLLATE "C" PRIMARY KEY, fingerprint text NOT NULL, raw text NOT NULL, recipe text NOT NULL,
        balance json NOT NULL, versions json NOT NULL, attempt bigint NOT NULL, frames bigint NOT NULL,
        inputs bigint NOT NULL, rejections bigint NOT NULL, committed timestamptz NOT NULL
    )"""
    columns = [*FILE_SCHEMA, PARTITIONS[1].field]
    for role in ROLES:
        typed = ", ".join(f'"{field.name}" {_sql_type(field.type)}' for field in columns)
        yield f"CREATE TABLE {role} ({typed}, position bigint PRIMARY KEY)"
        for field in columns:
            unit, meaning = (field.metadata[key].decode() for key in (b"unit", b"description"))
            note = (FLAT if field.type == MATRIX else "") + meaning + (f" Unit: {unit}." if unit else "")
            yield f'COMMENT ON COLUMN {role}."{field.name}" IS {_literal(note)}'
        yield f"COMMENT ON COLUMN {role}.position IS {_literal(POSITION)}"
        for indexed in (*IDENTIFIERS, "source, functional"):
            yield f"CREATE INDEX ON {role} ({indexed})"


def _sql_type(dtype: pa.DataType) -> str:
    """Return PostgreSQL's type for a column; a matrix is one array, row by row."""
    if pa.types.is_list(dtype):
        return _sql_type(dtype.value_type).removesuffix("[]") + "[]"
    names = {pa.string(): "text", pa.bool_(): "boolean", pa.float64(): "double precision"}
    return {pa.int8(): "smallint", pa.int32(): "integer", **names}[dtype]


def _position(attempt: int, batch: int) -> int:
    """Return the position of the first row of a batch."""
    return (attempt << BATCH | batch) << ROW


def _range(attempt: int) -> str:
    """Return the condition for rows of an attempt."""
    return f"position BETWEEN {_position(attempt, 0)} AND {_position(attempt + 1, 0) - 1}"


def _staging(attempt: int, role: str) -> str:
    return f"staged_{attempt}_{role}"


def _attempt(file: DataFile) -> int:
    return int(file.path.split("_")[1])


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _grouped(places: Iterable[tuple[str, int, int]]) -> Iterator[list[int]]:
    """Group the attempts of neighbouring small assets; a large one stays alone."""
    group: list[int] = []
    size = 0
    for _, attempt, rows in places:
        if group and (size + rows > GROUP_ROWS or len(group) == GROUP_ASSETS):
            yield group
            group, size = [], 0
        group.append(attempt)
        size += rows
    if group:
        yield group


def _as_written(chunks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut a stream of rows where their batches were cut when they were written."""
    held: list[pa.RecordBatch] = []
    current = -1
    for chunk in chunks:
        batches = chunk["position"].to_numpy() >> ROW
        borders = [0, *(np.flatnonzero(np.diff(batches)) + 1).tolist(), len(chunk)]
        for start, end in pairwise(borders):
            if start < end and batches[start] != current and held:
                yield _joined(held)
                held = []
            if start < end:
                current = batches[start]
                held.append(chunk.slice(start, end - start))
    if held:
        yield _joined(held)


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def _to_sql(batch: pa.RecordBatch, asset: str, first: int) -> pa.RecordBatch:
    """Give rows the form of PostgreSQL's tables."""
    columns = {field.name: _to_column(batch[field.name]) for field in FILE_SCHEMA}
    columns["asset"] = pa.repeat(asset, len(batch))
    columns["position"] = pa.array(np.arange(first, first + len(batch)))
    return pa.RecordBatch.from_pydict(columns)


def _to_column(values: pa.Array) -> pa.Array:
    if values.type == MATRIX:
        inner = values.values
        if pc.any(pc.not_equal(pc.list_value_length(values.flatten()), 3)).as_py():
            raise StoreError("a matrix whose rows are not of three numbers; please report this")
        mask = values.is_null() if values.null_count else None
        return pa.ListArray.from_arrays(inner.offsets.take(values.offsets), inner.values, mask=mask)
    return _replaced(values, NUL, STAND_IN)


def _from_sql(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Give rows of PostgreSQL's tables their own form back."""
    return pa.RecordBatch.from_arrays([_from_column(batch[f.name], f.type) for f in schema], schema=schema)


def _from_column(values: pa.Array, dtype: pa.DataType) -> pa.Array:
    if dtype == MATRIX:
        numbers = values.values
        rows = pa.ListArray.from_arrays(pa.array(np.arange(0, len(numbers) + 1, 3, dtype=np.int32)), numbers)
        offsets = pa.array(values.offsets.to_numpy() // 3)
        return pa.ListArray.from_arrays(offsets, rows, mask=values.is_null() if values.null_count else None)
    return _replaced(values.cast(dtype), STAND_IN, NUL)


def _replaced(values: pa.Array, old: str, new: str) -> pa.Array:
    """Replace a character in text, or in lists of text; most have none and stay as they are."""
    if pa.types.is_list(values.type):
        inner = values.values
        texts = _replaced(inner, old, new)
        mask = values.is_null() if values.null_count else None
        offsets = pa.array(values.offsets.to_numpy())
        return values if texts is inner else pa.ListArray.from_arrays(offsets, texts, mask=mask)
    if pa.types.is_string(values.type) and pc.any(pc.match_substring(values, old)).as_py():
        return pc.replace_substring(values, old, new)
    return values
