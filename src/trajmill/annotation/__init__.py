"""Annotation: what is computed for each kept frame."""

from __future__ import annotations

from dataclasses import replace

from trajmill import recipe
from trajmill.annotation.compatibility import cross_compatibility
from trajmill.annotation.energy_correction import energy_corrected
from trajmill.annotation.symmetry import space_groups
from trajmill.trajectory import Trajectory


def annotate(t: Trajectory, options: recipe.Annotation) -> Trajectory:
    """Add space groups, corrected energies and cross compatibility to a curated trajectory."""
    groups = corrected = reason = None
    if options.space_group:
        groups = space_groups(t.lattice, t.positions, t.numbers, symprec=options.symprec)
    if options.energy_corrected:
        corrected, reason = energy_corrected(t)
    notes = (*t.notes, reason) if reason else t.notes
    return replace(
        t, space_group=groups, energy_corrected=corrected, cross_compatibility=cross_compatibility(t), notes=notes
    )
