"""OQMD's tables, from a dump or a server, into sorted runs in the workspace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trajmill.elements import NUMBERS
from trajmill.errors import SourceError
from trajmill.sources.oqmd_runs import SCHEMAS, RunWriter

RELAXATIONS = ("coarse_relax", "fine_relax", "relaxation")
"""Labels of calculations that relax, in the order they are run."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "atoms": ("id", "structure_id", "element_id", "x", "y", "z", "fx", "fy", "fz", "magmom", "occupancy"),
    "calculations": tuple(SCHEMAS["calculations"].names),
    "entries": ("id", "duplicate_of_id"),
    "structures": tuple(SCHEMAS["structures"].names[1:]),
}
"""What is read of the database."""

_UNREADABLE = pa.schema([("detail", pa.string())])
_STRAYS = pa.schema([("id", pa.int64()), ("label", pa.string())])


class Tables(Protocol):
    """The database, whether a dump or a server."""

    def rows(self, *names: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield (table name, some of its rows) of these tables with the columns in `COLUMNS`."""
        ...


def import_tables(tables: Tables, folder: Path, unreadable: list[str]) -> None:
    """Import a database.

    It is read twice: first for the relaxations and the structures they name, then for these structures and their
    atoms, which come first in a dump. The calculations say whose a structure is rather than `structures.entry_id`,
    which other entries' calculations may disagree with. Of each structure that relaxations name 16 bytes are held in
    memory (0.1 GB for all of OQMD), and nothing else that grows with the database.

    Args:
        tables: what to import.
        folder: folder to write; written beside and renamed when it is complete.
        unreadable: where `tables` reports what could not be read; taken out from time to time.

    Raises:
        SourceError: no space for it, or what `tables` raises.
    """
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of an import that was killed
    aside.mkdir(parents=True)
    try:
        with RunWriter(aside) as runs, _Lost(aside) as lost:
            owners = _Owners()
            for table, rows in tables.rows("calculations", "entries"):
                if table == "calculations":
                    rows = _of_relaxations(rows, owners)
                    lost.strays(rows.filter(pc.is_null(rows["entry_id"])))
                else:
                    rows = rows.rename_columns(SCHEMAS["entries"].names)
                runs.add(table, rows.filter(pc.is_valid(rows["entry_id"])))
                lost.unreadable(unreadable)
            owners.sort()
            for table, rows in tables.rows("structures", "atoms"):
                if table == "structures":
                    runs.add(table, owners.assign(rows, "id"))
                else:
                    runs.add(table, owners.assign(_numbered(rows), "structure_id"))
                lost.unreadable(unreadable)
            lost.unreadable(unreadable)
            runs.close()
        for file in aside.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        aside.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(f"{folder}: cannot be written ({reason}); check that disk's space") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def lost_rows(folder: Path) -> int:
    """Count the rows that could not be read and the calculations that belong to no entry."""
    return sum(rows.num_rows for name in ("unreadable", "strays") for rows in read_lost(folder, name))


def read_lost(folder: Path, name: str) -> Iterator[pa.RecordBatch]:
    """Yield what could not be read (`unreadable`: detail) or belongs to no entry (`strays`: id, label)."""
    with pa.ipc.open_stream(folder / f"{name}.arrow") as batches:
        yield from batches


class _Lost:
    """Writes what no entry can be made of."""

    def __init__(self, folder: Path) -> None:
        with ExitStack() as opened:
            self._unreadable, self._strays = (
                opened.enter_context(pa.ipc.new_stream(folder / f"{name}.arrow", schema))
                for name, schema in (("unreadable", _UNREADABLE), ("strays", _STRAYS))
            )
            self._opened = opened.pop_all()

    def __enter__(self) -> _Lost:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def unreadable(self, details: list[str]) -> None:
        if details:
            self._unreadable.write_table(pa.table([details], schema=_UNREADABLE))
            details.clear()

    def strays(self, calculations: pa.Table) -> None:
        if len(calculations):
            self._strays.write_table(calculations.select(_STRAYS.names))


class _Owners:
    """Which entries' relaxations use a structure."""

    def __init__(self) -> None:
        self._pairs: list[NDArray[np.int64]] = []
        self._structures = self._entries = np.empty(0, np.int64)

    def add(self, entries: pa.ChunkedArray, structures: pa.ChunkedArray) -> None:
        known = pc.and_(pc.is_valid(entries), pc.is_valid(structures))
        self._pairs.append(np.stack([structures.filter(known).to_numpy(), entries.filter(known).to_numpy()]))

    def sort(self) -> None:
        """Sort what was added, so that it can be looked up."""
        if self._pairs:
            structures, entries = np.concatenate(self._pairs, axis=1)
            self._pairs.clear()
            order = np.lexsort((entries, structures))
            structures, entries = structures[order], entries[order]
            new = np.ones(len(order), bool)
            new[1:] = (np.diff(structures) != 0) | (np.diff(entries) != 0)
            self._structures, self._entries = structures[new], entries[new]

    def assign(self, rows: pa.Table, key: str) -> pa.Table:
        """Put `entry_id` before the rows, once for each entry that uses them; others go."""
        rows = rows.filter(pc.is_valid(rows[key]))
        ids = rows[key].to_numpy()
        first = np.searchsorted(self._structures, ids)
        owners = np.searchsorted(self._structures, ids, side="right") - first
        ends = np.cumsum(owners)
        which = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + owners, owners)
        rows = rows.take(pa.array(np.repeat(np.arange(len(ids)), owners)))
        return rows.add_column(0, "entry_id", pa.array(self._entries[which]))


def _of_relaxations(calculations: pa.Table, owners: _Owners) -> pa.Table:
    """Note the structures of relaxations; forget the settings of all else, most of the table that nobody looks at."""
    relaxing = pc.is_in(calculations["label"], pa.array(RELAXATIONS))
    for role in ("input_id", "output_id"):
        owners.add(calculations["entry_id"].filter(relaxing), calculations[role].filter(relaxing))
    settings = pc.if_else(relaxing, calculations["settings"], pa.scalar(None, pa.string()))
    return calculations.set_column(calculations.schema.get_field_index("settings"), "settings", settings)


def _numbered(atoms: pa.Table) -> pa.Table:
    """Write elements as atomic numbers, at their place in the schema."""
    elements = atoms["element_id"].combine_chunks().dictionary_encode()
    known = pa.array([NUMBERS.get(element, 0) for element in elements.dictionary.to_pylist()], pa.uint8())
    numbers = known.take(elements.indices).fill_null(0)
    return atoms.append_column("number", numbers).select(SCHEMAS["atoms"].names[1:])
