"""What a VASP calculation is: its run type (functional and +U), task type and functional, from its input tags.

The tests and their order are those of emmet's `calc_types`, with four changes where emmet would call a calculation
by the name of another energy surface: van der Waals functionals and dispersion corrections are never the plain
functional, an unlisted meta-GGA is not the GGA below it, an unlisted `GGA` tag is not LDA, and without a `GGA` tag the
POTCAR decides, as it does in VASP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from trajmill.sources.base import RELAXATION

Tags = Mapping[str, Any]
"""VASP tags, names and text in upper case, as `merge_tags` makes them."""

FUNCTIONALS: Mapping[str, str] = {
    "GGA": "pbe",
    "GGA+U": "pbe",
    "PBEsol": "pbesol",
    "SCAN": "scan",
    "r2SCAN": "r2scan",
}
"""Functional by run type; every run type that is not here is none of the dataset's functionals."""

TASK_TYPES = (
    "NMR Electric Field Gradient",
    "NMR Nuclear Shielding",
    "DFPT Dielectric",
    "Molecular Dynamics",
    RELAXATION,
    "NSCF Uniform",
    "NSCF Line",
    "SCF Line",
    "Unrecognized",
    "Deformation",
    "Dielectric",
    "Static",
    "Optic",
    "DFPT",
)
"""Task types as the Materials Project names them, the longer before those they end with."""

_METAGGA = {"R2SCAN": "r2SCAN"}
_GGA = {
    "CA": "LDA",
    "PZ": "LDA",
    "AM": "AM05",
    "PE": "GGA",
    "PS": "PBEsol",
    "RP": "revPBE+PADE",
    "RE": "revPBE",
    "MK": "optB86b",
    "BO": "optB88",
    "OR": "optPBE",
    "ML": "vdW-DF2",
}
_POTCAR = {"PAW_PBE": "GGA", "PAW_GGA": "PW91", "PAW": "LDA"}
_HYBRIDS: Mapping[str, Mapping[str, Any]] = {
    "B3LYP": {"GGA": "B3"},
    "HF": {"AEXX": 1.0},
    "HSE03": {"AEXX": 0.25, "HFSCREEN": 0.3},
    "HSE06": {"AEXX": 0.25, "HFSCREEN": 0.2},
    "PBE0": {"AEXX": 0.25},
}


