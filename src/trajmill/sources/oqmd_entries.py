"""From OQMD's rows to trajectories: order of the calculations, frames, and what is wrong with an entry.

The arrays of all entries of a block are made at once, and an entry with nothing odd about it takes its share of them.
Only the others are put together structure by structure, which says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trajmill import recipe
from trajmill.elements import SYMBOLS, composition, descriptive_formula
from trajmill.sources.base import RELAXATION, Asset, Record, Rejection
from trajmill.sources.oqmd_import import RELAXATIONS
from trajmill.sources.oqmd_settings import Settings, read_settings
from trajmill.trajectory import BoolArray, FloatArray, Trajectory
from trajmill.units import stress_from_vasp

LICENSE = "CC-BY-4.0"
_RANK = {label: k for k, label in enumerate(("initialize", *RELAXATIONS, "standard", "static"))}
_RETIRED = re.compile(r"(.+)_(\d+)")  # a repeated attempt is renamed: relaxation_0 came before relaxation
_MOST_STEPS = 1_000_000  # ionic steps of a calculation; more is a damaged number
_EMPTY = {
    "numbers": np.empty(0, np.int64),
    "lattice": np.full((1, 3, 3), np.nan),
    "positions": np.empty((1, 0, 3)),
    "energy": np.full(1, np.nan),
    "forces": np.empty((1, 0, 3)),
    "stress": np.full((1, 3, 3), np.nan),
    "relaxation_step": np.zeros(1, np.int32),
}


class Calculation(NamedTuple):
    """A row of `calculations`."""

    id: int
    label: str
    input_id: int | None
    output_id: int | None
    energy: float | None
    energy_pa: float | None
    natoms: int | None
    nsteps: int | None
    converged: int | None
    settings: str | None


class Entry(NamedTuple):
    """A row of `entries`; `known` is False when only calculations speak of it."""

    id: int
    duplicate_of_id: int | None
    known: bool


class Geometry(NamedTuple):
    """A stored structure: (3, 3) lattice in A as rows, (n, 3) positions in A and forces in eV/A, stress in eV/A^3."""

    numbers: NDArray[np.int64]
    lattice: FloatArray
    positions: FloatArray
    forces: FloatArray
    stress: FloatArray
    moments: FloatArray
    fault: str | None
    disorder: str | None


class Stack(NamedTuple):
    """The frames of a trajectory as (n_frames, n_atoms, ...) arrays, units as in `Trajectory`, the first unlabelled.

    Attributes:
        moments: None where no frame has any.
        disorder: which site is not fully occupied.
    """

    numbers: NDArray[np.int64]
    lattice: FloatArray
    positions: FloatArray
    forces: FloatArray
    stress: FloatArray
    moments: FloatArray | None
    disorder: str | None


class Geometries:
    """The structures of some entries, as arrays of all their atoms.

    Arrays over structures have one row more than there are: the last stands for a structure that is not there.

    Args:
        structures: rows of `structures`, sorted by entry and id.
        atoms: rows of `atoms`, sorted by entry, structure and id: the id's order is the sites' order.
        kbar: whether the stored stress is taken as kBar with VASP's sign; it is unknown otherwise.
    """

    def __init__(self, structures: pa.Table, atoms: pa.Table, *, kbar: bool) -> None:
        keys = list(zip(structures["entry_id"].to_pylist(), structures["id"].to_pylist(), strict=True))
        self._row: dict[tuple[int, int | None], int] = {key: row for row, key in enumerate(keys)}
        absent = np.full((1, 3, 3), np.nan)
        lattice = _columns(structures, "x1 x2 x3 y1 y2 y3 z1 z2 z3").reshape(-1, 3, 3)
        self._lattice = np.concatenate([lattice, absent])
        self._stress = np.concatenate([_stress(structures), absent]) if kbar else np.full_like(self._lattice, np.nan)
        self._numbers = atoms["number"].to_numpy().astype(np.int64)
        self._fractional = _columns(atoms, "x y z")
        self._forces = _columns(atoms, "fx fy fz")
        self._moments = _columns(atoms, "magmom")[:, 0]
        self._atom_ids, self._occupancy = atoms["id"], atoms["occupancy"]

        owner, structure = atoms["entry_id"].to_numpy(), atoms["structure_id"].to_numpy()
        new = np.ones(len(owner), bool)
        new[1:] = (np.diff(owner) != 0) | (np.diff(structure) != 0)
        starts = np.flatnonzero(new)
        group = {key: k for k, key in enumerate(zip(owner[starts].tolist(), structure[starts].tolist(), strict=True))}
        groups = np.array([*(group.get(key, -1) for key in keys), -1])
        self._start = np.append(starts, 0)[groups]
        self._size = np.append(np.diff(np.append(starts, len(owner))), 0)[groups]
        self._known, self._ordered, self._magnetic = (
            np.append(np.logical_and.reduceat(fine, starts), True)[groups]
            for fine in (self._numbers > 0, _columns(atoms, "occupancy")[:, 0] == 1, ~np.isnan(self._moments))
        )
        self._natoms = structures["natoms"].to_pylist()
        told = np.array([*((-1 if n is None else n) for n in self._natoms), -1])
        fits = (told == self._size) | np.array([*(n is None for n in self._natoms), True])
        self._usable = fits & self._known & (self._size > 0)

    def rows(self, entry_id: int, structure_ids: Iterable[int | None]) -> list[int]:
        """Look up structures of an entry, -1 for one that is not there."""
        return [self._row.get((entry_id, structure), -1) for structure in structure_ids]

    def stacks(self, trajectories: Sequence[Sequence[int]]) -> list[Stack | None]:
        """Stack the structures of each trajectory; None where one is not usable or lists other sites than the last.

        Args:
            trajectories: for each one its frames' structures, as `rows` gives them.
        """
        if not trajectories:
            return []
        lengths = np.array([len(rows) for rows in trajectories])
        rows = np.fromiter(chain.from_iterable(trajectories), np.int64, lengths.sum())
        of = np.repeat(np.arange(len(lengths)), lengths)
        first = np.cumsum(lengths) - lengths
        last = (first + lengths - 1)[of]
        sizes = self._size[rows]
        alike = np.logical_and.reduceat(self._usable[rows] & (sizes == sizes[last]), first)
        sizes = np.where(alike[of], sizes, 0)  # of the others no atom is looked at
        starts = np.cumsum(sizes) - sizes
        count = np.arange(sizes.sum())
        atoms = count + np.repeat(self._start[rows] - starts, sizes)
        numbers = self._numbers[atoms]
        alike[np.repeat(of, sizes)[numbers != numbers[count + np.repeat(starts[last] - starts, sizes)]]] = False

        unlabelled = np.zeros(len(rows), bool)
        unlabelled[first] = True
        without_moments = unlabelled | ~self._magnetic[rows]
        magnetic = ~np.logical_and.reduceat(without_moments, first)
        lattice, stress = self._lattice[rows], self._stress[rows]
        with np.errstate(all="ignore"):  # damaged numbers may be infinite; the geometry rule looks at them
            positions = np.einsum("ni,nij->nj", self._fractional[atoms], np.repeat(lattice, sizes, axis=0))
        forces, moments = self._forces[atoms], self._moments[atoms]
        stress[unlabelled] = forces[np.repeat(unlabelled, sizes)] = moments[np.repeat(without_moments, sizes)] = np.nan

        found: list[Stack | None] = []
        places = zip(first.tolist(), lengths.tolist(), starts[first].tolist(), sizes[first].tolist(), strict=True)
        for k, (frame, n_frames, start, n) in enumerate(places):
            stop, end = frame + n_frames, start + n_frames * n
            if not alike[k]:
                found.append(None)
                continue
            found.append(
                Stack(
                    numbers[start : start + n],
                    lattice[frame:stop],
                    positions[start:end].reshape(n_frames, n, 3),
                    forces[start:end].reshape(n_frames, n, 3),
                    stress[frame:stop],
                    moments[start:end].reshape(n_frames, n) if magnetic[k] else None,
                    next((text for row in trajectories[k] if (text := self._disorder(row))), None),
                )
            )
        return found

    def get(self, entry_id: int, structure_id: int | None, role: str) -> Geometry:
        """Return a structure; one without atoms and with a fault when there is no usable one."""
        if structure_id is None:
            return _missing(f"{role} is NULL")
        name = f"structure {structure_id} ({role})"
        row = self._row.get((entry_id, structure_id))
        if row is None:
            return _missing(f"{name} is not in the dump")
        start, size = int(self._start[row]), int(self._size[row])
        disorder = self._disorder(row)
        if not size:
            return _missing(f"{name} has no atoms")
        if self._natoms[row] not in {None, size}:
            return _missing(f"{name} has {size} atom rows for natoms = {self._natoms[row]}", disorder)
        if not self._known[row]:
            return _missing(f"{name} has a site without a known element", disorder)
        s = slice(start, start + size)
        with np.errstate(all="ignore"):
            positions = np.einsum("ni,nij->nj", self._fractional[s], np.repeat(self._lattice[[row]], size, axis=0))
        return Geometry(
            self._numbers[s],
            self._lattice[row],
            positions,
            self._forces[s],
            self._stress[row],
            self._moments[s],
            None,
            disorder,
        )

    def _disorder(self, row: int) -> str | None:
        """Name the first site of a structure that is not fully occupied."""
        if self._ordered[row]:
            return None
        occupancy = self._occupancy.slice(self._start[row], self._size[row]).to_pylist()
        site = next(site for site, value in enumerate(occupancy) if value != 1)
        return f"atom {self._atom_ids[int(self._start[row]) + site]} has occupancy {occupancy[site]}"


def _columns(table: pa.Table, names: str) -> FloatArray:
    """(n_rows, n_columns) float64, NaN for NULL."""
    return np.stack([table[name].cast(pa.float64()).to_numpy() for name in names.split()], axis=1)


def _stress(structures: pa.Table) -> FloatArray:
    """(n, 3, 3) eV/A^3 from columns in kBar with VASP's sign; all zero means unknown."""
    # sxx syy szz sxy syz szx, VASP's own order
    stored = _columns(structures, "sxx syy szz sxy syz szx")[:, [0, 3, 5, 3, 1, 4, 5, 4, 2]].reshape(-1, 3, 3)
    unknown = ~stored.any(axis=(1, 2), keepdims=True)
    with np.errstate(invalid="ignore"):
        return stress_from_vasp(np.where(unknown, np.nan, stored))


