"""Rules on the geometry."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from trajmill import recipe
from trajmill.trajectory import BoolArray, FloatArray, Frames, Trajectory

BLOCK_PAIRS = 20_000
"""Pairs of atoms (of all frames) looked at once: what stays in a core's cache."""

NEIGHBOURS = np.array(list(itertools.product((-1, 0, 1), repeat=2)))


@np.errstate(over="ignore", divide="ignore")  # absurd numbers are what this rule is for
def geometry(trajectories: Sequence[Trajectory], options: recipe.Geometry) -> list[dict[int, str]]:
    """Keep frames with a finite cell of sane volume and no two atoms too close, periodic images included."""
    verdicts: list[dict[int, str]] = [{} for _ in trajectories]
    alike: dict[int, list[int]] = {}  # trajectories by number of atoms: their frames are looked at together
    for i, t in enumerate(trajectories):
        alike.setdefault(t.n_atoms, []).append(i)
    for n_atoms, members in alike.items():
        lattice = np.concatenate([trajectories[i].lattice for i in members])
        positions = np.concatenate([trajectories[i].positions for i in members])
        owner = np.repeat(members, [len(trajectories[i]) for i in members])
        frame = np.concatenate([np.arange(len(trajectories[i])) for i in members])
        finite: BoolArray = np.isfinite(lattice).all(axis=(1, 2)) & np.isfinite(positions).all(axis=(1, 2))
        for k in np.flatnonzero(~finite):
            text = trajectories[owner[k]].faults.get(int(frame[k]), "cell or positions missing or not finite")
            verdicts[owner[k]][int(frame[k])] = text
        volume = np.abs(np.linalg.det(np.where(finite[:, None, None], lattice, np.eye(3)))) / max(n_atoms, 1)
        for k in np.flatnonzero(finite & ~(volume > options.min_volume)):
            text = f"{volume[k]:.3g} A^3 per atom, at least {options.min_volume} wanted"
            verdicts[owner[k]][int(frame[k])] = text
        sane = np.flatnonzero(finite & (volume > options.min_volume))
        distance = shortest_distance(lattice[sane], positions[sane], options.min_distance)
        for k, d in zip(sane[distance < options.min_distance], distance[distance < options.min_distance], strict=True):
            text = f"two atoms {d:.3f} A apart, at least {options.min_distance} wanted"
            verdicts[owner[k]][int(frame[k])] = text
    return verdicts


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
    inverse = np.linalg.inv(lattice)
    heights = 1 / np.linalg.norm(inverse, axis=1)
    thin = (heights <= 2 * cutoff).any(axis=1)
    for i in np.flatnonzero(thin):
        shortest[i] = _search_images(_reduced(lattice[i]), positions[i], cutoff)
    wide = np.flatnonzero(~thin)
    first, second = np.triu_indices(positions.shape[1], k=1)
    block = max(1, BLOCK_PAIRS // max(1, len(first)))
    for frames in np.split(wide, range(block, len(wide), block)):
        fractional, reach = positions[frames] @ inverse[frames], cutoff / heights[frames]
        along = fractional[:, first, 0] - fractional[:, second, 0]
        frame, pair = np.nonzero(np.abs(along - np.rint(along)) <= reach[:, :1])
        delta = fractional[frame, first[pair]] - fractional[frame, second[pair]]
        delta -= np.rint(delta)
        near = (np.abs(delta) <= reach[frame]).all(axis=1)
        frame = frames[frame[near]]
        vectors = (delta[near, None] @ lattice[frame])[:, 0]
        np.minimum.at(shortest, frame, np.linalg.norm(vectors, axis=1))
    shortest[shortest >= cutoff] = np.inf
    return shortest


def _reduced(lattice: FloatArray) -> FloatArray:
    """Return other vectors of the same lattice, each as short as adding the other two can make it."""
    reduced = lattice.copy()
    shorter = True
    while shorter:
        shorter = False
        for k in range(3):
            vector, others = reduced[k], np.delete(reduced, k, axis=0)
            nearest = np.rint(np.linalg.lstsq(others.T, vector)[0])
            candidates = vector - (nearest + NEIGHBOURS) @ others
            best = candidates[np.argmin(np.linalg.norm(candidates, axis=1))]
            if np.linalg.norm(best) < (1 - 1e-9) * np.linalg.norm(vector):
                reduced[k] = best
                shorter = True
    return reduced


def _search_images(lattice: FloatArray, positions: FloatArray, cutoff: float) -> float:
    """Search all images that can be within the cut-off, the atoms' own included (which never differ by zero).

    The shortest lattice vector bounds the search, so that in a reduced cell, which is not skewed, a few images are
    enough however small it is.
    """
    shortest = np.linalg.norm(lattice, axis=1).min()
    inverse = np.linalg.inv(lattice)
    fractional = positions @ inverse
    first, second = np.triu_indices(len(positions), k=1)
    delta = fractional[first] - fractional[second]
    delta -= np.rint(delta)
    reach = np.ceil(min(cutoff, shortest) * np.linalg.norm(inverse, axis=0) + 0.5).astype(int)
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = (delta + shift) @ lattice
        shortest = min(shortest, np.linalg.norm(vectors, axis=1).min(initial=np.inf))
    return float(shortest)


def repeat_energy(frames: Frames, _: recipe.Rule) -> BoolArray:
    """Screen for frames with the energy of the frame before."""
    energy = frames.joined("energy")
    same: BoolArray = frames.follows & (energy == np.roll(energy, 1))
    return same


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
    for array in (t.lattice, t.positions, t.forces, t.stress):
        now = np.flatnonzero(same)
        a, b = array[now], array[now - 1]
        same[now] = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=(1, 2))
    return same
