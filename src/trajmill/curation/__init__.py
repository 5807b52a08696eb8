"""Curation: each rule keeps frames or turns them away with a reason; nothing vanishes.

A rule is a function of a trajectory and its section of the recipe. It returns what it rejects: a text for the whole
trajectory, a text by frame index for single frames, or nothing. `RULES` is the order in which they run; the first that
rejects a frame owns it. Where it can be told of many trajectories at once which of them a rule may reject anything of,
the rule comes with a screen that does. Rules that need all trajectories at once run at release
(`trajmill.releases.selection`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajmill import recipe
from trajmill.curation import energy, geometry, labels, records
from trajmill.sources.base import Rejection
from trajmill.trajectory import BoolArray, Frames, Trajectory

Verdict = str | Mapping[int, str] | None


@dataclass(frozen=True)
class Rule:
    """A row of the table of rules.

    Attributes:
        name: what `rejected_by` says.
        reject: the rule itself.
        section: its section of the recipe's `rules`, when it is not called like the rule.
        sources: sources it applies to; empty means all.
        screen: tells the frames that the rule may reject, or whose trajectory it may; it may tell too many.
        together: whether `reject` takes a list of trajectories, which is cheaper, and returns a verdict for each.
    """

    name: str
    reject: Callable[[Any, Any], Any]
    section: str = ""
    sources: frozenset[str] = frozenset()
    screen: Callable[[Frames, Any], BoolArray] | None = None
    together: bool = False

    def verdicts(self, trajectories: Sequence[Trajectory], options: Any) -> Sequence[Verdict]:
        """Return what the rule says of each trajectory."""
        if self.together:
            verdicts: Sequence[Verdict] = self.reject(trajectories, options)
            return verdicts
        if self.screen is None:
            return [self.reject(t, options) for t in trajectories]
        frames = Frames(trajectories)
        suspects = set(frames.owner[self.screen(frames, options)].tolist())
        return [self.reject(t, options) if i in suspects else None for i, t in enumerate(trajectories)]


MP, OQMD, VASP = frozenset({"mp"}), frozenset({"oqmd"}), frozenset({"vasp"})

RULES = (
    Rule("license", records.license, sources=MP),
    Rule("deprecated", records.deprecated, sources=MP),
    Rule("task_type", records.task_type, sources=MP | OQMD | VASP),
    Rule("unsupported_functional", records.unsupported_functional),
    Rule("elements", records.elements),
    Rule("oqmd_duplicate", records.finding("oqmd_duplicate"), sources=OQMD),
    Rule("ordered_sites", records.finding("ordered_sites"), sources=OQMD),
    Rule("site_order", records.finding("site_order"), sources=OQMD),
    Rule("relaxation_record", records.finding("relaxation_record"), sources=OQMD),
    Rule("relaxation_converged", records.finding("relaxation_converged"), sources=OQMD),
    Rule("targets", labels.targets, screen=labels.lack_targets),
    Rule("zero_forces", labels.zero_forces, sources=OQMD, together=True),
    Rule("electronic_convergence", labels.electronic_convergence, sources=MP | VASP),
    Rule("geometry", geometry.geometry, together=True),
    Rule("duplicate_frames", geometry.duplicate_frames, screen=geometry.repeat_energy),
    Rule("final_frame_outlier", energy.final_frame_outlier, section="energy_window", screen=energy.outside),
    Rule("energy_window", energy.energy_window, screen=energy.outside),
    Rule("max_force", energy.max_force),
)


Curated = tuple[Trajectory | None, list[Rejection]]
"""What is left of a trajectory, None when nothing is, and a rejection for everything that is not."""


def curate(trajectories: Sequence[Trajectory], rules: recipe.Rules) -> list[Curated]:
    """Run all rules over trajectories, each of which is judged alone.

    When a run's last frame went, a note on the rest says which frame is the end now.
    """
    left: dict[int, Trajectory] = dict(enumerate(trajectories))
    rejections: list[list[Rejection]] = [[] for _ in trajectories]
    for rule in RULES:
        options = getattr(rules, rule.section or rule.name)
        if not options.enabled:
            continue
        judged = [i for i, t in left.items() if not rule.sources or t.source in rule.sources]
        if not judged:
            continue
        verdicts = rule.verdicts([left[i] for i in judged], options)
        for i, verdict in zip(judged, verdicts, strict=True):
            if verdict:
                rest, lost = _apply(rule.name, verdict, left.pop(i))
                rejections[i] += lost
                if rest is not None:
                    left[i] = rest
    return [
        (_with_note_on_end(left[i], t, rejections[i]) if i in left else None, rejections[i])
        for i, t in enumerate(trajectories)
    ]


def _apply(rule: str, verdict: str | Mapping[int, str], t: Trajectory) -> Curated:
    """Take away what a rule rejects."""
    if isinstance(verdict, str):
        return None, [_rejection(t, rule, verdict)]
    lost = [_rejection(t, rule, text, frame) for frame, text in sorted(verdict.items())]
    keep = np.ones(len(t), bool)
    keep[list(verdict)] = False
    return t.select(keep) if keep.any() else None, lost


def _with_note_on_end(kept: Trajectory, before: Trajectory, rejections: list[Rejection]) -> Trajectory:
    if kept is before or kept.relaxation_step[-1] == (end := int(before.relaxation_step[-1])):
        return kept
    owner = next(r.rejected_by for r in rejections if r.relaxation_step == end)
    note = f"ends at step {kept.relaxation_step[-1]}: step {end} was rejected by {owner}"
    return kept.changed(notes=(*kept.notes, note))


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
