"""Metrics against what was reckoned by hand, with models whose errors are known."""

from __future__ import annotations

import csv
import math
import os
import re
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from training import offsets
from trajmill.errors import ModelError
from trajmill.locking import Lock
from trajmill.training import evaluation, predictions
from trajmill.training.batching import OneByOne
from trajmill.training.calculators import calculator, digest_of
from trajmill.training.evaluation import evaluate
from trajmill.training.metrics import METRICS, by_group, errors_of, score, score_unseen
from trajmill.training.predictions import predict
from trajmill.units import to_voigt


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    still = np.zeros((1, 2, 3))
    runs = [
        make_trajectory("mp-1", n_frames=4),
        make_trajectory("mp-2", symbols=("Na", "Cl", "Cl"), n_frames=3, asset="mp/b.jsonl"),
        make_trajectory("agm3", n_frames=2, stress=np.full((2, 3, 3), np.nan), asset="alexandria/c.jsonl", energy=-7.0),
        make_trajectory("agm4", n_frames=1, forces=still, asset="alexandria/c.jsonl", energy=-9.0),
    ]
    for k, t in enumerate(runs):
        t.positions[:] += 0.01 * k
        for i in range(len(t)):
            stress = np.nan_to_num(to_voigt(t.stress[i]))
            offsets.ANSWERS[offsets.key(t.positions[i], t.lattice[i])] = (t.energy[i], t.forces[i], stress)
    path = tmp_path_factory.mktemp("evaluation") / "store"
    make_store(path, runs)
    return trajmill.open(path)


@pytest.fixture
def predicted(dataset, tmp_path):
    def run(model, file="p.parquet", **options):
        return predict(dataset, model, tmp_path / file, **options)

    return run


def read(file):
    return file.read_text(encoding="utf-8")


def values(found):
    return {name: s.value for name, s in found.items()}


def test_a_perfect_model(predicted):
    errors = errors_of(predicted(offsets.perfect()))
    found = values(score(errors))
    assert found["energy_mae"] == pytest.approx(0, abs=1e-9)
    assert found["force_mae"] == found["stress_mae"] == pytest.approx(0, abs=1e-9)
    assert found["force_cosine"] == pytest.approx(1)
    assert errors.undefined == 2, "two atoms that DFT leaves without a force have no angle, and no 0 either"
    assert (len(errors), errors.failed) == (10, 0)


def test_errors_that_were_reckoned_by_hand(dataset, predicted):
    found = values(score(errors_of(predicted(offsets.wrong()))))
    # Na Cl: (0.02 - 0.01) / 2 = 5 meV/atom, of 7 frames; Na Cl Cl: (0.02 - 0.02) / 3 = 0, of 3
    assert found["energy_mae"] == pytest.approx(7 * 5 / 10)
    assert found["force_mae"] == pytest.approx(100 / 3), "0.1 eV/A in one of three components"
    assert found["stress_mae"] == pytest.approx(1.0), "of the frames that have one"
    cosines = []
    for t in dataset.trajectories():
        for f in t.forces.reshape(-1, 3):
            if np.linalg.norm(f) > 0:
                g = f + np.array([0.1, 0, 0])
                cosines.append((np.linalg.norm(f), f @ g / np.linalg.norm(f) / np.linalg.norm(g)))
    assert found["force_cosine"] == pytest.approx(np.mean([c for _, c in cosines]))
    assert found["force_cosine_above"] == pytest.approx(np.mean([c for n, c in cosines if n > 0.05]))
    assert min(n for n, _ in cosines) > 0.05 or found["force_cosine_above"] > found["force_cosine"]


def test_a_constant_per_element_may_be_taken_off(predicted):
    path = predicted(offsets.wrong())
    assert score(errors_of(path, shift="composition"))["energy_mae"].value == pytest.approx(0, abs=1e-6)


def test_intervals_are_those_of_trajectories(predicted):
    errors = errors_of(predicted(offsets.wrong()))
    found = score(errors, draws=2000, seed=1)["energy_mae"]
    assert found.low < 1 < 3.5 < 4.9 < found.high, "a draw may miss what is right, or what is wrong"
    assert score(errors, draws=2000, seed=1)["energy_mae"] == found
    alone = score(errors, errors.trajectory == errors.trajectory[0])["energy_mae"]
    assert math.isnan(alone.low)


