"""The one record that every step works on, and many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.elements import SYMBOLS, composition

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]

FRAME_FIELDS = (
    "lattice",
    "positions",
    "energy",
    "forces",
    "stress",
    "relaxation_number",
    "relaxation_step",
    "energy_sigma0",
    "magnetic_moments",
    "encut",
    "electronic_steps",
    "nelm",
    "ispin",
    "is_input",
    "space_group",
    "energy_corrected",
    "cross_compatibility",
)
"""Fields whose first axis is the frame; optional ones may be None."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One relaxation run as its source recorded it, with one functional: all frames at once, as arrays.

    A missing number is NaN (in integer arrays -1, in `space_group` 0), never a made-up value. Nothing here is
    per-frame Python: rules and annotators are plain functions on these arrays.

    Attributes:
        source: `mp`, `alexandria`, `oqmd`, `vasp`, `ase`.
        asset: name of the raw asset it was read from.
        task_id: the run's identifier exactly as in the raw record.
        trajectory_id: stable and unique, `{canonical id}-{functional}`.
        immutable_id: identifier of the material.
        numbers: (n_atoms,) atomic numbers, the same for all frames.
        lattice: (n_frames, 3, 3) A, vectors as rows.
        positions: (n_frames, n_atoms, 3) A, Cartesian.
        energy: (n_frames,) eV per cell, the energy whose gradient the forces are.
        forces: (n_frames, n_atoms, 3) eV/A.
        stress: (n_frames, 3, 3) eV/A^3, positive under tension.
        relaxation_number: (n_frames,) index of the calculation in the run, from 0.
        relaxation_step: (n_frames,) number of the frame in the whole run, from 0; gaps are frames left out.
        functional: `pbe`, `pbesol`, `scan`, `r2scan`; None when it is none of them.
        run_type: `GGA`, `GGA+U`, ... as recomputed from the inputs, also for unsupported functionals.
        task_type: `Structure Optimization` for every relaxation, the source's word otherwise.
        energy_sigma0: (n_frames,) eV per cell, extrapolated to zero smearing.
        magnetic_moments: (n_frames, n_atoms) Bohr magnetons, a row of NaN where the source has none for that frame.
        encut: (n_frames,) eV, plane-wave cut-off.
        electronic_steps: (n_frames,) number of electronic steps of the frame.
        nelm: (n_frames,) largest number of electronic steps allowed in the frame's calculation.
        ispin: (n_frames,) 1 or 2, VASP's spin polarisation flag.
        is_input: (n_frames,) True for an unlabelled first geometry (OQMD); None means no frame is.
        hubbard_u: U - J in eV by element, None when unknown, empty when none is applied.
        potentials: names of the pseudopotentials such as `Fe_pv`, None when unknown.
        license: licence of the record as the source states it.
        deprecated: why the source withdrew the record, None when it did not.
        material_origin: whether the source names this run as its material's primary one.
        last_modified: ISO date or time of the source.
        relaxation_converged: whether the last calculation reached its force criterion, None when unknown.
        findings: what the reader found about the record, by the name of the rule that may reject it for that.
        faults: what could not be read in a frame, by frame index; the frame's arrays hold NaN there.
        notes: facts worth keeping with each row (an inferred value, a label the source got wrong).
        space_group: (n_frames,) International Tables number.
        energy_corrected: (n_frames,) eV per cell after MaterialsProject2020Compatibility.
        cross_compatibility: (n_frames,) whether the frame's settings agree with the other sources'.
    """

    source: str
    asset: str
    task_id: str
    trajectory_id: str
    immutable_id: str | None
    numbers: NDArray[np.int64]
    lattice: FloatArray
    positions: FloatArray
    energy: FloatArray
    forces: FloatArray
    stress: FloatArray
    relaxation_number: IntArray
    relaxation_step: IntArray
    functional: str | None
    run_type: str | None
    task_type: str = "Structure Optimization"
    energy_sigma0: FloatArray | None = None
    magnetic_moments: FloatArray | None = None
    encut: FloatArray | None = None
    electronic_steps: IntArray | None = None
    nelm: IntArray | None = None
    ispin: IntArray | None = None
    is_input: BoolArray | None = None
    hubbard_u: Mapping[str, float] | None = None
    potentials: tuple[str, ...] | None = None
    license: str | None = None
    deprecated: str | None = None
    material_origin: bool | None = None
    last_modified: str | None = None
    relaxation_converged: bool | None = None
    findings: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    space_group: IntArray | None = None
    energy_corrected: FloatArray | None = None
    cross_compatibility: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the cell."""
        return len(self.numbers)

    @cached_property
    def symbols(self) -> list[str]:
        """Chemical symbol of each site."""
        return [SYMBOLS[n] for n in self.numbers.tolist()]

    @cached_property
    def composition(self) -> dict[str, int]:
        """Atoms per element, elements in alphabetical order."""
        return composition(self.symbols)

    @cached_property
    def labelled(self) -> BoolArray:
        """(n_frames,) True where the frame is no unlabelled input geometry."""
        return np.ones(len(self), bool) if self.is_input is None else ~self.is_input

    def select(self, keep: BoolArray) -> Trajectory:
        """Return the trajectory with only the frames where `keep` (n_frames,) is True."""
        if keep.all():
            return self
        frames = {name: value[keep] for name in FRAME_FIELDS if (value := getattr(self, name)) is not None}
        renumbered = np.cumsum(keep) - 1
        faults = {int(renumbered[i]): text for i, text in self.faults.items() if keep[i]}
        return self.changed(**frames, faults=faults)

    def changed(self, **fields: Any) -> Trajectory:
        """Return a copy with other values in some fields, the atoms never among them.

        Like `dataclasses.replace`, which takes longer for so many fields than curating a short trajectory.
        """
        other = object.__new__(Trajectory)
        other.__dict__.update(self.__dict__)
        if "energy" in fields or "is_input" in fields:
            other.__dict__.pop("labelled", None)
        other.__dict__.update(fields)
        return other


