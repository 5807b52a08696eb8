"""How far a model is from DFT: energies, forces, stresses, with confidence intervals over trajectories.

Frames of one trajectory are alike, so that intervals are those of a bootstrap that draws trajectories, not frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

AT_ONCE = 5000
"""Frames that are read together."""

OF_FRAMES = ("trajectory_id", "source", "functional", "relaxation_step", "energy", "energy_predicted", "failure")
OF_ATOMS = ("numbers", "forces", "forces_predicted", "stress", "stress_predicted", "failure")
"""Columns of predictions that are read at once, and those that are read some frames at a time."""

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
        names: (m,) of the groups, in the order that they are shown in.
        kind: (n,) which of k kinds each frame is of.
        member: (k, m) whether frames of a kind are in a group.
    """

    names: list[str]
    kind: IntArray
    member: BoolArray


@dataclass(frozen=True)
class Errors:
    """What is needed of predictions, by frame; sums over atoms and how many there are.

    Attributes:
        trajectories: (m,) their names, sorted.
        trajectory: (n,) which of them each frame is of.
        energy_dft: (n,) eV/atom.
        energy_model: (n,) eV/atom, on DFT's scale if there is a shift.
        sums: by metric of atoms and components, (n,) sum and (n,) number.
        groups: by name, what frames are grouped by.
        undefined: atoms whose force, by DFT or the model, is exactly 0, so that there is no angle between them.
        failed: frames that the model said nothing of.
    """

    trajectories: list[str]
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
    """Read predictions and reckon their errors. Of atoms no more is held in memory than what is read together.

    Args:
        path: file that `predict` made.
        shift: one of `SHIFTS`.

    Raises:
        ModelError: no predictions, or no such shift.
    """
    if shift not in SHIFTS:
        raise ModelError(f"no shift {shift}; there are {', '.join(SHIFTS)}")
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            table = file.read(list(OF_FRAMES))
            answered = table.filter(pc.is_null(table["failure"]))
            sums = [_sums(batch) for batch in file.iter_batches(AT_ONCE, columns=list(OF_ATOMS))]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ModelError(f"{path}: no predictions of trajmill ({error})") from error
    its = _Sums.together(sums)
    energy, asked = (answered[name].to_numpy() for name in ("energy", "energy_predicted"))
    if shift == "composition" and len(answered):
        asked = asked - _fitted(its, asked - energy)
    trajectory, trajectories = _ranks(answered["trajectory_id"])
    n_atoms = its.compositions.sum(axis=1)[its.composition]
    return Errors(
        trajectories=trajectories,
        trajectory=trajectory,
        energy_dft=energy / n_atoms,
        energy_model=asked / n_atoms,
        sums=its.metrics,
        groups={
            "source": _by_text(answered["source"]),
            "functional": _by_text(answered["functional"]),
            "element": _by_element(its),
            "force range": _by_range(its.largest_force, FORCE_RANGES, "eV/A"),
            "step": _by_range(answered["relaxation_step"].to_numpy(), STEPS, ""),
        },
        undefined=its.undefined,
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


def score_unseen(errors: Errors, seen: Iterable[str], **options: Any) -> dict[str, Score]:
    """Return every metric, of frames of trajectories that are not among those that a model has seen."""
    known = set(seen)
    new = np.array([name not in known for name in errors.trajectories], bool)
    return score(errors, new[errors.trajectory], **options)


def by_group(errors: Errors, name: str, **options: Any) -> dict[str, dict[str, Score]]:
    """Return every metric of each group: by `source`, `functional`, `force range`, `step`, or `element`.

    A frame counts for each of its elements, and for the range of its largest DFT force.

    Raises:
        ModelError: no such grouping.
    """
    if name not in errors.groups:
        raise ModelError(f"nothing is grouped by {name}; there are {', '.join(errors.groups)}")
    names, kind, member = errors.groups[name]
    return {label: score(errors, member[kind, i], **options) for i, label in enumerate(names)}


# --- sums over atoms


@dataclass(frozen=True)
class _Sums:
    """What is needed of the atoms of n frames.

    Attributes:
        metrics: by name, (n,) sums over atoms or components, and how many.
        largest_force: (n,) of DFT's, eV/A.
        compositions: (k, elements) how many atoms of each element.
        composition: (n,) which of them a frame has.
        undefined: atoms without an angle.
    """

    metrics: dict[str, tuple[FloatArray, FloatArray]]
    largest_force: FloatArray
    compositions: IntArray
    composition: IntArray
    undefined: int

    @classmethod
    def together(cls, parts: Sequence[_Sums]) -> _Sums:
        """Put frames after each other."""
        begins = np.cumsum([0, *(len(its.compositions) for its in parts)], dtype=np.int32)
        return cls(
            metrics={
                name: (_concatenated(its.metrics[name][0] for its in parts),
                       _concatenated(its.metrics[name][1] for its in parts))
                for name in METRICS if name != "energy_mae"
            },
            largest_force=_concatenated(its.largest_force for its in parts),
            compositions=np.concatenate([its.compositions for its in parts] or [np.zeros((0, len(SYMBOLS)), np.int32)]),
            composition=_concatenated(
                (begin + its.composition for begin, its in zip(begins, parts, strict=False)), np.int32
            ),
            undefined=sum(its.undefined for its in parts),
        )  # fmt: skip


def _concatenated(arrays: Iterable[NDArray[Any]], kind: Any = float) -> Any:
    return np.concatenate([np.zeros(0, kind), *arrays])


def _sums(batch: pa.RecordBatch) -> _Sums:
    """Sum over the atoms of each frame that the model says something of."""
    frames = batch.filter(pc.is_null(batch["failure"]))
    n, lengths = len(frames), pc.list_value_length(frames["numbers"]).to_numpy()
    numbers, owner = flat(frames["numbers"]).astype(np.int64), np.repeat(np.arange(n), lengths)
    forces, predicted = (flat(frames[name]).reshape(-1, 3) for name in ("forces", "forces_predicted"))
    norms = np.linalg.norm(forces, axis=1), np.linalg.norm(predicted, axis=1)
    defined = (norms[0] > 0) & (norms[1] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(defined, (forces * predicted).sum(axis=1) / (norms[0] * norms[1]), 0.0)

    def summed(values: FloatArray, which: BoolArray) -> tuple[FloatArray, FloatArray]:
        total = np.bincount(owner, weights=np.where(which, values, 0.0), minlength=n)
        return total.astype(float), np.bincount(owner, weights=which, minlength=n).astype(float)

    largest = np.zeros(n)
    np.maximum.at(largest, owner, norms[0])
    counts = np.bincount(owner * len(SYMBOLS) + numbers, minlength=n * len(SYMBOLS)).reshape(-1, len(SYMBOLS))
    compositions, composition = np.unique(counts.astype(np.int32), axis=0, return_inverse=True)
    return _Sums(
        metrics={
            "force_mae": summed(1000 * np.abs(predicted - forces).sum(axis=1) / 3, np.ones(len(forces), bool)),
            "force_cosine": summed(cosine, defined),
            "force_cosine_above": summed(cosine, defined & (norms[0] > FLOOR)),
            "stress_mae": _of_stress(frames),
        },
        largest_force=largest,
        compositions=compositions,
        composition=composition.reshape(-1).astype(np.int32),
        undefined=int((~defined).sum()),
    )


def _of_stress(frames: pa.RecordBatch) -> tuple[FloatArray, FloatArray]:
    """Return the mean absolute error of the components of each frame that has both stresses, and whether it has."""
    known = pc.and_(pc.is_valid(frames["stress"]), pc.is_valid(frames["stress_predicted"]))
    its, has = frames.filter(known), known.to_numpy(zero_copy_only=False)
    total = np.zeros(len(frames))
    pair = (flat(its[name]).reshape(-1, 6) for name in ("stress", "stress_predicted"))
    total[has] = 1000 * np.abs(np.subtract(*pair)).sum(axis=1) / 6
    return total, has.astype(float)


def flat(column: pa.Array) -> Any:
    """Return the numbers of a column of lists, or of lists of lists, after each other."""
    while pa.types.is_list(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False)


def _fitted(its: _Sums, difference: FloatArray) -> FloatArray:
    """Fit the differences of energies by a constant per element, least squares over all frames."""
    n = np.bincount(its.composition, minlength=len(its.compositions))
    total = np.bincount(its.composition, weights=difference, minlength=len(its.compositions))
    counts, root = its.compositions[:, its.compositions.any(axis=0)], np.sqrt(n)
    # frames of one composition are one row: its weight is their number, what is fitted their mean
    constants, *_ = np.linalg.lstsq(root[:, None] * counts, total / root, rcond=1e-10)
    fitted: FloatArray = (counts @ constants)[its.composition]
    return fitted


# --- groups


def _by_text(column: pa.ChunkedArray) -> Grouping:
    """Group by texts that are the same."""
    place, names = _ranks(column.fill_null("unknown"))
    return _by_name(names, place)


def _ranks(column: pa.ChunkedArray) -> tuple[IntArray, list[str]]:
    """Return where each text stands among all that there are, sorted, and those."""
    words = column.dictionary_encode().unify_dictionaries().combine_chunks()
    names, rank = np.unique(np.array(words.dictionary.to_pylist(), object), return_inverse=True)
    return rank.astype(np.int32)[words.indices.to_numpy()], names.tolist()


def _by_element(its: _Sums) -> Grouping:
    """Group by elements; a frame is in the group of each that it has."""
    has = its.compositions > 0
    present = np.flatnonzero(has.any(axis=0))
    return Grouping([SYMBOLS[z] for z in present], its.composition, has[:, present])


def _by_range(values: NDArray[Any], borders: Sequence[float], unit: str) -> Grouping:
    """Group by the range that a value is in; ranges without any are left out."""
    names = [_range(a, b, unit) for a, b in pairwise(borders)]
    place = np.clip(np.searchsorted(borders, values, side="right") - 1, 0, len(names) - 1)
    return _by_name(names, place)


def _by_name(names: Sequence[str], place: NDArray[np.integer[Any]]) -> Grouping:
    """Group by where names stand, those that frames have."""
    present, kind = np.unique(place, return_inverse=True)
    return Grouping([names[i] for i in present], kind.astype(np.int32), np.eye(len(present), dtype=bool))


def _range(low: float, high: float, unit: str) -> str:
    to = "" if high in (np.inf, 2**31) else f" to {high:g}"
    return f"{low:g}{to or ' and more'} {unit}".strip()
