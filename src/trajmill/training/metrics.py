"""How far a model is from DFT: energies, forces, stresses, with confidence intervals over trajectories.

Frames of one trajectory are alike, so that intervals are those of a bootstrap that draws trajectories, not frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trajmill.elements import SYMBOLS
from trajmill.errors import ModelError
from trajmill.trajectory import BoolArray, FloatArray, IntArray

FLOOR = 0.05
"""eV/A; forces below it point anywhere. A cosine is also given over those above it alone."""

FORCE_RANGES = (0.0, 0.01, 0.1, 1.0, 10.0, np.inf)
"""eV/A, borders of the ranges of DFT forces that errors are given by."""

STEPS = (0, 1, 5, 20, 100, 2**31)
"""Borders of the ranges of steps that errors are given by."""

SHIFTS = ("none", "composition")
"""How energies of the model are put on DFT's scale: not at all, or by a constant per element, fitted."""

METRICS = {
    "energy_mae": "energy MAE, meV/atom",
    "force_mae": "force MAE, meV/A",
    "force_cosine": "force cosine",
    "force_cosine_above": f"force cosine, |F| > {FLOOR} eV/A",
    "stress_mae": "stress MAE, meV/A^3",
}
"""By name: what it is and its unit. Forces and stresses by component."""


class Grouping(NamedTuple):
    """What frames are grouped by.

    Attributes:
        labels: (n,) of each frame; for elements, the set of those it has.
        names: of the groups, in the order that they are shown in.
    """

    labels: NDArray[np.object_]
    names: list[str]


@dataclass(frozen=True)
class Errors:
    """What is needed of predictions, by frame; sums over atoms and how many there are.

    Attributes:
        trajectory: (n,) index of the trajectory of each frame.
        energy_dft: (n,) eV/atom.
        energy_model: (n,) eV/atom, on DFT's scale if there is a shift.
        sums: by metric of atoms and components, (n,) sum and (n,) number.
        groups: by name, what frames are grouped by.
        undefined: atoms whose force, by DFT or the model, is exactly 0, so that there is no angle between them.
        failed: frames that the model said nothing of.
    """

    trajectory: IntArray
    energy_dft: FloatArray
    energy_model: FloatArray
    sums: dict[str, tuple[FloatArray, FloatArray]]
    groups: dict[str, Grouping]
    undefined: int
    failed: int

    def __len__(self) -> int:
        return len(self.trajectory)

    @property
    def energy(self) -> FloatArray:
        """(n,) absolute error, meV/atom."""
        return 1000 * np.abs(self.energy_model - self.energy_dft)


@dataclass(frozen=True)
class Score:
    """A metric and its 95 % confidence interval.

    Attributes:
        value: NaN where nothing can be said.
        low, high: of the interval; NaN where one trajectory is all there is.
    """

    value: float
    low: float
    high: float


def errors_of(path: Path, *, shift: str = "none") -> Errors:
    """Read predictions and reckon their errors.

    Args:
        path: file that `predict` made.
        shift: one of `SHIFTS`.

    Raises:
        ModelError: no predictions, or no such shift.
    """
    if shift not in SHIFTS:
        raise ModelError(f"no shift {shift}; there are {', '.join(SHIFTS)}")
    try:
        table = pq.read_table(path).combine_chunks()
        answered = table.filter(pc.is_null(table["failure"])).combine_chunks()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ModelError(f"{path}: no predictions of trajmill ({error})") from error
    numbers, owner, n_atoms = _atoms(answered)
    energy, asked = (answered[name].to_numpy() for name in ("energy", "energy_predicted"))
    if shift == "composition" and len(answered):
        asked = asked - _fitted(numbers, owner, asked - energy)
    forces, predicted = (flat(answered[name]).reshape(-1, 3) for name in ("forces", "forces_predicted"))
    sums, undefined = _of_forces(forces, predicted, owner, len(answered))
    sums["stress_mae"] = _of_stress(answered)
    return Errors(
        trajectory=_codes(answered["trajectory_id"]),
        energy_dft=energy / n_atoms,
        energy_model=asked / n_atoms,
        sums=sums,
        groups=_groups(answered, forces, owner),
        undefined=undefined,
        failed=len(table) - len(answered),
    )


