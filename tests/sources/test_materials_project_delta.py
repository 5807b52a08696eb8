"""Materials Project, Delta Lake: against the JSON Lines of the same tasks, and made-up faults."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from mp_samples import DATA, KEEP, REAL, by_id, documents, material_row, opened, records, task_row, write_tables
from trajmill.errors import SourceError
from trajmill.sources.base import RELAXATION, Source
from trajmill.sources.parquet_tables import data_files

SAMPLE = pq.read_table(DATA / "core_trajectories_sample.parquet")
MATERIALS = REAL / "materials" / "materials_from_emmet_builder.jsonl.gz"


def row(sample="aaafgddy", **changes):
    """Return a sample row (SiC, 1 + 3 frames) with changes."""
    [number] = np.flatnonzero([i == sample for i in SAMPLE["identifier"].to_pylist()])
    return SAMPLE.slice(int(number), 1).to_pylist()[0] | changes


def task(**changes):
    """Return the `core/tasks` row of that sample row, with changes; incar and parameters go into its input."""
    found = next(t for t in documents(REAL / "tasks" / "emmet_SiC_elastic.jsonl.gz") if t["task_id"] == "mp-fgddy")
    result = task_row(found)
    for name in {"incar", "parameters"} & changes.keys():
        result["input"][name] = changes.pop(name)
    return result | changes


@pytest.fixture
def read(tmp_path):
    """Write these rows and tasks, and read them."""

    def write(*rows, tasks=None, options=None):
        table = pa.Table.from_pylist(list(rows), SAMPLE.schema)
        root = write_tables(tmp_path / "mp", trajectories=table, tasks=[task()] if tasks is None else tasks)
        return records(opened(root, tmp_path / "work", options))

    return write


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return the trajectories of the same tasks from both layouts."""
    folder = tmp_path_factory.mktemp("mp")
    delta = records(opened(write_tables(folder / "mp"), folder / "work"))
    assert sum(record.n_frames for record in delta) == sum(SAMPLE["num_ionic_steps"].to_pylist())
    return by_id(delta), by_id(records(opened(REAL, folder / "work")))


def test_both_layouts_agree(both):
    delta, jsonl = both
    relaxations = {i: t for i, t in delta.items() if t.task_type == RELAXATION}
    assert len(relaxations) == 21
    for name, t in relaxations.items():
        other = jsonl[name]
        for field in ("positions", "lattice", "energy", "energy_sigma0", "forces", "stress", "encut"):
            np.testing.assert_allclose(getattr(t, field), getattr(other, field), atol=1e-8, err_msg=f"{name} {field}")
        for field in ("numbers", "electronic_steps", "nelm", "ispin", "relaxation_number", "relaxation_step"):
            np.testing.assert_array_equal(getattr(t, field), getattr(other, field), err_msg=f"{name} {field}")
        for field in ("run_type", "functional", "immutable_id", "license", "deprecated", "material_origin"):
            assert getattr(t, field) == getattr(other, field), (name, field)
        for field in ("hubbard_u", "potentials", "last_modified", "relaxation_converged", "findings"):
            assert getattr(t, field) == getattr(other, field), (name, field)
    frames = sum(map(len, delta.values()))
    assert frames == 283
    assert {i for i in delta if "-static-" in i} <= jsonl.keys()


def test_task_id_is_the_identifier_of_the_row(both):
    delta, _ = both
    assert delta["mp-149-pbe"].task_id == "aaaaaaft"
    assert delta["mp-1539165-pbe"].notes == ("relaxation_number inferred from repeated geometries",)
    assert np.bincount(delta["mp-1539165-pbe"].relaxation_number).tolist() == [86, 4]


def test_energy_is_e_fr_energy(read):
    [record] = read(row(energy=[0.0] * 4))
    np.testing.assert_array_equal(record.trajectories[0].energy, row()["e_fr_energy"])


def test_one_lattice_is_the_cell_of_every_frame(read):
    lattice = row()["lattice"][:1]
    [record] = read(row(lattice=lattice))
    [t] = record.trajectories
    np.testing.assert_array_equal(t.lattice, lattice * 4)
    assert not t.faults


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"lattice": None}, dict.fromkeys(range(4), "no lattice")),
        ({"forces": None}, dict.fromkeys(range(4), "no forces")),
        ({"cart_coords": [None, *row()["cart_coords"][1:]]}, {0: "no positions"}),
        ({"forces": [*row()["forces"][:3], [[0.0, 0.0]]]}, {3: "forces has shape (1, 2), expected (8, 3)"}),
        ({"forces": row()["forces"][:2]}, dict.fromkeys(range(4), "forces: 2 entries for 4 frames")),
        ({"stress": None}, {}),
        ({"electronic_steps": None}, {}),
        ({"has_full_output": None, "energy": None}, {}),
    ],
    ids=lambda x: str(x)[:25],
)
def test_what_is_null_or_malformed_costs_its_frames(read, change, faults):
    [record] = read(row(**change))
    [t] = record.trajectories
    assert record.n_frames == len(t) == 4
    assert t.faults == faults
    bad = sorted(faults)
    for field in {"lattice", "forces"} & change.keys():
        assert not np.isfinite(getattr(t, field)[bad]).any()
        assert np.isfinite(np.delete(getattr(t, field), bad, 0)).all()


