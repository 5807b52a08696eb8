"""What is served: the last frame of each trajectory in a DuckDB file, and where the other frames lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajmill.dataset import Dataset
from trajmill.errors import FilterError
from trajmill.optimade import ServeError
from trajmill.pieces import Pieces
from trajmill.schema import MATRIX
from trajmill.units import stress_from_vasp

OPTIONS: dict[str, str | bool | int | float | list[str]] = {"python_enable_replacements": False}


@dataclass(frozen=True)
class Index:
    """The table `entries` has a row for each trajectory, numbered by `position` in stored order.

    It holds all columns of the dataset for the trajectory's last frame, and besides `trajectory_id`, `n_frames`,
    `modified` (`last_modified` as a time, UTC) and `max_force`.

    Attributes:
        db: to read from; give each thread a cursor of it.
        pieces: of the dataset, where the other frames are.
        n_trajectories: how many there are.
        n_frames: of all of them.
    """

    db: duckdb.DuckDBPyConnection
    pieces: Pieces
    n_trajectories: int
    n_frames: int

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Run SQL and return its rows."""
        with self.db.cursor() as cursor:
            found = cursor.execute(sql)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def frames(self, positions: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, list[Any]]]:
        """Read columns of all frames of some trajectories, frames in the order computed, stress in eV/A^3."""
        listed = ", ".join(map(str, positions))
        places = self.query(f"SELECT * FROM places WHERE position IN ({listed}) ORDER BY piece, start")
        by_piece: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for place in places:
            by_piece[place["piece"]].append(place)
        names = self.pieces.schema.names
        derived = "max_force" in columns and "max_force" not in names
        wanted = {*columns, "relaxation_step", *(["forces"] if derived else [])}
        read = [name for name in names if name in wanted]
        parts: dict[int, list[pa.Table]] = defaultdict(list)
        for piece, there in by_piece.items():
            rows = np.concatenate([np.arange(p["start"], p["start"] + p["n"]) for p in there])
            table, start = _in_ev(self.pieces.read(piece, read, rows)), 0
            for place in there:
                parts[place["position"]].append(table.slice(start, place["n"]))
                start += place["n"]
        found = {}
        for position, tables in parts.items():
            table = pa.concat_tables(tables)
            if "relaxation_step" in read:
                table = table.sort_by("relaxation_step")
            lists = table.to_pydict()
            if derived:
                lists["max_force"] = [_max_force(forces) for forces in lists["forces"]]
            found[position] = {name: lists[name] for name in columns}
        return found


def build(address: str, folder: Path, report: Callable[[int, int], None] = lambda *_: None) -> Index:
    """Index a dataset: one pass over what identifies its frames, one over the last ones.

    Memory is bounded by a row group and by some numbers for each trajectory. A trajectory that is there twice, in two
    assets, is taken from the asset that comes last by name. What lies in no Parquet files is copied into one first.

    Args:
        address: of the dataset.
        folder: to make files in, which must outlive the index.
        report: is told how many frames were indexed so far, and how many there are.

    Raises:
        ServeError: there are no frames.
        TrajmillError: the dataset cannot be read.
    """
    dataset = Dataset(address)
    try:
        pieces = dataset.pieces()
    except FilterError:
        dataset.save(folder / "frames.parquet")
        pieces = Dataset(folder / "frames.parquet").pieces()
    with duckdb.connect(folder / "index.duckdb", config=OPTIONS) as db:
        db.execute(
            "CREATE TABLE segments (trajectory_id VARCHAR, asset VARCHAR, piece INTEGER, start INTEGER, n INTEGER, "
            "step INTEGER, last INTEGER)"
        )
        n_rows = [piece.n_rows for piece in pieces.pieces]
        done = np.cumsum(n_rows) // 2  # half of the way
        for i, half in enumerate(done.tolist()):
            _insert(db, "segments", _segments(pieces, i))
            report(half, sum(n_rows))
        db.execute(_PLACES)
        for piece, rows in _finals(db):
            _insert(db, "entries", _entries(pieces, piece, rows))
            report(int(done[-1] + done[piece]), sum(n_rows))
        counted = db.sql("SELECT count(*), sum(n) FROM places").fetchall()[0]
        if not counted[0]:
            raise ServeError(f"{address}: has no frames to serve")
        n_trajectories = db.sql("SELECT count(*) FROM finals").fetchall()[0][0]
        db.execute("DROP TABLE finals")
    db = duckdb.connect(folder / "index.duckdb", read_only=True, config=OPTIONS)
    db.execute("SET enable_external_access = false")
    return Index(db, pieces, n_trajectories, int(counted[1]))


