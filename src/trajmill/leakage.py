"""Leakage: what of a test set a training set has seen already.

Four signs, each stronger than the one before it: the same reduced formula and space group, the same material by
identifier, the same run by identifier, and the same structure, in whatever cell it is written. Structures are the last
frames of trajectories, compared by pymatgen's StructureMatcher where formula allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trajmill.dataset import Dataset
from trajmill.rows import trajectory_id
from trajmill.thinning import farthest

if TYPE_CHECKING:
    from pymatgen.core import Structure

SIGNS = ("formula and space group", "material", "trajectory", "structure")


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


def find_leakage(train: Dataset, test: Dataset, *, structures: bool = True, angle: float = 5.0) -> Leakage:
    """Find what a training set has seen of a test set.

    Args:
        train: what is trained on.
        test: what is to be unseen.
        structures: whether to compare structures, which takes most of the time.
        angle: degrees, tolerance of StructureMatcher; its others are pymatgen's defaults.
    """
    ours, theirs = _last_frames(train), _last_frames(test)
    found: dict[str, list[tuple[str, str]]] = {}
    keys: dict[str, Callable[[dict[str, Any]], Any]] = {
        "formula and space group": lambda row: (row["formula"], row["group"]) if row["group"] else None,
        "material": lambda row: row["material"],
        "trajectory": lambda row: row["trajectory"],
    }
    for sign, key in keys.items():
        seen: dict[Any, str] = {}
        for row in ours:
            if (value := key(row)) is not None:
                seen.setdefault(value, row["trajectory"])
        found[sign] = [(row["trajectory"], seen[key(row)]) for row in theirs if key(row) in seen]
    if structures:
        found["structure"] = _same_structures(train, test, ours, theirs, angle)
    return Leakage(len(theirs), found)


def held_out(dataset: Dataset, materials: Iterable[str]) -> list[str]:
    """Return the trajectories whose material is on a list that is to be unseen, such as WBM's, sorted."""
    wanted = set(materials)
    return sorted(row["trajectory"] for row in _last_frames(dataset) if row["material"] in wanted)


def _last_frames(dataset: Dataset) -> list[dict[str, Any]]:
    identity = trajectory_id(dataset.schema)
    rows: list[dict[str, Any]] = dataset.ask(
        f"SELECT {identity} AS trajectory, any_value(immutable_id) AS material, "
        "any_value(chemical_formula_reduced) AS formula, "
        "max_by(space_group_it_number, relaxation_step) AS group, max_by(id, relaxation_step) AS last "
        "FROM wanted GROUP BY 1 ORDER BY 1"
    ).to_pylist()
    return rows


def _same_structures(
    train: Dataset, test: Dataset, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], angle: float
) -> list[tuple[str, str]]:
    """Compare last frames with the same reduced formula."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(angle_tol=angle)
    common = {row["formula"] for row in ours} & {row["formula"] for row in theirs}
    seen, tested = _by_formula(train, ours, common), _by_formula(test, theirs, common)
    found = []
    for formula in common:
        for name, structure in tested[formula]:
            match = next((other for other, known in seen[formula] if matcher.fit(structure, known)), None)
            if match is not None:
                found.append((name, match))
    return sorted(found)


def _by_formula(
    dataset: Dataset, rows: list[dict[str, Any]], formulas: set[str]
) -> dict[str, list[tuple[str, Structure]]]:
    """Return the last structure of each trajectory of these formulas."""
    found: dict[str, list[tuple[str, Structure]]] = {formula: [] for formula in formulas}
    last = {row["last"]: row for row in rows if row["formula"] in formulas}
    for structure in dataset.only(row["trajectory"] for row in last.values()).thin(farthest(1)).structures():
        if row := last.get(structure.properties["id"]):
            found[row["formula"]].append((row["trajectory"], structure))
    return found