class Frames:
    """The frames of many trajectories in one row: what is quickly said of each is said of all at once.

    Args:
        trajectories: one at least.

    Attributes:
        owner: (n_frames,) index of the trajectory of each frame.
        n_atoms: (n_frames,) number of atoms of each frame.
        follows: (n_frames,) whether the frame before is of the same trajectory.
    """

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self._trajectories = trajectories
        lengths = [len(t) for t in trajectories]
        self.owner = np.repeat(np.arange(len(trajectories)), lengths)
        self.n_atoms = np.repeat([t.n_atoms for t in trajectories], lengths)
        self.follows: BoolArray = np.append(False, self.owner[1:] == self.owner[:-1])

    def joined(self, name: str) -> NDArray[Any]:
        """Return a field of all frames; of all trajectories' atoms where it has one value for each."""
        return np.concatenate([getattr(t, name) for t in self._trajectories])

    @cached_property
    def labelled(self) -> BoolArray:
        """(n_frames,) True where the frame is no unlabelled input geometry."""
        return self.joined("labelled")

    @cached_property
    def last(self) -> NDArray[np.int64]:
        """(n_trajectories,) the last labelled frame of each, -1 where there is none."""
        last: NDArray[np.int64] = np.full(len(self._trajectories), -1)
        labelled = np.flatnonzero(self.labelled)
        last[self.owner[labelled]] = labelled  # of several the last one stays
        return last

    def any_component(self, name: str, condition: Callable[[FloatArray], BoolArray]) -> BoolArray:
        """(n_frames,) whether the condition holds for a component of a vector of an atom."""
        values = np.concatenate([getattr(t, name).reshape(-1) for t in self._trajectories])
        counts = np.append(0, np.cumsum(condition(values)))
        ends = np.cumsum(3 * self.n_atoms)
        found: BoolArray = counts[ends] > counts[ends - 3 * self.n_atoms]
        return found
