"""Metrics against what was reckoned by hand, with models whose errors are known."""

from __future__ import annotations

import csv
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from training import offsets
from trajmill.errors import ModelError
from trajmill.training.calculators import calculator
from trajmill.training.evaluation import evaluate
from trajmill.training.metrics import METRICS, by_group, errors_of, score
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
    def run(model, name="p.parquet", **options):
        return predict(dataset, model, tmp_path / name, **options)

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
