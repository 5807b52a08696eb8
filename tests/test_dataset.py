from __future__ import annotations

import numpy as np
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import MissingExtraError, ReleaseError, require
from trajmill.recipe import load
from trajmill.releases.hugging_face import release


@pytest.fixture
def runs():
    return [
        make_trajectory(f"mp-{i}", n_frames=n, immutable_id=f"mp-{i}") for i, n in enumerate((1, 5, 2, 30), start=1)
    ]


@pytest.fixture
def store(tmp_path, runs):
    return make_store(tmp_path / "store", [*runs, make_trajectory("mp-9", functional="scan", energy_corrected=None)])


def same(a, b):
    assert a.trajectory_id == b.trajectory_id
    for name in ("numbers", "lattice", "positions", "energy", "forces", "stress", "relaxation_step"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_store_gives_its_trajectories_back(store, tmp_path, runs):
    dataset = trajmill.open(tmp_path / "store", functional="pbe")
    assert len(dataset) == 38
    for read, written in zip(dataset.trajectories(), runs, strict=True):
        same(read, written)
    assert len(trajmill.open(tmp_path / "store")) == 41


@pytest.mark.parametrize("rows_per_file", [1, 3, 100])
def test_trajectories_are_whole_across_shards(store, tmp_path, runs, rows_per_file):
    release(store, tmp_path / "out", load(settings=[f"release.rows_per_file={rows_per_file}"]))
    dataset = trajmill.open(tmp_path / "out", "compatible_pbe")
    assert [len(t) for t in dataset.trajectories()] == [1, 5, 2, 30]
    for folder in (tmp_path / "out/compatible_pbe", tmp_path / "out"):
        assert len(trajmill.open(folder, functional="pbe")) == 38
    assert trajmill.open(tmp_path / "out").manifest["frames"] == {"compatible_pbe": 38, "compatible_scan": 3}


def test_atoms(store, tmp_path, runs):
    frames = list(trajmill.open(tmp_path / "store", functional="pbe").atoms())
    assert len(frames) == 38
    atoms, run = frames[1], runs[1]
    assert atoms.get_chemical_formula() == "ClNa"
    assert atoms.info["id"] == "mp-2-pbe-0"
    assert atoms.get_potential_energy() == run.energy[0]
    np.testing.assert_array_equal(atoms.get_forces(), run.forces[0])
    np.testing.assert_allclose(atoms.get_stress(voigt=False), run.stress[0])
    np.testing.assert_allclose(atoms.cell[:], run.lattice[0])
    assert all(atoms.pbc)


def test_atoms_without_stress_have_none(tmp_path):
    make_store(tmp_path / "store", [make_trajectory(stress=np.full((3, 3, 3), np.nan))])
    atoms = next(trajmill.open(tmp_path / "store").atoms())
    assert "stress" not in atoms.calc.results


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (False, ["nothing"], "neither a trajmill store nor a release"),
        (True, ["store", "compatible_pbe"], "a store has no configurations"),
        (
            True,
            ["out", "compatible_xyz"],
            "no configuration compatible_xyz; there are: compatible_pbe, compatible_scan",
        ),
    ],
)
def test_says_what_can_be_opened(tmp_path, runs, make, arguments, message):
    if make:
        made = make_store(tmp_path / "store", [*runs, make_trajectory("mp-9", functional="scan")])
        release(made, tmp_path / "out", load())
    with pytest.raises(ReleaseError, match=message):
        trajmill.open(tmp_path / arguments[0], *arguments[1:])


def test_a_missing_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"no_such_package is not installed: pip install 'trajmill\[ase\]'"):
        require("no_such_package.part", extra="ase")