def _missing(fault: str, disorder: str | None = None) -> Geometry:
    empty, nan = np.empty((0, 3)), np.full((3, 3), np.nan)
    return Geometry(np.empty(0, np.int64), nan, empty, empty, nan, np.empty(0), fault, disorder)


def chronological(calculations: Sequence[Calculation]) -> list[Calculation]:
    """Order an entry's calculations as they were run.

    By label (initialize, coarse_relax, fine_relax, relaxation, standard, static, then others by name; retired attempts
    before the one that took their label), then id. Relaxations among themselves follow their structures: the one
    whose input is another's output comes after it.
    """
    if len(calculations) == 1:
        return list(calculations)
    by_label = sorted(calculations, key=_age)
    waiting = [c for c in by_label if c.label in RELAXATIONS]
    linked: list[Calculation] = []
    while waiting:
        outputs = {c.output_id for c in waiting}
        following = next(
            (c for c in waiting if c.input_id is None or c.input_id not in outputs - {c.output_id}), waiting[0]
        )
        waiting.remove(following)
        linked.append(following)
    relaxations = iter(linked)
    return [next(relaxations) if c.label in RELAXATIONS else c for c in by_label]


def _age(calculation: Calculation) -> tuple[int, str, float, int]:
    retired = _RETIRED.fullmatch(calculation.label)
    label, attempt = (retired[1], float(retired[2])) if retired else (calculation.label, np.inf)
    return _RANK.get(label, len(_RANK)), label, attempt, calculation.id


