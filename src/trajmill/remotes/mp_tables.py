"""Materials Project, Delta Lake on S3: the needed columns of three tables, each at a fixed version.

Each data file becomes a local Parquet file with the same rows in the same order. Rows of trajectories that no build
with this recipe can keep lose their arrays and keep what identifies and counts them: a build reads them all the same,
and turns them away by the same rule.

A copy is made row group by row group, and a column at a time: in memory are `BUFFER` bytes of each column that is
read and `ROW_GROUP` bytes of rows, however large the file is.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import numpy as np

from trajmill import recipe
from trajmill.errors import RemoteContentError, RemoteNotFoundError, RemoteUnavailableError
from trajmill.remotes.base import Stage
from trajmill.remotes.s3 import Bucket
from trajmill.remotes.transfer import USER_AGENT, Again, Received, Session, _disk
from trajmill.sources.mp_documents import Material
from trajmill.sources.mp_ids import canonical_task_id
from trajmill.sources.mp_materials import facts_of
from trajmill.sources.parquet_tables import DataFile
from trajmill.sources.vasp_types import normalise_run_type, stored_types

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from deltalake import DeltaTable

T = TypeVar("T")

BUFFER = 1 << 22
"""Bytes of a column that are asked for, and held, at a time."""

BATCH = 128
"""Rows that are decoded at a time; one can have hundreds of frames."""

ROW_GROUP = 1 << 26
"""Bytes of decoded rows that make a row group; a larger one of the remote file becomes several."""

FORM = 1
"""Of the local files. Raise when they must be fetched again."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is copied of a table.

    Attributes:
        place: of the table, in its bucket and in the raw folder.
        columns: what is copied; `a.b` is a field of a struct, also of one in a list.
        essential: those of them without which nothing can be built.
        keys: those that decide whether a row's arrays are wanted; none where all rows are.
        arrays: those that an unwanted row loses.
    """

    place: str
    columns: Sequence[str]
    essential: Sequence[str]
    keys: Sequence[str] = ()
    arrays: Sequence[str] = ()

    @property
    def digest(self) -> str:
        """A digest of all of it."""
        text = repr((FORM, *map(tuple, (self.columns, self.keys, self.arrays))))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class MaterialsProjectTables:
    """The active tables: trajectories, tasks and materials."""

    options: recipe.FetchMaterialsProject
    source: recipe.MaterialsProject
    license: recipe.License
    name: str = "mp"
    layout: str = "delta"

    def stages(self, session: Session, root: Path) -> Iterator[Stage]:
        """List tasks and materials, then trajectories, which are filtered by the licences; see `Remote.stages`."""
        parsed, build = (Bucket(name, self.options, session) for name in (self.options.parsed, self.options.build))
        places = zip(_selections(), (parsed, parsed, build), strict=True)
        # all three at once, so that the versions go together
        trajectories, tasks, materials = (_Table(self.options, session, *place) for place in places)
        newest = materials.newest(root)
        yield Stage(files=[*newest, *tasks.files(root)], version=materials.version | tasks.version)
        wanted = self._wanted([file.local for file in newest])
        yield Stage(files=[*trajectories.files(root, wanted)], version=trajectories.version)

    def _wanted(self, materials: Sequence[DataFile]) -> Wanted | None:
        """Make the filter of the trajectories; None while the materials are not here."""
        from trajmill.sources.materials_project_delta import read_materials

        licences = None
        if self.license.enabled:
            if not all(file.path.exists() for file in materials):
                return None
            keep_orphans = self.source.tasks_without_material == "keep"
            licences = Licences(read_materials(materials), self.license.accept, keep_orphans=keep_orphans)
        return Wanted(self.options.run_types, licences)


def _selections() -> tuple[Selection, Selection, Selection]:
    """Return what is copied of trajectories, tasks and materials: what `MaterialsProjectDelta` reads."""
    from trajmill.sources import materials_project_delta as delta  # it needs pyarrow

    light = ("elements", "num_electronic_steps")
    energies = [f"electronic_steps.{name}" for name in delta.ELECTRONIC_ENERGIES]
    trajectories = Selection(
        place=delta.TRAJECTORIES.as_posix(),
        columns=(*delta.TYPES, delta.N_STEPS, *delta.ARRAYS, *energies),
        essential=(*delta.TYPES, "elements", "cart_coords", "lattice", "e_fr_energy", "forces"),
        keys=(*delta.TYPES, delta.N_STEPS),
        arrays=(*(name for name in delta.ARRAYS if name not in light), *energies),
    )
    tasks = Selection(
        place=delta.TASKS.as_posix(),
        columns=delta.TASK_COLUMNS,
        essential=("task_id", "input.incar", "input.parameters"),
    )
    materials = Selection(
        place=delta.MATERIALS.as_posix(),
        columns=delta.MATERIAL_COLUMNS,
        essential=("material_id", "task_ids", "deprecated", "builder_meta.license"),
    )
    return trajectories, tasks, materials


class Licences:
    """Licences of tasks, in some 10 bytes a task (two of two million share a hash with a chance of 1e-7).

    Args:
        materials: documents; where several name a task, one with an accepted licence is enough.
        accept: licences the rule accepts.
        keep_orphans: whether a task that no material names is wanted.
    """

    def __init__(self, materials: Iterable[Material], accept: Sequence[str], *, keep_orphans: bool) -> None:
        self._keep_orphans = keep_orphans
        self._names: list[str] = []
        codes = dict.fromkeys(accept, -1)
        pairs = np.fromiter(self._pairs(materials, codes), [("task", "u8"), ("code", "i2")])
        pairs.sort(order=["task", "code"])  # an accepted licence comes first
        first = np.concatenate([[True], pairs["task"][1:] != pairs["task"][:-1]])[: len(pairs)]
        self._tasks, self._codes = pairs["task"][first], pairs["code"][first]

    def _pairs(self, materials: Iterable[Material], codes: dict[str, int]) -> Iterator[tuple[int, int]]:
        for material in materials:
            for task, facts in facts_of(material):
                code = codes.setdefault(facts.license or "", len(self._names))
                if code == len(self._names):
                    self._names.append(f"licence {facts.license}" if facts.license else "no licence")
                yield _hash(task), code

    def reason(self, task: str) -> str | None:
        """Say why a task is not wanted, None when it is; `task` is a canonical id."""
        value = np.uint64(_hash(task))
        i = int(np.searchsorted(self._tasks, value))
        if i == len(self._tasks) or self._tasks[i] != value:
            return None if self._keep_orphans else "no material"
        return None if self._codes[i] < 0 else self._names[self._codes[i]]


def _hash(task: str) -> int:
    return int.from_bytes(hashlib.blake2b(task.encode(), digest_size=8).digest())


class Wanted:
    """Which rows of trajectories keep their arrays.

    Args:
        run_types: stored run types that are wanted; so are rows that store none.
        licences: None when no licence is asked for.
    """

    def __init__(self, run_types: Iterable[str], licences: Licences | None) -> None:
        self._run_types = {normalise_run_type(name) for name in run_types} | {None}
        self._licences = licences

    def reasons(self, keys: pa.Table, partition: Mapping[str, str]) -> list[str | None]:
        """Say of each row why it loses its arrays, None where it keeps them.

        Args:
            keys: the key columns.
            partition: values of those that are in the path.
        """
        from trajmill.sources.materials_project_delta import N_STEPS, TYPES

        def values(name: str) -> Iterable[Any]:
            return keys[name].to_pylist() if name in keys.column_names else [partition.get(name)] * len(keys)

        return [self._reason(*row) for row in zip(*map(values, (*TYPES, N_STEPS)), strict=True)]

    def _reason(self, identifier: Any, run_type: Any, task_type: Any, n_steps: int | None) -> str | None:
        if n_steps is None:  # without arrays nobody would know how many frames it has
            return None
        if _run_type(run_type, task_type) not in self._run_types:
            return f"run type {run_type}"
        if self._licences is None or identifier is None:
            return None
        return self._licences.reason(canonical_task_id(str(identifier)))


@lru_cache(4096)
def _run_type(run_type: Any, task_type: Any) -> str | None:
    return stored_types(run_type, task_type)[0]


class _Table:
    """A Delta table on S3, at the version that is the newest when it is opened."""

    def __init__(
        self, options: recipe.FetchMaterialsProject, session: Session, selection: Selection, bucket: Bucket
    ) -> None:
        self._selection, self._bucket = selection, bucket
        opened = _open(options, session, selection.place, bucket)
        self.version = {selection.place: str(opened.version())}
        self._actions = _actions(opened, bucket.url(selection.place))

    def files(self, root: Path, wanted: Wanted | None = None) -> list[TableFile]:
        """List the active data files."""
        place = self._selection.place
        return [
            TableFile(
                bucket=self._bucket,
                selection=self._selection,
                local=DataFile(root / place / name, name),
                size=int(action["size_bytes"]),
                modified=_utc(action["modification_time"]),
                wanted=wanted,
            )
            for name, action in sorted(self._actions.items())
        ]

    def newest(self, root: Path) -> list[TableFile]:
        """List those of the newest `version` partition."""
        from trajmill.sources.materials_project_delta import newest_version

        files = self.files(root)
        names = {file.name for file in newest_version(file.local for file in files)}
        return [file for file in files if file.local.name in names]


def _open(options: recipe.FetchMaterialsProject, session: Session, place: str, bucket: Bucket) -> DeltaTable:
    """Open a table.

    Raises:
        FetchError: it cannot be opened; its subclasses say why.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    seconds = session.options.timeout
    settings = {
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": options.region,
        "AWS_ENDPOINT_URL": options.endpoint.rstrip("/"),
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "user_agent": USER_AGENT,
        "timeout": f"{10 * seconds:.0f}s",
        "max_retries": str(session.options.retries),
        "retry_timeout": f"{60 + seconds * (1 + session.options.retries):.0f}s",
    }
    address = bucket.url(place)
    try:
        return DeltaTable(f"s3://{bucket.name}/{place}", storage_options=settings)
    except TableNotFoundError as error:
        raise RemoteNotFoundError(f"{address}: no Delta table here; see fetch.mp in the recipe") from error
    except DeltaError as error:
        raise RemoteContentError(f"{address}: cannot be read as a Delta table ({_line(error)})") from error
    except OSError as error:  # one class for all that can go wrong between here and there: ask plainly
        for listed in bucket.objects(f"{place}/_delta_log/"):
            _head(bucket, listed["path"])
        raise RemoteUnavailableError(f"{address}: {_line(error)}; run again to go on") from error