_PLACES = """
DELETE FROM segments WHERE asset < (SELECT max(asset) FROM segments s WHERE s.trajectory_id = segments.trajectory_id);
CREATE TABLE finals AS
  SELECT piece, last AS row, row_number() OVER (ORDER BY piece, last) - 1 AS position, trajectory_id, n_frames
  FROM (SELECT *, sum(n) OVER of_one AS n_frames FROM segments
        WINDOW of_one AS (PARTITION BY trajectory_id)
        QUALIFY row_number() OVER (PARTITION BY trajectory_id ORDER BY step DESC, piece DESC, last DESC) = 1)
  ORDER BY position;
CREATE TABLE places AS
  SELECT position, segments.piece, start, n FROM segments JOIN finals USING (trajectory_id) ORDER BY position;
DROP TABLE segments;
"""
"""Each trajectory's last frame, numbered in stored order, and the runs of rows that all of its frames are in."""


def _insert(db: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Append rows to a table, which is made where it is not there."""
    db.register("batch", rows)
    db.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM batch LIMIT 0")
    db.execute(f"INSERT INTO {table} SELECT * FROM batch")
    db.unregister("batch")


def _trajectory_ids(rows: pa.Table) -> pa.ChunkedArray:
    if "trajectory_id" in rows.column_names:
        return rows["trajectory_id"]
    return pc.replace_substring_regex(rows["id"], "-[0-9]+$", "")


def _segments(pieces: Pieces, i: int) -> pa.Table:
    """Return the runs of rows of one trajectory in a piece, with the row of the largest step of each."""
    names = pieces.schema.names
    identity = "trajectory_id" if "trajectory_id" in names else "id"
    rows = pieces.read(i, [n for n in (identity, "asset", "relaxation_step") if n in names])
    ids = _trajectory_ids(rows).combine_chunks()
    n = len(ids)
    new = pc.not_equal(ids.slice(1), ids.slice(0, n - 1)).to_numpy(zero_copy_only=False)
    starts = np.concatenate([np.arange(min(n, 1)), np.flatnonzero(new) + 1])
    counts = np.diff([*starts, n])
    steps = rows["relaxation_step"].fill_null(-1).to_numpy() if "relaxation_step" in names else np.arange(n)
    in_order = np.lexsort((steps, np.repeat(np.arange(len(starts)), counts)))
    last = in_order[starts + counts - 1]
    asset = rows["asset"].take(starts) if "asset" in names else pa.repeat("", len(starts))
    return pa.table(
        {
            "trajectory_id": ids.take(pa.array(starts)),
            "asset": asset,
            "piece": np.full(len(starts), i),
            "start": starts,
            "n": counts,
            "step": steps[last],
            "last": last,
        }
    )


def _finals(db: duckdb.DuckDBPyConnection) -> Iterator[tuple[int, pa.Table]]:
    """Yield pieces, and which of their rows are the last of a trajectory: columns of `finals`."""
    for (piece,) in db.sql("SELECT DISTINCT piece FROM finals ORDER BY piece").fetchall():
        yield piece, db.sql(f"SELECT * EXCLUDE piece FROM finals WHERE piece = {piece} ORDER BY row").to_arrow_table()


def _entries(pieces: Pieces, piece: int, finals: pa.Table) -> pa.Table:
    """Return rows of `entries`."""
    rows = _in_ev(pieces.read(piece, pieces.schema.names, finals["row"].to_numpy()))
    modified = [_instant(text) for text in rows["last_modified"].to_pylist()]
    added = {
        "position": finals["position"],
        "trajectory_id": finals["trajectory_id"],
        "n_frames": finals["n_frames"].cast(pa.int32()),
        "modified": pa.array(modified, pa.timestamp("us")),
    }
    if "max_force" not in rows.column_names:
        added["max_force"] = pa.array(map(_max_force, rows["forces"].to_pylist()), pa.float64())
    for name, column in added.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, column)
    return rows


def _max_force(forces: list[list[float]] | None) -> float | None:
    """Return the largest norm of a force, eV/A."""
    return None if forces is None else float(np.linalg.norm(forces, axis=1).max())


def _instant(text: str | None) -> datetime | None:
    """Return a date or time as UTC, of which DuckDB would ignore the offset; None where it is neither."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _in_ev(rows: pa.Table) -> pa.Table:
    """Return rows with stress in eV/A^3, positive under tension."""
    metadata = rows.schema.metadata or {}
    if metadata.get(b"trajmill.stress_unit") != b"kBar" or "stress_tensor" not in rows.column_names:
        return rows
    kbar = np.array([s or np.full((3, 3), np.nan) for s in rows["stress_tensor"].to_pylist()])
    stress = [s.tolist() if np.isfinite(s).all() else None for s in stress_from_vasp(kbar)]
    return rows.set_column(rows.column_names.index("stress_tensor"), "stress_tensor", pa.array(stress, MATRIX))