def test_groups(predicted):
    errors = errors_of(predicted(offsets.wrong()))
    sources = by_group(errors, "source")
    assert {name: round(s["energy_mae"].value, 3) for name, s in sources.items()} == {
        "alexandria": 5.0, "mp": pytest.approx(4 * 5 / 7, abs=1e-3)
    }  # fmt: skip
    assert math.isnan(by_group(errors, "step")["0 to 1"]["stress_mae"].value) is False
    assert list(by_group(errors, "element")) == ["Na", "Cl"]
    ranges = by_group(errors, "force range")
    assert next(iter(ranges)) == "0 to 0.01 eV/A"
    assert ranges["0 to 0.01 eV/A"]["force_mae"].value == pytest.approx(100 / 3)
    with pytest.raises(ModelError, match="nothing is grouped by colour"):
        by_group(errors, "colour")


def test_what_a_model_has_not_seen(dataset, predicted, tmp_path):
    errors = errors_of(predicted(offsets.wrong()))
    assert errors.trajectories == ["agm3-pbe", "agm4-pbe", "mp-1-pbe", "mp-2-pbe"]
    new = {seen: score_unseen(errors, seen)["energy_mae"].value for seen in [(), ("mp-1-pbe",), ("mp-2-pbe", "other")]}
    assert new == pytest.approx({(): 3.5, ("mp-1-pbe",): 3 * 5 / 6, ("mp-2-pbe", "other"): 5})
    assert math.isnan(score_unseen(errors, errors.trajectories)["force_mae"].value)
    seen = {("training.offsets:wrong", "all"): {"mp-1-pbe", "agm3-pbe", "agm4-pbe"}}
    made = evaluate(["training.offsets:wrong"], {"all": dataset}, tmp_path, seen=lambda *key: seen[key])
    assert {file.name for file in made} >= {"unseen.md", "unseen.tex"}
    assert read(tmp_path / "unseen.md").splitlines()[4] == "| training.offsets:wrong | 0.0 |"
    assert "unseen.md" not in {file.name for file in evaluate(["training.offsets:wrong"], {"all": dataset}, tmp_path)}


