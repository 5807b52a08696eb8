"""Other people's datasets in their own formats, brought to trajmill's units, signs and columns.

`FORMATS` is the table of them; a new one is a module and a line in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from trajmill.codec import encode
from trajmill.errors import FilterError
from trajmill.formats.aselmdb import ASELMDB
from trajmill.formats.base import Format
from trajmill.formats.extxyz import EXTXYZ
from trajmill.formats.matpes import MATPES
from trajmill.formats.mptrj import MPTRJ
from trajmill.rows import NO_FILES
from trajmill.schema import ADDED, METADATA, PUBLISHED
from trajmill.storage import AnyPath
from trajmill.trajectory import Trajectory

if TYPE_CHECKING:
    import duckdb

FORMATS = (MPTRJ, MATPES, ASELMDB, EXTXYZ)

BATCH_ATOMS = 50_000
"""Atoms (of all frames) that are encoded at once."""


def find(path: Path) -> FormatRows | None:
    """Return the rows of a file, or of all files of one format below a folder; None where there are none."""
    for form in FORMATS:
        candidates = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        files = [file for file in candidates if file.name.endswith(form.suffixes) and form.recognises(file)]
        if files:
            return FormatRows(form, files)
    return None


class FormatRows:
    """Frames of files of a format, as `trajmill.rows.Rows`."""

    schema = pa.schema([column.field for column in (*PUBLISHED, *ADDED)], metadata=METADATA)

    def __init__(self, form: Format, files: Sequence[Path]) -> None:
        self._format, self._files = form, files

    def count(self) -> int:
        """Count them, which takes reading them."""
        return sum(1 for file in self._files for _ in self._format.frames(file))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream these columns."""
        held: list[Trajectory] = []
        atoms = 0
        for file in self._files:
            for trajectory in self._format.trajectories(file):
                held.append(trajectory)
                atoms += len(trajectory) * (trajectory.n_atoms + 10)
                if atoms >= BATCH_ATOMS:
                    yield self._encoded(held, columns)
                    held, atoms = [], 0
        if held:
            yield self._encoded(held, columns)

    def _encoded(self, trajectories: Sequence[Trajectory], columns: Sequence[str]) -> pa.RecordBatch:
        rows = encode(trajectories).select(list(columns))
        return rows.replace_schema_metadata(METADATA)

    @contextmanager
    def offer(self, db: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Iterator[None]:
        """Make them the view `rows` of a connection."""
        schema = pa.schema([self.schema.field(name) for name in columns], metadata=METADATA)
        db.register("rows", pa.RecordBatchReader.from_batches(schema, self.batches(columns)))
        yield

    doubted = None

    def files(self) -> Sequence[tuple[AnyPath, str | None]]:
        """See `trajmill.rows.Rows.files`."""
        raise FilterError(f"{self._files[0]}: {NO_FILES}")
