"""OQMD: golden outcomes of every planted fault, the real entry's numbers, and the import as a whole."""

import gzip
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import moyopy
import numpy as np
import pytest

from sources.conformance import assert_equal
from trajmill import recipe
from trajmill.errors import SourceError
from trajmill.sources import mysqldump, oqmd_runs
from trajmill.sources.base import Record, Source
from trajmill.sources.oqmd import Oqmd
from trajmill.sources.oqmd_entries import Calculation, chronological
from trajmill.sources.oqmd_settings import read_settings
from trajmill.trajectory import Trajectory

DATA = Path(__file__).parent.parent / "data" / "oqmd"
GENERATED = DATA / "qmdb__v1_6__112023.sql.gz"
REAL = DATA / "real_entry_6126.sql.gz"
EXACT = {"rtol": 0, "atol": 1e-9}

SCHEMA = {  # columns in another order than OQMD's
    "entries": {"natoms": "int", "id": "int", "duplicate_of_id": "int"},
    "structures": dict.fromkeys(["id", "entry_id", "natoms"], "int")
    | dict.fromkeys("z1 z2 z3 x1 x2 x3 y1 y2 y3 sxx syy szz sxy syz szx".split(), "double"),
    "calculations": {
        **dict.fromkeys(["converged", "nsteps", "id", "entry_id", "input_id", "output_id", "natoms"], "int"),
        **dict.fromkeys(["energy_pa", "energy"], "double"),
        **dict.fromkeys(["settings", "label"], "longtext"),
    },
    "atoms": {
        **dict.fromkeys(["structure_id", "id"], "int"),
        **dict.fromkeys("occupancy magmom fz fy fx z y x".split(), "double"),
        "element_id": "varchar(9)",
    },
}
SETTINGS = "{'encut': 520.0, 'ispin': 2, 'potentials': [{'xc': 'PBE', 'name': 'Fe_pv'}, {'xc': 'PBE', 'name': 'O'}]}"
CUBE = 4.0 * np.eye(3)


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'" if isinstance(value, str) else repr(value)


def sql(tables: dict[str, list[dict]], order: tuple[str, ...] = tuple(SCHEMA)) -> str:
    text = "-- MySQL dump 10.13\n"
    for table in order:
        columns = ",\n".join(f"  `{name}` {kind}" for name, kind in SCHEMA[table].items())
        text += f"CREATE TABLE `{table}` (\n{columns}\n);\nLOCK TABLES `{table}` WRITE;\n"
        if rows := tables.get(table):
            values = ",".join("(" + ",".join(literal(row.get(c)) for c in SCHEMA[table]) + ")" for row in rows)
            text += f"INSERT INTO `{table}` VALUES {values};\n"
        text += "UNLOCK TABLES;\n"
    return text


def structure(
    tables: dict[str, list[dict]], id_: int, lattice=CUBE, sites=(("Fe", 0, 0, 0), ("O", 0.5, 0.5, 0.5)), **more
):
    names = [f"{v}{i}" for v in "xyz" for i in (1, 2, 3)]
    stress = dict(zip("sxx syy szz sxy syz szx".split(), (10.0, 20.0, 30.0, 4.0, 5.0, 6.0), strict=True))
    row = {"id": id_, "entry_id": 1, "natoms": len(sites), **stress}
    tables["structures"].append(row | dict(zip(names, np.ravel(lattice).tolist(), strict=True)) | more)
    for k, (element, x, y, z) in enumerate(sites):
        site = {"id": id_ * 100 + k, "structure_id": id_, "element_id": element, "x": x, "y": y, "z": z}
        tables["atoms"].append(site | {"fx": 0.1 * k, "fy": 0.2, "fz": -0.3, "occupancy": 1.0})


def relaxation(id_: int = 7, **more) -> dict:
    row = {
        "id": id_,
        "entry_id": 1,
        "label": "relaxation",
        "input_id": 11,
        "output_id": 12,
        "energy": -9.5,
        "natoms": 2,
    }
    return row | {"nsteps": 5, "converged": 1, "settings": SETTINGS} | more