def test_what_models_were_trained_on_may_be_named(tmp_path):
    def run(name, *symbols, energy):
        return make_trajectory(name, symbols=symbols, immutable_id=name, energy=energy, n_frames=2)

    make_store(tmp_path / "train", [run("mp-1", "Na", "Cl", energy=-1.0)])
    make_store(tmp_path / "test", [run("mp-1", "Na", "Cl", energy=-1.0), run("mp-3", "Ni", "S", energy=-8.0)])
    (tmp_path / "zero.py").write_text(ZERO)
    command = [
        sys.executable, "-m", "trajmill.cli", "evaluate", "zero:Zero", "--on", tmp_path / "test", "--trained-on",
        tmp_path / "train", "--out", tmp_path / "out",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    (mean,) = re.findall(r"\| zero:Zero \| ([\d.]+) ", read(tmp_path / "out/matrix.md").split("## ")[1])
    (new,) = re.findall(r"\| zero:Zero \| ([\d.]+) ", read(tmp_path / "out/unseen.md").split("## ")[1])
    energies = {t.trajectory_id: t.energy for t in trajmill.open(tmp_path / "test").trajectories()}
    assert float(new) == pytest.approx(1000 * np.abs(energies["mp-3-pbe"]).mean() / 2, abs=0.05)
    assert float(mean) < float(new) / 1.5


ZERO = """
import numpy as np
from ase.calculators.calculator import Calculator

class Zero(Calculator):
    implemented_properties = ["energy", "forces", "stress"]

    def calculate(self, atoms, *_):
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}
"""


def test_what_a_model_does_not_know_is_counted(dataset, predicted):
    path = predicted(offsets.Offset(refuses=["Cl"]))
    errors = errors_of(path)
    assert (len(errors), errors.failed) == (0, 10)
    assert pq.read_table(path)["failure"][0].as_py() == "ValueError: unknown element Cl"
    assert all(math.isnan(s.value) for s in score(errors).values())


def test_corrected_energies(dataset, predicted):
    errors = errors_of(predicted(offsets.perfect(), energy="energy_corrected"))
    assert len(errors) == 10
    assert score(errors)["energy_mae"].value > 100, "half an eV a cell in these"


def test_frames_without_the_energy_are_counted(dataset, tmp_path):
    make_store(tmp_path / "store", [make_trajectory("mp-1"), make_trajectory("mp-2", energy_corrected=None)])
    some = trajmill.open(tmp_path / "store")
    evaluate(["training.offsets:perfect"], {"some": some}, tmp_path / "out", energy="energy_corrected")
    row = (tmp_path / "out/frames.md").read_text().splitlines()[2]
    assert [cell.strip() for cell in row.split("|")][3:6] == ["0", "3", "3"], "three that the model does not know"


def test_tables_of_models_and_test_sets(dataset, tmp_path):
    models = ["training.offsets:perfect", "training.offsets:wrong"]
    datasets = {"all": dataset, "mp": dataset.filter('source = "mp"')}
    seen = []
    made = evaluate(models, datasets, tmp_path / "out", by=["source"], report=lambda *n: seen.append(n))
    assert seen[-1] == (34, 34)
    assert [p.name for p in made] == [
        "scores.md", "scores.csv", "scores.tex", "matrix.md", "matrix.tex", "frames.md",
        "by_source.md", "by_source.csv", "by_source.tex",
    ]  # fmt: skip
    assert all(p.is_file() for p in made)
    rows = list(csv.DictReader(made[1].read_text().splitlines()))
    assert len(rows) == 4 * len(METRICS)
    wrong = [r for r in rows if r["model"] == models[1] and r["test_set"] == "all" and r["metric"] == "energy_mae"]
    assert float(wrong[0]["value"]) == pytest.approx(3.5)
    assert made[0].read_text().count("\n") == 6
    assert r"\begin{tabular}" in made[2].read_text()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/predictions").iterdir()}
    evaluate(models, datasets, tmp_path / "out", shift="composition")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/predictions").iterdir()} == before, "not asked again"
    assert "composition" in (tmp_path / "out/frames.md").read_text()


def test_groups_have_intervals_in_every_format(dataset, tmp_path):
    evaluate(["training.offsets:wrong"], {"all": dataset}, tmp_path, by=["source", "force range"])
    rows = list(csv.DictReader((tmp_path / "by_source.csv").read_text().splitlines()))
    assert list(rows[0]) == ["model", "test_set", "source", "metric", "value", "low", "high", "what"]
    assert len(rows) == 2 * len(METRICS)
    (mp,) = (r for r in rows if (r["source"], r["metric"]) == ("mp", "energy_mae"))
    assert float(mp["low"]) == pytest.approx(0, abs=1e-9)
    assert [float(mp[name]) for name in ("value", "high")] == pytest.approx([4 * 5 / 7, 5])
    line = "training.offsets:wrong | all | mp | 2.9 (0.0 to 5.0) | 33.3 (33.3 to 33.3) | "
    assert line in read(tmp_path / "by_source.md")
    assert line.replace("|", "&") in read(tmp_path / "by_source.tex")
    assert csv.DictReader((tmp_path / "by_force_range.csv").read_text().splitlines()).fieldnames[2] == "force_range"
    assert r"0 to 0.01 eV/\AA{} & " in read(tmp_path / "by_force_range.tex")


def test_a_matrix_of_each_metric(dataset, tmp_path):
    """As papers show it: a row for each model, a column for each test set."""
    datasets = {"all_100%": dataset, "Alexandria/A~1": dataset.filter('source = "alexandria"')}
    evaluate(["training.offsets:perfect", "training.offsets:wrong"], datasets, tmp_path)
    text = read(tmp_path / "matrix.md")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(METRICS.values())
    assert text.splitlines()[2] == "| model | all_100% | Alexandria/A~1 |"
    assert text.splitlines()[5] == "| training.offsets:wrong | 3.5 (1.2 to 5.0) | 5.0 (5.0 to 5.0) |"
    tex = read(tmp_path / "matrix.tex")
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == len(METRICS)
    assert r"\begin{tabular}{lrr}" in tex
    assert r"model & all\_100\% & Alexandria/A\textasciitilde{}1 \\" in tex
    assert r"\caption{stress MAE, meV/\AA$^3$}" in tex


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt", "no model gpt; there are mace, chgnet, sevennet"),
        ("mace:none.model", "no such file"),
        ("nowhere:Model", "cannot be loaded"),
        ("training.offsets:Nothing", "cannot be loaded"),
    ],
)
def test_models_that_are_none(name, reason):
    with pytest.raises(ModelError, match=reason):
        calculator(name)


