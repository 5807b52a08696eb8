"""Run type, task type, functional and settings of a VASP calculation."""

import pytest

from mp_samples import DATA, documents
from trajmill.sources.mp_documents import salvage
from trajmill.sources.vasp_inputs import CalculationInput, read_settings
from trajmill.sources.vasp_types import Kpoints, functional, merge_tags, run_type, stored_types, task_type

PBE, LDA = ["PAW_PBE Fe_pv 06Sep2000"], ["PAW Si 02Apr1999"]


@pytest.mark.parametrize(
    ("parameters", "incar", "potcar", "expected"),
    [
        ({"GGA": "--"}, {}, [], "GGA"),
        ({"GGA": "PE"}, {}, [], "GGA"),
        ({"GGA    ": "Pe  "}, {"LDAU": True}, [], "GGA+U"),
        ({"GGA": "--"}, {"gga": "ps"}, [], "PBEsol"),
        ({"GGA": "PS"}, {"LDAU": ".TRUE."}, [], "PBEsol+U"),
        ({"GGA": "--"}, {"METAGGA": "Scan"}, [], "SCAN"),
        ({"GGA": "--", "LDAU": True}, {"METAGGA": "scan"}, [], "SCAN+U"),
        ({"GGA": "PE"}, {"METAGGA": "R2scan"}, [], "r2SCAN"),
        ({"GGA": "PE"}, {"METAGGA": "--"}, [], "GGA"),
        ({"GGA": "PE"}, {"METAGGA": "None"}, [], "GGA"),
        ({"GGA": "PE"}, {"METAGGA": False}, [], "GGA"),
        ({"GGA": "--"}, {"METAGGA": "Rscan"}, [], "RSCAN"),
        ({"GGA": "--", "LUSE_VDW": True}, {"METAGGA": "R2SCAN"}, [], "r2SCAN-rVV10"),
        ({"GGA": "PE"}, {"IVDW": 11}, [], "GGA-IVDW11"),
        ({"GGA": "RP"}, {}, [], "revPBE+PADE"),
        ({"GGA": "91"}, {}, [], "GGA=91"),
        ({"GGA": "CA"}, {}, [], "LDA"),
        ({"GGA": "--"}, {}, LDA, "LDA"),
        ({}, {"ENCUT": 520}, PBE, "GGA"),
        ({}, {"ENCUT": 520}, [], None),
        ({"GGA": "PE", "AEXX": 0.25, "HFSCREEN": 0.2}, {"LHFCALC": True}, [], "HSE06"),
        ({"GGA": "--", "LDAU": True}, {"LDAU": False}, [], "GGA"),
        ({"GGA": "--"}, {"ALGO": "Gw0"}, [], "G0W0"),
    ],
)
def test_run_type(parameters, incar, potcar, expected):
    assert run_type(merge_tags(parameters, incar), potcar) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [("GGA", "pbe"), ("GGA+U", "pbe"), ("PBE", "pbe"), ("PBE+U", "pbe"), ("PBEsol", "pbesol")]
    + [("SCAN", "scan"), ("r2SCAN", "r2scan")]
    + [
        (run, None) for run in ("PBEsol+U", "SCAN+U", "r2SCAN+U", "SCAN-rVV10", "revPBE+PADE", "HSE06", "LDA", "", None)
    ],
)
def test_only_the_four_functionals_are_folded(run, expected):
    assert functional(run) == expected


@pytest.mark.parametrize(
    ("tags", "kpoints", "expected"),
    [
        ({"ISIF": 3, "IBRION": 2, "NSW": 99}, None, "Structure Optimization"),
        ({"ISIF": 3, "IBRION": 1, "NSW": "99"}, None, "Structure Optimization"),
        ({"ISIF": 3, "IBRION": 2, "NSW": 0}, None, "Static"),
        ({"ISIF": 2, "IBRION": 2, "NSW": 99}, None, "Deformation"),
        ({"IBRION": 0, "NSW": 99}, None, "Molecular Dynamics"),
        ({"IBRION": 8, "NSW": 1}, None, "DFPT"),
        ({"IBRION": 8, "LEPSILON": True}, None, "DFPT Dielectric"),
        ({"ICHARG": 11, "NSW": 0}, {"nkpoints": 0}, "NSCF Uniform"),
        ({"ICHARG": 11, "NSW": 0}, {"nkpoints": 40}, "NSCF Line"),
        ({"NSW": 0}, {"labels": [None, "X"]}, "NSCF Line"),
        ({"NSW": 0, "METAGGA": "SCAN"}, {"kpts_weights": [1.0, 0.0]}, "SCF Line"),
        ({"NSW": 0, "LOPTICS": True}, None, "Static"),
        ({"NSW": 0, "LOPTICS": True, "ALGO": "Exact"}, None, "Optic"),
        ({"IBRION": -1, "NSW": 5}, None, "Unrecognized"),
    ],
)
def test_task_type(tags, kpoints, expected):
    assert task_type(merge_tags(None, tags), kpoints and Kpoints(**kpoints)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("GGA", "Static"), ("GGA", "Static")),
        (({"value": "GGA+U"}, None, {"value": "GGA+U Static"}), ("GGA+U", "Static")),
        ((None, "GGA+U Structure Optimization"), ("GGA+U", "Structure Optimization")),
        ((None, None, "PBE DFPT Dielectric"), ("GGA", "DFPT Dielectric")),
        (("", 5, "Structure Optimization"), (None, "Structure Optimization")),
        ((None,), (None, None)),
    ],
)
def test_stored_types_in_all_their_forms(values, expected):
    assert stored_types(*values) == expected