@dataclass(frozen=True)
class EntryReader:
    """Makes the records of an asset.

    Args:
        asset: where the rows come from.
        options: the recipe's section.
    """

    asset: Asset
    options: recipe.Oqmd

    def records(
        self, entries: Sequence[Entry], calculations: Mapping[int, Sequence[Calculation]], geometries: Geometries
    ) -> Iterator[Record]:
        """Make the records of some entries: the relaxation, and every other calculation as a trajectory of its own.

        The frames counted are one per calculation (its output) and the input of the first relaxation.

        Args:
            entries: what to make records of, in this order.
            calculations: calculations by entry.
            geometries: the structures of these entries' relaxations.
        """
        all_runs = [chronological(calculations.get(entry.id, ())) for entry in entries]
        all_stages = [[(n, run) for n, run in enumerate(runs) if run.label in RELAXATIONS] for runs in all_runs]
        frames = [
            geometries.rows(entry.id, (stages[0][1].input_id, *(run.output_id for _, run in stages)))
            for entry, stages in zip(entries, all_stages, strict=True)
            if stages
        ]
        stacks = iter(geometries.stacks(frames))
        for entry, runs, stages in zip(entries, all_runs, all_stages, strict=True):
            if not runs:
                detail = "no calculation at all" if entry.known else "no row in entries and no calculation"
                rejection = self.rejection(str(entry.id), "relaxation_record", detail, 0)
                yield Record(n_frames=0, rejections=(rejection,))
                continue
            trajectories = [self._relaxation(entry, stages, geometries, next(stacks))] if stages else []
            trajectories += [self._other(entry, n, run) for n, run in enumerate(runs) if run.label not in RELAXATIONS]
            yield Record(n_frames=len(runs) + bool(stages), trajectories=tuple(trajectories))

    def rejection(self, task_id: str | None, rule: str, detail: str, n_frames: int | None) -> Rejection:
        """Turn away what no trajectory can be made of."""
        return Rejection(
            source="oqmd",
            asset=self.asset.name,
            rejected_by=rule,
            detail=detail,
            n_frames=n_frames,
            task_id=task_id,
        )

    def _other(self, entry: Entry, number: int, run: Calculation) -> Trajectory:
        """Stand for a calculation that is no relaxation; nobody looks at its arrays, so they are not loaded."""
        return Trajectory(
            source="oqmd",
            asset=self.asset.name,
            task_id=str(entry.id),
            trajectory_id=f"oqmd-calculation-{run.id}-pbe",
            immutable_id=None if run.output_id is None else f"oqmd-{run.output_id}",
            relaxation_number=np.array([number], np.int32),
            functional="pbe",
            run_type=None,
            task_type=run.label,
            license=LICENSE,
            last_modified=self.asset.modified,
            faults={0: f"{run.label} is no relaxation, its geometry is not loaded"},
            **_EMPTY,  # type: ignore[arg-type]  # one dictionary for arrays of two dtypes
        )

    def _relaxation(
        self, entry: Entry, stages: Sequence[tuple[int, Calculation]], geometries: Geometries, stack: Stack | None
    ) -> Trajectory:
        """Make the trajectory of an entry: the first input, then each relaxation's output."""
        runs = [run for _, run in stages]
        first, last = runs[0], runs[-1]
        frames: list[Geometry] = []
        faults: dict[int, str] = {}
        if stack is None:
            frames = [geometries.get(entry.id, first.input_id, f"input_id of {first.label}")]
            frames += [geometries.get(entry.id, run.output_id, f"output_id of {run.label}") for run in runs]
            faults = {i: frame.fault for i, frame in enumerate(frames) if frame.fault}
            stack = _stack(frames, faults)
        settings = [read_settings(run.settings) for run in runs]
        notes: list[str] = []
        natoms = len(stack.numbers)
        known = settings[-1] or Settings(np.nan, -1, "pbe", None, None, None)
        final = next((run.output_id for run in reversed(runs) if run.output_id is not None), f"entry-{entry.id}")
        stage = [0, *range(len(runs))]
        return Trajectory(
            source="oqmd",
            asset=self.asset.name,
            task_id=str(entry.id),
            trajectory_id=f"oqmd-{final}-{known.functional or 'unknown'}",
            immutable_id=f"oqmd-{final}",
            numbers=stack.numbers,
            lattice=stack.lattice,
            positions=stack.positions,
            energy=np.array([np.nan, *(_energy(run, natoms, notes) for run in runs)]),
            forces=stack.forces,
            stress=stack.stress,
            relaxation_number=np.array([stages[k][0] for k in stage], np.int32),
            relaxation_step=np.array(_steps(runs, notes), np.int32),
            functional=known.functional,
            run_type=known.run_type,
            task_type=RELAXATION,
            magnetic_moments=stack.moments,
            encut=np.array([s.encut if (s := settings[k]) else np.nan for k in stage]),
            ispin=np.array([s.ispin if (s := settings[k]) else -1 for k in stage], np.int32),
            is_input=_is_input(len(stage)) if self.options.initial_structures else None,
            hubbard_u=known.hubbard_u,
            potentials=known.potentials,
            license=LICENSE,
            last_modified=self.asset.modified,
            relaxation_converged=None if last.converged is None else bool(last.converged),
            findings=_findings(entry, runs, settings, stack.disorder, frames),
            faults=faults,
            notes=tuple(notes),
        )