def one_entry(*calculations: dict, entry: dict | None = None) -> dict[str, list[dict]]:
    tables = {"entries": [{"id": 1} | (entry or {})], "structures": [], "atoms": []}
    structure(tables, 11)
    structure(tables, 12)
    return tables | {"calculations": list(calculations)}


def prepared(dump: Path, workspace: Path, **options) -> Oqmd:
    source = Oqmd(dump, recipe.Oqmd(**options))
    source.prepare(workspace)
    return source


def records(source: Oqmd) -> list[Record]:
    found = [record for asset in source.assets() for record in source.read(asset)]
    for record in found:  # nothing vanishes
        rejected = sum(r.n_frames or 0 for r in record.rejections)
        assert record.n_frames == sum(map(len, record.trajectories)) + rejected
    return found


def read(tmp_path: Path, tables: dict[str, list[dict]], **options) -> list[Record]:
    dump = tmp_path / "qmdb__v1_6__112023.sql"
    dump.write_text(sql(tables))
    return records(prepared(dump, tmp_path / "ws", **options))


def the_relaxation(found: list[Record]) -> Trajectory:
    [trajectory] = [t for record in found for t in record.trajectories if t.task_type == "Structure Optimization"]
    return trajectory


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Record]:
    found = records(prepared(GENERATED, tmp_path_factory.mktemp("generated"), stress="kbar"))
    return {int((r.trajectories or r.rejections)[0].task_id): r for r in found}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    [record] = records(prepared(REAL, tmp_path_factory.mktemp("real")))
    [trajectory] = record.trajectories
    return trajectory


def test_real_entry_has_its_known_numbers(real: Trajectory):
    assert (real.task_id, real.trajectory_id, real.immutable_id) == ("6126", "oqmd-81278-pbe", "oqmd-81278")
    assert real.symbols == ["Ca", "O", "O", "O", "Ti"]
    np.testing.assert_allclose(real.energy, [np.nan, -40.25630397, -39.51173826], **EXACT)
    assert real.relaxation_number.tolist() == [0, 0, 1]
    assert real.relaxation_step.tolist() == [0, 4, 9]
    assert real.is_input.tolist() == [True, False, False]
    np.testing.assert_allclose(np.linalg.det(real.lattice), [54.6557, 51.4876, 56.578], atol=5e-5)
    np.testing.assert_allclose(real.positions[0, 0], real.lattice[0].sum(axis=0) / 2, **EXACT)
    assert np.isnan(real.forces[0]).all()
    assert (real.forces[1:] == 0).all()
    assert np.isnan(real.stress).all()
    assert real.ispin.tolist() == [1, 1, 1]
    assert real.encut.tolist() == [300, 300, 400]
    assert real.potentials == ("Ca_pv", "O", "Ti")
    assert (real.functional, real.run_type, real.hubbard_u) == ("pbe", "GGA", {})
    assert real.relaxation_converged is False
    assert real.findings == {"relaxation_converged": "converged = 0 in fine_relax"}
    assert real.last_modified is None
    assert not real.faults


NO_FINE, NO_ONE = "converged = 0 in fine_relax", "converged = 0 in relaxation"
CASES = {
    19005: {
        "relaxation_record": "output_id of fine_relax is NULL",
        "relaxation_converged": "converged = NULL in fine_relax",
    },
    19007: {"oqmd_duplicate": "duplicate of entry 19001"},
    19022: {},
    19027: {"relaxation_converged": NO_FINE},
    19031: {"relaxation_record": "output_id of relaxation is NULL", "relaxation_converged": NO_ONE},
    19040: {"relaxation_record": "input_id of relaxation is NULL"},
    19041: {"relaxation_converged": NO_FINE},
    19048: {"relaxation_converged": NO_ONE},
    19055: {"relaxation_converged": NO_FINE},
    19062: {
        "relaxation_record": "relaxation is there 2 times (calculations 210094, 210304)",
        "relaxation_converged": NO_ONE,
    },
    19070: {},
    19075: {"relaxation_converged": NO_ONE},
    19090: {"relaxation_record": "settings of relaxation are NULL", "relaxation_converged": NO_ONE},
    19091: {
        "relaxation_record": "settings of coarse_relax are no readable dictionary: "
        "\"{'encut': 300.0, 'lcharg': True, 'nbands\""
    },
    19105: {},
    19114: {},
    19129: {"ordered_sites": "atom 4100360 has occupancy 0.5"},
    19130: {"relaxation_record": "structure 300220 (output_id of fine_relax) is not in the dump"},
    19149: {},
    19162: {"site_order": "the output of fine_relax has its sites in another order than the geometry before it"},
    19179: {"relaxation_converged": NO_ONE},
}
ONLY_STATIC, EMPTY = 19097, 19107