def test_what_makes_no_sense_is_said(dataset, tmp_path):
    for options, reason in (
        ({"shift": "up"}, "no shift up"),
        ({"by": ["x"]}, "no grouping x"),
        ({"energy": "e"}, "no energy e"),
    ):
        with pytest.raises(ModelError, match=reason):
            evaluate(["training.offsets:perfect"], {"all": dataset}, tmp_path / "out", **options)
    with pytest.raises(ModelError, match="no predictions"):
        errors_of(tmp_path / "none.parquet")
    (tmp_path / "full/scores.md").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"full: cannot be written \(Is a directory\)"):
        evaluate(["training.offsets:perfect"], {"all": dataset}, tmp_path / "full")


class Stopped(OneByOne):
    """Knows how many frames it was asked about, and in what batches; Ctrl-C comes before it answers about more."""

    def __init__(self, answers=1000, atoms_at_once=1):
        super().__init__(offsets.wrong())
        self.atoms_at_once, self.answers, self.asked = atoms_at_once, answers, []

    def predict(self, geometries):
        if sum(self.asked) + len(geometries) > self.answers:
            raise KeyboardInterrupt
        self.asked.append(len(geometries))
        return super().predict(geometries)


def parts_of(file):
    return file.with_name(f".{file.name}.parts")


def kept(file):
    return sum(pq.read_metadata(part).num_rows for part in parts_of(file).glob("*.parquet"))


class TestGoingOn:
    """A run that was stopped goes on: the file is byte for byte the one that is made in one go."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(predictions, "AT_ONCE", 3)

    @pytest.fixture
    def whole(self, predicted):
        return predicted(Stopped(), "whole.parquet", name="m").read_bytes()

    @pytest.fixture
    def stopped(self, predicted, tmp_path):
        """Leave what is left by a run that is stopped after seven frames: two parts of three rows."""
        file = tmp_path / "p.parquet"
        with pytest.raises(KeyboardInterrupt):
            predicted(Stopped(7), name="m")
        assert (kept(file), file.exists()) == (6, False)
        return file

    @pytest.mark.parametrize("atoms_at_once", [1, 5])
    @pytest.mark.parametrize("n", range(11))
    def test_after_any_frame(self, predicted, tmp_path, n, atoms_at_once):
        once = Stopped(atoms_at_once=atoms_at_once)
        whole = predicted(once, "whole.parquet", name="m").read_bytes()
        with suppress(KeyboardInterrupt):
            predicted(Stopped(n, atoms_at_once), name="m")
        there = 0 if (tmp_path / "p.parquet").exists() else kept(tmp_path / "p.parquet")
        assert n < 10 or not parts_of(tmp_path / "p.parquet").exists()
        again, seen = Stopped(atoms_at_once=atoms_at_once), []
        assert predicted(again, name="m", report=seen.append).read_bytes() == whole
        assert sum(again.asked) == 10 - there
        assert again.asked == once.asked[len(once.asked) - len(again.asked) :], "in the batches of one go"
        assert seen[0] == (there or min(seen))
        assert (seen, seen[-1]) == (sorted(set(seen)), 10)
        assert {p.name for p in tmp_path.iterdir()} == {"whole.parquet", "p.parquet"}

    def test_what_takes_long_is_kept_at_once(self, predicted, whole, monkeypatch):
        monkeypatch.setattr(predictions, "KEEP", 0)
        asked = 0
        for _ in range(5):
            model = Stopped(2)
            with suppress(KeyboardInterrupt):
                file = predicted(model, name="m")
            asked += sum(model.asked)
        assert (file.read_bytes(), asked) == (whole, 10), "no frame twice"
        groups = pq.read_metadata(file)
        assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [3, 3, 3, 1]

    @pytest.mark.parametrize("when", range(10))
    def test_between_any_two_writes(self, predicted, whole, monkeypatch, tmp_path, when):
        """Before and after each file is put in its place, the last of them the one that is made."""
        rename, calls = predictions.Path.replace, []

        def breaking(path, target):
            calls.append(target)
            if len(calls) == when // 2 + 1:
                if when % 2:
                    rename(path, target)
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(predictions.Path, "replace", breaking)
            with pytest.raises(KeyboardInterrupt):
                predicted(Stopped(), name="m")
        assert (tmp_path / "p.parquet").exists() == (when == 9), "not before it is whole"
        again = Stopped()
        file = predicted(again, name="m")
        assert file.read_bytes() == whole
        assert sum(again.asked) == 10 - min(3 * ((when + 1) // 2), 10)
        assert not parts_of(file).exists()

    def test_after_a_kill(self, dataset, tmp_path):
        """A process that ends in the middle of a frame, without a chance to do anything."""
        script = """
