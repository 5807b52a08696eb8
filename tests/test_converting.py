"""What is written for others, read back by their own readers."""

from __future__ import annotations

import json
import shutil
import warnings

import ase.db
import ase.io
import atompack
import numpy as np
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill.converting import NOTES, Converted, convert, reference_energies, write_e0s
from trajmill.errors import ConvertError, FilterError
from trajmill.schema import PUBLISHED
from trajmill.targets import TARGETS


@pytest.fixture
def runs():
    missing = np.full((3, 3, 3), np.nan)
    return [
        make_trajectory("mp-1"),
        make_trajectory("mp-2", symbols=("Fe", "O", "O"), stress=missing, asset="mp/tasks/b.jsonl.gz"),
        make_trajectory("mp-3", functional="scan", energy_corrected=None, asset="mp/tasks/c.jsonl.gz"),
    ]


@pytest.fixture
def dataset(tmp_path, runs):
    make_store(tmp_path / "store", runs)
    return trajmill.open(tmp_path / "store")


def check(frames, runs, energy="energy", atol=1e-8):
    """Compare what was read, as (atoms, energy, forces, stress), with what there was."""
    i = 0
    for t in runs:
        for k in range(len(t)):
            atoms, value, forces, stress = frames[i]
            assert atoms.get_chemical_symbols() == t.symbols
            np.testing.assert_allclose(atoms.cell[:], t.lattice[k], atol=atol)
            np.testing.assert_allclose(atoms.positions, t.positions[k], atol=atol)
            assert value == pytest.approx(getattr(t, energy)[k])
            np.testing.assert_allclose(forces, t.forces[k], atol=atol)
            if np.isnan(t.stress[k]).any():
                assert stress is None
            else:
                np.testing.assert_allclose(stress, voigt(t.stress[k]), atol=atol)
            i += 1
    assert i == len(frames)


def voigt(matrix):
    return [matrix[0, 0], matrix[1, 1], matrix[2, 2], matrix[1, 2], matrix[0, 2], matrix[0, 1]]


def test_extxyz_has_the_keys_that_mace_asks_for(dataset, runs, tmp_path):
    assert convert(dataset, tmp_path / "train.xyz", "extxyz") == Converted(9, 0)
    read = ase.io.read(tmp_path / "train.xyz", ":")
    assert all(atoms.calc is None for atoms in read), "nothing that ASE takes for its own"
    check([(a, a.info["REF_energy"], a.arrays["REF_forces"], a.info.get("REF_stress")) for a in read], runs)
    assert read[-1].info["trajectory_id"] == "mp-3-scan"
    assert read[-1].info["relaxation_step"] == 2


def test_extxyz_with_plain_names(dataset, runs, tmp_path):
    convert(dataset, tmp_path / "train.xyz", "extxyz", prefix="")
    read = ase.io.read(tmp_path / "train.xyz", ":")
    stress = [a.calc.results.get("stress") for a in read]
    check([(a, a.get_potential_energy(), a.get_forces(), s) for a, s in zip(read, stress, strict=True)], runs)