def merge_tags(parameters: Mapping[str, Any] | None, incar: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge vasprun.xml's parameters with the INCAR, which wins: the parameters lose METAGGA and mangle LDAU*.

    Returns:
        Tags with names and text stripped and in upper case (some VASP versions write `GGA    `, documents hold both
        `Scan` and `SCAN`); null values are left out.
    """
    return {
        _tag_name(name): value.strip().upper() if isinstance(value, str) else value
        for tags in (parameters, incar)
        for name, value in (tags or {}).items()
        if value is not None
    }


@lru_cache(4096)  # the same 300 names in every calculation
def _tag_name(written: str) -> str:
    return written.strip().upper()


def number(tags: Tags, name: str) -> float | None:
    """Return a tag's number, None when it is absent, no number or beyond what VASP's integers hold."""
    try:
        value = float(tags[name])
    except (KeyError, TypeError, ValueError):
        return None
    return value if abs(value) < 2**31 else None


def flag(tags: Tags, name: str) -> bool:
    """Return a logical tag, also in Fortran's spelling; absent is False."""
    value = tags.get(name)
    return value.strip(".").startswith("T") if isinstance(value, str) else bool(value)


def run_type(tags: Tags, potcar_titles: Sequence[str] = ()) -> str | None:
    """Return the functional and +U of a calculation, such as `GGA+U`.

    Args:
        tags: from `merge_tags`.
        potcar_titles: TITEL lines of the POTCARs, `PAW_PBE Fe_pv 06Sep2000`.

    Returns:
        The run type; PBE is `GGA` whether its tag is written or not. None when the tags do not decide it.
    """
    name = _functional_name(tags, potcar_titles)
    if name is None:
        return None
    if dispersion := number(tags, "IVDW"):
        name += f"-IVDW{dispersion:g}"
    return f"{name}+U" if flag(tags, "LDAU") else name


def _functional_name(tags: Tags, potcar_titles: Sequence[str]) -> str | None:
    """Name the functional by the first that applies of GW, hybrid, meta-GGA, GGA tag, POTCAR."""
    algorithm, metagga, gga = (str(tags.get(name, "")).upper() for name in ("ALGO", "METAGGA", "GGA"))
    if "GW" in algorithm:
        return "G0W0" if algorithm == "GW0" else algorithm
    if flag(tags, "LHFCALC"):
        matching = (n for n, values in _HYBRIDS.items() if all(tags.get(t) == v for t, v in values.items()))
        return next(matching, "HFCus")
    if metagga not in ("", "--", "NONE", "F", "FALSE"):
        return _METAGGA.get(metagga, metagga) + ("-rVV10" if flag(tags, "LUSE_VDW") else "")
    if gga not in ("", "--"):
        name: str | None = _GGA.get(gga, f"GGA={gga}")
    elif potcar_titles and (kind := potcar_titles[0].partition(" ")[0].upper()) in _POTCAR:
        name = _POTCAR[kind]
    else:
        name = "GGA" if gga else None
    return f"{name}-vdW" if name and flag(tags, "LUSE_VDW") else name


class Kpoints(msgspec.Struct, gc=False):
    """What of pymatgen's Kpoints tells a band structure."""

    labels: list[Any] | None = None
    nkpoints: float | None = None
    kpts_weights: list[float | None] | None = None


def task_type(tags: Tags, kpoints: Kpoints | None = None) -> str:
    """Return what a calculation does: `Structure Optimization` relaxes cell and positions, `Static` is one step.

    Args:
        tags: from `merge_tags`.
        kpoints: to tell band structures.
    """
    kpoints = kpoints or Kpoints()
    line = any(label is not None for label in kpoints.labels or ())
    not_self_consistent = (number(tags, "ICHARG") or 0) > 10
    ibrion, isif, static = number(tags, "IBRION"), number(tags, "ISIF"), number(tags, "NSW") == 0
    moves, dfpt = (ibrion or 0) > 0, (ibrion or 0) > 6
    algorithm = tags.get("ALGO")
    kinds = (
        ("NSCF Line", line or (not_self_consistent and bool(kpoints.nkpoints))),
        ("NSCF Uniform", not_self_consistent),
        ("DFPT Dielectric" if dfpt else "Dielectric", flag(tags, "LEPSILON")),
        ("DFPT", dfpt),
        ("NMR Nuclear Shielding", flag(tags, "LCHIMAG")),
        ("NMR Electric Field Gradient", flag(tags, "LEFG")),
        ("Optic", algorithm == "CHI" or (flag(tags, "LOPTICS") and (not static or algorithm == "EXACT"))),
        ("SCF Line", static and _line_of_zero_weights(tags, kpoints)),
        ("Static", static),
        (RELAXATION, moves and isif == 3),
        ("Deformation", moves and isif in (2, None)),
        ("Molecular Dynamics", ibrion == 0),
    )
    return next((kind for kind, applies in kinds if applies), "Unrecognized")


def _line_of_zero_weights(tags: Tags, kpoints: Kpoints) -> bool:
    """Whether k-points of weight zero make this meta-GGA or hybrid run a band structure."""
    weights = kpoints.kpts_weights or ()
    return ("METAGGA" in tags or flag(tags, "LHFCALC")) and any(abs(w or 0) < 1e-6 for w in weights)


def functional(run: str | None) -> str | None:
    """Return the dataset's functional for a run type, None for every other energy surface (`SCAN+U`, rVV10, HSE06)."""
    return FUNCTIONALS.get(normalise_run_type(run) or "")


def normalise_run_type(run: str | None) -> str | None:
    """Return a run type with one name per functional: `PBE` is `GGA`, with and without +U."""
    return {"PBE": "GGA", "PBE+U": "GGA+U"}.get(run or "", run)


def stored_types(*values: Any) -> tuple[str | None, str | None]:
    """Read run type and task type from what a document stores about itself.

    Args:
        values: `run_type`, `task_type` and `calc_type` in any order: plain strings, enum dictionaries
            (`{"value": ...}`), or both types in one string as old documents write `task_type`.

    Returns:
        run type and task type; the first value that says something decides.
    """
    run: str | None = None
    task: str | None = None
    for value in values:
        text = value.get("value") if isinstance(value, Mapping) else value
        if not isinstance(text, str) or not text.strip():
            continue
        text = text.strip()
        kind = next((t for t in TASK_TYPES if text == t or text.endswith(f" {t}")), None)
        task = task or kind
        run = run or normalise_run_type(text.removesuffix(kind or "").strip() or None)
    return run, task
