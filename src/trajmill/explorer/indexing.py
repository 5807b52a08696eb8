"""Making the index: a row for each trajectory, in one pass over the dataset, into a file of the user's cache.

Its name follows from what it was made of, so that a dataset that changed gets another one. Rows are read in pieces
(row groups of Parquet files); a dataset that has none, such as a PostgreSQL store or a file of another format, is
copied into the cache first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajmill.dataset import Dataset
from trajmill.errors import FilterError
from trajmill.explorer import ExploreError
from trajmill.pieces import Pieces
from trajmill.schema import FLOAT, FRAME_SCHEMA, INT32, STRING
from trajmill.storage import cache_folder
from trajmill.stores import POSTGRES, is_store, open_store
from trajmill.stores.delta import DeltaStore
from trajmill.uris import one_line, without_password

VERSION = 1
"""Raised when what an index holds changes."""

READERS = min(8, os.cpu_count() or 1)
"""Threads that read pieces while the index is made."""

OF_LAST = (
    *("elements", "nelements", "nsites", "chemical_formula_reduced", "chemical_formula_anonymous"),
    *("chemical_formula_descriptive", "immutable_id", "task_id", "source", "functional", "run_type", "license"),
    *("last_modified", "asset", "notes", "encut", "cross_compatibility", "relaxation_converged", "relaxation_step"),
    *("relaxation_number", "space_group_it_number", "energy", "max_force"),
)
"""Columns of the dataset that are kept, each with the value of the last frame."""

SCHEMA = pa.schema(
    [
        pa.field("trajectory_id", STRING),
        *(FRAME_SCHEMA.field(name) for name in OF_LAST),
        pa.field("n_frames", INT32),
        pa.field("energy_per_atom", FLOAT),  # eV/atom, of the last frame
        pa.field("energy_drop", FLOAT),  # eV/atom, of the first frame above the last
        pa.field("space_group_first", INT32),
    ]
)
"""What can be asked for of a trajectory."""

_FIRST = ("space_group_it_number", "energy")
_SPAN = ("piece", "first_row", "last_row", "n_rows")
_PART = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("trajectory_id", *OF_LAST)),
        *(pa.field(f"first_{name}", SCHEMA.field(name).type) for name in _FIRST),
        *(pa.field(name, INT32) for name in _SPAN),
    ]
)
"""What of a trajectory lies in a piece: where, its last frame there, and of the first what is compared with it."""

_WHOLE = f"""
CREATE TABLE trajectories AS
WITH numbered AS (SELECT *, row_number() OVER (ORDER BY piece, first_row) AS part FROM parts),
     summed AS (
        SELECT min(part) AS first, max(part) AS part, sum(n_rows)::INTEGER AS n_frames
        FROM numbered GROUP BY trajectory_id)
SELECT (row_number() OVER (ORDER BY summed.first) - 1)::INTEGER AS number, last.trajectory_id,
       {", ".join(f"last.{name}" for name in OF_LAST)}, n_frames,
       last.energy / last.nsites AS energy_per_atom,
       (first.first_energy - last.energy) / last.nsites AS energy_drop,
       first.first_space_group_it_number AS space_group_first