ALL = sorted(p for folder in ("real", "derived") for p in (DATA / folder / "tasks").glob("*.jsonl.gz"))
DISAGREEMENTS = {  # stored, recomputed; in each the stored type is wrong, see the comments
    ("mp-1120260", "GGA", "SCAN Structure Optimization"),  # its INCAR says METAGGA = Scan
    ("local-0083", "GGA Static", "RSCAN Static"),  # METAGGA = Rscan, unknown to emmet
    ("local-0090", "revPBE Structure Optimization", "revPBE-vdW Structure Optimization"),  # LUSE_VDW
    ("local-0096", "SCAN Static", "SCAN-rVV10 Static"),  # LUSE_VDW
    ("local-0098", "r2SCAN Unrecognized", "r2SCAN Deformation"),  # ISIF = 2 only in the parameters
    ("local-0099", "HSE06 Unrecognized", "HSE06 Static"),  # NSW = 0 only in the parameters
}


def test_recomputed_types_agree_with_the_stored_ones_but_for_known_errors():
    found, compared = set(), 0
    for task in documents(*ALL):
        for calculation in task["calcs_reversed"]:
            stored = stored_types(*(calculation.get(name) for name in ("run_type", "task_type", "calc_type")))
            settings = read_settings(salvage(calculation.get("input") or {}, CalculationInput))
            ours = (settings.run_type, settings.task_type)
            compared += stored[0] is not None
            if any(a and b and a != b for a, b in zip(stored, ours, strict=True)):
                found.add((str(task["task_id"]), " ".join(filter(None, stored)), " ".join(filter(None, ours))))
    assert compared > 100
    assert found == DISAGREEMENTS


INPUT = {"incar": {"LDAU": True, "LDAUU": [5.3, 0], "LDAUJ": [1.0, 0]}, "parameters": None}


@pytest.mark.parametrize(
    ("given", "species", "expected"),
    [
        (INPUT, ["Fe", "O"], {"Fe": 4.3}),
        (INPUT | {"potcar": ["Fe_pv", "O"]}, [], {"Fe": 4.3}),
        (INPUT | {"potcar_spec": [{"titel": "PAW_PBE Fe_pv x"}, {"titel": "PAW_PBE O x"}]}, [], {"Fe": 4.3}),
        (INPUT | {"hubbards": {"Fe": 3.0, "O": 0.0}}, [], {"Fe": 3.0}),
        (INPUT, ["Fe"], None),
        ({"incar": {"LDAU": True, "LDAUU": ["x", None]}}, ["Fe", "O"], None),
        ({"incar": {"LDAU": True, "LDAUU": {"Fe": 5.3, "O": 0}}}, [], {"Fe": 5.3}),
        ({"incar": {"LDAU": False, "LDAUU": [5.3, 0]}}, ["Fe", "O"], {}),
        ({"incar": {"NSW": 1}, "hubbards": {"Fe": 5.3}}, [], {}),
        ({}, ["Fe", "O"], None),
    ],
)
def test_hubbard_u_is_u_minus_j_by_element(given, species, expected):
    assert read_settings(salvage(given, CalculationInput), species).hubbard_u == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "nelm", "nsw", "encut", "ispin"),
    [
        ({"incar": {"NELM": 200, "NSW": 9, "ENCUT": 520, "ISPIN": 2}}, 200, 9, 520, 2),
        ({"incar": {"NELM": 200}, "parameters": {"NELM": 60, "ENMAX": 520.0, "ISPIN": 2}}, 60, None, 520, 2),
        ({"incar": {"ENCUT": 680}, "parameters": {"NELM": 100, "ENMAX": 680.0}}, 100, None, 680, 1),
        ({"incar": {"ENCUT": 680}}, 60, None, 680, 1),
        ({"incar": {"NELM": float("nan"), "NSW": 1e30, "ENCUT": "x", "ISPIN": [2]}}, 60, None, None, 1),
        ({"incar": {}, "parameters": None}, -1, None, None, -1),
        ({}, -1, None, None, -1),
    ],
)
def test_limits_come_from_the_calculation_itself(given, nelm, nsw, encut, ispin):
    settings = read_settings(salvage(given, CalculationInput))
    assert (settings.nelm, settings.nsw, settings.encut, settings.ispin) == (nelm, nsw, encut, ispin)
