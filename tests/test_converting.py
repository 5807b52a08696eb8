"""What is written for others, read back by their own readers."""

import ase.db
import ase.io
import numpy as np
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill.converting import TARGETS, convert
from trajmill.errors import ConvertError


@pytest.fixture
def runs():
    missing = np.full((3, 3, 3), np.nan)
    return [
        make_trajectory("mp-1"),
        make_trajectory("mp-2", symbols=("Fe", "O", "O"), stress=missing),
        make_trajectory("mp-3", functional="scan", energy_corrected=None),
    ]


@pytest.fixture
def dataset(tmp_path, runs):
    make_store(tmp_path / "store", runs)
    return trajmill.open(tmp_path / "store")


def check(frames, runs, energy="energy"):
    """Compare what was read, as (atoms, energy, forces, stress), with what there was."""
    i = 0
    for t in runs:
        for k in range(len(t)):
            atoms, value, forces, stress = frames[i]
            assert atoms.get_chemical_symbols() == t.symbols
            np.testing.assert_allclose(atoms.cell[:], t.lattice[k], atol=1e-8)
            np.testing.assert_allclose(atoms.positions, t.positions[k], atol=1e-8)
            assert value == pytest.approx(getattr(t, energy)[k])
            np.testing.assert_allclose(forces, t.forces[k], atol=1e-8)
            if np.isnan(t.stress[k]).any():
                assert stress is None
            else:
                matrix = t.stress[k]
                six = [matrix[0, 0], matrix[1, 1], matrix[2, 2], matrix[1, 2], matrix[0, 2], matrix[0, 1]]
                np.testing.assert_allclose(stress, six, atol=1e-8)
            i += 1
    assert i == len(frames)


def test_extxyz_has_the_keys_that_mace_asks_for(dataset, runs, tmp_path):
    assert convert(dataset, tmp_path / "train.xyz", "extxyz") == (9, 0)
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
    assert convert(dataset, tmp_path / "data.aselmdb", "aselmdb") == (9, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.aselmdb", "store"]
    with ase.db.connect(str(tmp_path / "data.aselmdb"), type="aselmdb", readonly=True) as database:
        rows = [(row.toatoms(), row.energy, row.forces, row.get("stress")) for row in database.select()]
    check(rows, runs)


def test_corrected_energies_and_what_has_none(dataset, runs, tmp_path):
    assert convert(dataset, tmp_path / "c.xyz", "extxyz", energy="energy_corrected") == (6, 3)
    read = ase.io.read(tmp_path / "c.xyz", ":")
    frames = [(a, a.info["REF_energy"], a.arrays["REF_forces"], a.info.get("REF_stress")) for a in read]
    check(frames, runs[:2], "energy_corrected")


@pytest.mark.parametrize("to", TARGETS)
def test_there_and_back_again(dataset, tmp_path, to):
    out = tmp_path / {"extxyz": "x.extxyz", "aselmdb": "x.aselmdb"}[to]
    convert(dataset, out, to)
    back = {t.trajectory_id: t for t in trajmill.open(out).trajectories()}
    for t in dataset.trajectories():
        again = back[t.trajectory_id]
        for name in ("numbers", "energy", "forces", "stress", "positions", "lattice"):
            np.testing.assert_allclose(getattr(again, name), getattr(t, name), atol=1e-7, err_msg=name)


def test_what_makes_no_sense_is_said_and_leaves_nothing(dataset, tmp_path):
    (tmp_path / "there.xyz").write_text("mine")
    wrong = [
        ({"to": "hdf6"}, "nothing is called hdf6; there are extxyz, aselmdb"),
        ({"energy": "enthalpy"}, "no energy enthalpy; there are energy, energy_corrected"),
        ({"out": tmp_path / "there.xyz"}, "is there already"),
        ({"out": tmp_path / "none/x.xyz"}, "cannot be written"),
        ({"to": "aselmdb", "prefix": "REF_"}, "leave the prefix out"),
    ]
    for options, message in wrong:
        arguments = {"out": tmp_path / "x.xyz", "to": "extxyz"} | options
        with pytest.raises(ConvertError) as caught:
            convert(dataset, **arguments)
        assert message in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "there.xyz"]
    assert (tmp_path / "there.xyz").read_text() == "mine"
