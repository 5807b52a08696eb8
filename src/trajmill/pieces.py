"""A dataset in pieces that any process can read by itself, in any order: row groups of Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trajmill.rows import Wanted, condition, without_stress
from trajmill.storage import COLUMNS, AnyPath, readable

_ROW = "row_in_piece"


@dataclass(frozen=True)
class Piece:
    """A row group of a file.

    Attributes:
        file: where it lies.
        row_group: which of the file's.
        n_rows: rows it has, whether or not they are wanted.
        asset: what its rows were made of, where the file is a store's.
    """

    file: AnyPath
    row_group: int
    n_rows: int
    asset: str | None = None


def pieces_of(file: AnyPath, asset: str | None = None) -> list[Piece]:
    """List the row groups of a file."""
    metadata = pq.read_metadata(readable(file, COLUMNS))
    return [Piece(file, i, metadata.row_group(i).num_rows, asset) for i in range(metadata.num_row_groups)]


@dataclass(frozen=True)
class Pieces:
    """The frames that are wanted of a dataset, piece by piece. Travels to other processes.

    Attributes:
        pieces: in the order of the dataset.
        schema: of all columns; its metadata says in which unit stress is.
        wanted: which rows are.
        doubted: what identifiers of frames begin with whose stress is in no known unit.
    """

    pieces: tuple[Piece, ...]
    schema: pa.Schema
    wanted: Wanted
    doubted: str | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    def rows(self, i: int) -> NDArray[np.int32] | None:
        """Return which rows of a piece are wanted, ascending; None if all are."""
        if self.wanted.everything:
            return None
        asked = condition(self.wanted, self.schema)
        table = self._read(i, [name for name in self.schema.names if name in asked])
        table = table.append_column(_ROW, pa.array(np.arange(len(table), dtype=np.int32)))
        with duckdb.connect(config={"python_enable_replacements": False, "threads": 1}) as db:
            db.register("rows", table)
            if self.wanted.ids is not None:
                db.register("ids", pa.table({"wanted_id": self.wanted.ids}))
            found: NDArray[np.int32] = db.sql(f"SELECT {_ROW} FROM rows WHERE {asked}").fetchnumpy()[_ROW]
        return np.sort(found)

    def read(self, i: int, columns: Sequence[str], rows: NDArray[np.int32] | None = None) -> pa.Table:
        """Read columns of the wanted rows of a piece.

        Args:
            i: which piece.
            columns: names in the order wanted.
            rows: what `rows` returned, where it was asked for before.
        """
        rows = self.rows(i) if rows is None else rows
        doubted = self.doubted is not None and "stress_tensor" in columns
        table = self._read(i, [*columns, "id"] if doubted and "id" not in columns else columns)
        if rows is not None and len(rows) < len(table):
            table = table.take(rows)
        if doubted:
            assert self.doubted is not None  # noqa: S101 (mypy does not see it)
            table = pa.Table.from_batches([without_stress(b, self.doubted) for b in table.to_batches()], table.schema)
        return table.select(columns).replace_schema_metadata(self.schema.metadata)

    def _read(self, i: int, columns: Sequence[str]) -> pa.Table:
        piece = self.pieces[i]
        stored = [name for name in columns if name != "asset" or piece.asset is None]
        with pq.ParquetFile(readable(piece.file, COLUMNS)) as file:
            table = file.read_row_group(piece.row_group, columns=stored, use_threads=False)
        if len(stored) < len(columns):
            table = table.append_column("asset", pa.repeat(piece.asset, len(table)))
        return table.select(columns)
