"""OQMD's rows on disk in sorted runs: written as they come, read back by blocks of entry ids.

Rows of an entry come from all over a dump. They are collected up to a fixed size, sorted, and written as one file, a
run, in which each block of entry ids is a record batch of its own. Reading a block takes its batches from all runs.
Neither needs more memory where there are more rows, and nothing is ever sorted as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BLOCK = 500
"""Entry ids that are read at once: some 30,000 atoms."""

RUN = 32 << 20
"""Bytes of rows in a run; there are about three times as many in memory while one is sorted."""

SCHEMAS: dict[str, pa.Schema] = {
    "entries": pa.schema([("entry_id", pa.int64()), ("duplicate_of_id", pa.int64())]),
    "calculations": pa.schema(
        [
            *((name, pa.int64()) for name in ("entry_id", "id", "input_id", "output_id")),
            *((name, pa.int64()) for name in ("natoms", "nsteps", "converged")),
            *((name, pa.float64()) for name in ("energy", "energy_pa")),
            *((name, pa.string()) for name in ("label", "settings")),
        ]
    ),
    "structures": pa.schema(
        [
            *((name, pa.int64()) for name in ("entry_id", "id", "natoms")),
            *((name, pa.float64()) for name in ("x1", "x2", "x3", "y1", "y2", "y3", "z1", "z2", "z3")),
            *((name, pa.float64()) for name in ("sxx", "syy", "szz", "sxy", "syz", "szx")),
        ]
    ),
    "atoms": pa.schema(
        [
            *((name, pa.int64()) for name in ("entry_id", "structure_id", "id")),
            ("number", pa.uint8()),  # atomic number, 0 where there is no known element
            *((name, pa.float64()) for name in ("x", "y", "z", "fx", "fy", "fz", "magmom", "occupancy")),
        ]
    ),
}
"""What is kept of each table. `entry_id` is the entry whose relaxations use a structure or atom; some have several."""

_ORDER: dict[str, Sequence[str]] = {
    "entries": ("entry_id",),
    "calculations": ("entry_id", "id"),
    "structures": ("entry_id", "id"),
    "atoms": ("entry_id", "structure_id", "id"),
}
_INDEX = "index.arrow"
_INDEX_SCHEMA = pa.schema(
    [("table", pa.string()), *((name, pa.int64()) for name in ("block", "run", "batch", "rows", "bytes"))]
)


class RunWriter:
    """Writes runs into a folder, in a thread of its own. A context; what is not closed is not readable.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[str, list[pa.Table]] = {table: [] for table in SCHEMAS}
        self._bytes = dict.fromkeys(SCHEMAS, 0)
        self._index: list[tuple[str, int, int, int, int, int]] = []
        self._runs = 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, table: str, rows: pa.Table) -> None:
        """Take rows of a table; they may be written later."""
        self._waiting[table].append(rows)
        self._bytes[table] += rows.nbytes
        if self._bytes[table] >= RUN:
            self._flush(table)

    def close(self) -> None:
        """Write what waits, and the index."""
        for table in SCHEMAS:
            self._flush(table)
        self._wait()
        columns = list(zip(*self._index, strict=True)) or [()] * len(_INDEX_SCHEMA)
        with pa.ipc.new_file(self.folder / _INDEX, _INDEX_SCHEMA) as file:
            file.write_table(pa.table(list(map(list, columns)), schema=_INDEX_SCHEMA))

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _flush(self, table: str) -> None:
        if rows := self._waiting[table]:
            self._wait()
            self._writing = self._thread.submit(self._write, table, self._runs, pa.concat_tables(rows))
            self._waiting[table], self._bytes[table] = [], 0
            self._runs += 1

    def _write(self, table: str, run: int, rows: pa.Table) -> None:
        rows = _sorted(table, rows)
        blocks = rows["entry_id"].to_numpy() // BLOCK
        borders = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(rows)]
        with pa.ipc.new_file(_path(self.folder, run), SCHEMAS[table]) as file:
            for batch, (start, end) in enumerate(pairwise(borders)):
                some = rows.slice(start, end - start)
                file.write_table(some)
                self._index.append((table, int(blocks[start]), run, batch, len(some), some.nbytes))


class RunReader:
    """Reads what a `RunWriter` wrote; a context. Many may read at once.

    Attributes:
        index: a row for each batch: table, block, run, number in the run, rows, bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with pa.memory_map(str(folder / _INDEX)) as file:
            self.index: pa.Table = pa.ipc.open_file(file).read_all()
        self._places: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for table, block, run, batch in zip(*(column.to_pylist() for column in self.index.columns[:4]), strict=True):
            self._places.setdefault((table, block), []).append((run, batch))
        self._files: dict[int, pa.RecordBatchFileReader] = {}
        self._opened = ExitStack()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._opened.close()

    def blocks(self, first: int, end: int) -> Iterator[int]:
        """Yield the blocks that hold entry ids from `first` up to `end`, both at the border of a block."""
        found = {block for _, block in self._places}
        yield from sorted(block for block in found if first <= block * BLOCK < end)

    def read(self, table: str, block: int) -> pa.Table:
        """Return the rows of a block, sorted by entry, structure and id."""
        places = self._places.get((table, block), [])
        rows = pa.Table.from_batches([self._batch(*place) for place in places], SCHEMAS[table])
        return _sorted(table, rows) if len(places) > 1 else rows

    def _batch(self, run: int, batch: int) -> pa.RecordBatch:
        if run not in self._files:
            file = self._opened.enter_context(pa.memory_map(str(_path(self.folder, run))))
            self._files[run] = pa.ipc.open_file(file)
        return self._files[run].get_batch(batch)


def _sorted(table: str, rows: pa.Table) -> pa.Table:
    """Sort rows in one chunk; those with equal ids stay as they came."""
    keys: list[NDArray[np.int64]] = [rows[name].fill_null(-1).to_numpy() for name in reversed(_ORDER[table])]
    return rows.take(pa.array(np.lexsort(keys))).combine_chunks()


def _path(folder: Path, run: int) -> Path:
    return folder / f"run-{run:06d}.arrow"