def test_every_planted_case_has_an_outcome_here():
    listed = {int(match[1]) for match in re.finditer(r"\tentry (\d+)\t", (DATA / "CASES.tsv").read_text())}
    assert listed == {*CASES, ONLY_STATIC, EMPTY}


@pytest.mark.parametrize("entry", CASES)
def test_findings_of_planted_cases(generated: dict[int, Record], entry: int):
    assert the_relaxation([generated[entry]]).findings == CASES[entry]


def test_entries_without_a_planted_case_are_clean(generated: dict[int, Record]):
    clean = [the_relaxation([r]) for e, r in generated.items() if e not in {*CASES, ONLY_STATIC, EMPTY}]
    assert len(clean) == 17
    assert all(not t.findings and not t.faults and not t.notes and t.relaxation_converged for t in clean)
    assert all(np.isfinite(t.energy[1:]).all() and np.isfinite(t.forces[1:]).all() for t in clean)


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        (19005, "faults", {2: "output_id of fine_relax is NULL"}),
        (19040, "faults", {0: "input_id of relaxation is NULL"}),
        (19130, "faults", {2: "structure 300220 (output_id of fine_relax) is not in the dump"}),
        (19005, "trajectory_id", "oqmd-300012-pbe"),
        (19031, "trajectory_id", "oqmd-entry-19031-pbe"),
        (19090, "potentials", None),
        (19090, "run_type", None),
        (19105, "notes", ("nsteps missing in relaxation, counted as 1",)),
        (19149, "notes", ("energy from energy_pa in fine_relax",)),
        (19105, "composition", {"Pd": 3, "Yb": 1}),
        (19001, "last_modified", "2023-11"),
    ],
)
def test_details_of_cases(generated: dict[int, Record], entry: int, field: str, value: object):
    assert getattr(the_relaxation([generated[entry]]), field) == value


@pytest.mark.parametrize(
    ("entry", "field", "values"),
    [
        (19070, "ispin", [2, 2, -1]),
        (19075, "ispin", [2, 2]),
        (19090, "ispin", [-1, -1]),
        (19090, "encut", [np.nan, np.nan]),
        (19105, "relaxation_step", [0, 1]),
        (19041, "relaxation_step", [0, 1, 18]),
        (19041, "relaxation_number", [1, 1, 2]),  # 0 is initialize, 3 is standard
        (19062, "relaxation_step", [0, 30, 60]),
        (19149, "energy", [np.nan, -4.20532799, 2 * -2.12183094]),
    ],
)
def test_frame_values_of_cases(generated: dict[int, Record], entry: int, field: str, values: list[float]):
    np.testing.assert_allclose(getattr(the_relaxation([generated[entry]]), field), values, atol=1e-6)


def test_a_null_force_component_is_nan_in_that_atom_only(generated: dict[int, Record]):
    missing = np.isnan(the_relaxation([generated[19114]]).forces[1])
    assert missing.sum() == 1
    assert missing[:, 1].any()


def test_reversed_sites_keep_each_atom_with_its_element(generated: dict[int, Record]):
    t = the_relaxation([generated[19162]])
    before, after = (np.linalg.solve(t.lattice[i].T, t.positions[i].T).T for i in (1, 2))
    moved = np.abs((after[:, None] - before + 0.5) % 1 - 0.5).max(axis=-1)
    moved[t.numbers[:, None] != t.numbers] = np.inf
    assert moved.min(axis=1).max() < 0.05  # in the stored order Cs would sit where Br was


def test_calculations_that_do_not_relax_are_records_too(generated: dict[int, Record]):
    others = {t.task_type: t for t in generated[19041].trajectories if t.task_type != "Structure Optimization"}
    assert {label: int(t.relaxation_number[0]) for label, t in others.items()} == {"initialize": 0, "standard": 3}
    [static] = generated[ONLY_STATIC].trajectories
    assert (static.task_type, len(static), static.n_atoms) == ("static", 1, 0)


