"""Rows of frames wherever they lie: some columns of those that meet a condition, in the order they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajmill.errors import FilterError, ReleaseError
from trajmill.hub_files import explained
from trajmill.schema import FRAME_SCHEMA
from trajmill.storage import COLUMNS, AnyPath, parquet, readable
from trajmill.stores import shown
from trajmill.stores.base import Store, stream
from trajmill.stores.delta import DeltaStore
from trajmill.uris import one_line

STRESS_UNITS = ("kBar", "eV/A^3")
"""VASP's unit with its sign, positive under compression, and ASE's, positive under tension."""

NO_FILES = "has no Parquet files that could be read in pieces; `trajmill query ... --out file.parquet` makes one"

BATCH = 10_000
"""Rows that are handed out at once at most."""


class Wanted(NamedTuple):
    """Which rows are wanted.

    Attributes:
        conditions: in SQL, all of which a row must meet.
        ids: of the trajectories; None takes all.
        without: whether `ids` are of those that are left out.
    """

    conditions: tuple[str, ...] = ()
    ids: pa.Array | None = None
    without: bool = False

    @property
    def everything(self) -> bool:
        """Whether all rows are."""
        return not self.conditions and self.ids is None


class Rows(Protocol):
    """Labelled frames of a store, of a release, or of somebody else's files.

    Attributes:
        schema: of all columns there are; its metadata says in which unit stress is.
    """

    schema: pa.Schema

    def count(self) -> int:
        """Count them."""
        ...

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream these columns."""
        ...

    def offer(self, db: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Any:
        """Make them the view `rows` of a connection, with these columns at least; use it as a context manager."""
        ...

    def files(self) -> Sequence[tuple[AnyPath, str | None]]:
        """List the Parquet files that hold them, each with the asset that all of its rows are of, if it is a store's.

        Raises:
            FilterError: they are in no such files.
        """
        ...

    @property
    def doubted(self) -> str | None:
        """What identifiers of frames begin with whose stress is in no known unit."""
        ...


class StoreRows:
    """Frames of a store.

    Args:
        store: where they are.
        role: `frame`, or `input` for geometries without labels.
    """

    def __init__(self, store: Store, role: str = "frame") -> None:
        self.schema = FRAME_SCHEMA
        self._store, self._role = store, role

    def count(self) -> int:
        """See `Rows.count`."""
        return sum(self._store.count(self._role).values())

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Rows.batches`."""
        return self._store.read(self._role, columns=columns)

    @contextmanager
    def offer(self, db: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Iterator[None]:
        """See `Rows.offer`."""
        files = self._store.files(self._role) if isinstance(self._store, DeltaStore) else []
        if files and all(isinstance(path, Path) for _, path, _ in files):
            # the name of the asset is in the path, as the column `asset`
            db.read_parquet([str(path) for _, path, _ in files], hive_partitioning=True).create_view("rows")
            yield
            return
        with stream(self._store, self._role, columns) as rows:
            db.register("rows", rows)
            yield

    doubted = None

    def files(self) -> Sequence[tuple[AnyPath, str | None]]:
        """See `Rows.files`."""
        if not isinstance(self._store, DeltaStore):
            raise FilterError(f"{shown(self._store.address)}: {NO_FILES}")
        return [(path, asset) for asset, path, rows in self._store.files(self._role) if rows]


class ParquetRows:
    """Rows of Parquet files.

    Args:
        files: in order.
        stress: unit in which the files hold stress, `eV/A^3` or `kBar` (VASP's sign); None where they say so.
        doubted: what identifiers of frames begin with whose stress is in no known unit, and is left out.

    Raises:
        ReleaseError: they do not say it.
    """

    def __init__(self, files: Sequence[AnyPath], stress: str | None = None, doubted: str | None = None) -> None:
        self._files, self.doubted = files, doubted
        with _said(files[0]):
            self.schema = pq.read_schema(readable(files[0], COLUMNS))
        metadata = dict(self.schema.metadata or {})
        if stress not in (None, *STRESS_UNITS):
            raise ReleaseError(f"no unit of stress: {stress}; say {' or '.join(STRESS_UNITS)}")
        if stress is not None:
            metadata[b"trajmill.stress_unit"] = stress.encode()
        if b"trajmill.stress_unit" not in metadata and "stress_tensor" in self.schema.names:
            raise ReleaseError(
                f"{files[0]}: does not say in which unit stress is; say stress='kBar' (as the published LeMat-Traj, "
                "VASP's sign) or stress='eV/A^3' (ASE's sign)"
            )
        self.schema = self.schema.with_metadata(metadata)

    def count(self) -> int:
        """See `Rows.count`."""
        return sum(pq.read_metadata(readable(file, COLUMNS)).num_rows for file in self._files)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Rows.batches`."""
        doubted = self.doubted if "stress_tensor" in columns else None
        read = list(dict.fromkeys([*columns, "id"])) if doubted else list(columns)
        for file in self._files:
            for batch in filter(len, _scanned(file, read)):
                yield without_stress(batch, doubted).select(columns) if doubted else batch

    @contextmanager
    def offer(self, db: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Iterator[None]:  # noqa: ARG002
        """See `Rows.offer`."""
        if all(isinstance(file, Path) for file in self._files):
            rows = db.read_parquet([str(file) for file in self._files])
        else:
            with _said(self._files[0]):  # DuckDB asks Arrow for columns, and for rows by simple conditions
                rows = db.from_arrow(parquet(self._files))
        if self.doubted:
            known = f"CASE WHEN NOT starts_with(id, '{self.doubted}') THEN stress_tensor END"
            rows = rows.project(f"* REPLACE ({known} AS stress_tensor)")
        rows.create_view("rows")
        yield

    def files(self) -> Sequence[tuple[AnyPath, str | None]]:
        """See `Rows.files`."""
        return [(file, None) for file in self._files]


def _said(file: Any) -> AbstractContextManager[None]:
    """Say in a line what goes wrong with a file of the Hub, as other files' errors do by themselves."""
    return explained(str(file)) if hasattr(file, "fs") else nullcontext()


def _scanned(file: AnyPath, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _said(file):
        yield from parquet([file]).scanner(columns=columns, batch_size=BATCH, use_threads=False).to_batches()


def without_stress(batch: pa.RecordBatch, prefix: str) -> pa.RecordBatch:
    """Leave out the stress of frames whose identifiers begin so."""
    index = batch.schema.names.index("stress_tensor")
    stress = batch["stress_tensor"]
    known = pc.if_else(pc.starts_with(batch["id"], prefix), pa.scalar(None, stress.type), stress)
    return batch.set_column(index, batch.schema.field(index), known)


def where(rows: Rows, columns: Sequence[str], wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Stream columns of the rows that are wanted, in the order they are stored."""
    schema = pa.schema([rows.schema.field(name) for name in columns], metadata=rows.schema.metadata)
    with _asking(rows, wanted, columns) as db:
        if wanted.ids is not None:
            # the order of rows survives a filter, but a join only on one thread and with the ids on its inner side
            db.execute("SET threads = 1")
            db.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        chosen = ", ".join(f'"{name}"' for name in columns)
        for batch in _to_reader(db.sql(f"SELECT {chosen} FROM wanted")):
            if batch.num_rows:
                yield batch.cast(schema)


def ask(rows: Rows, sql: str, wanted: Wanted) -> pa.Table:
    """Run SQL over the view `wanted` of the rows that are wanted, once, and return what it finds."""
    with _asking(rows, wanted, [name for name in rows.schema.names if name in sql]) as db:
        return db.sql(sql).to_arrow_table()


@contextmanager
def _asking(rows: Rows, wanted: Wanted, columns: Sequence[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Connect to DuckDB with a view `wanted`, with these columns at least, in the order the rows are stored."""
    asked = condition(wanted, rows.schema)
    with duckdb.connect(config={"python_enable_replacements": False}) as db:  # a name is a view, never a variable
        db.execute("SET preserve_insertion_order = true")
        if wanted.ids is not None:
            db.register("ids", pa.table({"wanted_id": wanted.ids}))
        needed = [name for name in rows.schema.names if name in columns or name in asked]
        try:
            with rows.offer(db, needed):
                db.execute(f"CREATE TEMP VIEW wanted AS SELECT * FROM rows WHERE {asked}")
                yield db
        except duckdb.Error as error:  # also what files say that it reads through Python
            raise ReleaseError(f"the rows cannot be read: {one_line(error)}") from error


def condition(wanted: Wanted, schema: pa.Schema) -> str:
    """Return in SQL what rows must meet; trajectories that are wanted, or left out, are in a table `ids`."""
    asked = " AND ".join(wanted.conditions) or "TRUE"
    among = "NOT IN" if wanted.without else "IN"
    return asked if wanted.ids is None else f"{asked} AND {trajectory_id(schema)} {among} (SELECT wanted_id FROM ids)"


def _to_reader(relation: Any) -> Iterator[pa.RecordBatch]:
    """Return what a query finds as a stream; DuckDB has renamed how one asks for it."""
    ask = relation.to_arrow_reader if hasattr(relation, "to_arrow_reader") else relation.fetch_arrow_reader
    reader: Iterator[pa.RecordBatch] = ask(BATCH)
    return reader


def trajectory_id(schema: pa.Schema) -> str:
    """Return the SQL of what identifies a row's trajectory; the published schema has no column for it."""
    return "trajectory_id" if "trajectory_id" in schema.names else "regexp_replace(id, '-[0-9]+$', '')"