import os, signal, sys
from pathlib import Path
import trajmill
from trajmill.training import predictions
from trajmill.training.batching import OneByOne

class Killed(OneByOne):
    left = int(sys.argv[3])

    def predict(self, geometries):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return ["says nothing"]

predictions.AT_ONCE = 3
predictions.predict(trajmill.open(sys.argv[1]), Killed(None), Path(sys.argv[2]), name="m")
"""
        make_store(tmp_path / "store", [make_trajectory(f"mp-{i}") for i in range(3)])

        def run(file, n):
            command = [sys.executable, "-c", script, tmp_path / "store", file, str(n)]
            return subprocess.run(command, capture_output=True, timeout=100, check=False).returncode

        assert run(tmp_path / "whole.parquet", 9) == 0
        assert run(tmp_path / "p.parquet", 4) == run(tmp_path / "p.parquet", 5) == -9
        assert kept(tmp_path / "p.parquet") == 6
        assert run(tmp_path / "p.parquet", 3) == 0
        assert (tmp_path / "p.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()

    def test_what_was_half_written_is_written_again(self, predicted, stopped, whole):
        (parts_of(stopped) / "tmp").write_bytes(b"PAR1 and no end")
        model = Stopped()
        assert predicted(model, name="m").read_bytes() == whole
        assert sum(model.asked) == 4

    @pytest.mark.parametrize(("damaged", "asked"), [("0.parquet", 10), ("3.parquet", 7)])
    @pytest.mark.parametrize("size", [0, 100, -1])
    def test_parts_that_are_cut_off_count_for_nothing(self, predicted, stopped, whole, damaged, asked, size):
        part = parts_of(stopped) / damaged
        os.truncate(part, size % part.stat().st_size)
        model = Stopped()
        assert predicted(model, name="m").read_bytes() == whole
        assert sum(model.asked) == asked

    @pytest.mark.parametrize("options", [{"name": "n"}, {"name": ""}, {"name": "m", "energy": "energy_corrected"}])
    def test_not_of_another_model_or_energy(self, predicted, stopped, options):
        fresh = predicted(Stopped(), "fresh.parquet", **options).read_bytes()
        model = Stopped()
        assert predicted(model, **options).read_bytes() == fresh
        assert sum(model.asked) == 10

    def test_not_of_a_model_without_a_name(self, predicted):
        with suppress(KeyboardInterrupt):
            predicted(Stopped(7))
        model = Stopped()
        predicted(model)
        assert sum(model.asked) == 10

    def test_not_of_other_weights(self, predicted, tmp_path):
        name = f"mace:{tmp_path / 'my.model'}"
        asked = []
        for weights, move in ((b"a", False), (b"b", False), (b"b", True)):
            if move:
                name = f"mace:{tmp_path / 'other.model'}"
            (tmp_path / name.rpartition("/")[2]).write_bytes(weights)
            model = Stopped(7 if not move else 1000)
            with suppress(KeyboardInterrupt):
                predicted(model, name=name)
            asked.append(sum(model.asked))
        assert asked == [7, 7, 4], "other weights of the same name are asked anew, the same of another name are not"

    @pytest.mark.parametrize(
        ("which", "again"),
        [
            ('source = "mp"', 7),
            ("nsites = 2", 7),
            ('source = "alexandria"', 3),
            ('NOT (trajectory_id = "mp-1-pbe")', 0),
        ],
    )
    def test_not_of_other_frames(self, dataset, stopped, tmp_path, which, again):
        """Those of before are held against those of now: other ones, more of them, and those that are the same."""
        other = dataset.filter(which)
        fresh = predict(other, Stopped(), tmp_path / "fresh.parquet", name="m").read_bytes()
        model = Stopped()
        assert predict(other, model, stopped, name="m").read_bytes() == fresh
        assert sum(model.asked) == again

    def test_not_of_frames_in_another_order(self, tmp_path):
        for name, order in (("a", "012"), ("b", "210")):
            make_store(tmp_path / name, [make_trajectory(f"mp-{i}", asset=f"mp/{order[i]}") for i in range(3)])
        one, other = trajmill.open(tmp_path / "a"), trajmill.open(tmp_path / "b")
        assert [t.trajectory_id for t in one.trajectories()] == [t.trajectory_id for t in other.trajectories()][::-1]
        assert one.digest() == other.digest()
        with pytest.raises(KeyboardInterrupt):
            predict(one, Stopped(7), tmp_path / "p.parquet", name="m")
        rows = pq.read_table(predict(other, Stopped(), tmp_path / "p.parquet", name="m"))
        assert sorted(set(rows["id"].to_pylist())) == sorted(f"mp-{i}-pbe-{k}" for i in range(3) for k in range(3))
        assert len(rows) == 9

    def test_two_at_a_time_are_one_too_many(self, predicted, stopped):
        with Lock(parts_of(stopped) / "lock"), pytest.raises(ModelError, match=rf"process {os.getpid()} is making it"):
            predicted(Stopped(), name="m")

    def test_rows_that_vanish_are_missed(self, predicted, monkeypatch, tmp_path):
        def vanishing(done):
            if done == 10:
                (parts_of(tmp_path / "p.parquet") / "6.parquet").unlink()

        with pytest.raises(ModelError, match="cannot be read any more; run again"):
            predicted(Stopped(), name="m", report=vanishing)
        assert not (tmp_path / "p.parquet").exists()
        model = Stopped()
        predicted(model, name="m")
        assert sum(model.asked) == 4

    def test_where_nothing_can_be_written(self, predicted, tmp_path):
        model = Stopped()
        with pytest.raises(ModelError, match=r"none/p.parquet: cannot be written \(No such file or directory\)"):
            predicted(model, "none/p.parquet")
        assert not model.asked

    def test_an_evaluation(self, dataset, tmp_path, monkeypatch):
        models = [Stopped(13), Stopped()]
        monkeypatch.setattr(evaluation, "calculator", lambda name, device: models[0])
        datasets = {"mp": dataset.filter('source = "mp"'), "all": dataset}
        with pytest.raises(KeyboardInterrupt):
            evaluate(["training.offsets:wrong"], datasets, tmp_path / "out")
        del models[0]
        seen = []
        evaluate(["training.offsets:wrong"], datasets, tmp_path / "out", report=lambda *n: seen.append(n))
        assert sum(models[0].asked) == 4, "of 17, of which 13 were kept"
        assert seen[:2] == [(7, 17), (13, 17)]
        assert seen[-1] == (17, 17)
        monkeypatch.undo()
        evaluate(["training.offsets:wrong"], datasets, tmp_path / "one go")
        assert read(tmp_path / "out/scores.csv") == read(tmp_path / "one go/scores.csv")
        names = [sorted(p.name for p in (tmp_path / out / "predictions").iterdir()) for out in ("out", "one go")]
        assert names[0] == names[1]


def test_models_are_told_apart_by_their_weights(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("weights" if name != "c" else "others")
    a, b, c = (digest_of(f"mace:{tmp_path / name}") for name in ("a", "b", "c"))
    assert a == b != c
    assert len({digest_of(name) for name in ("chgnet", "sevennet", "sevennet:x", "x:sevennet", f"m:{tmp_path}")}) == 5
    assert digest_of("chgnet", "energy") != digest_of("chgnet", "energy_corrected")
