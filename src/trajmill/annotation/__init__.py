"""Annotation: what is computed for each kept frame."""

from __future__ import annotations

from collections.abc import Sequence

from trajmill import recipe
from trajmill.annotation.compatibility import cross_compatibility
from trajmill.annotation.energy_correction import energy_corrected
from trajmill.annotation.symmetry import analyse
from trajmill.trajectory import IntArray, Trajectory


def annotate(trajectories: Sequence[Trajectory], options: recipe.Annotation) -> list[Trajectory]:
    """Add space groups, corrected energies and cross compatibility to curated trajectories."""
    groups: list[IntArray | None] = [None] * len(trajectories)
    if options.space_group:
        frames = [(t.lattice, t.positions, t.numbers) for t in trajectories]
        groups = [found for found, _ in analyse(frames, symprec=options.symprec)]
    return [_annotated(t, group, options) for t, group in zip(trajectories, groups, strict=True)]


def _annotated(t: Trajectory, groups: IntArray | None, options: recipe.Annotation) -> Trajectory:
    corrected, reason = energy_corrected(t) if options.energy_corrected else (None, None)
    notes = (*t.notes, reason) if reason else t.notes
    return t.changed(
        space_group=groups, energy_corrected=corrected, cross_compatibility=cross_compatibility(t), notes=notes
    )
