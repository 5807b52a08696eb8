"""Relaxations by a model that is the one the dataset was made with, and by one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import ModelError
from trajmill.training.batching import OneByOne
from trajmill.training.fire import relax_all
from trajmill.training.relaxing import relax
from trajmill.views import Geometry


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


def shaken(rng, i):
    """Copper and gold, far from relaxed, in skewed cells of 1 to 4 atoms, every other of them left-handed."""
    atoms = bulk("Cu", cubic=True) if i % 3 else bulk("Cu")
    atoms.symbols[: i % 4] = "Au"
    strain = rng.uniform(0.95, 1.1) * (np.eye(3) + rng.normal(0, 0.03, (3, 3)))
    atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    if i % 2:
        atoms.set_cell(atoms.cell[[1, 0, 2]], scale_atoms=False)
    return atoms


def geometry(atoms):
    return Geometry(atoms.numbers.astype(np.int64), atoms.cell[:].copy(), atoms.positions.copy())


def test_every_step_is_that_of_ase():
    rng = np.random.default_rng(0)
    structures = [shaken(rng, i) for i in range(3)]
    model = OneByOne(EMT())
    model.atoms_at_once = 10
    ends = dict(relax_all(model, map(geometry, structures), fmax=0.01, steps=52))
    assert {end.converged for end in ends.values()} == {False, True}
    for i, atoms in enumerate(structures):
        atoms.calc = EMT()
        optimiser = FIRE(FrechetCellFilter(atoms), logfile=None)
        assert optimiser.run(fmax=0.01, steps=52) == ends[i].converged
        assert optimiser.nsteps == ends[i].steps
        assert atoms.get_potential_energy() == pytest.approx(ends[i].energy, abs=1e-9)
        np.testing.assert_allclose(ends[i].geometry.positions, atoms.positions, atol=1e-9)
        np.testing.assert_allclose(ends[i].geometry.lattice, atoms.cell[:], atol=1e-9)


def test_the_next_begins_when_one_ends():
    """No more atoms at once than fit, and no waiting for the slowest of a batch."""
    rng = np.random.default_rng(0)
    asked = []

    class Watched(OneByOne):
        def predict(self, geometries):
            asked.append(len(geometries))
            return super().predict(geometries)

    model = Watched(EMT())
    model.atoms_at_once = 8
    firsts = [bulk("Cu", cubic=True), *(shaken(rng, i) for i in (1, 2, 4, 5))]
    ends = list(relax_all(model, map(geometry, firsts), fmax=0.01, steps=100))
    assert ends[0][0] == 0, "near the end to begin with"
    assert sorted(i for i, _ in ends) == [0, 1, 2, 3, 4]
    assert set(asked[: -max(end.steps for _, end in ends)]) == {2}


def test_rows_do_not_depend_on_how_many_are_relaxed_at_once(dataset, tmp_path):
    tables = []
    for atoms_at_once in (1, 6, 100):
        model = OneByOne(EMT())
        model.atoms_at_once = atoms_at_once
        relax(dataset, model, tmp_path / "r.parquet")
        tables.append(pq.read_table(tmp_path / "r.parquet"))
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) == 3


class Pulling(Calculator):
    """A model without a minimum in volume; of gold it knows nothing, of silver no stress."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms, properties, system_changes):
        stress = np.nan if "Ag" in atoms.get_chemical_symbols() else 1.0
        energy = np.nan if "Au" in atoms.get_chemical_symbols() else -1.0
        self.results = {
            "energy": energy, "free_energy": energy, "forces": np.zeros((len(atoms), 3)), "stress": stress * np.ones(6)
        }  # fmt: skip


def test_one_that_runs_away_does_not_lose_the_others():
    model = OneByOne(Pulling())
    model.atoms_at_once = 100
    ends = dict(relax_all(model, [geometry(bulk(symbol)) for symbol in ("Cu", "Au", "Ag")], fmax=0.01, steps=500))
    assert ends[0].failure.startswith("the relaxation ran away: 0.")
    assert ends[1].failure == "energy or forces that are not finite"
    assert ends[2].failure == "the model has no stress, which the cell relaxes by"
    assert not any(end.converged for end in ends.values())


