"""Curation: each rule keeps frames or turns them away with a reason; nothing vanishes.

A rule is a function of a trajectory and its section of the recipe. It returns what it rejects: a text for the whole
trajectory, a text by frame index for single frames, or nothing. `RULES` is the order in which they run; the first that
rejects a frame owns it. Rules that need all trajectories at once run at release (`trajmill.releases.selection`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trajmill import recipe
from trajmill.curation import energy, geometry, labels, records
from trajmill.sources.base import Rejection
from trajmill.trajectory import Trajectory

Verdict = str | Mapping[int, str] | None


@dataclass(frozen=True)
class Rule:
    """A row of the table of rules.

    Attributes:
        name: what `rejected_by` says.
        reject: the rule itself.
        section: its section of the recipe's `rules`, when it is not called like the rule.
        sources: sources it applies to; empty means all.
    """

    name: str
    reject: Callable[[Trajectory, Any], Verdict]
    section: str = ""
    sources: frozenset[str] = frozenset()


MP, OQMD = frozenset({"mp"}), frozenset({"oqmd"})

RULES = (
    Rule("license", records.license, sources=MP),
    Rule("deprecated", records.deprecated, sources=MP),
    Rule("task_type", records.task_type, sources=MP | OQMD),
    Rule("unsupported_functional", records.unsupported_functional),
    Rule("elements", records.elements),
    Rule("oqmd_duplicate", records.finding("oqmd_duplicate"), sources=OQMD),
    Rule("ordered_sites", records.finding("ordered_sites"), sources=OQMD),
    Rule("site_order", records.finding("site_order"), sources=OQMD),
    Rule("relaxation_record", records.finding("relaxation_record"), sources=OQMD),
    Rule("relaxation_converged", records.finding("relaxation_converged"), sources=OQMD),
    Rule("targets", labels.targets),
    Rule("zero_forces", labels.zero_forces, sources=OQMD),
    Rule("electronic_convergence", labels.electronic_convergence, sources=MP),
    Rule("geometry", geometry.geometry),
    Rule("duplicate_frames", geometry.duplicate_frames),
    Rule("final_frame_outlier", energy.final_frame_outlier, section="energy_window"),
    Rule("energy_window", energy.energy_window),
    Rule("max_force", energy.max_force),
)


def curate(trajectory: Trajectory, rules: recipe.Rules) -> tuple[Trajectory | None, list[Rejection]]:
    """Run all rules over a trajectory.

    Returns:
        What is left (None when nothing is) and a rejection for everything that is not. When the run's last frame went,
        a note on the rest says which frame is the end now.
    """
    rejections: list[Rejection] = []
    kept = trajectory
    end = int(trajectory.relaxation_step[-1]) if len(trajectory) else None
    for rule in RULES:
        options = getattr(rules, rule.section or rule.name)
        if not options.enabled or (rule.sources and kept.source not in rule.sources):
            continue
        verdict = rule.reject(kept, options)
        if not verdict:
            continue
        if isinstance(verdict, str):
            rejections.append(_rejection(kept, rule.name, verdict))
            return None, rejections
        rejections.extend(_rejection(kept, rule.name, text, frame) for frame, text in sorted(verdict.items()))
        keep = np.ones(len(kept), bool)
        keep[list(verdict)] = False
        if not keep.any():
            return None, rejections
        kept = kept.select(keep)
    if kept.relaxation_step[-1] != end:
        owner = next(r.rejected_by for r in rejections if r.relaxation_step == end)
        note = f"ends at step {kept.relaxation_step[-1]}: step {end} was rejected by {owner}"
        kept = replace(kept, notes=(*kept.notes, note))
    return kept, rejections


def _rejection(t: Trajectory, rule: str, detail: str, frame: int | None = None) -> Rejection:
    """Make the ledger's row for a whole trajectory, or for one frame of it."""
    numbers = np.unique(t.relaxation_number)
    if frame is not None:
        numbers = t.relaxation_number[[frame]]
    return Rejection(
        source=t.source,
        asset=t.asset,
        rejected_by=rule,
        detail=detail,
        n_frames=len(t) if frame is None else 1,
        task_id=t.task_id,
        trajectory_id=t.trajectory_id,
        immutable_id=t.immutable_id,
        functional=t.functional,
        run_type=t.run_type,
        relaxation_number=int(numbers[0]) if len(numbers) == 1 else None,
        relaxation_step=None if frame is None else int(t.relaxation_step[frame]),
    )