def _actions(opened: DeltaTable, address: str) -> dict[str, dict[str, Any]]:
    """Return what the log says of each active data file, by its path in the table.

    Raises:
        FetchError: there is none, or one that must not be read as plain Parquet.
    """
    import pyarrow as pa

    if pa.table(opened.deletion_vectors()).num_rows:
        raise RemoteContentError(f"{address}: has deletion vectors, deleted rows that only a Delta reader can skip")
    actions = pa.table(opened.get_add_actions(flatten=True))
    partitions = [name.removeprefix("partition.") for name in actions.column_names if name.startswith("partition.")]
    found = {
        unquote(row["path"]): row for row in actions.select(["path", "size_bytes", "modification_time"]).to_pylist()
    }
    if not found:
        raise RemoteNotFoundError(f"{address}: the table has no data files")
    for name in found:
        if missing := set(partitions) - DataFile(Path(name), name).partition.keys():
            raise RemoteContentError(f"{address}: the path {name} does not say {', '.join(sorted(missing))}")
    return found


def _utc(milliseconds: Any) -> str:
    """Write a time of the log, which deltalake gives as a number or a date."""
    if isinstance(milliseconds, datetime):
        return milliseconds.astimezone(UTC).isoformat()
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A data file of a table, of which some columns are copied.

    Attributes:
        bucket: where it is.
        selection: what is copied.
        local: the copy, with the file's path in the table.
        size: bytes of the remote file.
        modified: ISO date of the remote file.
        wanted: which rows keep their arrays; None where all do, or while that is not known.
        at_most: `size` is only a bound.
    """

    bucket: Bucket
    selection: Selection
    local: DataFile
    size: int
    modified: str
    wanted: Wanted | None = None
    at_most: bool = True

    @property
    def path(self) -> str:
        """Return its place in the raw folder, which is that in the bucket."""
        return f"{self.selection.place}/{self.local.name}"

    @property
    def uri(self) -> str:
        """Return its address."""
        return self.bucket.url(self.path)

    @property
    def n_bytes(self) -> int:
        """Return the size of the whole file."""
        return self.size

    @property
    def part_of(self) -> str:
        """Return the table: its files are replaced as a whole."""
        return self.selection.place

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the log says, what is copied, and which of the local rows keep their arrays.

        Which rows the local file must have follows from the file itself and today's options and licences: it is fetched
        again when that is no longer what it has.
        """
        said = {"size": self.size, "modified": self.modified, "columns": self.selection.digest}
        return said | ({"rows": self._rows()} if self.selection.keys else {})

    def _rows(self) -> str | None:
        """Digest which rows keep their arrays; None while that is not known, or when there is no local file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.wanted is None:
            return None
        digest = hashlib.sha256()
        try:
            with pq.ParquetFile(self.local.path) as parquet:
                for i in range(parquet.num_row_groups):
                    keys = parquet.read_row_group(i, columns=list(self.selection.keys))
                    digest.update(bytes(reason is None for reason in self._reasons(keys)))
        except (OSError, pa.ArrowException):
            return None
        return digest.hexdigest()[:16]

    def _reasons(self, keys: pa.Table) -> list[str | None]:
        return self.wanted.reasons(keys, self.local.partition) if self.wanted else [None] * len(keys)

    def get(self, session: Session, target: Path) -> Received:
        """Copy what is selected; see `RemoteFile.get`. A failed attempt begins anew: Parquet cannot be continued."""
        part = target.with_name(f"{target.name}.part")
        with _disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            left_out = session.persist(self.uri, lambda: self._attempt(session, part))
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            part.replace(target)
        return Received(digest, left_out)

    def _attempt(self, session: Session, part: Path) -> dict[str, int]:
        import pyarrow as pa

        stream = _Stream(self.bucket, self.path, self.size, session)
        try:
            stream.check()
            with part.open("wb") as sink:
                left_out = self._copy(stream, sink)
                sink.flush()
                os.fsync(sink.fileno())
        except BaseException as error:
            session.advance(-stream.n_bytes)
            part.unlink(missing_ok=True)
            damaged = isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)
            if damaged:
                raise Again(f"damaged, or no Parquet file ({_line(error)})", final=RemoteContentError) from error
            raise
        return left_out

    def _copy(self, stream: _Stream, sink: io.BufferedWriter) -> dict[str, int]:
        """Copy row group by row group; return how many rows lost their arrays, by reason."""
        import pyarrow.parquet as pq

        left_out: Counter[str] = Counter()
        # without pre_buffer, which holds all columns of a row group at once, and can be on by default
        settings = {"buffer_size": BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(stream, **settings) as parquet:
            copy = _Copy(parquet, self.selection)
            if missing := [n for n in copy.missing if n not in self.local.partition]:
                raise RemoteContentError(
                    f"{self.uri}: has no column {', '.join(missing)}; has the table changed its form?"
                )
            with pq.ParquetWriter(sink, copy.schema, compression="zstd") as writer:
                for i in range(parquet.num_row_groups):
                    keys = copy.keys(i)
                    reasons = self._reasons(keys)
                    left_out.update(reason for reason in reasons if reason)
                    for table in _gathered(copy.rows(i, keys, reasons)):
                        writer.write_table(table, row_group_size=len(table))
        return dict(left_out)


class _Copy:
    """Reads a Parquet file as a selection wants it."""

    def __init__(self, parquet: pq.ParquetFile, selection: Selection) -> None:
        import pyarrow as pa

        from trajmill.sources.materials_project_delta import LEFT_OUT

        self._parquet, self._selection, self._left_out = parquet, selection, LEFT_OUT
        every = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
        self.missing = [name for name in selection.essential if not _leaves(every, [name])]
        self._keys = _leaves(every, selection.keys)
        self._arrays = _leaves(every, selection.arrays)
        self._others = [leaf for leaf in _leaves(every, selection.columns) if leaf not in {*self._keys, *self._arrays}]
        schema = parquet.read_row_groups([], columns=[*self._keys, *self._arrays, *self._others]).schema
        if selection.keys:
            nullable = [f.with_nullable(True) if self._may_go(f.name) else f for f in schema]
            schema = pa.schema([*nullable, pa.field(LEFT_OUT, pa.string())])
        self.schema = schema

    def _may_go(self, column: str) -> bool:
        return any(leaf.partition(".")[0] == column for leaf in self._arrays)

    def keys(self, i: int) -> pa.Table:
        """Read the columns of a row group that decide which rows keep their arrays."""
        return self._parquet.read_row_group(i, columns=self._keys, use_threads=False)

    def rows(self, i: int, keys: pa.Table, reasons: Sequence[str | None]) -> Iterator[pa.Table]:
        """Read the rest of a row group, its arrays only when some row keeps them."""
        import pyarrow as pa

        leaves = self._others if reasons and all(reasons) else [*self._others, *self._arrays]
        start = 0
        for batch in self._parquet.iter_batches(BATCH, row_groups=[i], columns=leaves, use_threads=False):
            rows = slice(start, start + len(batch))
            yield self._assemble(batch, keys[rows], pa.array(reasons[rows], pa.string()))
            start += len(batch)

    def _assemble(self, batch: pa.RecordBatch, keys: pa.Table, reasons: pa.Array) -> pa.Table:
        """Put columns together; arrays of rows that lose them become null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        given = {name: batch.column(name) for name in batch.schema.names}
        given |= {name: keys.column(name) for name in keys.column_names} | {self._left_out: reasons}
        for field in self.schema:
            if field.name not in given:
                given[field.name] = pa.nulls(len(batch), field.type)
            elif reasons.null_count < len(reasons) and self._may_go(field.name):
                given[field.name] = pc.if_else(reasons.is_null(), given[field.name], pa.scalar(None, field.type))
        return pa.table([given[name] for name in self.schema.names], schema=self.schema)


