"""The physics check: between consecutive frames the energy changes by the work of forces and stress.

It finds a wrong unit or sign of energy, forces or stress in data, without knowing where the data come from.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trajmill.trajectory import Trajectory

MEDIAN, SHARE, NEAR = 0.10, 0.80, 0.25
"""What right data reach: a median residual below 0.10, and 80 % of pairs below 0.25."""


def residuals(trajectories: Iterable[Trajectory], *, factor: float = 1.0) -> NDArray[np.float64]:
    """Return the relative residual of the energy change for every pair of frames that can tell the stress's unit.

    A pair is two consecutive frames of one calculation; across calculations the plane-wave basis is rebuilt.

    Args:
        trajectories: units as `Trajectory` says.
        factor: by which to spoil the stress of the pairs, after they were chosen.
    """
    usable = (t for t in trajectories if t.n_atoms > 1 and len(t) > 1)
    return np.concatenate([np.zeros(0), *(_residuals(t, factor) for t in usable)])


def passes(found: NDArray[np.float64]) -> bool:
    """Tell whether the residuals are those of right units and signs."""
    return len(found) > 0 and bool(np.median(found) < MEDIAN and (found < NEAR).mean() >= SHARE)


def _residuals(t: Trajectory, factor: float) -> NDArray[np.float64]:
    pair = (np.diff(t.relaxation_number) == 0) & (np.diff(t.relaxation_step) == 1)
    a, b = np.flatnonzero(pair), np.flatnonzero(pair) + 1
    cell = (t.lattice[a] + t.lattice[b]) / 2
    moved = t.positions[b] @ np.linalg.inv(t.lattice[b]) - t.positions[a] @ np.linalg.inv(t.lattice[a])
    moved = (moved - np.rint(moved)) @ cell  # in fractional coordinates: what the cell alone moves is left out
    strain = np.linalg.inv(cell) @ (t.lattice[b] - t.lattice[a])
    strain = (strain + strain.transpose(0, 2, 1)) / 2
    volume = (np.abs(np.linalg.det(t.lattice[a])) + np.abs(np.linalg.det(t.lattice[b]))) / 2
    of_forces = -((t.forces[a] + t.forces[b]) / 2 * moved).sum(axis=(1, 2))
    of_stress = volume * ((t.stress[a] + t.stress[b]) / 2 * strain).sum(axis=(1, 2))
    size = np.linalg.norm(strain, axis=(1, 2))
    telling = (
        (size > 1e-5)
        & (size < 0.02)
        & (np.abs(of_stress) > 0.2e-3 * t.n_atoms)
        & (np.abs(of_stress) > 0.3 * np.abs(of_forces))
    )  # False where a label is NaN
    change = (t.energy[b] - t.energy[a])[telling]
    of_forces, of_stress = of_forces[telling], of_stress[telling]
    return np.abs(change - of_forces - factor * of_stress) / (np.abs(of_forces) + np.abs(of_stress))