def test_an_entry_without_calculations_is_rejected_not_lost(generated: dict[int, Record]):
    [rejection] = generated[EMPTY].rejections
    assert (rejection.rejected_by, rejection.task_id, rejection.n_frames) == ("relaxation_record", str(EMPTY), 0)


def test_ids_are_unique(generated: dict[int, Record]):
    ids = [t.trajectory_id for record in generated.values() for t in record.trajectories]
    assert len(ids) == len(set(ids)) > 40


def crystal(lattice: np.ndarray, sites: list[tuple]) -> dict[str, list[dict]]:
    tables = {"entries": [{"id": 1}], "structures": [], "atoms": [], "calculations": [relaxation(natoms=len(sites))]}
    structure(tables, 11, lattice, sites)
    structure(tables, 12, lattice, sites)
    return tables


HEXAGONAL = np.array([[3.2, 0, 0], [-1.6, 1.6 * 3**0.5, 0], [0, 0, 5.2]])
PRIMITIVE = np.array([[-1.6, 1.6, 2.5], [1.6, -1.6, 2.5], [1.6, 1.6, -2.5]])


@pytest.mark.parametrize(
    ("lattice", "sites", "space_group", "neighbours"),
    [
        (
            HEXAGONAL,
            [("Mg", 1 / 3, 2 / 3, 0.25), ("Mg", 2 / 3, 1 / 3, 0.75)],
            194,
            [(1.6**2 * 4 / 3 + 2.6**2) ** 0.5] * 6,
        ),
        (PRIMITIVE, [("In", 0, 0, 0)], 139, [3.2] * 4 + [(2 * 1.6**2 + 2.5**2) ** 0.5] * 8),
    ],
    ids=["hexagonal", "primitive"],
)
def test_cell_rows_are_vectors(tmp_path: Path, lattice, sites, space_group: int, neighbours: list[float]):
    t = the_relaxation(read(tmp_path, crystal(lattice, sites)))
    shifts = np.mgrid[-2:3, -2:3, -2:3].reshape(3, -1).T @ t.lattice[1]
    distances = np.linalg.norm(t.positions[1][None] + shifts[:, None] - t.positions[1][0], axis=-1).ravel()
    nearest = np.sort(distances)[1 : len(neighbours) + 1]
    np.testing.assert_allclose(nearest, np.sort(neighbours), atol=1e-9)
    assert group(t.lattice[1], t.positions[1], t.numbers) == space_group
    fractional = np.linalg.solve(t.lattice[1].T, t.positions[1].T).T
    assert group(t.lattice[1].T, fractional @ t.lattice[1].T, t.numbers) != space_group  # the mistake would show


def group(lattice: np.ndarray, positions: np.ndarray, numbers: np.ndarray) -> int:
    fractional = np.linalg.solve(lattice.T, positions.T).T
    cell = moyopy.Cell(lattice.tolist(), fractional.tolist(), numbers.tolist())
    return moyopy.MoyoDataset(cell, symprec=1e-4).number


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({}, -np.array([[10, 4, 6], [4, 20, 5], [6, 5, 30]]) / 1602.1766208),
        (dict.fromkeys("sxx syy szz sxy syz szx".split(), 0.0), np.full((3, 3), np.nan)),
    ],
)
def test_stress_is_null_unless_the_recipe_says_kbar(tmp_path: Path, stored: dict, expected: np.ndarray):
    tables = one_entry(relaxation())
    tables["structures"][1] |= stored
    assert np.isnan(the_relaxation(read(tmp_path, tables)).stress).all()
    stress = the_relaxation(read(tmp_path, tables, stress="kbar")).stress
    np.testing.assert_allclose(stress[1], expected, atol=1e-15)
    assert np.isnan(stress[0]).all()


def test_without_initial_structures_the_input_is_an_ordinary_frame_without_labels(tmp_path: Path):
    t = the_relaxation(read(tmp_path, one_entry(relaxation()), initial_structures=False))
    assert t.labelled.all()
    assert len(t) == 2
    assert np.isnan(t.energy[0])
    assert np.isnan(t.forces[0]).all()