def test_a_null_component_costs_that_component(read):
    forces = row()["forces"]
    forces[2][5][1] = None
    [record] = read(row(forces=forces))
    assert np.argwhere(np.isnan(record.trajectories[0].forces)).tolist() == [[2, 5, 1]]


def test_counts_and_energies_from_the_electronic_steps(read):
    [record] = read(row(num_electronic_steps=None, e_fr_energy=None))
    [t] = record.trajectories
    np.testing.assert_array_equal(t.electronic_steps, row()["num_electronic_steps"])
    np.testing.assert_allclose(t.energy, row()["e_fr_energy"])
    [record] = read(row(num_electronic_steps=[1, None, 3, 4], electronic_steps=None))
    assert record.trajectories[0].electronic_steps.tolist() == [1, -1, 3, 4]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"identifier": None}, "row 1: no identifier"),
        ({"elements": None}, "row 1: elements are missing or no atomic numbers"),
        ({"elements": [6, None]}, "row 1: elements are missing or no atomic numbers"),
        ({"elements": [6, 999]}, "row 1: elements are missing or no atomic numbers"),
    ],
)
def test_a_bad_row_is_one_rejection_and_the_others_are_read(read, change, detail):
    bad, good = read(row(**change), row("aaafwugc"))
    assert (bad.rejections[0].detail, bad.rejections[0].n_frames, bad.n_frames) == (detail, 4, 4)
    assert len(good.trajectories[0]) == 5


@pytest.mark.parametrize("change", [{"cart_coords": [], "e_fr_energy": [], "forces": []}])
def test_a_row_without_steps_is_counted(read, change):
    [record] = read(row(**change))
    assert (record.n_frames, record.rejections[0].rejected_by, record.rejections[0].n_frames) == (0, "targets", 0)


@pytest.mark.parametrize(
    ("tasks", "nelm", "last_modified"),
    [
        ([task(incar='{"NELM": 40, "ISIF": 3, "IBRION": 2, "NSW": 9}', parameters=None)], 40, "2023-03-11T04:35:31"),
        ([task(parameters='{"NELM": 30}')], 30, "2023-03-11T04:35:31"),
        ([task(incar="{damaged", parameters=None)], -1, "2023-03-11T04:35:31"),
        ([task(incar=None, parameters=None)], -1, "2023-03-11T04:35:31"),
        ([task(input=None, last_updated=None)], -1, None),
        ([], -1, None),
    ],
)
def test_settings_come_from_the_json_text_of_the_task(read, tasks, nelm, last_modified):
    [record] = read(row(), tasks=tasks)
    [t] = record.trajectories
    assert (set(t.nelm), t.last_modified, t.trajectory_id) == ({nelm}, last_modified, "mp-2392466-pbe")


SCAN = json.dumps({"METAGGA": "Scan", "ISIF": 3, "IBRION": 2, "NSW": 99})


def test_a_wrong_type_is_recomputed_when_the_task_has_one_row(read):
    [record] = read(row(), tasks=[task(incar=SCAN)])
    [t] = record.trajectories
    assert (t.functional, t.findings.get("unsupported_functional")) == ("scan", None)
    assert t.notes[0] == "stored as GGA Structure Optimization, recomputed SCAN Structure Optimization"


def test_a_conflict_of_several_rows_is_rejected_and_not_guessed(read):
    found = by_id(read(row(), row(run_type="PBEsol"), tasks=[task(incar=SCAN)]))
    assert "recomputed SCAN" in found["mp-2392466-pbe"].findings["unsupported_functional"]
    pbesol = found["mp-2392466-pbesol"]  # the task's input is not this row's: nothing is known about it
    assert (pbesol.findings.get("unsupported_functional"), set(pbesol.nelm)) == (None, {-1})


