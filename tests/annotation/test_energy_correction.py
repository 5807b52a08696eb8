import warnings
from itertools import groupby

import numpy as np
import pytest
from pymatgen.core import Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from making import DATA, floats, ints, make
from mp_samples import KEEP, REAL, by_id, documents, opened, records
from trajmill.annotation.energy_correction import energy_corrected
from trajmill.sources.alexandria import Alexandria

SCHEME = MaterialsProject2020Compatibility()


def processed(structure, energy, run_type, hubbards, titles):
    """Let pymatgen correct an entry its usual way; None when it refuses."""
    parameters = {"run_type": run_type, "hubbards": hubbards, "potcar_symbols": titles}
    entry = ComputedStructureEntry(structure, energy, parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry = SCHEME.process_entry(entry, on_error="ignore")
    return None if entry is None else entry.energy


def calculations():
    """PBE calculations of real tasks with what pymatgen needs, straight from the documents."""
    for name in ("emmet_old_aflow_ggau", "atomate2_VO_phase_diagram", "atomate_CoCO3_GGAU", "emmet_As2SO6"):
        for task in documents(REAL / "tasks" / f"{name}.jsonl.gz"):
            for number, calculation in enumerate(reversed(task["calcs_reversed"])):
                step = calculation["output"]["ionic_steps"][-1]
                incar = calculation["input"]["incar"]
                structure = Structure.from_dict(step["structure"])
                poscar = [symbol for symbol, _ in groupby(site.specie.symbol for site in structure)]
                u = dict(zip(poscar, incar["LDAUU"], strict=True)) if incar.get("LDAU") else {}
                titles = {spec["titel"].removeprefix("PAW_") for spec in calculation["input"]["potcar_spec"]}
                run_type = "GGA+U" if any(u.values()) else "GGA"
                yield str(task["task_id"]), number, structure, step["e_fr_energy"], run_type, u, sorted(titles)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    return [
        t for t in by_id(records(opened(REAL, tmp_path_factory.mktemp("mp"), KEEP))).values() if t.functional == "pbe"
    ]


def test_real_calculations_agree_with_pymatgen(trajectories):
    """GGA and GGA+U, oxides, sulfates, metals, O2: the same numbers as process_entry, refusals included."""
    expected = {(task, number): rest for task, number, *rest in calculations()}
    run_types, compared, corrected_ones = set(), 0, 0
    for t in trajectories:
        corrected, reason = energy_corrected(t)
        for number in np.unique(t.relaxation_number):
            if (t.task_id, number) not in expected:
                continue
            last = np.flatnonzero(t.relaxation_number == number)[-1]
            structure, energy, run_type, u, titles = expected[t.task_id, number]
            assert t.run_type == run_type
            value = processed(structure, energy, run_type, u, titles)
            if value is None:
                assert np.isnan(corrected[last])
                assert reason.startswith("no corrected energy: ")
            else:
                assert corrected[last] == pytest.approx(value, abs=1e-10)
                corrected_ones += abs(value - energy) > 0.1
            compared += 1
            run_types.add(run_type)
    assert run_types == {"GGA", "GGA+U"}
    assert compared > 8
    assert corrected_ones > 4


def by_hand(t):
    """The entry of a trajectory's last frame."""
    structure = Structure(t.lattice[-1], t.symbols, t.positions[-1], coords_are_cartesian=True)
    titles = [f"PBE {name}" for name in t.potentials]
    return processed(structure, t.energy[-1], t.run_type, dict(t.hubbard_u), titles)


def test_sample_of_alexandria_agrees_with_pymatgen():
    source = Alexandria(DATA / "alexandria")
    found = [t for a in source.assets()[:2] for r in source.read(a) for t in r.trajectories if t.potentials]
    for t in found[::3]:
        corrected, reason = energy_corrected(t)
        expected = by_hand(t)
        assert (expected is None) == (reason is not None)
        if expected is not None and np.isfinite(t.energy[-1]):
            assert corrected[-1] == pytest.approx(expected, abs=1e-10)


def two_atoms(symbols, distance, **changes):
    positions = np.zeros((2, len(symbols), 3))
    positions[:, 1:, 0] = distance * np.arange(1, len(symbols))
    lattice = np.tile(np.diag([distance * len(symbols) + 3.0, 5.0, 5.0]), (2, 1, 1))
    return make(2, symbols, positions=positions, lattice=lattice, energy=floats(-10.0, -14.0), **changes)


@pytest.mark.parametrize(
    ("symbols", "distance", "fields"),
    [
        (("Fe", "O"), 2.1, {"run_type": "GGA+U", "hubbard_u": {"Fe": 5.3, "O": 0.0}, "potentials": ("Fe_pv", "O")}),
        (("Na", "Cl"), 2.8, {"hubbard_u": {}, "potentials": ("Na_pv", "Cl")}),
        (("Li", "O", "O", "Li"), 1.5, {"hubbard_u": {}, "potentials": ("Li_sv", "O")}),  # a peroxide
        (("K", "O", "O"), 1.3, {"hubbard_u": {}, "potentials": ("K_sv", "O")}),  # a superoxide
        (("Zn", "S"), 2.3, {"hubbard_u": {}, "potentials": ("Zn", "S")}),
        (("S", "O", "O", "O"), 1.4, {"hubbard_u": {}, "potentials": ("S", "O")}),  # sulphur that is no anion
        (("Fe", "Fe"), 2.5, {"hubbard_u": {}, "potentials": ("Fe_pv",)}),  # an element
        (("V", "F"), 2.0, {"run_type": "GGA+U", "hubbard_u": {"V": 3.25}, "potentials": ("V_pv", "F")}),
    ],
    ids=lambda x: "".join(x) if isinstance(x, tuple) else None,
)
def test_made_up_cells_agree_with_pymatgen(symbols, distance, fields):
    t = two_atoms(symbols, distance, **fields)
    corrected, reason = energy_corrected(t)
    assert reason is None
    assert corrected[-1] == pytest.approx(by_hand(t), abs=1e-10)
    np.testing.assert_allclose(corrected - t.energy, corrected[-1] - t.energy[-1], atol=1e-12)


@pytest.mark.parametrize(
    ("symbols", "fields", "reason"),
    [
        (
            ("Fe", "O"),
            {"run_type": "GGA", "hubbard_u": {}, "potentials": ("Fe_pv", "O")},
            "no corrected energy: Invalid U value of 0.0 on Fe, expected 5.3",
        ),
        (
            ("Fe", "O"),
            {"run_type": "GGA+U", "hubbard_u": {"Fe": 4.0}, "potentials": ("Fe_pv", "O")},
            "no corrected energy: Invalid U value of 4.0 on Fe, expected 5.3",
        ),
        (
            ("Fe", "O"),
            {"run_type": "GGA+U", "hubbard_u": {"Fe": 5.3}, "potentials": ("Fe", "O")},
            "no corrected energy: Incompatible POTCAR",
        ),
        (("Yb", "O"), {"hubbard_u": {}, "potentials": ("Yb_3", "O")}, "no corrected energy: "),
        (
            ("O", "Cf"),
            {"hubbard_u": {}, "potentials": ("Cf", "O")},
            "no corrected energy: Incompatible POTCAR {'Cf', 'O'}, expected {'O', None}",  # sorted: the same every time
        ),
        (("Na", "Cl"), {"hubbard_u": {}}, "no corrected energy: run type, U values or potentials unknown"),
        (
            ("Na", "Cl"),
            {"potentials": ("Na_pv", "Cl")},
            "no corrected energy: run type, U values or potentials unknown",
        ),
        (
            ("Na", "Cl"),
            {"run_type": None, "hubbard_u": {}, "potentials": ("Na_pv", "Cl")},
            "no corrected energy: run type, U values or potentials unknown",
        ),
    ],
)
def test_refusals_have_a_reason(symbols, fields, reason):
    t = two_atoms(symbols, 2.1, **fields)
    corrected, found = energy_corrected(t)
    assert np.isnan(corrected).all()
    assert found.startswith(reason)
    assert len(found) < 200  # pymatgen would print the whole entry
    if t.run_type and t.potentials and t.hubbard_u is not None:
        assert by_hand(t) is None


@pytest.mark.parametrize(
    ("functional", "run_type"), [("pbesol", "PBEsol"), ("scan", "SCAN"), ("r2scan", "r2SCAN"), (None, "GGA")]
)
def test_other_functionals_are_not_corrected(functional, run_type):
    t = two_atoms(("Na", "Cl"), 2.8, functional=functional, run_type=run_type, hubbard_u={}, potentials=("Na_pv", "Cl"))
    corrected, reason = energy_corrected(t)
    assert np.isnan(corrected).all()
    assert reason is None


def test_plus_u_corrections_only_for_plus_u_runs():
    """FeO: the mixing correction must not reach an energy computed without U."""
    u = two_atoms(("Fe", "O"), 2.1, run_type="GGA+U", hubbard_u={"Fe": 5.3}, potentials=("Fe_pv", "O"))
    plain = two_atoms(("Fe", "O"), 2.1, run_type="GGA", hubbard_u={}, potentials=("Fe_pv", "O"))
    assert energy_corrected(u)[0][-1] < -16
    assert np.isnan(energy_corrected(plain)[0]).all()


def test_one_shift_per_calculation_from_its_final_frame():
    """A peroxide bond that breaks in the second calculation changes that calculation's shift alone."""
    t = two_atoms(("Li", "O", "O", "Li"), 1.5, hubbard_u={}, potentials=("Li_sv", "O"))
    n = 5
    positions = np.repeat(t.positions[:1], n, axis=0)
    positions[2:, 2:, 0] += np.array([[0.0], [1.0], [1.0]])
    lattice = np.repeat(t.lattice[:1] + np.diag([2.0, 0, 0]), n, axis=0)
    t = make(
        n,
        t.symbols,
        positions=positions,
        lattice=lattice,
        relaxation_number=ints(0, 0, 1, 1, 1),
        hubbard_u={},
        potentials=t.potentials,
    )
    shift = energy_corrected(t)[0] - t.energy
    assert shift[0] == pytest.approx(shift[1])
    assert shift[2] == pytest.approx(shift[3]) == pytest.approx(shift[4])
    assert abs(shift[0] - shift[2]) > 0.1


def test_a_cell_pymatgen_cannot_judge():
    t = two_atoms(("S", "O"), 1.4, hubbard_u={}, potentials=("S", "O"))
    t.positions[:] = np.nan
    corrected, reason = energy_corrected(t)
    assert np.isnan(corrected).all()
    assert reason == "no corrected energy: pymatgen cannot tell the anions' type: positions are not finite"


def test_a_key_error_of_pymatgen_is_a_refusal(monkeypatch):
    from trajmill.annotation import energy_correction

    class Scheme:
        def get_adjustments(self, entry):
            raise KeyError("Na")

    monkeypatch.setattr(energy_correction, "_scheme", Scheme)
    energy_correction._adjustment.cache_clear()
    corrected, reason = energy_corrected(two_atoms(("Na", "Cl"), 2.8, hubbard_u={}, potentials=("Na_pv", "Cl")))
    energy_correction._adjustment.cache_clear()
    assert np.isnan(corrected).all()
    assert reason == "no corrected energy: pymatgen does not know 'Na'"


@pytest.mark.filterwarnings("error")
def test_pymatgen_warns_nobody():
    energy_corrected(two_atoms(("Ne", "O"), 2.1, hubbard_u={}, potentials=("Ne", "O")))