def damage(tables: dict[str, list[dict]], what: str) -> None:
    atoms = tables["atoms"]
    if what == "no atoms":
        del atoms[2:]
    elif what == "one atom lost":
        del atoms[3:]
    elif what == "unknown element":
        atoms[3]["element_id"] = "Xx"
    elif what == "no element":
        atoms[3]["element_id"] = None
    elif what == "other composition":
        atoms[1]["element_id"] = "S"
    elif what == "no entry row":
        tables["entries"].clear()


@pytest.mark.parametrize(
    ("what", "finding", "frame", "fault"),
    [
        ("no atoms", "structure 12 (output_id of relaxation) has no atoms", 1, "has no atoms"),
        ("one atom lost", "structure 12 (output_id of relaxation) has 1 atom rows for natoms = 2", 1, "1 atom rows"),
        ("unknown element", "structure 12 (output_id of relaxation) has a site without a known element", 1, "element"),
        ("no element", "structure 12 (output_id of relaxation) has a site without a known element", 1, "element"),
        ("other composition", "the composition changes: Fe1 S1, Fe1 O1", 0, "not that of the last output"),
        ("no entry row", "no row in entries", None, ""),
    ],
)
def test_damaged_structures(tmp_path: Path, what: str, finding: str, frame: int | None, fault: str):
    tables = one_entry(relaxation())
    damage(tables, what)
    t = the_relaxation(read(tmp_path, tables))
    assert t.findings["relaxation_record"] == finding
    assert list(t.faults) == ([] if frame is None else [frame])
    assert all(fault in text and np.isnan(t.positions[i]).all() for i, text in t.faults.items())


def test_an_owner_is_who_calculates(tmp_path: Path):
    """`structures.entry_id` may name another entry; entry and structure ids are never mixed up."""
    tables = one_entry(relaxation(), relaxation(8, entry_id=12, input_id=12, output_id=11, energy=-7.0))
    tables["entries"].append({"id": 12})
    tables["structures"][0]["entry_id"] = 999
    first, second = (the_relaxation([record]) for record in read(tmp_path, tables))
    assert not first.findings
    assert not second.findings
    assert (first.trajectory_id, second.trajectory_id) == ("oqmd-12-pbe", "oqmd-11-pbe")


def test_rows_that_fit_nowhere_are_counted(tmp_path: Path):
    tables = one_entry(relaxation(), relaxation(8, entry_id=None, label="static"))
    text = sql(tables).replace("INSERT INTO `atoms` VALUES ", "INSERT INTO `atoms` VALUES (1,2,3),")
    dump = tmp_path / "dump.sql"
    dump.write_text(text)
    source = prepared(dump, tmp_path / "ws")
    assert [a.name for a in source.assets()] == ["oqmd/dump.sql/entries-000000000", "oqmd/dump.sql/unreadable"]
    good, bad, stray = records(source)
    assert not the_relaxation([good]).findings
    assert (bad.n_frames, bad.rejections[0].rejected_by, bad.rejections[0].n_frames) == (0, "readable", None)
    assert bad.rejections[0].detail == "row of table atoms cannot be read (3 values for 11 columns): (1,2,3)"
    assert (stray.n_frames, stray.rejections[0].detail) == (1, "entry_id of calculation 8 (static) is NULL")


@pytest.mark.parametrize("nsteps", [None, 0, -3, 10**12])
def test_steps_stay_unique_whatever_nsteps_is(tmp_path: Path, nsteps: int | None):
    second = relaxation(8, label="fine_relax", nsteps=nsteps, input_id=12, output_id=11)
    t = the_relaxation(read(tmp_path, one_entry(relaxation(label="coarse_relax"), second)))
    assert t.relaxation_step.tolist() == [0, 5, 6]