def _leaves(every: Iterable[str], columns: Iterable[str]) -> list[str]:
    """Choose the leaves of columns; the lists on a leaf's path are not part of a column's name."""

    def chosen(leaf: str) -> bool:
        parts = [part for part in leaf.split(".") if part not in ("list", "element", "item", "bag", "array")]
        return any(parts[: len(name)] == name for name in (column.split(".") for column in columns))

    columns = list(columns)
    return [leaf for leaf in every if chosen(leaf)]


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Put small tables together into row groups."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    size = 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


class _Stream(io.RawIOBase):
    """An object as a file of which only what is read is transferred.

    Args:
        bucket: where it is.
        key: which.
        size: bytes it has, as the table's log says.
        session: told about each byte, and asked before each request whether to go on.
    """

    def __init__(self, bucket: Bucket, key: str, size: int, session: Session) -> None:
        self._bucket, self._key, self._size, self._session = bucket, key, size, session
        self._place = self.n_bytes = 0

    def check(self) -> None:
        """Compare the object's size with what the log says.

        Raises:
            RemoteContentError: it has another one.
        """
        import obstore

        size = self._ask(lambda: obstore.head(self._bucket.store, self._key))["size"]
        if size != self._size:
            raise RemoteContentError(
                f"{self._bucket.url(self._key)}: has {size} bytes, {self._size} by the log of its table"
            )

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read anywhere."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere else."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Fetch the next bytes, exactly as many as were asked for.

        Raises:
            FetchError: they are not to be had.
            Again: another attempt may succeed.
            Stopped: the session was told to stop.
        """
        import obstore

        self._session.check()
        start = self._place
        length = max(0, min(size if size >= 0 else self._size, self._size - start))
        if not length:
            return b""
        data = self._ask(lambda: obstore.get_range(self._bucket.store, self._key, start=start, length=length))
        self.n_bytes += len(data)
        self._session.advance(len(data))
        if len(data) != length:
            raise Again(f"{len(data)} bytes arrived, {length} were asked for", final=RemoteContentError)
        self._place += length
        return bytes(data)

    def _ask(self, request: Callable[[], T]) -> T:
        try:
            return self._bucket.ask(self._key, request)
        except RemoteUnavailableError as error:
            raise Again(_line(error.__cause__ or error)) from error


def _head(bucket: Bucket, key: str) -> None:
    """Ask for an object's size, to learn why it cannot be had."""
    import obstore

    bucket.ask(key, lambda: obstore.head(bucket.store, key))


def _line(error: BaseException) -> str:
    """Return the first of the words of an error; deltalake's and obstore's go over many lines, in colour."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:300]
