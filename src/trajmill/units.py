"""Units and conversion factors; every number in trajmill is in eV and A unless its name says otherwise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KBAR_PER_EV_PER_A3 = 1602.1766208
"""1 eV/A^3 in kBar (CODATA 2014 elementary charge, as VASP and the design of this dataset use it)."""

MAX_STRESS_ASYMMETRY_KBAR = 1.0
"""Above this difference between mirrored components a stress is no stress: the label becomes null."""


def stress_from_vasp(kbar: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert VASP stresses to trajmill's convention.

    VASP prints the external pressure tensor (positive when the cell is compressed and wants to expand); ASE and
    trajmill use the Cauchy stress (positive under tension), hence the minus sign.

    Args:
        kbar: shape (..., 3, 3), kBar, VASP sign.

    Returns:
        Same shape, eV/A^3, ASE sign. A matrix with a missing component or an asymmetry above
        `MAX_STRESS_ASYMMETRY_KBAR` becomes all NaN: a missing label is honest, a wrong one poisons a model.
    """
    with np.errstate(invalid="ignore"):  # inf - inf
        asymmetry = np.abs(kbar - np.swapaxes(kbar, -1, -2)).max(axis=(-1, -2))
    good = asymmetry <= MAX_STRESS_ASYMMETRY_KBAR  # False for NaN and inf too
    return np.where(good[..., None, None], -kbar / KBAR_PER_EV_PER_A3 + 0.0, np.nan)


def to_voigt(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return xx yy zz yz xz xy of a (3, 3) matrix: ASE's order, VASP's is another."""
    return stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
