"""What the Materials Project's PBE relaxation set prescribes, for sources that follow it without saying so per run.

Values of pymatgen's `MPRelaxSet`, written here because importing it costs seconds; a test compares them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

U_VALUES = {"Co": 3.32, "Cr": 3.7, "Fe": 5.3, "Mn": 3.9, "Mo": 4.38, "Ni": 6.2, "V": 3.25, "W": 6.2}
"""U - J in eV, applied in oxides and fluorides."""

_POTENTIALS = (
    "Ac Ag Al Ar As Au B Ba_sv Be_sv Bi Br C Ca_sv Cd Ce Cl Co Cr_pv Cs_sv Cu_pv Dy_3 Er_3 Eu F Fe_pv Ga_d Gd "
    "Ge_d H He Hf_pv Hg Ho_3 I In_d Ir K_sv Kr La Li_sv Lu_3 Mg_pv Mn_pv Mo_pv N Na_pv Nb_pv Nd_3 Ne Ni_pv Np O "
    "Os_pv P Pa Pb_d Pd Pm_3 Pr_3 Pt Pu Rb_sv Re_pv Rh_pv Ru_pv S Sb Sc_sv Se Si Sm_3 Sn_d Sr_sv Ta_pv Tb_3 "
    "Tc_pv Te Th Ti_pv Tl_d Tm_3 U V_pv W_pv Xe Y_sv Yb_2 Zn Zr_sv"
)
POTENTIALS = {name.partition("_")[0]: name for name in _POTENTIALS.split()}
"""Pseudopotential by element."""


def hubbard_u(elements: Collection[str]) -> dict[str, float]:
    """Return U - J in eV by element: only with O or F in the cell, empty when none applies."""
    if "O" not in elements and "F" not in elements:
        return {}
    return {e: U_VALUES[e] for e in sorted(elements) if e in U_VALUES}


def potentials(elements: Iterable[str]) -> tuple[str, ...] | None:
    """Return the pseudopotential of each element, None when the set lacks one."""
    names = [POTENTIALS.get(e) for e in elements]
    return None if None in names else tuple(name for name in names if name)
