"""The physics check: between consecutive frames the energy changes by the work of forces and stress.

It finds a wrong unit or sign of energy, forces or stress in data, without knowing where the data come from. With du the
change of fractional coordinates times the mean cell, so that the affine part is left out, strain
eps = sym(mean_cell^-1 dL), and forces F, stress sigma and volume V averaged over both frames,

    dE = -sum F du + V sigma : eps

up to terms of third order. Only pairs of one calculation count, since the basis is rebuilt for the next, and only those
whose stress does enough work to tell. What is asked of them is a median and a share: single pairs may be anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trajmill.dataset import Dataset
from trajmill.trajectory import FloatArray, Trajectory
from trajmill.units import KBAR_PER_EV_PER_A3

MEDIAN, SHARE, NEAR = 0.10, 0.80, 0.25
"""What right data reach: a median residual below 0.10, and 80 % of pairs below 0.25."""

ENOUGH = 20
"""Pairs from which the check says something."""

MISTAKES = {
    "the other sign": -1.0,
    "kBar with VASP's sign": -1 / KBAR_PER_EV_PER_A3,
    "kBar": 1 / KBAR_PER_EV_PER_A3,
    "GPa with VASP's sign": -10 / KBAR_PER_EV_PER_A3,
    "GPa": 10 / KBAR_PER_EV_PER_A3,
    "a tenth of what it should be": 10.0,
    "ten times what it should be": 0.1,
}
"""What is wrong with a stress that is right after it was multiplied so."""


@dataclass(frozen=True)
class Pairs:
    """Consecutive frames of calculations.

    Attributes:
        change: (n_pairs,) of the energy, eV.
        of_forces: (n_pairs,) work of the forces, eV.
        of_stress: (n_pairs,) work of the stress, eV.
        size: (n_pairs,) norm of the strain.
        n_atoms: (n_pairs,).
    """

    change: FloatArray
    of_forces: FloatArray
    of_stress: FloatArray
    size: FloatArray
    n_atoms: NDArray[np.int64]

    def residuals(self, factor: float = 1.0) -> FloatArray:
        """Return the relative residual of the pairs that can tell the stress's unit.

        Args:
            factor: by which to multiply the stress.
        """
        of_stress = factor * self.of_stress
        telling = (
            (self.size > 1e-5)
            & (self.size < 0.02)
            & (np.abs(of_stress) > 0.2e-3 * self.n_atoms)
            & (np.abs(of_stress) > 0.3 * np.abs(self.of_forces))
        )  # False where a label is NaN
        off = np.abs(self.change - self.of_forces - of_stress)[telling]
        found: FloatArray = off / (np.abs(self.of_forces) + np.abs(of_stress))[telling]
        return found


@dataclass(frozen=True)
class Verdict:
    """What the check says of some data.

    Attributes:
        source: whose they are.
        pairs: that can tell.
        median: of their residuals; NaN without any.
        near: share of pairs with a residual below 0.25.
        passed: whether units and signs are right; None where too few pairs can tell.
        looks_like: what the stress seems to be, where it is wrong.
    """

    source: str
    pairs: int
    median: float
    near: float
    passed: bool | None
    looks_like: str | None = None


def pairs_of(trajectories: Iterable[Trajectory]) -> Pairs:
    """Return all pairs of consecutive frames of the same calculation, of cells with more than one atom."""
    none = Pairs(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    return _joined([none, *(_pairs(t) for t in trajectories if t.n_atoms > 1 and len(t) > 1)])


def passes(residuals: FloatArray) -> bool:
    """Tell whether residuals are those of right units and signs."""
    return len(residuals) > 0 and bool(np.median(residuals) < MEDIAN and (residuals < NEAR).mean() >= SHARE)


def judge(source: str, pairs: Pairs) -> Verdict:
    """Say whether units and signs of some data are right, and what seems wrong with their stress if not."""
    found = pairs.residuals()
    others = {name: pairs.residuals(factor) for name, factor in MISTAKES.items()}
    fit = {name: float(np.median(r)) for name, r in others.items() if len(r) >= ENOUGH and passes(r)}
    near = float((found < NEAR).mean()) if len(found) else np.nan
    median = float(np.median(found)) if len(found) else np.nan
    enough = len(found) >= ENOUGH
    if not enough and not fit:
        return Verdict(source, len(found), median, near, None)
    passed = enough and passes(found)
    return Verdict(
        source, len(found), median, near, passed, None if passed or not fit else min(fit, key=fit.__getitem__)
    )


def check(dataset: Dataset, *, trajectories: int = 10_000, seed: int = 0) -> list[Verdict]:
    """Check units and signs of a dataset, source by source.

    Args:
        dataset: relaxations; single frames say nothing.
        trajectories: so many are drawn at random.
        seed: another one draws others.
    """
    by_source: dict[str, list[Pairs]] = {}
    for t in dataset.sample(trajectories, seed=seed).trajectories():
        by_source.setdefault(t.source or "unknown", []).append(pairs_of([t]))
    return [judge(source, _joined(its)) for source, its in sorted(by_source.items())]


def _joined(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate([getattr(p, name) for p in parts]) for name in Pairs.__dataclass_fields__))


def _pairs(t: Trajectory) -> Pairs:
    pair = (np.diff(t.relaxation_number) == 0) & (np.diff(t.relaxation_step) == 1)
    a, b = np.flatnonzero(pair), np.flatnonzero(pair) + 1
    cell = (t.lattice[a] + t.lattice[b]) / 2
    moved = t.positions[b] @ np.linalg.inv(t.lattice[b]) - t.positions[a] @ np.linalg.inv(t.lattice[a])
    moved = (moved - np.rint(moved)) @ cell  # in fractional coordinates: what the cell alone moves is left out
    strain = np.linalg.inv(cell) @ (t.lattice[b] - t.lattice[a])
    strain = (strain + strain.transpose(0, 2, 1)) / 2
    volume = (np.abs(np.linalg.det(t.lattice[a])) + np.abs(np.linalg.det(t.lattice[b]))) / 2
    return Pairs(
        change=t.energy[b] - t.energy[a],
        of_forces=-((t.forces[a] + t.forces[b]) / 2 * moved).sum(axis=(1, 2)),
        of_stress=volume * ((t.stress[a] + t.stress[b]) / 2 * strain).sum(axis=(1, 2)),
        size=np.linalg.norm(strain, axis=(1, 2)),
        n_atoms=np.full(len(a), t.n_atoms),
    )