class Stopped(OneByOne):
    """Knows what it was asked about; Ctrl-C comes before it answers once too often."""

    def __init__(self, answers=10_000, atoms_at_once=1):
        super().__init__(EMT())
        self.atoms_at_once, self.answers, self.asked = atoms_at_once, answers, []

    def predict(self, geometries):
        if len(self.asked) >= self.answers:
            raise KeyboardInterrupt
        self.asked.append(geometries)
        return super().predict(geometries)

    def crystals(self):
        return {tuple(sorted(g.numbers.tolist())) for geometries in self.asked for g in geometries}


def journal_of(file):
    return file.with_name(f".{file.name}.jsonl")


def lines(file):
    text = journal_of(file).read_text() if journal_of(file).is_file() else ""
    return [line for line in text.splitlines()[1:] if line]


CRYSTALS = {"mp-0-pbe": (29,) * 4, "mp-1-pbe": (79,), "mp-2-pbe": (29, 29, 29, 79)}
"""Atomic numbers of what is relaxed."""


class TestGoingOn:
    """A run that was stopped goes on: no relaxation that had ended is done again, and all are in the file."""

    @pytest.fixture
    def stopped(self, dataset, tmp_path):
        """Leave what is left where two of three relaxations, of four steps each, have ended."""
        file = tmp_path / "r.parquet"
        with pytest.raises(KeyboardInterrupt):
            relax(dataset, Stopped(12), file, steps=4, name="m")
        assert (len(lines(file)), file.exists()) == (2, False)
        return file

    @pytest.mark.parametrize("atoms_at_once", [1, 5])
    def test_after_any_step(self, dataset, tmp_path, atoms_at_once):
        once = Stopped(atoms_at_once=atoms_at_once)
        summary = relax(dataset, once, tmp_path / "whole.parquet", steps=4, name="m")
        for n in range(len(once.asked)):
            file = tmp_path / f"{n}.parquet"
            with pytest.raises(KeyboardInterrupt):
                relax(dataset, Stopped(n, atoms_at_once), file, steps=4, name="m")
            ended = {CRYSTALS[name] for name in CRYSTALS if name in journal_of(file).read_text()}
            model, seen = Stopped(atoms_at_once=atoms_at_once), []
            assert relax(dataset, model, file, steps=4, name="m", report=seen.append) == summary
            assert model.crystals() == set(CRYSTALS.values()) - ended
            assert file.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
            assert seen == [1, 2, 3]
            assert not journal_of(file).exists()
        assert ended, "the last were stopped with some at their end"

    def test_they_end_in_another_order(self, dataset, tmp_path):
        whole = relax(dataset, Stopped(), tmp_path / "whole.parquet", name="m")
        with pytest.raises(KeyboardInterrupt):
            relax(dataset, Stopped(25, atoms_at_once=100), tmp_path / "r.parquet", name="m")
        ended = [json.loads(line)["trajectory_id"] for line in lines(tmp_path / "r.parquet")]
        assert ended == ["mp-2-pbe", "mp-1-pbe"]
        model = Stopped(atoms_at_once=100)
        assert relax(dataset, model, tmp_path / "r.parquet", name="m") == whole
        assert model.crystals() == {CRYSTALS["mp-0-pbe"]}
        assert pq.read_table(tmp_path / "r.parquet") == pq.read_table(tmp_path / "whole.parquet")

    def test_a_line_that_was_cut_off_counts_for_nothing(self, dataset, stopped):
        text = journal_of(stopped).read_text()
        head, first, second = (line for line in text.splitlines() if line)
        whole = relax(dataset, Stopped(), stopped, steps=4, name="m")
        for size, kept in (
            (len(text), 2), (len(text) - 2, 1), (text.index(second) + 1, 1), (text.index(second), 1),
            (text.index(first) + 40, 0), (len(head) + 1, 0), (len(head) - 1, 0), (0, 0),
        ):  # fmt: skip
            stopped.unlink()
            journal_of(stopped).write_text(text[:size])
            model = Stopped(1)
            with pytest.raises(KeyboardInterrupt):  # what comes now has lines of its own
                relax(dataset, model, stopped, steps=4, name="m")
            model = Stopped()
            assert relax(dataset, model, stopped, steps=4, name="m") == whole
            assert len(model.crystals()) == 3 - kept

    def test_lines_come_after_one_that_was_cut_off(self, dataset, stopped):
        journal_of(stopped).write_text(journal_of(stopped).read_text()[:-10])
        with pytest.raises(KeyboardInterrupt):
            relax(dataset, Stopped(6), stopped, steps=4, name="m")
        model = Stopped()
        relax(dataset, model, stopped, steps=4, name="m")
        assert len(model.crystals()) == 1

    def test_what_is_done_is_not_done_again(self, dataset, stopped):
        whole, before = relax(dataset, Stopped(), stopped, steps=4, name="m"), stopped.read_bytes()
        model, seen = Stopped(0), []
        assert relax(dataset, model, stopped, steps=4, name="m", report=seen.append) == whole
        assert (model.asked, seen, stopped.read_bytes()) == ([], [3], before)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"name": "n"}, "by another model"),
            ({"fmax": 0.1}, "with another fmax"),
            ({"steps": 3}, "with another steps"),
            ({}, "of other trajectories"),
        ],
    )
    def test_what_is_of_something_else_is_not_replaced(self, dataset, stopped, options, reason):
        relax(dataset, Stopped(), stopped, steps=4, name="m")
        other = dataset if options else dataset.only(["mp-1-pbe"])
        with pytest.raises(ModelError, match=f"r.parquet: holds relaxations {reason}; choose another name"):
            relax(other, Stopped(0), stopped, **{"steps": 4, "name": "m", **options})

    def test_nor_is_a_file_that_is_something_else(self, dataset, tmp_path):
        file = tmp_path / "r.parquet"
        for write in (lambda: file.write_bytes(b"mine"), lambda: dataset.save(file)):
            write()
            before = file.read_bytes()
            with pytest.raises(ModelError, match="is there already, and no relaxations of trajmill"):
                relax(dataset, Stopped(0), file, name="m")
            assert file.read_bytes() == before

    @pytest.mark.parametrize("options", [{"name": "n"}, {"name": ""}, {"fmax": 0.1}, {"steps": 3}])
    def test_not_by_another_model_or_other_limits(self, dataset, stopped, options):
        model = Stopped()
        found = relax(dataset, model, stopped, **{"steps": 4, "name": "m", **options})
        assert len(model.crystals()) == found.relaxations == 3

    def test_not_by_a_model_without_a_name(self, dataset, tmp_path):
        for _ in range(2):
            model = Stopped(7)
            with pytest.raises(KeyboardInterrupt):
                relax(dataset, model, tmp_path / "r.parquet", steps=4)
            assert model.crystals() == {CRYSTALS["mp-0-pbe"], CRYSTALS["mp-1-pbe"]}

    def test_not_by_other_weights(self, dataset, tmp_path):
        weights = tmp_path / "my.model"
        ended = []
        for content in ("a", "b", "b"):
            weights.write_text(content)
            with pytest.raises(KeyboardInterrupt):
                relax(dataset, Stopped(6), tmp_path / "r.parquet", steps=4, name=f"mace:{weights}")
            ended.append(len(lines(tmp_path / "r.parquet")))
        assert ended == [1, 1, 2]

    def test_not_from_other_geometries(self, dataset, stopped, tmp_path):
        """Trajectories of the same names, one of which begins elsewhere; another is there no more."""
        runs = [t for t in dataset.trajectories() if t.trajectory_id != "mp-2-pbe"]
        changed = [t.changed(lattice=t.lattice * 1.001) if t.trajectory_id == "mp-0-pbe" else t for t in runs]
        make_store(tmp_path / "store", changed)
        model = Stopped()
        assert relax(trajmill.open(tmp_path / "store"), model, stopped, steps=4, name="m").relaxations == 2
        assert model.crystals() == {CRYSTALS["mp-0-pbe"]}

    @pytest.mark.parametrize("what", ["replace", "unlink"])
    def test_before_and_after_the_file_is_put_in_its_place(self, dataset, stopped, monkeypatch, what):
        def breaking(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(stopped), what, breaking)
            with pytest.raises(KeyboardInterrupt):
                relax(dataset, Stopped(), stopped, steps=4, name="m")
        assert stopped.exists() == (what == "unlink")
        assert relax(dataset, Stopped(0), stopped, steps=4, name="m").relaxations == 3, "and the model is not asked"
        assert [p.name for p in stopped.parent.iterdir()] == ["r.parquet"]

    def test_where_nothing_can_be_written(self, dataset, tmp_path):
        model = Stopped()
        with pytest.raises(ModelError, match=r"none/r.parquet: cannot be written \(No such file or directory\)"):
            relax(dataset, model, tmp_path / "none/r.parquet")
        assert not model.asked


