"""What a format is: it recognises files of other people's datasets and reads them as trajectories in our units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajmill.errors import FormatError
from trajmill.trajectory import FloatArray, Trajectory

UNKNOWN: FloatArray = np.full((3, 3), np.nan)
"""A stress that is not known."""

VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Where components of xx yy zz yz xz xy stand in a matrix: ASE's order, VASP's is another."""


class Frame(NamedTuple):
    """A frame as a format gives it, in trajmill's units and signs.

    Attributes:
        trajectory: what all frames of a run have in common, the same in all of them.
        numbers: (n_atoms,) atomic numbers.
        lattice: (3, 3) A.
        positions: (n_atoms, 3) A.
        energy: eV per cell.
        forces: (n_atoms, 3) eV/A.
        stress: (3, 3) eV/A^3, positive under tension; NaN where unknown.
        stage: number of the calculation in the run.
        step: number of the frame in it; decides the order of the frames of a trajectory.
        energy_corrected: eV per cell, NaN where unknown.
    """

    trajectory: Identity
    numbers: NDArray[np.int64]
    lattice: FloatArray
    positions: FloatArray
    energy: float
    forces: FloatArray
    stress: FloatArray = UNKNOWN
    stage: int = 0
    step: int = 0
    energy_corrected: float = np.nan


class Identity(NamedTuple):
    """What the frames of a trajectory have in common.

    Attributes:
        id: of the trajectory; unique in the dataset.
        task: as the dataset names the run.
        material: as it names the material.
        functional: `pbe`, `r2scan`, ...; None where it does not say.
        run_type: `GGA`, `r2SCAN`, ...; None where it does not say.
    """

    id: str
    task: str
    material: str | None = None
    functional: str | None = None
    run_type: str | None = None


@dataclass(frozen=True)
class Format:
    """A format of other people's datasets.

    Attributes:
        name: what the column `source` says.
        suffixes: what its files end in.
        recognises: tells its files from others with such an ending.
        frames: reads the frames of a file, those of one trajectory one after the other.
        conventions: what its units and signs are, for the documentation.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[Path], bool]
    frames: Callable[[Path], Iterator[Frame]]
    conventions: str

    def trajectories(self, path: Path) -> Iterator[Trajectory]:
        """Read a file."""
        for identity, frames in groupby(self.frames(path), key=lambda frame: frame.trajectory):
            in_order = sorted(frames, key=lambda frame: (frame.stage, frame.step))
            if any(not np.array_equal(frame.numbers, in_order[0].numbers) for frame in in_order):
                raise FormatError(f"{path}: frames of {identity.id} have different atoms, or in another order")
            yield _joined(identity, in_order, self.name, path.name)


def _joined(identity: Identity, frames: list[Frame], source: str, asset: str) -> Trajectory:
    def stacked(name: str) -> Any:
        return np.array([getattr(frame, name) for frame in frames])

    n, corrected = len(frames), stacked("energy_corrected")
    return Trajectory(
        source=source,
        asset=asset,
        task_id=identity.task,
        trajectory_id=identity.id,
        immutable_id=identity.material,
        numbers=frames[0].numbers,
        lattice=stacked("lattice"),
        positions=stacked("positions"),
        energy=stacked("energy"),
        forces=stacked("forces"),
        stress=stacked("stress"),
        relaxation_number=stacked("stage").astype(np.int32),
        relaxation_step=np.arange(n, dtype=np.int32),
        functional=identity.functional,
        run_type=identity.run_type,
        energy_corrected=corrected,
    )


def from_voigt(components: Iterable[float]) -> FloatArray:
    """Return the matrix of xx yy zz yz xz xy."""
    matrix: FloatArray = np.array(list(components), float)[VOIGT]
    return matrix