@cache
def _is_input(n_frames: int) -> BoolArray:
    first: BoolArray = np.arange(n_frames) == 0
    return first


def _findings(
    entry: Entry,
    runs: Sequence[Calculation],
    settings: Sequence[Settings | None],
    disorder: str | None,
    frames: Sequence[Geometry],
) -> dict[str, str]:
    """Say what is wrong with an entry, by the rule that may reject it for that.

    `frames` is empty where nothing is wrong with the structures.
    """
    findings: dict[str, str] = {}
    if entry.duplicate_of_id not in {None, entry.id}:
        findings["oqmd_duplicate"] = f"duplicate of entry {entry.duplicate_of_id}"
    if disorder:
        findings["ordered_sites"] = disorder
    if order := _site_order(runs, frames):
        findings["site_order"] = order
    if fault := _record_fault(entry, runs, settings, frames):
        findings["relaxation_record"] = fault
    if not runs[-1].converged:
        value = "NULL" if runs[-1].converged is None else "0"
        findings["relaxation_converged"] = f"converged = {value} in {runs[-1].label}"
    return findings


def _site_order(runs: Sequence[Calculation], frames: Sequence[Geometry]) -> str | None:
    """Say which output lists the same elements in another order than the geometry before it."""
    for run, before, after in zip(runs, frames, frames[1:], strict=False):
        a, b = before.numbers, after.numbers
        if len(a) == len(b) and (a != b).any() and np.array_equal(np.sort(a), np.sort(b)):
            return f"the output of {run.label} has its sites in another order than the geometry before it"
    return None


