"""Views: what else a relaxation teaches than energies and forces, as examples with inputs and targets.

All stream, one trajectory in memory. What is drawn at random depends on the seed and the trajectory's identifier alone:
neither on the order of trajectories nor on what else there is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajmill.dataset import Dataset
from trajmill.errors import ViewError
from trajmill.trajectory import BoolArray, FloatArray, Trajectory


class Geometry(NamedTuple):
    """Atoms in a cell.

    Attributes:
        numbers: (n_atoms,) atomic numbers.
        lattice: (3, 3) A, vectors as rows.
        positions: (n_atoms, 3) A.
    """

    numbers: NDArray[np.int64]
    lattice: FloatArray
    positions: FloatArray


class Relaxation(NamedTuple):
    """Initial structure to relaxed energy (IS2RE) and to relaxed structure (IS2RS).

    Attributes:
        id: of the trajectory.
        first: where the relaxation began.
        last: where it ended.
        energy: of the last frame, eV per cell.
    """

    id: str
    first: Geometry
    last: Geometry
    energy: float


class Pair(NamedTuple):
    """Two frames of a trajectory.

    Attributes:
        id: of the trajectory.
        first: one.
        second: the other.
        difference: energy of the second less that of the first, eV/atom.
    """

    id: str
    first: Geometry
    second: Geometry
    difference: float


class Noisy(NamedTuple):
    """A frame with noise, and what leads back.

    Attributes:
        id: of the frame.
        geometry: with noise: the cell strained, then each atom moved.
        sigma: A, standard deviation of each atom's displacement.
        displacement: (n_atoms, 3) A from the noisy position back to where the strained cell has the atom.
        strain: (3, 3) symmetric; the noisy cell times 1 + this is the frame's.
        forces: (n_atoms, 3) eV/A of the frame without noise.
        energy: eV per cell of the frame without noise.
    """

    id: str
    geometry: Geometry
    sigma: float
    displacement: FloatArray
    strain: FloatArray
    forces: FloatArray
    energy: float


class Masked(NamedTuple):
    """A frame some of whose elements are hidden.

    Attributes:
        id: of the frame.
        geometry: atomic numbers are 0 where they are hidden.
        hidden: (n_atoms,) which are.
        numbers: (n_atoms,) what they are.
    """

    id: str
    geometry: Geometry
    hidden: BoolArray
    numbers: NDArray[np.int64]


def relaxations(dataset: Dataset, inputs: Dataset | None = None) -> Iterator[Relaxation]:
    """Yield the first and the last geometry of each trajectory with more than one, and the last energy.

    Args:
        dataset: whole trajectories.
        inputs: geometries without labels that relaxations began with (`trajmill.open(..., inputs=True)`): where there
            is one, it is the first. All of them are held in memory.
    """
    began = {t.trajectory_id: _geometry(t, 0) for t in inputs.trajectories()} if inputs is not None else {}
    for t in dataset.trajectories():
        first = began.get(t.trajectory_id)
        if first is not None or len(t) > 1:
            yield Relaxation(t.trajectory_id, first or _geometry(t, 0), _geometry(t, -1), float(t.energy[-1]))


def steps(dataset: Dataset, *, stride: int = 1) -> Iterator[Pair]:
    """Yield pairs of frames so many frames apart, within one calculation, for amortised relaxation.

    Raises:
        ViewError: a stride below 1.
    """
    if stride < 1:
        raise ViewError(f"frames {stride} apart make no pair; say 1 or more")
    for t in dataset.trajectories():
        for i in range(len(t) - stride):
            if t.relaxation_number[i] == t.relaxation_number[i + stride]:
                yield _pair(t, i, i + stride)


def ordered_pairs(dataset: Dataset, *, n: int = 1, seed: int = 0) -> Iterator[Pair]:
    """Yield n pairs of each trajectory, of frames of one calculation, the second lower in energy than the first."""
    for t in dataset.trajectories():
        rng = _rng(t.trajectory_id, seed)
        i, j = (rng.integers(0, len(t), 20 * n) for _ in range(2))
        same = t.relaxation_number[i] == t.relaxation_number[j]
        good = np.flatnonzero(same & (t.energy[i] > t.energy[j]))[:n]
        yield from (_pair(t, int(i[k]), int(j[k])) for k in good)


def contrasts(dataset: Dataset, *, seed: int = 0) -> Iterator[Pair]:
    """Yield two different frames of each trajectory: two views of one thing, for contrastive learning."""
    for t in dataset.trajectories():
        if len(t) > 1:
            i, j = _rng(t.trajectory_id, seed).choice(len(t), 2, replace=False)
            yield _pair(t, int(i), int(j))


def noise_levels(lowest: float, highest: float, n: int) -> FloatArray:
    """Return n standard deviations, A, each the same factor above the one before, as score-based models take them.

    The geometric sequence of Song and Ermon, NeurIPS 2019 (arXiv:1907.05600).

    Raises:
        ViewError: not 0 < lowest <= highest, or n below 1.
    """
    if not 0 < lowest <= highest or n < 1:
        raise ViewError(f"no {n} levels of noise from {lowest} to {highest}; say 0 < lowest <= highest and one or more")
    levels: FloatArray = np.geomspace(lowest, highest, n)
    return levels


def denoising(
    dataset: Dataset, sigmas: FloatArray | float, *, strain: float = 0.0, relaxed_only: bool = False, seed: int = 0
) -> Iterator[Noisy]:
    """Yield each frame with noise.

    With all frames and their forces this is denoising of non-equilibrium structures (DeNS, Liao et al.,
    arXiv:2403.09549), where the forces of the frame say which of the structures with such an atom nearby is meant.

    Args:
        dataset: where frames come from.
        sigmas: standard deviation of each atom's displacement, A; of several one is drawn for each frame.
        strain: standard deviation of the components of a symmetric strain of the cell.
        relaxed_only: take last frames only, whose forces are small.
        seed: another one draws others.

    Raises:
        ViewError: a negative deviation.
    """
    levels = np.atleast_1d(np.asarray(sigmas, float))
    if not (levels >= 0).all() or not strain >= 0:
        raise ViewError(f"noise of {sigmas} A and strain of {strain} make no sense; say 0 or more")
    for t in dataset.trajectories():
        rng = _rng(t.trajectory_id, seed)
        for i in range(len(t)):
            sigma = float(rng.choice(levels))
            drawn = rng.normal(0, 1, (3, 3)) * strain
            back, displacement = (drawn + drawn.T) / 2, rng.normal(0, sigma, (t.n_atoms, 3))
            if relaxed_only and i < len(t) - 1:
                continue
            deform = np.linalg.inv(np.eye(3) + back)
            noisy = Geometry(t.numbers, t.lattice[i] @ deform, t.positions[i] @ deform - displacement)
            yield Noisy(_frame_id(t, i), noisy, sigma, displacement, back, t.forces[i], float(t.energy[i]))


def masked(dataset: Dataset, *, fraction: float = 0.15, seed: int = 0) -> Iterator[Masked]:
    """Yield each frame with a share of its atoms' elements hidden, one at least.

    Raises:
        ViewError: a share that is none.
    """
    if not 0 < fraction <= 1:
        raise ViewError(f"a fraction of {fraction} of the atoms cannot be hidden; say more than 0 and at most 1")
    for t in dataset.trajectories():
        rng = _rng(t.trajectory_id, seed)
        for i in range(len(t)):
            hidden = np.zeros(t.n_atoms, bool)
            hidden[rng.permutation(t.n_atoms)[: max(1, round(fraction * t.n_atoms))]] = True
            shown = Geometry(np.where(hidden, 0, t.numbers), t.lattice[i], t.positions[i])
            yield Masked(_frame_id(t, i), shown, hidden, t.numbers)


def _rng(trajectory_id: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(trajectory_id.encode())])


def _geometry(t: Trajectory, frame: int) -> Geometry:
    return Geometry(t.numbers, t.lattice[frame], t.positions[frame])


def _pair(t: Trajectory, first: int, second: int) -> Pair:
    difference = float(t.energy[second] - t.energy[first]) / t.n_atoms
    return Pair(t.trajectory_id, _geometry(t, first), _geometry(t, second), difference)


def _frame_id(t: Trajectory, frame: int) -> str:
    return f"{t.trajectory_id}-{t.relaxation_step[frame]}"