def score(errors: Errors, chosen: BoolArray | None = None, *, draws: int = 1000, seed: int = 0) -> dict[str, Score]:
    """Return every metric, of all frames or of some, with intervals by bootstrap over trajectories.

    Args:
        errors: of a model on a dataset.
        chosen: (n,) which frames; None takes all.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    its = np.flatnonzero(np.ones(len(errors), bool) if chosen is None else chosen)
    _, run = np.unique(errors.trajectory[its], return_inverse=True)
    n_runs = int(run.max()) + 1 if len(its) else 0
    weights = (
        np.random.default_rng(seed).multinomial(n_runs, np.full(n_runs, 1 / n_runs), draws) if n_runs > 1 else None
    )
    sums = {"energy_mae": (errors.energy, np.ones(len(errors)))} | errors.sums
    found = {}
    for name in METRICS:
        total, count = (np.bincount(run, weights=part[its], minlength=n_runs) for part in sums[name])
        value = float(total.sum() / count.sum()) if count.sum() else np.nan
        low = high = np.nan
        if weights is not None and count.sum():
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn = (weights @ total) / (weights @ count)
            low, high = np.nanquantile(drawn, [0.025, 0.975])
        found[name] = Score(value, float(low), float(high))
    return found


def by_group(errors: Errors, name: str, **options: Any) -> dict[str, dict[str, Score]]:
    """Return every metric of each group: by `source`, `functional`, `force range`, `step`, or `element`.

    A frame counts for each of its elements, and for the range of its largest DFT force.

    Raises:
        ModelError: no such grouping.
    """
    if name not in errors.groups:
        raise ModelError(f"nothing is grouped by {name}; there are {', '.join(errors.groups)}")
    labels, names = errors.groups[name]
    if name == "element":
        return {e: score(errors, np.array([e in its for its in labels], bool), **options) for e in names}
    return {label: score(errors, labels == label, **options) for label in names}


def _atoms(table: pa.Table) -> tuple[IntArray, IntArray, IntArray]:
    """Return the atomic number of each atom, the frame it is of, and how many a frame has."""
    lengths = pc.list_value_length(table["numbers"]).to_numpy()
    return flat(table["numbers"]).astype(np.int64), np.repeat(np.arange(len(table)), lengths), lengths


def flat(column: pa.ChunkedArray | pa.Array) -> Any:
    """Return the numbers of a column of lists, or of lists of lists, after each other."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(values, pa.ChunkedArray):  # none
        return np.zeros(0)
    while pa.types.is_list(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False)


def _fitted(numbers: IntArray, owner: IntArray, difference: FloatArray) -> FloatArray:
    """Fit the differences of energies by a constant per element, least squares over all frames."""
    present, index = np.unique(numbers, return_inverse=True)
    counts = np.zeros((len(difference), len(present)))
    np.add.at(counts, (owner, index), 1)
    constants, *_ = np.linalg.lstsq(counts, difference, rcond=1e-10)
    fitted: FloatArray = counts @ constants
    return fitted


def _of_forces(
    forces: FloatArray, predicted: FloatArray, owner: IntArray, n: int
) -> tuple[dict[str, tuple[FloatArray, FloatArray]], int]:
    """Return sums over the atoms of each frame."""
    norms = np.linalg.norm(forces, axis=1), np.linalg.norm(predicted, axis=1)
    defined = (norms[0] > 0) & (norms[1] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(defined, (forces * predicted).sum(axis=1) / (norms[0] * norms[1]), 0.0)

    def summed(values: FloatArray, which: BoolArray) -> tuple[FloatArray, FloatArray]:
        total = np.bincount(owner, weights=np.where(which, values, 0.0), minlength=n)
        return total.astype(float), np.bincount(owner, weights=which, minlength=n).astype(float)

    absolute = 1000 * np.abs(predicted - forces).mean(axis=1) if len(forces) else np.zeros(0)
    return {
        "force_mae": summed(absolute, np.ones(len(forces), bool)),
        "force_cosine": summed(cosine, defined),
        "force_cosine_above": summed(cosine, defined & (norms[0] > FLOOR)),
    }, int((~defined).sum())


def _of_stress(table: pa.Table) -> tuple[FloatArray, FloatArray]:
    """Return the mean absolute error of the components of each frame that has both stresses, and whether it has."""
    known = pc.and_(pc.is_valid(table["stress"]), pc.is_valid(table["stress_predicted"]))
    known = np.asarray(known.to_numpy(zero_copy_only=False) if isinstance(known, pa.Array) else known.to_numpy(), bool)
    its = table.filter(pa.array(known))
    total = np.zeros(len(table))
    if known.any():
        pair = (flat(its[name]).reshape(-1, 6) for name in ("stress", "stress_predicted"))
        total[known] = 1000 * np.abs(np.subtract(*pair)).mean(axis=1)
    return total, known.astype(float)


def _groups(table: pa.Table, forces: FloatArray, owner: IntArray) -> dict[str, Grouping]:
    largest = np.zeros(len(table))
    np.maximum.at(largest, owner, np.linalg.norm(forces, axis=1))
    elements = np.empty(len(table), object)
    for i, its in enumerate(table["numbers"].to_pylist()):
        elements[i] = {SYMBOLS[n] for n in its}
    return {
        "source": _texts(table["source"]),
        "functional": _texts(table["functional"]),
        "element": Grouping(elements, sorted(set().union(*elements), key=SYMBOLS.index)),
        "force range": _ranges(largest, FORCE_RANGES, "eV/A"),
        "step": _ranges(table["relaxation_step"].to_numpy(), STEPS, ""),
    }


def _texts(column: pa.ChunkedArray) -> Grouping:
    labels = column.fill_null("unknown").to_pylist()
    return Grouping(np.array(labels, object), sorted(set(labels)))


def _ranges(values: NDArray[Any], borders: Sequence[float], unit: str) -> Grouping:
    """Name the range that each value is in; ranges without any are left out."""
    names = [_range(a, b, unit) for a, b in pairwise(borders)]
    place = np.clip(np.searchsorted(borders, values, side="right") - 1, 0, len(names) - 1)
    return Grouping(np.array(names, object)[place], [names[i] for i in np.unique(place)])


def _range(low: float, high: float, unit: str) -> str:
    to = "" if high in (np.inf, 2**31) else f" to {high:g}"
    return f"{low:g}{to or ' and more'} {unit}".strip()


def _codes(column: pa.ChunkedArray) -> IntArray:
    return np.unique(np.array(column.to_pylist(), str), return_inverse=True)[1].astype(np.int32)
