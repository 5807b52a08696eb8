"""Rules on the geometry."""

from __future__ import annotations

import itertools

import numpy as np

from trajmill import recipe
from trajmill.trajectory import BoolArray, FloatArray, Trajectory


def geometry(t: Trajectory, options: recipe.Geometry) -> dict[int, str]:
    """Keep frames with a finite cell of sane volume and no two atoms too close, periodic images included."""
    finite = np.isfinite(t.lattice).all(axis=(1, 2)) & np.isfinite(t.positions).all(axis=(1, 2))
    rejected = {
        int(i): t.faults.get(int(i), "cell or positions missing or not finite") for i in np.flatnonzero(~finite)
    }
    volume = np.abs(np.linalg.det(np.where(finite[:, None, None], t.lattice, np.eye(3)))) / max(t.n_atoms, 1)
    for i in np.flatnonzero(finite & ~(volume > options.min_volume)):
        rejected[int(i)] = f"{volume[i]:.3g} A^3 per atom, at least {options.min_volume} wanted"
    sane = np.flatnonzero(finite & (volume > options.min_volume))
    distance = shortest_distance(t.lattice[sane], t.positions[sane], options.min_distance)
    for i, d in zip(sane, distance, strict=True):
        if d < options.min_distance:
            rejected[int(i)] = f"two atoms {d:.3f} A apart, at least {options.min_distance} wanted"
    return rejected


def shortest_distance(lattice: FloatArray, positions: FloatArray, cutoff: float) -> FloatArray:
    """Return the shortest distance between two atoms or periodic images, exact wherever it is below the cut-off.

    A vector shorter than `cutoff` has fractional components below cutoff/height, with the heights of the cell. Where
    all heights exceed twice the cut-off, wrapping the difference to [-1/2, 1/2] therefore finds every such vector, and
    only thin cells need a search over images.

    Args:
        lattice: (n_frames, 3, 3) A, not singular.
        positions: (n_frames, n_atoms, 3) A.
        cutoff: A.

    Returns:
        (n_frames,) A; inf where everything is farther than the cut-off.
    """
    shortest = np.full(len(lattice), np.inf)
    if not len(lattice):
        return shortest
    inverse = np.linalg.inv(lattice)
    heights = 1 / np.linalg.norm(inverse, axis=1)
    first, second = np.triu_indices(positions.shape[1], k=1)
    reach = cutoff / heights
    for i in range(len(lattice)):  # frame by frame: the pairs of a large cell would not fit for all frames at once
        fractional = positions[i] @ inverse[i]
        delta = fractional[first] - fractional[second]
        delta -= np.rint(delta)
        if (heights[i] > 2 * cutoff).all():
            near = delta[(np.abs(delta) <= reach[i]).all(axis=1)]
            if len(near):
                shortest[i] = np.linalg.norm(near @ lattice[i], axis=1).min()
        else:
            shortest[i] = _search_images(lattice[i], delta, reach[i])
    shortest[shortest >= cutoff] = np.inf
    return shortest


def _search_images(lattice: FloatArray, delta: FloatArray, reach: FloatArray) -> float:
    """Search the images that can be within reach, the atoms' own included (which never differ by zero)."""
    ranges = [range(-n, n + 1) for n in np.minimum(np.ceil(reach + 0.5), 8).astype(int)]
    best = np.inf
    for shift in itertools.product(*ranges):
        if any(shift):
            best = min(best, float(np.linalg.norm(shift @ lattice)))
        if len(delta):
            best = min(best, float(np.linalg.norm((delta + shift) @ lattice, axis=1).min()))
    return best


def duplicate_frames(t: Trajectory, _: recipe.Rule) -> dict[int, str]:
    """Of consecutive frames equal in cell, positions and all labels keep the first, or the last where the run ends."""
    same = _equal_to_previous(t)
    rejected: dict[int, str] = {}
    start = 0
    for end in range(1, len(t) + 1):
        if end < len(t) and same[end]:
            continue
        kept = end - 1 if end == len(t) else start
        text = f"equal to step {t.relaxation_step[kept]}"
        rejected |= {i: text for i in range(start, end) if i != kept}
        start = end
    return rejected


def _equal_to_previous(t: Trajectory) -> BoolArray:
    """(n_frames,) True where all arrays equal those of the frame before; a missing stress equals a missing stress."""
    same = np.zeros(len(t), bool)
    same[1:] = t.energy[1:] == t.energy[:-1]  # NaN, an unlabelled input, equals nothing
    for i in np.flatnonzero(same):
        same[i] = all(
            np.array_equal(array[i], array[i - 1], equal_nan=True)
            for array in (t.lattice, t.positions, t.forces, t.stress)
        )
    return same