def trajmill_relax(*arguments):
    command = [sys.executable, "-m", "trajmill.cli", "relax", "ase.calculators.emt:EMT", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


SLOW = """
import time
from ase.calculators.emt import EMT

class Slow(EMT):
    def calculate(self, *arguments):
        time.sleep(0.03)
        super().calculate(*arguments)
"""

REFUSING = """
        raise ValueError
"""


class TestCommand:
    def test_relaxations_begin_with_their_input(self, tmp_path):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += np.random.default_rng(0).normal(0, 0.1, atoms.positions.shape)
        run = replace(relaxed_by_emt("oqmd-1", atoms), asset="oqmd/a", source="oqmd")
        place = np.arange(len(run))
        nothing = {"energy": np.full(1, np.nan), "forces": np.full((1, 4, 3), np.nan), "is_input": np.array([True])}
        first = run.select(place == 0).changed(stress=np.full((1, 3, 3), np.nan), **nothing)
        make_store(tmp_path / "store", [run.select(place == len(run) - 1)], inputs=[first])
        on = ("--on", tmp_path / "store", "--out", tmp_path / "r.parquet")
        assert "nothing to relax" in trajmill_relax(*on).stderr
        result = trajmill_relax(*on, "--inputs", tmp_path / "store")
        assert result.returncode == 0, result.stderr
        (row,) = pq.read_table(tmp_path / "r.parquet").to_pylist()
        assert row["trajectory_id"] == "oqmd-1-pbe"
        assert row["steps"] > 10
        assert row["rmsd"] < 0.01

    @pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
    def test_what_was_stopped_goes_on(self, dataset, tmp_path, how, code):
        (tmp_path / "slow.py").write_text(SLOW)
        make_store(tmp_path / "store", [t for t in dataset.trajectories() if len(t) > 1])
        out = tmp_path / "r.parquet"
        command = [sys.executable, "-m", "trajmill.cli", "relax", "slow:Slow", "--on", tmp_path / "store", "--out", out]

        def start():
            return subprocess.Popen(
                [*command, "--steps", "20"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True,
                stderr=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip

        first = start()
        while first.poll() is None and not lines(out):
            time.sleep(0.01)
        first.send_signal(how)
        _, said = first.communicate(timeout=100)
        assert first.returncode == code
        assert code < 0 or "run the same command again to go on" in said
        ended = [json.loads(line)["trajectory_id"] for line in lines(out)]
        assert 1 <= len(ended) < 3
        (tmp_path / "slow.py").write_text(SLOW + REFUSING)  # a model of the same name, that shows what it is asked
        second = start()
        _, said = second.communicate(timeout=100)
        assert second.returncode == 0, said
        rows = {row["trajectory_id"]: row["failure"] for row in pq.read_table(out).to_pylist()}
        assert {name for name, failure in rows.items() if failure is None} == set(ended)
        assert len(rows) == 3
        assert not journal_of(out).exists()

    def test_a_model_that_cannot_be_asked_in_batches_is_said_in_a_line(self, tmp_path):
        make_store(tmp_path / "store", [make_trajectory("mp-1")])
        result = trajmill_relax("--on", tmp_path / "store", "--out", tmp_path / "r.parquet", "--batch", 100)
        assert result.returncode == 2
        assert result.stderr.startswith("trajmill: EMT cannot be asked about many structures at once; a MACE model")
        assert result.stderr.count("\n") == 1