def order(*rows: tuple[int, str, int | None, int | None]) -> list[int]:
    empty = dict.fromkeys(Calculation._fields)
    names = ("id", "label", "input_id", "output_id")
    return [c.id for c in chronological([Calculation(**empty | dict(zip(names, r, strict=True))) for r in rows])]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, "static", 5, 6), (2, "relaxation", 4, 5)], [2, 1]),
        (
            [(1, "standard", 9, 9), (2, "fine_relax", 7, 8), (3, "coarse_relax", 6, 7), (4, "initialize", 5, 6)],
            [4, 3, 2, 1],
        ),
        ([(1, "fine_relax", 5, 6), (2, "coarse_relax", 6, 7)], [1, 2]),  # structures win over labels
        ([(1, "relaxation", 8, 9), (2, "relaxation", 5, 8)], [2, 1]),
        ([(1, "relaxation", 8, 9), (2, "relaxation", 9, 8)], [1, 2]),  # a ring falls back to the ids
        ([(1, "relaxation", 5, 5)], [1]),
        ([(1, "relaxation", 6, 7), (2, "relaxation_1", 5, 6), (3, "relaxation_0", 4, 5)], [3, 2, 1]),
        ([(1, "relaxation", None, None), (2, "hse06", None, None), (3, "coarse_relax", None, None)], [3, 1, 2]),
    ],
)
def test_order_of_calculations(rows: list[tuple], expected: list[int]):
    assert order(*rows) == expected


U = SETTINGS[:-1]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (SETTINGS, "hubbard_u", {}),
        (SETTINGS, "run_type", "GGA"),
        (U + ", 'ldau': True, 'ldauls': [2, -1], 'ldauus': [5.3, 0.0]}", "hubbard_u", {"Fe": 5.3}),
        (U + ", 'ldau': True, 'ldauu': [5.3, 0.0], 'ldauj': [1.0, 0]}", "hubbard_u", {"Fe": pytest.approx(4.3)}),
        (U + ", 'ldau': True, 'ldauus': [5.3, 0.0]}", "run_type", "GGA+U"),
        (U + ", 'ldau': '.TRUE.', 'ldauus': [5.3]}", "run_type", "GGA+U"),
        (U + ", 'ldau': True, 'ldauus': [5.3]}", "hubbard_u", None),
        (U + ", 'ldau': False, 'ldauus': [5.3, 0.0]}", "run_type", "GGA"),
        (U + ", 'hubbards': 'wolverton'}", "run_type", None),
        (SETTINGS, "potentials", ("Fe_pv", "O")),
        ("{'potentials': 'vasp_rec'}", "potentials", None),
        (SETTINGS.replace("PBE", "LDA"), "functional", None),
        (SETTINGS.replace("PBE", "LDA"), "run_type", "LDA"),
        ("{'ispin': '2'}", "ispin", 2),
        ("{'ispin': None}", "ispin", -1),
        ("{'ispin': (1,), \"encut\": 400}", "encut", 400),  # no JSON
        ("{'encut': '520.0', 'name': 'True'}", "encut", 520),
    ],
)
def test_settings(text: str, field: str, value: object):
    assert getattr(read_settings(text), field) == value


@pytest.mark.parametrize(
    "text", [None, "", "None", "[1]", "{'a': ", "{1: open('x')}", "(" * 99_999, "{'a': 1}" * 20_000]
)
def test_settings_that_cannot_be_read(text: str | None):
    assert read_settings(text) is None


def test_tables_may_come_in_any_order(tmp_path: Path):
    tables = one_entry(relaxation())
    found = []
    for k, tables_order in enumerate([tuple(SCHEMA), tuple(sorted(SCHEMA)), tuple(sorted(SCHEMA, reverse=True))]):
        dump = tmp_path / f"{k}.sql"
        dump.write_text(sql(tables, tables_order))
        found.append(the_relaxation(records(prepared(dump, tmp_path / "ws"))))
    assert all(np.array_equal(t.positions, found[0].positions) and not t.findings for t in found)


def test_assets_are_ranges_of_ids_whatever_is_in_them(tmp_path: Path):
    tables = one_entry(relaxation())
    tables["entries"] += [{"id": i} for i in (19_999, 20_000, 1_780_001)]
    dump = tmp_path / "qmdb__v1_10__022026.sql"
    dump.write_text(sql(tables))
    source = prepared(dump, tmp_path / "ws")
    assert isinstance(source, Source)
    names = ["entries-000000000", "entries-000020000", "entries-001780000"]
    assert [a.name for a in source.assets()] == [f"oqmd/{dump.name}/{name}" for name in names]
    assert {a.modified for a in source.assets()} == {"2026-02"}
    assert len({source.raw_digest(a) for a in source.assets()}) == 3
    whole = [r.n_frames for r in records(pickle.loads(pickle.dumps(source)))]
    assert whole == [2, 0, 0, 0]


