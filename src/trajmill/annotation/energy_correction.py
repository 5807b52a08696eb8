"""The Materials Project's energy corrections (Wang et al., Sci. Rep. 11, 15496, 2021), by pymatgen."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cache, lru_cache
from typing import Any

import numpy as np

from trajmill.annotation.anion_types import oxide_type, sulfide_type
from trajmill.trajectory import FloatArray, Trajectory

SET = re.compile(r"\{([^{}]*)\}")
"""A set in a message of pymatgen; its order changes from process to process."""


def energy_corrected(t: Trajectory) -> tuple[FloatArray, str | None]:
    """Correct the energies of a PBE trajectory with MaterialsProject2020Compatibility.

    The correction is computed once per calculation, on its final frame and from the run's own run type, U values and
    potentials; as a constant shift it leaves forces and stress the gradients of the corrected energy.

    Returns:
        (n_frames,) eV per cell, NaN for other functionals and where the scheme refuses; and why it refused.
    """
    if t.functional != "pbe":
        return np.full(len(t), np.nan), None
    if t.run_type is None or t.hubbard_u is None or t.potentials is None:
        return np.full(len(t), np.nan), "no corrected energy: run type, U values or potentials unknown"
    # counts are in the order of the sites, which decides the order of summation
    settings = tuple(Counter(t.symbols).items()), t.run_type, tuple(t.hubbard_u.items()), tuple(t.potentials)
    reason = None
    shifts: dict[int, float] = {}
    numbers = t.relaxation_number.tolist()
    final_frames = {number: frame for frame, number in enumerate(numbers)}
    for number, frame in final_frames.items():
        try:
            value = _adjustment(*settings, *_anion_types(t, frame))
        except (ValueError, IndexError) as error:  # not finite, no neighbours, a symmetry search that failed
            value = f"pymatgen cannot tell the anions' type: {error}"
        if isinstance(value, str):
            reason = f"no corrected energy: {value}"
        else:
            shifts[number] = value
    return t.energy + np.array([shifts.get(number, np.nan) for number in numbers]), reason


def _anion_types(t: Trajectory, frame: int) -> tuple[str, str]:
    """Return pymatgen's oxide and sulfide type: all that the scheme takes from the geometry.

    Raises:
        ValueError, IndexError: the geometry has no answer.
    """
    has_oxygen, has_sulfur = "O" in t.composition, "S" in t.composition
    if not (has_oxygen or has_sulfur):
        return "", ""
    if not np.isfinite(t.positions[frame]).all():  # spglib, which pymatgen calls, ends the process on NaN
        raise ValueError("positions are not finite")
    structure = t.lattice[frame], t.positions[frame], t.numbers
    return oxide_type(*structure) if has_oxygen else "", sulfide_type(*structure) if has_sulfur else ""


@lru_cache(maxsize=4096)
def _adjustment(
    counts: tuple[tuple[str, int], ...],
    run_type: str,
    hubbards: tuple[tuple[str, float], ...],
    potentials: tuple[str, ...],
    oxide: str,
    sulfide: str,
) -> float | str:
    """Ask the scheme; the calculations of a run, and other phases of a compound, share the answer."""
    from pymatgen.entries.compatibility import CompatibilityError
    from pymatgen.entries.computed_entries import ComputedEntry

    parameters = {
        "run_type": run_type,
        "hubbards": dict(hubbards),
        "potcar_symbols": [f"PBE {name}" for name in potentials],
        "software": "vasp",
    }
    data = {"oxide_type": oxide, "sulfide_type": sulfide}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns when it has to guess oxidation states, and about noble gases
        entry = ComputedEntry(dict(counts), 0.0, parameters=parameters, data=data)
        try:
            return float(sum(adjustment.value for adjustment in _scheme().get_adjustments(entry)))
        except CompatibilityError as error:
            text = str(error).partition(" for {")[0]  # else it prints the whole entry
            return SET.sub(lambda found: f"{{{', '.join(sorted(found[1].split(', ')))}}}", text)
        except KeyError as error:  # pymatgen looks elements and settings up without a default
            return f"pymatgen does not know {error}"


@cache
def _scheme() -> Any:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility()
