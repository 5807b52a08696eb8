"""The Materials Project's energy corrections (Wang et al., Sci. Rep. 11, 15496, 2021), by pymatgen."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np

from trajmill.trajectory import FloatArray, Trajectory


def energy_corrected(t: Trajectory) -> tuple[FloatArray, str | None]:
    """Correct the energies of a PBE trajectory with MaterialsProject2020Compatibility.

    The correction is computed once per calculation, on its final frame and from the run's own run type, U values and
    potentials; as a constant shift it leaves forces and stress the gradients of the corrected energy.

    Returns:
        (n_frames,) eV per cell, NaN for other functionals and where the scheme refuses; and why it refused.
    """
    corrected = np.full(len(t), np.nan)
    if t.functional != "pbe":
        return corrected, None
    if t.run_type is None or t.hubbard_u is None or t.potentials is None:
        return corrected, "no corrected energy: run type, U values or potentials unknown"
    reason = None
    for number in np.unique(t.relaxation_number):
        frames = np.flatnonzero(t.relaxation_number == number)
        value = _correction(t, int(frames[-1]))
        if isinstance(value, str):
            reason = f"no corrected energy: {value}"
        else:
            corrected[frames] = t.energy[frames] + value
    return corrected, reason


def _correction(t: Trajectory, frame: int) -> float | str:
    """Return the correction of a cell in eV, or why pymatgen refuses."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.entries.compatibility import CompatibilityError
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    parameters = {
        "run_type": t.run_type,
        "hubbards": dict(t.hubbard_u or {}),
        "potcar_symbols": [f"PBE {name}" for name in t.potentials or ()],
        "software": "vasp",
    }
    structure = Structure(Lattice(t.lattice[frame]), t.symbols, t.positions[frame], coords_are_cartesian=True)
    entry = ComputedStructureEntry(structure, float(t.energy[frame]), parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns when it has to guess oxidation states
        try:
            return float(sum(adjustment.value for adjustment in _scheme().get_adjustments(entry)))
        except CompatibilityError as error:
            return str(error)
        except KeyError as error:  # pymatgen looks elements and settings up without a default
            return f"pymatgen does not know {error}"


@cache
def _scheme() -> Any:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility()