def _record_fault(
    entry: Entry, runs: Sequence[Calculation], settings: Sequence[Settings | None], frames: Sequence[Geometry]
) -> str | None:
    """Say what the database lacks of an entry's relaxations, the first thing only."""
    labels = [run.label for run in runs]
    if not entry.known:
        return "no row in entries"
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        ids = ", ".join(str(run.id) for run in runs if run.label == repeated)
        return f"{repeated} is there {labels.count(repeated)} times (calculations {ids})"
    if fault := next((frame.fault for frame in frames if frame.fault), None):
        return fault
    if unset := next((run for run in runs if run.input_id is None), None):
        return f"input_id of {unset.label} is NULL"
    for run, known in zip(runs, settings, strict=True):
        if known is None:
            what = "NULL" if run.settings is None else f"no readable dictionary: {run.settings[:40]!r}"
            return f"settings of {run.label} are {what}"
    contents = [np.sort(frame.numbers) for frame in frames]
    if any(not np.array_equal(contents[0], content) for content in contents[1:]):
        formulas = (descriptive_formula(composition(SYMBOLS[n] for n in content)) for content in contents)
        return f"the composition changes: {', '.join(dict.fromkeys(formulas))}"
    return None


def _stack(frames: Sequence[Geometry], faults: dict[int, str]) -> Stack:
    """Stack the frames' arrays, sites in the order of the last one's; NaN where a frame has none or other atoms.

    Where the elements come in another order the k-th atom of an element is taken as the same one, so that each frame
    is right by itself even if the `site_order` rule is off.
    """
    numbers = next((f.numbers for f in reversed(frames) if len(f.numbers)), frames[0].numbers)
    n = len(numbers)
    arrays = {
        "lattice": np.full((len(frames), 3, 3), np.nan),
        "positions": np.full((len(frames), n, 3), np.nan),
        "forces": np.full((len(frames), n, 3), np.nan),
        "stress": np.full((len(frames), 3, 3), np.nan),
        "moments": np.full((len(frames), n), np.nan),
    }
    for i, frame in enumerate(frames):
        if i in faults:
            continue
        order: Any = slice(None)
        if len(frame.numbers) != n or (frame.numbers != numbers).any():
            if not np.array_equal(np.sort(frame.numbers), np.sort(numbers)):
                faults[i] = "its composition is not that of the last output"
                continue
            order = np.empty(n, np.int64)
            order[np.argsort(numbers, kind="stable")] = np.argsort(frame.numbers, kind="stable")
        arrays["lattice"][i], arrays["stress"][i] = frame.lattice, frame.stress
        arrays["positions"][i], arrays["forces"][i] = frame.positions[order], frame.forces[order]
        if not np.isnan(frame.moments).any():
            arrays["moments"][i] = frame.moments[order]
    arrays["forces"][0] = arrays["stress"][0] = arrays["moments"][0] = np.nan
    moments = arrays.pop("moments")
    magnetic = not np.isnan(moments).all()
    return Stack(
        numbers,
        **arrays,
        moments=moments if magnetic else None,
        disorder=next((f.disorder for f in frames if f.disorder), None),
    )


