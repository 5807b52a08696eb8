"""Real trainings of a small MACE on a CPU: the loss goes down, stages and fine-tuning load the weights, one goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import trajmill
from emt import SMALL, run_of_emt
from factories import make_store, make_trajectory
from making import DATA
from servers import slurm
from trajmill.errors import MissingExtraError, ModelError
from trajmill.locking import Lock
from trajmill.splits import Split, split
from trajmill.training.evaluation import evaluate
from trajmill.training.mace import metrics, train
from trajmill.training.recipes import BUILT_IN, TrainingRecipe, load
from trajmill.training.tasks import Epoch, Steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    make_store(folder / "store", [run_of_emt(f"mp-{i}", rng) for i in range(10)])
    dataset = trajmill.open(folder / "store")
    return dataset, split(dataset, {"train": 0.8, "val": 0.2}), folder


def recipe(**changes):
    return TrainingRecipe(**({"epochs": 3, "batch_size": 4, "lr": 0.01, "dtype": "float64", "model": SMALL} | changes))


TRAINED = recipe(stage_two={"start": 2, "weights": [100, 100, 1], "lr": 0.01}, save_every=5, ema=0.9)


def stopped_after(n):
    """Return what stops a training, as Ctrl-C does, once it has told so many rows."""
    told = []

    def report(row):
        told.append(row)
        if len(told) == n:
            raise KeyboardInterrupt

    return report


def killed_after(n, out):
    """Return what kills the process that trains once it has told so many rows."""
    told = []

    def report(row):
        told.append(row)
        if len(told) == n:
            os.kill(int((out / ".lock").read_text()), signal.SIGKILL)

    return report


def trajmill_cli(*arguments):
    command = [sys.executable, "-m", "trajmill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


SPEED = {"frames_per_s": None, "waited": None}


def same(rows, expected):
    """Hold two trainings against each other, but for their speed; sums of many threads differ in a last digit."""
    assert [type(row) for row in rows] == [type(row) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        its, others = ([v for v in vars(replace(r, **SPEED)).values() if v is not None] for r in (row, other))
        assert its == pytest.approx(others, rel=1e-9)


@pytest.fixture(scope="module")
def trained(data):
    """A training in two stages, and what it told."""
    dataset, parts, folder = data
    seen = []
    model = train(dataset, parts, folder / "run", TRAINED, report=seen.append)
    return model, seen


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # torch's and MACE's of each other
class TestTraining:
    def test_errors_go_down(self, data, trained):
        model, seen = trained
        assert model.name == "model.model"
        assert seen == metrics(data[2] / "run")
        epochs = [row for row in seen if isinstance(row, Epoch)]
        assert [row.epoch for row in epochs] == [None, 0, 1, 2]
        assert [row.stage for row in epochs] == [1, 1, 1, 2]
        assert epochs[-1].force_rmse < 0.8 * epochs[0].force_rmse
        steps = [row for row in seen if isinstance(row, Steps)]
        assert [row.step for row in steps if row.epoch == 0] == list(range(1, 13)), "48 frames, 4 at a time"
        assert np.mean([row.loss for row in steps[-12:-6]]) > 0

    def test_one_that_was_killed_has_the_curve_of_one_that_was_not(self, data, trained):
        dataset, parts, folder = data
        out = folder / "killed"
        for rows in (9, 26):  # within the first epoch, and in the second stage
            with pytest.raises(ModelError, match="ended with exit code -9"):
                train(dataset, parts, out, TRAINED, report=killed_after(rows, out))
        train(dataset, parts, out, TRAINED)
        same(metrics(out), trained[1])
        assert len(trained[1]) == 4 + 3 * 12

    def test_one_that_was_stopped_does_no_step_twice(self, data, trained):
        dataset, parts, folder = data
        out, before = folder / "stopped", ""
        for rows in (7, 9):  # in the first epoch, and later
            with pytest.raises(KeyboardInterrupt):
                train(dataset, parts, out, TRAINED, report=stopped_after(rows))
            told = (out / "metrics.jsonl").read_text()
            assert told.startswith(before)
            assert len(told.splitlines()) - len(before.splitlines()) >= rows
            before = told
        assert "stopped after step" in (out / "mace.log").read_text()
        train(dataset, parts, out, TRAINED)
        assert (out / "metrics.jsonl").read_text().startswith(before), "rows are appended, none is told again"
        same(metrics(out), trained[1])

    def test_a_file_and_what_schedulers_send_end_it_too(self, data):
        dataset, parts, folder = data
        out = folder / "ended"

        def touch(row):
            (out / "stop").touch()

        def send(row):
            os.kill(int((out / ".lock").read_text()), signal.SIGTERM)

        long = recipe(epochs=500)
        for report in (touch, send):
            with pytest.raises(ModelError, match=r"ended: stopped after step \d+ of epoch \d+; run again to go on"):
                train(dataset, parts, out, long, workers=2, report=report)
        assert not list(out.glob("*.model"))

    def test_one_that_is_made_longer_has_the_curve_of_a_long_one(self, data):
        dataset, parts, folder = data
        short, long = recipe(epochs=1), recipe(epochs=2)
        model = train(dataset, parts, folder / "longer", short)
        train(dataset, parts, folder / "longer", long)
        train(dataset, parts, folder / "long-2", long)
        same(metrics(folder / "longer"), metrics(folder / "long-2"))
        with pytest.raises(ModelError, match="holds a training of 2 epochs; it can only be made longer"):
            train(dataset, parts, folder / "longer", short)
        before = model.stat().st_mtime_ns
        train(dataset, parts, folder / "longer", long)
        assert model.stat().st_mtime_ns == before, "nothing is left to be done"

    def test_so_it_is_with_workers(self, data):
        dataset, parts, folder = data
        chosen = recipe(epochs=1, save_every=3)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, parts, folder / "killed-2", chosen, workers=2, report=stopped_after(9))
        with pytest.raises(ModelError, match="within an epoch of 1 processes with 2 workers; use as many"):
            train(dataset, parts, folder / "killed-2", chosen)
        train(dataset, parts, folder / "killed-2", chosen, workers=2)
        train(dataset, parts, folder / "whole-2", chosen, workers=2)
        same(metrics(folder / "killed-2"), metrics(folder / "whole-2"))

    def test_two_processes_train_together_and_stop_together_from_the_command_line(self, data):
        dataset, parts, folder = data
        parts.save(folder / "split.parquet")
        lines = ["epochs = 2", "batch_size = 4", "lr = 0.01", "[model]", *(f"{k} = {v}" for k, v in SMALL.items())]
        (folder / "small.toml").write_text("\n".join(lines))
        out, chosen = folder / "together", load(str(folder / "small.toml"))
        with pytest.raises(KeyboardInterrupt):
            train(dataset, parts, out, chosen, processes=2, report=stopped_after(1))
        before = (out / "metrics.jsonl").read_text()
        found = trajmill_cli(
            "train", folder / "small.toml", "--on", folder / "store", "--split", folder / "split.parquet", "train",
            "val", "--out", out, "--processes", 2,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        assert found.stdout.split() == [str(out / "model.model")]
        told = [line.split(":")[0] for line in found.stderr.splitlines()]
        assert told == [f"epoch {n}" for n in (0, 1) if f'"valid", "epoch": {n}' not in before]
        assert (out / "metrics.jsonl").read_text().startswith(before), "no step is done twice"
        rows = metrics(out)
        assert [row.steps for row in rows if isinstance(row, Steps)] == [6] * 12, "24 frames each"
        epochs = [row for row in rows if isinstance(row, Epoch)]
        assert epochs[-1].force_rmse < epochs[0].force_rmse

    def test_slurm_starts_them(self, data, tmp_path):
        dataset, parts, folder = data
        out, srun = folder / "srun", ("srun", "--ntasks=2", "--overcommit", "--immediate=60")
        with slurm.running(tmp_path / "slurm"):
            model = train(dataset, parts, out, recipe(epochs=1), launcher=srun)
            assert model.is_file()
            assert [row.steps for row in metrics(out) if isinstance(row, Steps)] == [6] * 6, "24 frames each"
            with pytest.raises(KeyboardInterrupt):
                train(dataset, parts, out, recipe(epochs=500), launcher=srun, workers=2, report=stopped_after(3))
        assert "stopped after step" in (out / "mace.log").read_text()

    def test_a_launcher_that_says_nothing(self, data):
        dataset, parts, folder = data
        with pytest.raises(ModelError, match="says neither RANK and WORLD_SIZE, as torchrun does, nor what SLURM"):
            train(dataset, parts, folder / "env", recipe(), launcher=["env"])
        with pytest.raises(ModelError, match="to the launcher, not to trajmill as well"):
            train(dataset, parts, folder / "env", recipe(), launcher=["env"], processes=2)

    def test_a_loss_that_is_no_number_ends_it(self, data):
        dataset, parts, folder = data
        with pytest.raises(ModelError, match=r"the loss is nan after epoch 0; learn more slowly \(lr\)"):
            train(dataset, parts, folder / "nan", recipe(lr=1e30))

    def test_nothing_goes_on_when_the_command_is_killed(self, data):
        _, parts, folder = data
        parts.save(folder / "split.parquet")
        lines = ["epochs = 500", "batch_size = 4", "[model]", *(f"{k} = {v}" for k, v in SMALL.items())]
        (folder / "long.toml").write_text("\n".join(lines))
        command = [
            sys.executable, "-m", "trajmill.cli", "train", folder / "long.toml", "--on", folder / "store", "--split",
            folder / "split.parquet", "train", "val", "--out", folder / "long",
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline().startswith("epoch before the first")
            process.kill()
        deadline = time.monotonic() + 30
        while (lock := Lock(folder / "long/.lock")).holder is not None:
            assert time.monotonic() < deadline, f"process {lock.holder} trains on"
            time.sleep(0.5)

    def test_two_trainings_do_not_share_a_folder(self, data):
        dataset, parts, folder = data
        (folder / "shared").mkdir()
        with Lock(folder / "shared/.lock"), pytest.raises(ModelError, match=r"process \d+ trains here"):
            train(dataset, parts, folder / "shared", recipe())

    def test_fine_tuning_begins_where_training_ended(self, data, trained):
        dataset, parts, folder = data
        model, seen = trained
        again = []
        tuned = train(
            dataset, parts, folder / "tuned", recipe(name="tuned", epochs=1, foundation=model, weights=[1, 100, 1]),
            report=again.append,
        )  # fmt: skip
        assert tuned.name == "tuned.model"
        assert again[0].epoch is None
        best = min((row for row in seen if isinstance(row, Epoch) and row.stage == 2), key=lambda row: row.loss)
        for name in ("energy_rmse", "force_rmse", "stress_rmse", "energy_mae", "force_mae", "stress_mae"):
            assert getattr(again[0], name) == pytest.approx(getattr(best, name), rel=1e-6)

    def test_a_model_that_does_not_know_an_element_is_not_tuned(self, data, trained, tmp_path):
        make_store(tmp_path / "store", [make_trajectory(f"mp-{i}", energy=-float(i)) for i in range(4)])
        other = trajmill.open(tmp_path / "store")
        with pytest.raises(ModelError, match=r"training ended .* does not know (Na|Cl), which is trained on"):
            train(other, split(other, {"train": 0.5, "val": 0.5}), tmp_path / "run", recipe(foundation=trained[0]))

    def test_a_card_says_what_was_done_and_another_recipe_is_refused(self, data, trained):
        dataset, parts, folder = data
        card = json.loads((folder / "run/card.json").read_text())
        assert card["split"]["digest"] == parts.digest
        assert card["frames"]["train"] == parts.of(dataset, "train").digest()
        assert card["elements"] == ["Au", "Cu"]
        assert card["packages"]["mace-torch"]
        with pytest.raises(ModelError, match=r"another recipe\.lr; choose"):
            train(dataset, parts, folder / "run", recipe(lr=0.1))

    def test_the_model_can_be_held_against_dft(self, data, trained):
        dataset, parts, folder = data
        made = evaluate([f"mace:{trained[0]}"], {"val": parts.of(dataset, "val")}, folder / "evaluation")
        rows = dict(line.split(",")[2:4] for line in made[1].read_text().splitlines()[1:])
        best = min((row for row in trained[1] if isinstance(row, Epoch) and row.stage == 2), key=lambda row: row.loss)
        assert float(rows["energy_mae"]) == pytest.approx(1000 * best.energy_mae, rel=1e-6)
        assert float(rows["force_mae"]) == pytest.approx(1000 * best.force_mae, rel=1e-6)
        assert float(rows["stress_mae"]) == pytest.approx(1000 * best.stress_mae, rel=0.5), "of 6 numbers, and of 9"


def test_built_in_recipes_are_those_of_the_paper(tmp_path):
    (tmp_path / "m.model").touch()
    found = {name: load(name, foundation=tmp_path / "m.model") for name in BUILT_IN}
    assert {name: tuple(r.weights) for name, r in found.items()} == {
        "lemat-stage1": (1, 10, 1), "lemat-stage2": (100, 100, 1), "lemat-finetune": (1, 100, 1)
    }  # fmt: skip
    assert {(r.lr, r.batch_size) for r in found.values()} == {(8e-4, 128)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epochs = 0", "epochs: Input should be greater"),
        ("epoch = 3", "epoch: no such key"),
        ("epochs = 2\n[stage_two]\nstart = 2", "there are but 2 epochs"),
        ("foundation = 'none.model'", "none.model is not there"),
        ("epochs = ", "cannot be read"),
        ("weights = [1, 10]", "weights.2: Field required"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_is_computed(tmp_path, text, reason):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ModelError, match=reason):
        load(str(tmp_path / "recipe.toml"))


def test_the_recipe_of_the_page_on_training(tmp_path):
    page = (DATA.parents[1] / "docs/use/train.md").read_text("utf-8")
    (tmp_path / "small.toml").write_text(re.search(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])
    found = load(str(tmp_path / "small.toml"))
    assert (found.name, found.stage_two.start, found.model.r_max) == ("small", 40, 5.0)


def test_recipes_that_are_none():
    with pytest.raises(ModelError, match="no recipe lemat; there are lemat-stage1"):
        load("lemat")
    with pytest.raises(ModelError, match="say which model it goes on from"):
        load("lemat-finetune")


def test_elements_that_are_only_validated_with_are_refused(tmp_path):
    make_store(tmp_path / "store", [make_trajectory("mp-1"), make_trajectory("mp-2", symbols=("Fe",))])
    other = trajmill.open(tmp_path / "store")
    ids = other.trajectory_ids()
    parts = Split(ids, np.array([0, 1], np.int8), ("train", "val"), {})
    with pytest.raises(ModelError, match="val has Fe, which train has not"):
        train(other, parts, tmp_path / "run", recipe())
    assert not metrics(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "banana"}, "no device banana; there are cpu and cuda"),
        ({"device": "cuda"}, "no GPU here that torch can use"),
    ],
)
def test_a_device_that_is_not_there(data, tmp_path, options, reason):
    dataset, parts, _ = data
    if options["device"] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ModelError, match=reason):
        train(dataset, parts, tmp_path / "run", recipe(), **options)
    assert not (tmp_path / "run").exists()


def test_launchers_that_are_none(data):
    _, parts, folder = data
    parts.save(folder / "split.parquet")
    for launcher, reason in (("'", "No closing quotation"), ("nosuch -n 2", "there is no nosuch here")):
        found = trajmill_cli(
            "train", "lemat-stage1", "--on", folder / "store", "--split", folder / "split.parquet", "train", "val",
            "--out", folder / "x", "--launcher", launcher,
        )  # fmt: skip
        assert found.returncode == 2
        assert reason in found.stderr
        assert found.stderr.count("\n") == 1


def test_frames_without_the_energy_are_left_out(data, tmp_path):
    dataset, parts, _ = data
    with pytest.raises(ModelError, match="train has no frames with energy_corrected"):
        train(dataset, parts, tmp_path / "run", recipe(energy="energy_corrected"))


def test_without_mace_the_extra_is_named(data, tmp_path, monkeypatch):
    dataset, parts, _ = data
    monkeypatch.setattr("trajmill.training.mace.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"trajmill\[mace\]"):
        train(dataset, parts, tmp_path / "run", recipe())
