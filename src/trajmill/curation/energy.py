"""Rules on how far a frame is from the end of its trajectory."""

from __future__ import annotations

import numpy as np

from trajmill import recipe
from trajmill.trajectory import BoolArray, FloatArray, Frames, Trajectory


def _outside(t: Trajectory, options: recipe.EnergyWindow) -> tuple[FloatArray, BoolArray]:
    """Energies above the last labelled frame, eV/atom, and which of them lie outside the window."""
    labelled = np.flatnonzero(t.labelled)
    if not len(labelled):
        return np.zeros(len(t)), np.zeros(len(t), bool)
    above = (t.energy - t.energy[labelled[-1]]) / t.n_atoms
    return above, (above > options.above) | (above < -options.below)  # NaN, an unlabelled input, is not outside


def outside(frames: Frames, options: recipe.EnergyWindow) -> BoolArray:
    """Screen for frames outside the window."""
    energy = frames.joined("energy")
    with np.errstate(divide="ignore", invalid="ignore"):  # cells without atoms
        above = (energy - energy[frames.last][frames.owner]) / frames.n_atoms
        found: BoolArray = (above > options.above) | (above < -options.below)
    return found


def final_frame_outlier(t: Trajectory, options: recipe.EnergyWindow) -> str | None:
    """Reject a trajectory most of whose frames lie outside the window: then it is its end that is wrong."""
    _, outside = _outside(t, options)
    if 2 * outside.sum() > t.labelled.sum():
        return f"{outside.sum()} of {t.labelled.sum()} frames are outside the energy window around the final frame"
    return None


def energy_window(t: Trajectory, options: recipe.EnergyWindow) -> dict[int, str]:
    """Keep frames at most `above` over and `below` under the final frame, eV/atom."""
    above, outside = _outside(t, options)
    return {
        int(i): f"{above[i]:+.3f} eV/atom from the final frame, allowed -{options.below} to +{options.above}"
        for i in np.flatnonzero(outside)
    }


def max_force(t: Trajectory, options: recipe.MaxForce) -> dict[int, str]:
    """Keep frames whose largest force is below the threshold, eV/A."""
    force = np.linalg.norm(t.forces, axis=2).max(axis=1)
    return {
        int(i): f"force of {force[i]:.1f} eV/A, allowed {options.threshold}"
        for i in np.flatnonzero(t.labelled & (force > options.threshold))
    }
