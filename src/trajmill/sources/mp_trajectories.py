"""Materials Project calculations to trajectories: what both layouts, JSON Lines and Delta Lake, share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.sources.base import RELAXATION, Rejection
from trajmill.sources.mp_ids import canonical_task_id
from trajmill.sources.mp_materials import Facts
from trajmill.sources.vasp_inputs import Settings
from trajmill.sources.vasp_types import functional
from trajmill.trajectory import FloatArray, IntArray, Trajectory
from trajmill.units import stress_from_vasp

SOURCE = "mp"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One calculation of a run.

    Attributes:
        number: its place in the run's chronological list, from 0.
        first_step: number of its first frame in the run.
        n_frames: how many ionic steps it has.
        settings: what it was run with.
        run_type, task_type: recomputed, or as stored where that is impossible.
        last_modified: date of the calculation.
        notes: what its document states wrongly.
    """

    number: int
    first_step: int
    n_frames: int
    settings: Settings
    run_type: str | None
    task_type: str | None
    last_modified: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Functional, or the run type where it is none of the dataset's."""
        return functional(self.run_type) or self.run_type or "unknown"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The stages that make one trajectory, its id without the task's, and why it must be rejected if it must."""

    stages: list[Stage]
    suffix: str
    functional: str | None
    findings: dict[str, str]


@dataclass(kw_only=True)
class Frames:
    """Arrays of a trajectory's frames as the source has them: stress in kBar with VASP's sign, else as `Trajectory`."""

    numbers: NDArray[np.int64]
    lattice: FloatArray
    positions: FloatArray
    energy: FloatArray
    energy_sigma0: FloatArray
    forces: FloatArray
    stress: FloatArray
    electronic_steps: IntArray
    magnetic_moments: FloatArray | None
    faults: dict[int, str]


def group_stages(stages: Sequence[Stage]) -> list[Group]:
    """Sort the calculations of a task into trajectories.

    Relaxations with one functional make one trajectory; when their run types differ (GGA, then GGA+U), that of the
    last one does, and the others are none: their energies are not comparable. A calculation that is no relaxation, or
    not with one of the dataset's functionals, is a trajectory too, so that a rule turns it away and counts it.

    Args:
        stages: in chronological order.
    """
    relaxations = [stage for stage in stages if stage.task_type == RELAXATION]
    final_run_type = {stage.label: stage.run_type for stage in relaxations}
    groups: dict[str, Group] = {}
    for stage in stages:
        suffix, name, findings = stage.label, functional(stage.run_type), {}
        if stage.task_type != RELAXATION:
            suffix = f"{suffix}-{(stage.task_type or 'unknown').lower().replace(' ', '-')}-{stage.number}"
        elif stage.run_type != (final := final_run_type[stage.label]):
            suffix, name = stage.run_type or "unknown", None
            findings["unsupported_functional"] = f"relaxation with {stage.run_type} before the one with {final}"
        group = groups.setdefault(suffix, Group(stages=[], suffix=suffix, functional=name, findings=findings))
        group.stages.append(stage)
    return list(groups.values())


def type_note(
    stored: tuple[str | None, str | None], stage_types: tuple[str | None, str | None], who: str
) -> str | None:
    """Say that a document stores other types than its input sections give, None when it does not."""
    if all(a is None or b is None or a == b for a, b in zip(stored, stage_types, strict=True)):
        return None
    words = [" ".join(filter(None, types)) for types in (stored, stage_types)]
    return f"stored as {words[0]}{who}, recomputed {words[1]}"


def build(
    group: Group,
    frames: Frames,
    *,
    asset: str,
    task_id: str,
    facts: Facts | None,
    keep_orphans: bool,
    relaxation_number: IntArray | None = None,
    notes: Sequence[str] = (),
    last_modified: str | None = None,
) -> Trajectory:
    """Put frames, settings and the materials' facts together.

    Args:
        group: the stages, together as many frames as `frames`.
        frames: what was read.
        asset: name of the asset.
        task_id: as in the raw record.
        facts: what the materials say about the task, None when none names it.
        keep_orphans: take a task that no material names, under its own id and without licence.
        relaxation_number: where it does not follow from the stages.
        notes: besides those of the stages.
        last_modified: date of the task; the last calculation's where it has none.
    """
    stages, last = group.stages, group.stages[-1]
    counts = [stage.n_frames for stage in stages]

    def per_frame(values: Sequence[float | None], dtype: type) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), counts)

    numbers = per_frame([stage.number for stage in stages], np.int32)
    steps = [np.arange(stage.first_step, stage.first_step + stage.n_frames, dtype=np.int32) for stage in stages]
    numbers = numbers if relaxation_number is None else relaxation_number
    ionic_steps, allowed = int(np.count_nonzero(numbers == numbers[-1])), last.settings.nsw
    return Trajectory(
        source=SOURCE,
        asset=asset,
        task_id=task_id,
        trajectory_id=f"{canonical_task_id(task_id)}-{group.suffix}",
        functional=group.functional,
        run_type=last.run_type,
        task_type=last.task_type or "unknown",
        numbers=frames.numbers,
        lattice=frames.lattice,
        positions=frames.positions,
        energy=frames.energy,
        energy_sigma0=frames.energy_sigma0,
        forces=frames.forces,
        stress=stress_from_vasp(frames.stress),
        magnetic_moments=frames.magnetic_moments,
        electronic_steps=frames.electronic_steps,
        relaxation_number=numbers,
        relaxation_step=np.concatenate(steps),
        nelm=per_frame([stage.settings.nelm for stage in stages], np.int32),
        ispin=per_frame([stage.settings.ispin for stage in stages], np.int32),
        encut=per_frame([stage.settings.encut for stage in stages], np.float64),
        hubbard_u=last.settings.hubbard_u,
        potentials=last.settings.potentials,
        relaxation_converged=ionic_steps < allowed if allowed is not None and last.task_type == RELAXATION else None,
        last_modified=last_modified or last.last_modified,
        faults=frames.faults,
        notes=tuple(dict.fromkeys([*(note for stage in stages for note in stage.notes), *notes])),
        **_joined(task_id, facts, keep_orphans, group.findings),
    )


def _joined(task_id: str, facts: Facts | None, keep_orphans: bool, findings: dict[str, str]) -> dict[str, Any]:
    """Return the fields that come from the materials documents."""
    if facts is None:
        reason = {} if keep_orphans else {"license": "no materials document names this task"}
        return {
            "immutable_id": canonical_task_id(task_id) if keep_orphans else None,
            "findings": findings | reason,
        }
    return {
        "immutable_id": facts.material_id,
        "license": facts.license,
        "deprecated": facts.deprecated,
        "material_origin": facts.is_origin,
        "findings": findings | ({} if facts.license else {"license": "the material has no licence"}),
    }


def unreadable(asset: str, detail: str, *, n_frames: int | None = None, task_id: str | None = None) -> Rejection:
    """Return the `readable` rejection of a record."""
    return Rejection(
        source=SOURCE, asset=asset, rejected_by="readable", detail=detail, n_frames=n_frames, task_id=task_id
    )


def without_frames(asset: str, task_id: str) -> Rejection:
    """Return the rejection of a record that has no ionic step, so that the record is counted."""
    return Rejection(
        source=SOURCE, asset=asset, rejected_by="targets", detail="no ionic steps", n_frames=0, task_id=task_id
    )
