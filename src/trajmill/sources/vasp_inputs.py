"""The settings of one VASP calculation, from the input section of a Materials Project document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from trajmill.sources.vasp_types import Kpoints, Tags, flag, merge_tags, number, run_type, task_type

VASP_NELM = 60
"""Electronic steps VASP allows when the INCAR says nothing."""


class CalculationInput(msgspec.Struct, gc=False):
    """`calcs_reversed[].input` of a task document; everything may be null or missing."""

    incar: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    kpoints: Kpoints | None = None
    potcar_spec: list[Any] | None = None
    potcar: list[Any] | None = None
    hubbards: dict[str, float | None] | None = None


class Settings(msgspec.Struct, frozen=True, gc=False):
    """What a calculation was run with.

    Attributes:
        run_type: recomputed, such as `GGA+U`; None when there is nothing to recompute it from.
        task_type: recomputed, such as `Structure Optimization`; None when there is nothing to recompute it from.
        nelm: largest number of electronic steps, -1 when unknown.
        nsw: largest number of ionic steps, None when unknown.
        encut: plane-wave cut-off in eV, None when unknown.
        ispin: 1 or 2, -1 when unknown.
        hubbard_u: U - J in eV by element (pymatgen's convention), elements with zero left out; None when unknown.
        potentials: names of the POTCARs, `Fe_pv`; None when unknown.
    """

    run_type: str | None = None
    task_type: str | None = None
    nelm: int = -1
    nsw: int | None = None
    encut: float | None = None
    ispin: int = -1
    hubbard_u: dict[str, float] | None = None
    potentials: tuple[str, ...] | None = None


def read_settings(given: CalculationInput | None, species: Sequence[str] = ()) -> Settings:
    """Recompute types and read the settings of a calculation.

    Args:
        given: the document's input section.
        species: element of each group of sites in POSCAR order, for LDAU lists of a document without POTCARs.

    Returns:
        The settings; NELM comes from the parameters, else the INCAR, NSW and ISPIN from the INCAR, else the parameters.
        NELM and ISPIN are VASP's defaults where an INCAR leaves them out.
    """
    given = given or CalculationInput()
    tags = merge_tags(given.parameters, given.incar)
    titles = [title for spec in given.potcar_spec or () if isinstance(title := _title(spec), str)]
    symbols = [name for name in given.potcar or () if isinstance(name, str)]
    names = [words[1] for title in titles if len(words := title.split()) > 1]
    nsw, ispin = (number(tags, name) for name in ("NSW", "ISPIN"))
    nelm = number(given.parameters or {}, "NELM")  # what VASP used; the INCAR may be older than a restart
    nelm = number(tags, "NELM") if nelm is None else nelm
    cutoff = number(tags, "ENCUT")
    return Settings(
        run_type=run_type(tags, titles) if tags else None,
        task_type=task_type(tags, given.kpoints) if tags else None,
        nelm=int(nelm) if nelm is not None else VASP_NELM if given.incar else -1,
        nsw=None if nsw is None else int(nsw),
        encut=number(tags, "ENMAX") if cutoff is None else cutoff,
        ispin=int(ispin) if ispin is not None else 1 if given.incar else -1,
        hubbard_u=_hubbard_u(given, tags, (symbols, names, species)),
        potentials=tuple(dict.fromkeys(names or symbols)) or None,
    )


def _title(spec: Any) -> Any:
    return spec.get("titel") if isinstance(spec, dict) else None


def _hubbard_u(given: CalculationInput, tags: Tags, orders: Sequence[Sequence[str]]) -> dict[str, float] | None:
    """Return U - J by element: from `hubbards`, else from the LDAU lists and the first order of that length."""
    if tags and not flag(tags, "LDAU"):
        return {}
    if given.hubbards:
        return {element: u for element, u in given.hubbards.items() if u}
    u, j = tags.get("LDAUU"), tags.get("LDAUJ")
    if isinstance(u, dict):  # pymatgen's form before it is written to a file
        j = j if isinstance(j, dict) else {}
        return _differences(u, u.values(), [j.get(element) for element in u])
    for names in orders:
        if isinstance(u, list) and len(u) == len(names):
            j = j if isinstance(j, list) and len(j) == len(u) else [0] * len(u)
            return _differences((name.partition("_")[0] for name in names), u, j)
    return None


def _differences(elements: Iterable[str], u: Iterable[Any], j: Iterable[Any]) -> dict[str, float] | None:
    """Return U - J where it is not 0, None when one of them is no number."""
    try:
        values = [(element, float(a or 0) - float(b or 0)) for element, a, b in zip(elements, u, j, strict=True)]
    except (TypeError, ValueError):
        return None
    return {element: value for element, value in values if value}
