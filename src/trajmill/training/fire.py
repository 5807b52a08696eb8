"""Relaxations of cell and positions, many at once: what ASE's FIRE does on a FrechetCellFilter, step for step.

ASE asks its calculator within a step. Here a step is told what a model says, so that a model can be asked about
structures of many relaxations at once, and no relaxation depends on which others there are. (The optimiser of torch-sim
0.3 counts steps of all together, steps otherwise where another begins, and pushes left-handed cells uphill.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg import expm

from trajmill.training.batching import Answer, Model, Prediction
from trajmill.trajectory import FloatArray
from trajmill.views import Geometry

SMALLEST = 1.0
"""A^3 per atom; a cell that falls below it has run away, and would have neighbours without end."""

LONGEST = 0.2
"""A, the longest step."""


class End(NamedTuple):
    """Where a relaxation ended.

    Attributes:
        geometry: at the end.
        energy: eV per cell; not finite where there is none.
        steps: that it took.
        converged: whether all forces fell below the limit.
        failure: why there is no end; None where there is.
    """

    geometry: Geometry
    energy: float
    steps: int
    converged: bool
    failure: str | None = None


def relax_all(model: Model, firsts: Iterable[Geometry], *, fmax: float, steps: int) -> Iterator[tuple[int, End]]:
    """Relax structures; as soon as one is done the next takes its place.

    Args:
        model: what is asked for forces.
        firsts: where relaxations begin; read as there is room.
        fmax: eV/A that forces on atoms, and the cell's per atom, are to fall below.
        steps: at most, of each.

    Yields:
        The number of the structure, from 0, and where it ended, in the order in which they do.
    """
    waiting = enumerate(firsts)
    running: dict[int, Fire] = {}
    while True:
        while _n_atoms(running) < model.atoms_at_once and (new := next(waiting, None)) is not None:
            number, first = new
            running[number] = Fire(first)
        if not running:
            return
        answers = model.predict([fire.geometry for fire in running.values()])
        for (number, fire), answer in zip(list(running.items()), answers, strict=True):
            end = fire.advance(answer, fmax, steps)
            if end is not None:
                del running[number]
                yield number, end


def _n_atoms(running: dict[int, Fire]) -> int:
    return sum(len(fire.geometry.numbers) for fire in running.values())


class Fire:
    """One relaxation, with the parameters of ASE's FIRE.

    What moves is positions as they would be in the first cell, A, and below them the logarithm of how the cell is
    deformed, times the number of atoms: (n_atoms + 3, 3).

    Args:
        first: where it begins.

    Attributes:
        geometry: where it is.
    """

    def __init__(self, first: Geometry) -> None:
        self.geometry = first
        self._lattice, self._n = first.lattice, len(first.numbers)
        self._at = np.concatenate([first.positions, np.zeros((3, 3))])
        self._velocity = np.zeros_like(self._at)
        self._steps, self._downhill, self._dt, self._mixing = 0, 0, 0.1, 0.1

    def advance(self, answer: Answer, fmax: float, steps: int) -> End | None:
        """Take a step by what a model says of the geometry; return the end where this is it."""
        if isinstance(answer, str):
            return self._failed(answer)
        if answer.stress is None:
            return self._failed("the model has no stress, which the cell relaxes by")
        forces = self._forces(answer)
        converged = bool(np.linalg.norm(forces, axis=1).max() < fmax)
        if converged or self._steps >= steps:
            return End(self.geometry, answer.energy, self._steps, converged)
        self._step(forces)
        volume = abs(np.linalg.det(self.geometry.lattice)) / self._n
        if not volume >= SMALLEST:
            return self._failed(f"the relaxation ran away: {volume:.3g} A^3 per atom")
        return None

    def _failed(self, why: str) -> End:
        return End(self.geometry, np.nan, self._steps, converged=False, failure=why)

    def _forces(self, said: Prediction) -> FloatArray:
        """Return (n_atoms + 3, 3) eV/A: of each atom, and of the cell per atom."""
        log = self._at[self._n :] / self._n
        deformation = expm(log)
        virial = -abs(np.linalg.det(self.geometry.lattice)) * said.stress
        of_deformation = virial @ np.linalg.inv(deformation.T)
        # the derivative of expm is its own adjoint with the argument transposed, and is in the exponential of blocks
        blocks = np.block([[log.T, of_deformation], [np.zeros((3, 3)), log.T]])
        return np.concatenate([said.forces @ deformation, expm(blocks)[:3, 3:] / self._n])

    def _step(self, forces: FloatArray) -> None:
        if self._steps:
            self._turn(forces)
        self._velocity = self._velocity + self._dt * forces
        move = self._dt * self._velocity
        length = float(np.linalg.norm(move))
        self._at = self._at + (move if length <= LONGEST else move * (LONGEST / length))
        deformation = expm(self._at[self._n :] / self._n)
        positions = self._at[: self._n] @ deformation.T
        self.geometry = Geometry(self.geometry.numbers, self._lattice @ deformation.T, positions)
        self._steps += 1

    def _turn(self, forces: FloatArray) -> None:
        """Turn the velocity towards the forces while it goes downhill; stop where it does not."""
        if np.vdot(forces, self._velocity) > 0:
            along = forces / np.linalg.norm(forces) * np.linalg.norm(self._velocity)
            self._velocity = (1 - self._mixing) * self._velocity + self._mixing * along
            if self._downhill > 5:
                self._dt, self._mixing = min(self._dt * 1.1, 1.0), self._mixing * 0.99
            self._downhill += 1
        else:
            self._velocity = np.zeros_like(self._velocity)
            self._downhill, self._dt, self._mixing = 0, self._dt * 0.5, 0.1