def test_aselmdb(dataset, runs, tmp_path):
    assert convert(dataset, tmp_path / "data.aselmdb", "aselmdb") == Converted(9, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.aselmdb", "store"]
    with ase.db.connect(str(tmp_path / "data.aselmdb"), type="aselmdb", readonly=True) as database:
        rows = [(row.toatoms(), row.energy, row.forces, row.get("stress")) for row in database.select()]
    check(rows, runs)


def test_atompack(dataset, runs, tmp_path):
    assert convert(dataset, tmp_path / "data.atp", "atompack") == Converted(9, 0)
    database = atompack.Database.open(str(tmp_path / "data.atp"))
    frames = []
    for i in range(len(database)):
        found = database[i]
        atoms = ase.Atoms(numbers=found.atomic_numbers, positions=found.positions, cell=found.cell, pbc=found.pbc)
        stress = None if found.stress is None else voigt(found.stress)
        frames.append((atoms, found.energy, found.forces, stress))
    check(frames, runs)
    assert atompack.to_ase(database[4]).info["id"] == "mp-2-pbe-1"
    assert database[4].get_property("relaxation_step") == 1


@pytest.mark.parametrize("to", ["mace-lmdb", "mace-hdf5"])
def test_mace_reads_its_own(dataset, runs, tmp_path, to):
    with warnings.catch_warnings():  # what torch and e3nn warn of is theirs
        warnings.simplefilter("ignore")
        from mace.tools import AtomicNumberTable
        from mace.tools.run_train_utils import load_dataset_for_path

    assert convert(dataset, tmp_path / "train", to, workers=2, per_file=3) == Converted(9, 0)
    head = type("Head", (), {"head_name": "Default"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = load_dataset_for_path(
            str(tmp_path / "train"), 4.0, AtomicNumberTable([8, 11, 17, 26]), ["Default"], head
        )
    frames = [(t, k) for t in runs for k in range(len(t))]
    assert len(read) == len(frames)
    found = {}
    for i in range(len(read)):  # HDF5 files come in any order
        data = read[i]
        found[round(float(data.energy), 4), tuple(data.node_attrs.sum(0).int().tolist())] = data
    for t, k in frames:
        counts = tuple(int((t.numbers == z).sum()) for z in (8, 11, 17, 26))
        data = found[round(float(t.energy[k]), 4), counts]
        np.testing.assert_allclose(data.positions, t.positions[k], atol=1e-5)
        np.testing.assert_allclose(data.forces, t.forces[k], atol=1e-5)
        np.testing.assert_allclose(data.cell, t.lattice[k], atol=1e-5)
        known = not np.isnan(t.stress[k]).any()
        assert float(data.stress_weight) == known
        assert float(data.energy_weight) == float(data.forces_weight) == 1
        if known:
            np.testing.assert_allclose(data.stress[0], t.stress[k], atol=1e-6)


def test_lemat_traj_is_what_a_release_is(dataset, runs, tmp_path):
    convert(dataset, tmp_path / "x.parquet", "lemat-traj")
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert schema.names == [column.name for column in PUBLISHED]
    first = pq.read_table(tmp_path / "x.parquet")["stress_tensor"][0].as_py()
    np.testing.assert_allclose(first, -1602.1766208 * runs[0].stress[0], rtol=1e-12)
    convert(trajmill.open(tmp_path / "x.parquet"), tmp_path / "y.parquet", "lemat-traj")
    assert pq.read_table(tmp_path / "y.parquet").equals(pq.read_table(tmp_path / "x.parquet")), "converted once"


@pytest.mark.filterwarnings("ignore:gcd is deprecated")  # pymatgen's own, before 2026
def test_cif(dataset, runs, tmp_path):
    from pymatgen.io.cif import CifParser

    convert(dataset.filter("is_final = TRUE"), tmp_path / "x.cif", "cif")
    assert [a.get_chemical_formula() for a in ase.io.read(tmp_path / "x.cif", ":")] == ["ClNa", "FeO2", "ClNa"]
    parser = CifParser(tmp_path / "x.cif", check_cif=False)
    assert list(parser.as_dict()) == ["mp-1-pbe-2", "mp-2-pbe-2", "mp-3-scan-2"]
    volume = parser.parse_structures(primitive=False)[1].volume
    np.testing.assert_allclose(volume, np.linalg.det(runs[1].lattice[-1]), rtol=1e-5)


def test_corrected_energies_and_what_has_none(dataset, runs, tmp_path):
    assert convert(dataset, tmp_path / "c.xyz", "extxyz", energy="energy_corrected") == Converted(6, 3)
    read = ase.io.read(tmp_path / "c.xyz", ":")
    frames = [(a, a.info["REF_energy"], a.arrays["REF_forces"], a.info.get("REF_stress")) for a in read]
    check(frames, runs[:2], "energy_corrected")


@pytest.mark.parametrize("to", ["extxyz", "aselmdb", "lemat-traj"])
def test_there_and_back_again(dataset, tmp_path, to):
    out = tmp_path / f"x{TARGETS[to].suffixes[0]}"
    convert(dataset, out, to)
    back = {t.trajectory_id: t for t in trajmill.open(out).trajectories()}
    for t in dataset.trajectories():
        again = back[t.trajectory_id]
        for name in ("numbers", "energy", "forces", "stress", "positions", "lattice"):
            np.testing.assert_allclose(getattr(again, name), getattr(t, name), atol=1e-7, err_msg=name)


@pytest.mark.parametrize("to", TARGETS)
def test_a_folder_is_the_same_however_many_write_it(dataset, tmp_path, to):
    wanted = dataset.filter('elements HAS "Na"')
    assert convert(wanted, tmp_path / "one", to, per_file=3) == Converted(6, 0)
    assert convert(wanted, tmp_path / "two", to, per_file=3, workers=2) == Converted(6, 0)
    suffix = TARGETS[to].suffixes[0]
    names = [f"{i:05d}{suffix}" for i in range(3)]  # one has none of the frames that are wanted
    for folder in ("one", "two"):
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [NOTES, *names]
    if to not in ("aselmdb", "mace-lmdb"):  # these hold the time and random identifiers
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_folder_is_gone_on_with(dataset, tmp_path):
    out = tmp_path / "train"
    convert(dataset, out, "extxyz", per_file=3)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "00001.extxyz").unlink()
    (out / "tmp-00001.extxyz").write_text("half")
    seen = []
    assert convert(dataset, out, "extxyz", per_file=3, report=seen.append) == Converted(9, 0)
    after = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {NOTES, "00001.extxyz"}
    assert seen[-1] == 9
    for changes in ({"energy": "energy_corrected"}, {"to": "cif"}, {"per_file": 6}, {"prefix": ""}):
        with pytest.raises(ConvertError, match="holds files of something else"):
            convert(dataset, out, **({"to": "extxyz", "per_file": 3} | changes))
    with pytest.raises(ConvertError, match="holds files of something else"):
        convert(dataset.filter("nsites = 2"), out, "extxyz", per_file=3)


def test_a_file_that_cannot_be_written_is_said(dataset, tmp_path):
    out = tmp_path / "train"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConvertError, match="holds files of something else"):
        convert(dataset, out, "extxyz")
    shutil.rmtree(out)
    (out / "00000.extxyz" / "full").mkdir(parents=True)
    notes = {"about": None}
    (out / NOTES).write_text(json.dumps(notes))
    with pytest.raises(ConvertError, match="holds files of something else"):
        convert(dataset, out, "extxyz")


def test_others_files_cannot_be_read_in_pieces(dataset, tmp_path):
    convert(dataset, tmp_path / "x.extxyz", "extxyz")
    with pytest.raises(FilterError, match="no Parquet files"):
        convert(trajmill.open(tmp_path / "x.extxyz"), tmp_path / "folder", "cif")


def test_reference_energies_are_those_of_least_squares(dataset, runs, tmp_path):
    e0s = reference_energies(dataset)
    frames = [(t, k) for t in runs for k in range(len(t))]
    symbols = ["Cl", "Fe", "Na", "O"]
    counts = np.array([[t.symbols.count(s) for s in symbols] for t, _ in frames], float)
    expected, *_ = np.linalg.lstsq(counts, np.array([t.energy[k] for t, k in frames]), rcond=None)
    assert e0s == pytest.approx(dict(zip(symbols, expected, strict=True)), abs=1e-5)
    corrected = reference_energies(dataset, "energy_corrected")
    assert corrected["Na"] == pytest.approx((runs[0].energy_corrected.mean()) / 2, abs=1e-5)
    write_e0s(e0s, tmp_path / "e0s.json")
    assert json.loads((tmp_path / "e0s.json").read_text())["11"] == e0s["Na"]


def test_what_makes_no_sense_is_said_and_leaves_nothing(dataset, tmp_path):
    (tmp_path / "there.xyz").write_text("mine")
    wrong = [
        ({"to": "hdf6"}, "nothing is called hdf6; there are extxyz, aselmdb"),
        ({"energy": "enthalpy"}, "no energy enthalpy; there are energy, energy_corrected"),
        ({"out": tmp_path / "there.xyz"}, "is there already"),
        ({"out": tmp_path / "none/x.xyz"}, "cannot be written"),
        ({"out": tmp_path / "none/x"}, "cannot be used"),
        ({"to": "aselmdb", "prefix": "REF_"}, "leave the prefix out"),
        ({"workers": 2}, "a file is written by one process"),
    ]
    for options, message in wrong:
        arguments = {"out": tmp_path / "x.xyz", "to": "extxyz"} | options
        with pytest.raises(ConvertError) as caught:
            convert(dataset, **arguments)
        assert message in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "there.xyz"]
    assert (tmp_path / "there.xyz").read_text() == "mine"