def test_a_dump_is_imported_once_and_anew_when_it_changes(tmp_path: Path):
    dump, workspace = tmp_path / "dump.sql", tmp_path / "ws"
    dump.write_text(sql(one_entry(relaxation())))
    first = prepared(dump, workspace)
    stamp = first.imported.stat().st_mtime_ns
    assert prepared(dump, workspace).imported == first.imported
    assert first.imported.stat().st_mtime_ns == stamp
    dump.write_text(sql(one_entry(relaxation(energy=-1.0))))
    second = prepared(dump, workspace)
    assert the_relaxation(records(second)).energy[1] == -1.0
    [asset] = second.assets()
    assert first.raw_digest(asset) != second.raw_digest(asset)


KILLED = """
import os, signal, sys
from pathlib import Path
from trajmill.sources.oqmd import Oqmd

workspace = Path(sys.argv[2])

def report(done, total):
    if done > total // 2:  # in the second pass
        assert list(workspace.glob("*.part/*"))
        os.kill(os.getpid(), signal.SIGKILL)

Oqmd(Path(sys.argv[1])).prepare(workspace, report)
"""


def test_a_killed_import_begins_anew(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, GENERATED, tmp_path]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    [left_over] = tmp_path.iterdir()
    source = prepared(GENERATED, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [source.imported.name]
    assert left_over.name == f"{source.imported.name}.part"
    assert len(records(source)) == 40


def test_progress_ends_with_the_file(tmp_path: Path):
    told: list[tuple[int, int]] = []
    Oqmd(GENERATED).prepare(tmp_path, lambda *numbers: told.append(numbers))
    size = GENERATED.stat().st_size
    assert told == sorted(told)
    assert told[-1] == (2 * size, 2 * size)


@pytest.mark.parametrize(("run", "threads"), [(1, 1), (20_000, 3)])
def test_records_depend_on_neither_runs_nor_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int, threads: int
):
    expected = records(prepared(GENERATED, tmp_path / "whole", stress="kbar"))
    monkeypatch.setattr(oqmd_runs, "RUN", run)
    monkeypatch.setattr(mysqldump, "_THREADS", threads)
    source = prepared(GENERATED, tmp_path / "parts", stress="kbar")
    assert len(list(source.imported.glob("run-*"))) > 4
    assert_equal(records(source), expected)


def test_a_truncated_dump_says_so_and_keeps_what_is_there(tmp_path: Path):
    dump = tmp_path / "qmdb__v1_6__112023.sql.gz"
    text = gzip.decompress(GENERATED.read_bytes())
    cut = text.index(b"(300202,")  # in the rows of `structures`
    dump.write_bytes(gzip.compress(text[:cut]))
    found = records(prepared(dump, tmp_path / "ws"))
    details = [r.detail for record in found for r in record.rejections if r.rejected_by == "readable"]
    assert details == ["the dump ends in the middle of table structures"]
    kept = [
        t for record in found for t in record.trajectories if t.task_type == "Structure Optimization" and not t.faults
    ]
    assert 15 < len(kept) < 25


@pytest.mark.parametrize("text", ["", "<html>", sql({}, ("atoms", "entries"))])
def test_a_file_that_is_no_dump_leaves_nothing_behind(tmp_path: Path, text: str):
    dump = tmp_path / "dump.sql"
    dump.write_text(text)
    with pytest.raises(SourceError, match=r"dump\.sql: "):
        prepared(dump, tmp_path / "ws")
    assert not list((tmp_path / "ws").iterdir())


def test_a_missing_dump_is_named(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file; point oqmd"):
        prepared(tmp_path / "none.sql.gz", tmp_path / "ws")


def test_reading_before_the_import_says_what_to_do():
    with pytest.raises(SourceError, match="call prepare"):
        replace(Oqmd(REAL)).assets()
