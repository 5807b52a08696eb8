"""Relaxations by a model that is the one the dataset was made with, and by one that is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import ModelError
from trajmill.training.relaxing import relax


def relaxed_by_emt(name, atoms):
    """Relax and keep first, middle and last frames as a trajectory."""
    atoms.calc = EMT()
    frames = []
    optimiser = BFGS(FrechetCellFilter(atoms), logfile=None)
    optimiser.attach(lambda: frames.append((atoms.cell[:].copy(), atoms.positions.copy(), atoms.get_potential_energy(),
                                            atoms.get_forces())))  # fmt: skip
    optimiser.run(fmax=0.005, steps=200)
    cell, positions, energy, forces = (np.array(column) for column in zip(*frames, strict=True))
    t = make_trajectory(name, n_frames=len(frames), symbols=tuple(atoms.get_chemical_symbols()), energy_corrected=None)
    return replace(t, lattice=cell, positions=positions, energy=energy, forces=forces)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    copper, gold = bulk("Cu", cubic=True), bulk("Au", "fcc", a=4.3)
    copper.positions += rng.normal(0, 0.08, copper.positions.shape)
    ordered = bulk("Cu", cubic=True)
    ordered.symbols[0] = "Au"
    ordered.set_cell(ordered.cell * 1.05, scale_atoms=True)
    runs = [relaxed_by_emt(f"mp-{i}", atoms) for i, atoms in enumerate((copper, gold, ordered))]
    runs.append(make_trajectory("mp-9", n_frames=1))  # nothing to relax
    path = tmp_path_factory.mktemp("relaxing") / "store"
    make_store(path, runs)
    return trajmill.open(path)


def test_the_model_that_the_data_are_of_ends_where_they_end(dataset, tmp_path):
    seen = []
    found = relax(dataset.filter("nelements < 3 AND NOT (elements HAS \"Na\")"), EMT(), tmp_path / "r.parquet",
                  fmax=0.005, report=seen.append)  # fmt: skip
    assert (found.relaxations, found.failed, seen) == (3, 0, [1, 2, 3])
    assert found.converged == found.matched == found.space_group_kept == 1
    assert found.rmsd < 0.01
    assert found.energy_mae < 1e-3
    rows = {row["trajectory_id"]: row for row in pq.read_table(tmp_path / "r.parquet").to_pylist()}
    assert rows["mp-0-pbe"]["space_group"] == rows["mp-1-pbe"]["space_group"] == 225
    assert rows["mp-2-pbe"]["space_group"] == 221
    assert abs(rows["mp-1-pbe"]["volume_change"]) < 1e-2


class Shifted(SinglePointCalculator):
    """Energies are off, and one element is unknown."""

    def __init__(self):
        super().__init__(Atoms())
        self.emt = EMT()

    implemented_properties = ("energy", "forces", "stress")

    def get_property(self, name, atoms=None, allow_calculation=True):
        if "Au" in atoms.get_chemical_symbols():
            raise NotImplementedError("gold")
        value = self.emt.get_property(name, atoms)
        return value + 0.1 * len(atoms) if name == "energy" else value


def test_errors_and_failures_are_counted(dataset, tmp_path):
    found = relax(dataset.filter('NOT (elements HAS "Na")'), Shifted(), tmp_path / "r.parquet")
    assert (found.relaxations, found.failed) == (3, 2)
    assert found.energy_mae == pytest.approx(0.1, abs=1e-3)
    failures = pq.read_table(tmp_path / "r.parquet")["failure"].to_pylist()
    assert failures == [None, "NotImplementedError: gold", "NotImplementedError: gold"]


def test_steps_may_not_be_enough(dataset, tmp_path):
    found = relax(dataset.only(["mp-0-pbe"]), EMT(), tmp_path / "r.parquet", steps=2)
    assert (found.converged, found.steps) == (0, 2)


def test_nothing_to_relax_is_said(dataset, tmp_path):
    with pytest.raises(ModelError, match="nothing to relax"):
        relax(dataset.only(["mp-9-pbe"]), EMT(), tmp_path / "r.parquet")
