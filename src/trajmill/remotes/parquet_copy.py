"""Copying some columns of Parquet files from S3, of which no more is transferred than these.

A copy is made row group by row group, and a column at a time: in memory are `BUFFER` bytes of each column that is read,
and `ROW_GROUP` bytes of rows, however large the file is.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from trajmill.errors import RemoteContentError, RemoteUnavailableError
from trajmill.remotes.s3 import Bucket
from trajmill.remotes.transfer import Again, Session
from trajmill.uris import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

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


def open_parquet(stream: ObjectStream) -> pq.ParquetFile:
    """Open a remote Parquet file."""
    import pyarrow.parquet as pq

    # without pre_buffer, which holds all columns of a row group at once, and can be on by default
    return pq.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)


class TableCopy:
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


def gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
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


class ObjectStream(io.RawIOBase):
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
            raise Again(one_line(error.__cause__ or error)) from error