def _energy(run: Calculation, natoms: int, notes: list[str]) -> float:
    """Energy in eV per cell, by way of the energy per atom when that is all there is."""
    if run.energy is not None:
        return run.energy
    if run.energy_pa is None:
        return np.nan
    notes.append(f"energy from energy_pa in {run.label}")
    return run.energy_pa * (run.natoms or natoms)


def _steps(runs: Sequence[Calculation], notes: list[str]) -> list[int]:
    """Number the frames in the whole run: input 0, each output the ionic steps so far, unique in any case."""
    steps, total = [0], 0
    for run in runs:
        if run.nsteps is None or not 0 <= run.nsteps <= _MOST_STEPS:
            what = "missing" if run.nsteps is None else f"= {run.nsteps}"
            notes.append(f"nsteps {what} in {run.label}, counted as 1")
            total += 1
        else:
            total += run.nsteps
        steps.append(max(steps[-1] + 1, total))
    return steps


def calculations_by_entry(table: pa.Table) -> Mapping[int, list[Calculation]]:
    """Group rows of `calculations` by entry."""
    grouped: dict[int, list[Calculation]] = {}
    rows = zip(*(table[name].to_pylist() for name in Calculation._fields), strict=True)
    for owner, row in zip(table["entry_id"].to_pylist(), rows, strict=True):
        grouped.setdefault(owner, []).append(Calculation(*row))
    return grouped