def test_of_two_run_types_with_one_functional_the_task_s_own_is_the_trajectory(read):
    found = by_id(read(row(), row(run_type="GGA+U"), tasks=[task()]))
    assert found["mp-2392466-pbe"].run_type == "GGA"
    other = found["mp-2392466-GGA+U"]
    assert (other.functional, "unsupported_functional" in other.findings) == (None, True)


def test_newest_materials_version_decides(tmp_path):
    old, new = (
        [material_row(m | {"builder_meta": {"license": licence}}, version) for m in documents(MATERIALS)]
        for licence, version in (("BY-NC", "2025.9.25"), ("BY-C", "2025.10.1"))
    )
    source = opened(write_tables(tmp_path / "mp", materials=[*new, *old]), tmp_path / "work")
    assert {t.license for t in by_id(records(source)).values()} == {"BY-C", None}


def test_facts_change_the_digest_of_their_task_only(tmp_path):
    def digests(**changes):
        shutil.rmtree(tmp_path / "mp", ignore_errors=True)
        table = pa.Table.from_pylist([row(), row("aaafwugc")], SAMPLE.schema)
        root = write_tables(tmp_path / "mp", trajectories=table, tasks=[task(**changes), task(task_id="mp-fwugc")])
        source = opened(root, tmp_path / "work")
        return [source.facts_digest([i]) for i in ("aaafgddy", "aaafwugc")]

    before, after = digests(), digests(parameters='{"NELM": 40}')
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_assets_are_the_files_of_the_newest_version(tmp_path):
    table = tmp_path / "mp" / "core" / "trajectories"
    write_deltalake(table, SAMPLE.slice(0, 5))
    write_deltalake(table, SAMPLE.slice(5, 4), mode="overwrite")
    write_deltalake(table, SAMPLE.slice(9, 3), mode="append", partition_by=None)
    source = opened(tmp_path / "mp", tmp_path / "work", KEEP)
    assert len(source.assets()) == 2
    assert all(a.name.startswith("mp/core/trajectories/part-") for a in source.assets())
    assert len(records(source)) == 7
    assert isinstance(source, Source)
    assert len(records(pickle.loads(pickle.dumps(source)))) == 7


def test_partitions_give_the_columns_the_files_lack(tmp_path):
    write_deltalake(tmp_path / "mp" / "core" / "trajectories", SAMPLE, partition_by=["run_type", "task_type"])
    found = by_id(records(opened(tmp_path / "mp", tmp_path / "work", KEEP)))
    assert len(found) == SAMPLE.num_rows
    assert found["mp-18937__GGA+U_Structure_Optimization-pbe"].run_type == "GGA+U"


def test_plain_parquet_folders_are_read(tmp_path):
    folder = tmp_path / "mp" / "core" / "trajectories"
    folder.mkdir(parents=True)
    pq.write_table(SAMPLE, folder / "a.parquet", row_group_size=3)
    source = opened(tmp_path / "mp", tmp_path / "work", KEEP)
    assert [a.name for a in source.assets()] == ["mp/core/trajectories/a.parquet"]
    assert len(records(source)) == SAMPLE.num_rows


@pytest.mark.parametrize("damage", [b"<html>", b""])
def test_a_damaged_file_is_one_rejection(tmp_path, damage):
    source = opened(write_tables(tmp_path / "mp"), tmp_path / "work")
    [asset] = source.assets()
    asset.path.write_bytes(damage)
    [record] = source.read(asset)
    assert record.rejections[0].detail.startswith("damaged after row 0: ")
    assert record.rejections[0].n_frames is None


def test_damaged_tables_are_errors(tmp_path):
    root = write_tables(tmp_path / "mp")
    [file], _ = data_files(root, Path("core", "tasks"))
    file.path.write_bytes(b"<html>")
    with pytest.raises(SourceError, match="damaged"):
        opened(root, tmp_path / "work")
    [log] = (root / "core" / "tasks" / "_delta_log").glob("*.json")
    log.write_text("<html>")
    with pytest.raises(SourceError, match="cannot be read as a Delta table"):
        opened(root, tmp_path / "work")


def test_empty_table_is_an_error(tmp_path):
    (tmp_path / "core" / "trajectories").mkdir(parents=True)
    with pytest.raises(SourceError, match="no Parquet files in core/trajectories/"):
        opened(tmp_path, tmp_path / "work").assets()


def test_deleted_rows_are_not_resurrected(tmp_path):
    table = tmp_path / "mp" / "core" / "trajectories"
    write_deltalake(table, SAMPLE)
    DeltaTable(table).delete("run_type = 'GGA'")
    found = by_id(records(opened(tmp_path / "mp", tmp_path / "work", KEEP)))
    assert found
    assert all(t.run_type != "GGA" for t in found.values())
