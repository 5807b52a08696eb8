"""Which frames may be trained on together: `cross_compatibility`."""

from __future__ import annotations

import numpy as np

from trajmill.trajectory import BoolArray, Trajectory

DIFFERING_ELEMENTS = {
    "mp": frozenset({"V", "Cs"}),
    "alexandria": frozenset({"Yb"}),
    "oqmd": frozenset("Yb W Tl Eu Ce Rh Ru Mo Mn Cr V Ti Ca".split()),
}
"""Elements whose pseudopotential or U differs from the other sources', as LeMat-Traj lists them."""

OQMD_MIN_ENCUT = 520.0
"""eV; OQMD's coarse and fine stages use less and are other energy surfaces."""


def cross_compatibility(t: Trajectory) -> BoolArray:
    """Return (n_frames,) whether settings agree with the other sources'. Each condition only ever takes away."""
    alike = DIFFERING_ELEMENTS.get(t.source, frozenset()).isdisjoint(t.composition)
    if not alike or t.source != "oqmd":
        return np.full(len(t), alike)
    if t.ispin is None or t.encut is None:
        return np.zeros(len(t), bool)
    compatible: BoolArray = (t.ispin == 2) & (t.encut >= OQMD_MIN_ENCUT)  # False for NaN, unknown
    return compatible
