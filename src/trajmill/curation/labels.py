"""Rules on the labels: is the energy there, are the forces, did the electrons converge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trajmill import recipe
from trajmill.annotation.symmetry import analyse
from trajmill.trajectory import BoolArray, Frames, Trajectory


def lack_targets(frames: Frames, _: recipe.Rule) -> BoolArray:
    """Screen for frames with an energy or a force that is not finite."""
    good = np.isfinite(frames.joined("energy")) & (frames.n_atoms > 0)
    bad: BoolArray = frames.labelled & (~good | frames.any_component("forces", lambda x: ~np.isfinite(x)))
    return bad


def targets(t: Trajectory, _: recipe.Rule) -> dict[int, str]:
    """Keep frames with a finite energy and all force components finite."""
    energy = np.isfinite(t.energy)
    forces = np.isfinite(t.forces)
    good = energy & forces.all(axis=(1, 2)) & (t.n_atoms > 0)
    rejected = {}
    for i in np.flatnonzero(t.labelled & ~good):
        missing = ~forces[i].all(axis=1)
        if text := t.faults.get(int(i)):
            rejected[int(i)] = text
        elif not energy[i]:
            rejected[int(i)] = "energy is missing or not finite"
        elif missing.all():
            rejected[int(i)] = "forces are missing"
        else:
            atom = int(np.flatnonzero(missing)[0])
            rejected[int(i)] = f"force on atom {atom} is missing or not finite"
    return rejected


def zero_forces(trajectories: Sequence[Trajectory], _rule: recipe.Rule) -> list[dict[int, str]]:
    """Keep frames with a force, or without one where site symmetry (or a single atom) allows none.

    Readers of some sources store a force they could not read as exact zero.
    """
    frames = Frames(trajectories)
    zero = frames.labelled & (frames.n_atoms > 1) & ~frames.any_component("forces", lambda x: x != 0)
    verdicts: list[dict[int, str]] = [{} for _ in trajectories]
    suspects = np.unique(frames.owner[zero]).tolist()
    frames_of = [np.flatnonzero(zero[frames.owner == i]) for i in suspects]
    of_suspects = [trajectories[i] for i in suspects]
    found = analyse([(t.lattice[z], t.positions[z], t.numbers) for t, z in zip(of_suspects, frames_of, strict=True)])
    text = "all forces are exactly 0 and no symmetry asks for it"
    for i, z, (_, allowed) in zip(suspects, frames_of, found, strict=True):
        verdicts[i] = dict.fromkeys(z[~allowed].tolist(), text)
    return verdicts


def electronic_convergence(t: Trajectory, options: recipe.ElectronicConvergence) -> dict[int, str]:
    """Keep frames whose electronic steps stayed below the limit of their calculation."""
    unknown = np.full(len(t), -1, np.int32)
    steps = unknown if t.electronic_steps is None else t.electronic_steps
    limit = unknown if t.nelm is None else t.nelm
    known = (steps > 0) & (limit > 0)
    rejected = {
        int(i): f"{steps[i]} electronic steps, NELM {limit[i]}" for i in np.flatnonzero(known & (steps >= limit))
    }
    if options.unknown == "reject":
        text = "electronic steps or NELM not recorded"
        rejected |= dict.fromkeys(np.flatnonzero(~known).tolist(), text)
    return rejected
