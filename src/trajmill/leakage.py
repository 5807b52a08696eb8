"""Leakage: what of a test set a training set has seen already.

Four signs, each stronger than the one before it: the same prototype of the same formula, the same material by
identifier, the same run by identifier, and the same structure, in whatever cell it is written. Prototypes and
structures are those of the last frames of trajectories; see `trajmill.matching`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from trajmill.dataset import Dataset
from trajmill.matching import Crystals, Report, Shelf, Work, geometries, last_frames, prototype

SIGNS = ("prototype", "material", "trajectory", "structure")


@dataclass
class Leakage:
    """Trajectories of a test set that have something in common with a training set.

    Attributes:
        tested: trajectories of the test set.
        found: for each sign, (trajectory of the test set, one of the training set), sorted.
    """

    tested: int
    found: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def trajectories(self) -> list[str]:
        """Trajectories with any sign but the weakest, sorted."""
        return sorted({test for sign in SIGNS[1:] for test, _ in self.found.get(sign, ())})


def find_leakage(
    train: Dataset, test: Dataset, *, structures: bool = True, angle: float = 5.0, report: Report | None = None
) -> Leakage:
    """Find what a training set has seen of a test set.

    Args:
        train: what is trained on.
        test: what is to be unseen.
        structures: whether to compare structures, which takes most of the time.
        angle: degrees, tolerance of StructureMatcher; its others are pymatgen's defaults.
        report: called with how much is done and how much there is.
    """
    ours, theirs = last_frames(train), last_frames(test)
    by_name = {name: _in_common(ours, theirs, name) for name in ("material", "trajectory")}
    n_tested = len(theirs)
    common = pc.unique(ours["formula"].filter(pc.is_in(ours["formula"], theirs["formula"].combine_chunks())))
    ours, theirs = (rows.filter(pc.is_in(rows["formula"], common)) for rows in (ours, theirs))
    work = Work(report, len(ours) + (2 if structures else 1) * len(theirs))
    with Crystals(angle) as crystals:
        seen, tested = (
            _described(dataset, rows, crystals if structures else None, work)
            for dataset, rows in ((train, ours), (test, theirs))
        )
        found = {"prototype": _in_common(seen, tested, "prototype"), **by_name}
        if structures:
            found["structure"] = _same_structures(crystals, seen, tested, work)
    return Leakage(n_tested, found)


def held_out(dataset: Dataset, names: Iterable[str]) -> list[str]:
    """Return the trajectories that are on a list of what is to be unseen, such as WBM's, sorted.

    Args:
        dataset: what is trained on.
        names: identifiers of materials or of trajectories.
    """
    rows, wanted = last_frames(dataset), pa.array(sorted(set(names)), pa.string())
    listed = pc.or_(pc.is_in(rows["material"], wanted), pc.is_in(rows["trajectory"], wanted))
    found: list[str] = rows.filter(listed)["trajectory"].to_pylist()
    return found


def _in_common(ours: pa.Table, theirs: pa.Table, key: str) -> list[tuple[str, str]]:
    """Pair each trajectory of theirs with the first of ours that has the same value, by their order."""
    theirs = theirs.filter(pc.and_(pc.is_valid(theirs[key]), pc.is_in(theirs[key], ours[key].combine_chunks())))
    ours = ours.filter(pc.is_in(ours[key], theirs[key].combine_chunks()))
    seen = dict(zip(reversed(ours[key].to_pylist()), reversed(ours["trajectory"].to_pylist()), strict=True))
    asked = zip(theirs["trajectory"].to_pylist(), theirs[key].to_pylist(), strict=True)
    return [(name, seen[value]) for name, value in asked]


def _described(dataset: Dataset, rows: pa.Table, crystals: Crystals | None, work: Work) -> pa.Table:
    """Read last frames; return their rows with their prototypes and, where they are taken in, their numbers there."""
    labels: list[str | None] = [None] * len(rows)
    numbers: list[int | None] = [None] * len(rows)
    for i, geometry in geometries(dataset, rows):
        labels[i] = prototype(geometry)
        if crystals is not None:
            numbers[i] = crystals.add(geometry)
        work.advance()
    named = rows.append_column("prototype", pa.array(labels, pa.string()))
    return named.append_column("crystal", pa.array(numbers, pa.int64()))


def _same_structures(crystals: Crystals, ours: pa.Table, theirs: pa.Table, work: Work) -> list[tuple[str, str]]:
    """Compare structures with the same formula."""
    names = dict(zip(ours["crystal"].to_pylist(), ours["trajectory"].to_pylist(), strict=True))
    seen = _by_formula(ours)
    found = []
    for formula, tested in _by_formula(theirs).items():
        shelf = Shelf(crystals, len(seen[formula]))
        for crystal, _ in seen[formula]:
            shelf.put(crystal)
        for crystal, name in tested:
            match = shelf.find(crystal)
            if match is not None:
                found.append((name, names[match]))
            work.advance()
    return sorted(found)


def _by_formula(rows: pa.Table) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    columns = (rows[name].to_pylist() for name in ("formula", "crystal", "trajectory"))
    for formula, crystal, name in zip(*columns, strict=True):
        found.setdefault(formula, []).append((crystal, name))
    return found
