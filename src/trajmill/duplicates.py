"""Duplicates: trajectories that end in the same structure, within a source and across sources. Marked, never deleted.

Last frames are compared as in `trajmill.matching`. Of trajectories that are the same one stands for all: that with the
most frames; of several the one whose source comes first in `trajmill.recipe.SOURCES` (others by name), then the first
by identifier. In that order each is compared with those that stand for others, and joins the one that it is the same
as. So each duplicate is the same as what stands for it: StructureMatcher allows enough that a chain of structures,
each the same as the next, can end far from where it began.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajmill.dataset import Dataset
from trajmill.errors import FilterError
from trajmill.matching import Crystals, Report, Shelf, Work, geometries, last_frames
from trajmill.recipe import SOURCES
from trajmill.uris import one_line
from trajmill.writing import StrPath, whole

METADATA = b"trajmill.duplicates"

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("trajectory_id", "group", "duplicate_of", "source", "sign")],
    metadata={METADATA: b"{}"},
)


@dataclass(frozen=True)
class Marks:
    """Which trajectories are duplicates of which.

    Attributes:
        table: a row for each trajectory that has a duplicate or is one. `group` is the identifier of the trajectory
            that stands for all that are the same; `duplicate_of` and `sign` are null in that trajectory's own row.
            `sign` is `structure` where last frames are the same, `trajectory` where the run is the same by identifier.
        rule: how they were found: trajectories that were compared, whether across functionals.
    """

    table: pa.Table
    rule: dict[str, Any]

    @property
    def duplicates(self) -> pa.Array:
        """Trajectories that are to be left out so that one of each group stays, sorted.

        A run that is there twice under one identifier is not among them: leaving it out would leave out both.
        """
        marked = pc.not_equal(self.table["duplicate_of"], self.table["trajectory_id"])  # null where it is no duplicate
        return pc.unique(self.table.filter(marked)["trajectory_id"]).sort()

    def counts(self) -> Counter[tuple[str | None, str | None, str]]:
        """Count duplicates by their source, the source of what stands for them, and sign."""
        rows = self.table.to_pylist()
        source = {row["group"]: row["source"] for row in rows if row["duplicate_of"] is None}
        return Counter((row["source"], source[row["group"]], row["sign"]) for row in rows if row["duplicate_of"])

    def save(self, path: StrPath) -> None:
        """Write them as a Parquet file.

        Raises:
            FilterError: it cannot be written.
        """
        with whole(path, FilterError) as aside:
            pq.write_table(self.table.replace_schema_metadata({METADATA: json.dumps(self.rule)}), aside)

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read what was saved.

        Raises:
            FilterError: it is none.
        """
        try:
            table = pq.read_table(path)
            rule = json.loads((table.schema.metadata or {})[METADATA])
            return cls(table.select(SCHEMA.names).cast(SCHEMA), rule)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise FilterError(f"{path}: no marks of trajmill dedup ({one_line(error)})") from error


def find_duplicates(
    datasets: Sequence[Dataset], *, across_functionals: bool = False, angle: float = 5.0, report: Report | None = None
) -> Marks:
    """Find trajectories that end in the same structure. The order of datasets and of their rows does not matter.

    Args:
        datasets: within and across which to look.
        across_functionals: whether trajectories of different functionals can be duplicates.
        angle: degrees, tolerance of StructureMatcher; its others are pymatgen's defaults.
        report: called with how much is done and how much there is.
    """
    rows = _ranked([last_frames(dataset) for dataset in datasets])
    names = rows["trajectory"].to_pylist()
    first: dict[str, int] = {}
    stands_for: dict[int, int] = {i: first[name] for i, name in enumerate(names) if first.setdefault(name, i) != i}
    signs = dict.fromkeys(stands_for, "trajectory")
    columns = (rows[name].to_pylist() for name in ("formula", "functional"))
    keys = [(formula, None if across_functionals else functional) for formula, functional in zip(*columns, strict=True)]
    n_of = Counter(keys[i] for i in first.values())
    crystals_of: dict[tuple[str, str | None], list[tuple[int, int]]] = {}
    compared = [i for i in first.values() if n_of[keys[i]] > 1]
    work = Work(report, 2 * len(compared))
    with Crystals(angle) as crystals:
        taken = rows.take(pa.array(compared, pa.int64())).append_column("row", pa.array(compared, pa.int64()))
        for number, dataset in enumerate(datasets):
            its = taken.filter(pc.equal(taken["dataset"], number))
            row_of = its["row"].to_pylist()
            for i, geometry in geometries(dataset, its):
                crystals_of.setdefault(keys[row_of[i]], []).append((row_of[i], crystals.add(geometry)))
                work.advance()
        for members in crystals_of.values():
            found = _same(crystals, sorted(members), work)
            stands_for |= found
            signs |= dict.fromkeys(found, "structure")
    rule = {"trajectories": len(rows), "across_functionals": across_functionals, "angle": angle}
    return Marks(_marks(rows, stands_for, signs), rule)


def _same(crystals: Crystals, members: Sequence[tuple[int, int]], work: Work) -> dict[int, int]:
    """Return the row of what stands for it for each row that is a duplicate, of (row, crystal) of one formula."""
    shelf, row_of, found = Shelf(crystals, len(members)), {crystal: row for row, crystal in members}, {}
    for row, crystal in members:
        other = shelf.find(crystal)
        if other is None:
            shelf.put(crystal)
        else:
            found[row] = row_of[other]
        work.advance()
    return found


def _ranked(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables of last frames, those that are to stand for others first; `dataset` is the number of the table."""
    rows = pa.concat_tables([t.append_column("dataset", pa.repeat(i, len(t))) for i, t in enumerate(tables)])
    source = rows["source"].to_pylist()
    rank = [SOURCES.index(name) if name in SOURCES else len(SOURCES) for name in source]
    rows = rows.append_column("rank", pa.array(rank, pa.int64()))
    order = [("frames", "descending"), *((name, "ascending") for name in ("rank", "source", "trajectory", "last"))]
    return rows.sort_by(order)


def _marks(rows: pa.Table, stands_for: dict[int, int], signs: dict[int, str]) -> pa.Table:
    """Make the table of marks, sorted by group, what stands for the others first."""
    names, sources = rows["trajectory"].to_pylist(), rows["source"].to_pylist()
    last = {i: stands_for.get(other, other) for i, other in stands_for.items()}  # of a run that is a duplicate itself
    found: list[tuple[int, int, str | None, str | None]]
    found = [(i, other, names[other], signs[i]) for i, other in last.items()]
    found += [(other, other, None, None) for other in sorted(set(last.values()))]
    found.sort(key=lambda mark: (names[mark[1]], mark[2] is not None, names[mark[0]], mark[0]))
    columns = [
        [names[i] for i, *_ in found],
        [names[other] for _, other, *_ in found],
        [duplicate_of for _, _, duplicate_of, _ in found],
        [sources[i] for i, *_ in found],
        [sign for *_, sign in found],
    ]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)
