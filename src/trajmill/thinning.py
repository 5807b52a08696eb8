"""Fewer frames of each trajectory: neighbours along a relaxation say nearly the same.

A way of thinning is a function of the energies per atom and steps of a trajectory's frames, in order; it tells which
frames stay. The last frame always does, since it is what the relaxation was for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trajmill.errors import FilterError
from trajmill.trajectory import BoolArray, FloatArray

Thinning = Callable[[FloatArray], BoolArray]
"""(n_frames,) energies, eV/atom, to (n_frames,) which stay."""


def every(k: int) -> Thinning:
    """Keep each k-th frame, counted back from the last.

    Raises:
        FilterError: k below 1.
    """
    if k < 1:
        raise FilterError(f"every {k}-th frame cannot be kept; say 1 or more")

    def thin(energy: FloatArray) -> BoolArray:
        n = len(energy)
        keep: BoolArray = (n - 1 - np.arange(n)) % k == 0
        return keep

    return thin


def energy_steps(difference: float) -> Thinning:
    """Keep frames whose energy differs by more than this from the frame kept before, going back from the last.

    This is how sAlex was drawn from Alexandria, with 10 meV/atom (Barroso-Luque et al., arXiv:2410.12771).

    Args:
        difference: eV/atom.

    Raises:
        FilterError: it is negative.
    """
    if not difference >= 0:
        raise FilterError(f"an energy difference of {difference} eV/atom makes no sense; say 0 or more")

    def thin(energy: FloatArray) -> BoolArray:
        keep = np.zeros(len(energy), bool)
        last = np.inf
        for i in range(len(energy) - 1, -1, -1):
            if not abs(energy[i] - last) <= difference:
                keep[i], last = True, energy[i]
        return keep

    return thin


def farthest(n: int) -> Thinning:
    """Keep up to n frames whose energies are farthest apart: the last, then always the one farthest from those kept.

    Raises:
        FilterError: n below 1.
    """
    if n < 1:
        raise FilterError(f"{n} frames of each trajectory cannot be kept; say 1 or more")

    def thin(energy: FloatArray) -> BoolArray:
        keep = np.zeros(len(energy), bool)
        keep[-1] = True
        distance = np.nan_to_num(np.abs(energy - energy[-1]))
        for _ in range(min(n, len(energy)) - 1):
            distance[keep] = -1  # two frames of the same energy are two frames
            i = int(np.argmax(distance))
            keep[i] = True
            distance = np.minimum(distance, np.nan_to_num(np.abs(energy - energy[i])))
        return keep

    return thin