FROM summed JOIN numbered AS last USING (part) JOIN numbered AS first ON first.part = summed.first
ORDER BY number
"""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """Where an index is, and the dataset whose files it leads to.

    Attributes:
        index: the file.
        dataset: what it is of, in Parquet files.
    """

    index: Path
    dataset: Dataset


def prepare(address: str, dataset: Dataset, report: Report = lambda *_: None) -> Source:
    """Return the index of a dataset; make it where there is none of the dataset as it is now.

    Args:
        address: of the dataset.
        dataset: opened from there, nothing filtered.
        report: told how many pieces are done, of how many.

    Raises:
        ExploreError: the cache cannot be written.
    """
    where = address if "://" in address else str(Path(address).resolve())
    place = hashlib.sha256(without_password(where).encode()).hexdigest()[:16]
    folder = cache_folder() / "explorer"
    name = f"{place}-{_identity(address, dataset)}"
    index, copy = folder / f"{name}.duckdb", folder / f"{name}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # others on this machine may not be meant to read it
        if not index.exists():
            _make(_pieces(dataset, copy), index, report)
        for old in folder.glob(f"{place}-*"):
            if not old.name.startswith((name, f"{place}-tmp")):
                old.unlink(missing_ok=True)
    except (OSError, duckdb.IOException) as error:
        raise ExploreError(f"{folder}: the index cannot be written ({one_line(error)}); set XDG_CACHE_HOME") from error
    return Source(index, Dataset(copy) if copy.exists() else dataset)


def _identity(address: str, dataset: Dataset) -> str:
    """Return what changes whenever the dataset, or how it is indexed, does."""
    made_of: Any
    bare = address if address.startswith(POSTGRES) else address.partition("?")[0]
    if is_store(bare):
        store = open_store(bare)
        if isinstance(store, DeltaStore):  # names of files follow from their content
            made_of = [str(path) for _, path, _ in store.files("frame")]
        else:
            made_of = {asset: commit.fingerprint for asset, commit in store.commits().items()}
    else:
        try:
            files: Any = {piece.file for piece in dataset.pieces().pieces}
        except FilterError:
            path = Path(bare)
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        made_of = sorted((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    said = json.dumps([VERSION, duckdb.__version__, str(dataset.schema.metadata), made_of])
    return hashlib.sha256(said.encode()).hexdigest()[:24]


def _pieces(dataset: Dataset, copy: Path) -> Pieces:
    """Return the pieces of a dataset, or of a copy where it has none."""
    try:
        return dataset.pieces()
    except FilterError:
        dataset.save(copy)
        return Dataset(copy).pieces()


def _make(pieces: Pieces, index: Path, report: Report) -> None:
    """Write the index aside and put it at its place when it is whole."""
    aside = index.with_name(f"{index.name.partition('-')[0]}-tmp{os.getpid()}.duckdb")
    aside.unlink(missing_ok=True)
    try:
        with duckdb.connect(aside) as db:
            db.register("nothing", _PART.empty_table())
            db.execute("CREATE TEMP TABLE parts AS SELECT * FROM nothing")
            for done, part in enumerate(_parts(pieces), 1):
                db.register("part", part)
                db.execute("INSERT INTO parts SELECT * FROM part")
                db.unregister("part")
                report(done, len(pieces))
            db.execute(_WHOLE)
            db.execute("CREATE TABLE spans AS SELECT trajectory_id, piece, first_row, last_row FROM parts")
        aside.replace(index)
    finally:
        aside.unlink(missing_ok=True)
        aside.with_name(f"{aside.name}.wal").unlink(missing_ok=True)


def _parts(pieces: Pieces) -> Iterator[pa.Table]:
    """Summarise the pieces, in order; some threads read ahead, a few pieces at most."""
    waiting: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(READERS) as readers:
        try:
            for i in range(len(pieces)):
                waiting.append(readers.submit(_part, pieces, i))
                if len(waiting) > 2 * READERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _part(pieces: Pieces, number: int) -> pa.Table:
    """Summarise a piece: what it holds of each trajectory."""
    there = pieces.schema.names
    named = "trajectory_id" in there
    wanted = [name for name in OF_LAST if name in there]
    wanted += ["trajectory_id" if named else "id"] + ["forces"] * ("max_force" not in there and "forces" in there)
    chosen = pieces.rows(number)
    rows = pieces.read(number, wanted, chosen)
    at = np.arange(len(rows)) if chosen is None else chosen
    ids = rows["trajectory_id"] if named else pc.replace_substring_regex(rows["id"], "-[0-9]+$", "")
    ids = ids.combine_chunks()
    new = pc.not_equal(ids.slice(1), ids.slice(0, max(0, len(ids) - 1))).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append(True, new)) if len(ids) else np.array([], np.int64)
    ends = np.append(starts[1:] - 1, len(ids) - 1) if len(ids) else starts
    last, first = rows.take(ends), rows.take(starts)
    columns = {"trajectory_id": ids.take(pa.array(ends)), "n_rows": pa.array(ends - starts + 1)}
    columns |= {"first_row": pa.array(at[starts]), "last_row": pa.array(at[ends])}
    columns |= {name: last[name] for name in wanted if name in OF_LAST}
    columns |= {f"first_{name}": first[name] for name in _FIRST if name in wanted}
    columns["piece"] = pa.repeat(pa.scalar(number, INT32), len(ends))
    if "forces" in wanted:
        columns["max_force"] = pa.array(map(_largest, last["forces"].to_pylist()), FLOAT)
    return pa.table(
        [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(len(ends), f.type) for f in _PART],
        schema=_PART,
    )


def _largest(forces: list[list[float]] | None) -> float | None:
    """Return the largest norm of a force, eV/A."""
    return None if forces is None else float(np.linalg.norm(np.array(forces).reshape(-1, 3), axis=1).max(initial=0.0))
