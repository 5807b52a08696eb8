"""The experiment of the LeMat-Traj paper's appendix D in miniature: real trainings of small models on a CPU."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import trajmill
from emt import SMALL, run_of_emt
from factories import make_store
from making import DATA
from trajmill.converting import convert
from trajmill.errors import ModelError, TrajmillError
from trajmill.training.experiment import EXPERIMENTS, Stage, load, run
from trajmill.training.mace import metrics
from trajmill.training.tasks import Epoch

SETTINGS = """
[frames]
train = 36
val = 12
test = 12

[data]
omat24 = {{ address = "{0}/omat24.aselmdb", test = "{0}/omat24-val.aselmdb" }}
mptrj.address = "{0}/mptrj.parquet"
matpes.address = "{0}/matpes.parquet"
lemat.address = "{0}/lemat"

[recipe]
epochs = 2
batch_size = 4
lr = 0.01
dtype = "float64"
stage_two.start = 1
model = {1}

[tuning]
epochs = 1
batch_size = 4
lr = 0.01

[trainings.omat24-lemat.recipe]
dtype = "float64"
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Four datasets in their own formats, of one surface, but with zeros of energy of their own."""
    folder = tmp_path_factory.mktemp("experiment")
    rng = np.random.default_rng(0)
    for name, n, zero in (("omat24", 8, 1.0), ("omat24-val", 1, 1.0), ("mptrj", 10, 0.0), ("matpes", 10, -0.5)):
        runs = [run_of_emt(f"{name}-{i}", rng, zero=zero) for i in range(n)]
        if name == "omat24-val":  # the only gold without copper
            runs.append(run_of_emt("gold", rng, metals=("Au", "Au"), zero=zero))
        make_store(folder / f"{name}.store", runs)
        dataset = trajmill.open(folder / f"{name}.store")
        if name.startswith("omat24"):
            convert(dataset, folder / f"{name}.aselmdb", "aselmdb")
        else:
            dataset.save(folder / f"{name}.parquet")
    mixed = [run_of_emt(f"mp-{i}", rng) for i in range(4)]
    mixed += [run_of_emt(f"agm00{i}", rng, asset="alexandria/a.json.bz2", source="alexandria") for i in range(16)]
    make_store(folder / "lemat", mixed)
    model = "{ " + ", ".join(f"{key} = {value}" for key, value in SMALL.items()) + " }"
    (folder / "small.toml").write_text(SETTINGS.format(folder, model))
    return folder / "small.toml"


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # torch's and MACE's of each other
class TestExperiment:
    @pytest.fixture(scope="class")
    def done(self, settings):
        """The experiment, stopped in the second training and gone on with."""
        out = settings.parent / "out"
        chosen = load("lemat-appendix-d", settings)

        def stop(stage, how_far):
            if stage == Stage("train", "mptrj") and how_far is not None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(chosen, out, report=stop)
        told = []
        report = run(chosen, out, report=lambda stage, how_far: told.append((stage, how_far)))
        return out, report, told

    def test_what_was_done_is_not_done_again(self, done):
        _, _, told = done
        begun = [(stage.what, stage.name) for stage, how_far in told if how_far is None]
        assert begun == [
            *(("draw", name) for name in ("omat24", "mptrj", "matpes", "lemat")),
            *(("compare", name) for name in ("omat24", "mptrj", "matpes", "lemat")),
            *(("train", name) for name in ("omat24", "mptrj", "matpes", "lemat", "omat24-lemat")),
            ("evaluate", ""),
        ]
        worked = {stage.name for stage, how_far in told if how_far is not None and stage.what == "train"}
        assert worked == {"mptrj", "matpes", "lemat", "omat24-lemat"}, "the first was trained before"

    def test_parts_are_as_large_as_was_asked_for_and_have_no_trajectory_in_common(self, done):
        out, _, _ = done
        seen = {}
        for name in ("omat24", "mptrj", "matpes", "lemat"):
            seen[name] = trajmill.open(out / f"data/{name}.parquet"), trajmill.open(out / f"data/{name}.test.parquet")
            assert len(seen[name][0]) == 48
            assert len(seen[name][1]) == 12
            assert not {*map(str, seen[name][0].trajectory_ids())} & {*map(str, seen[name][1].trajectory_ids())}
        sources = seen["lemat"][0].ask("SELECT source, count(*) AS n FROM wanted GROUP BY 1")
        assert dict(zip(sources["source"].to_pylist(), sources["n"].to_pylist(), strict=True))["alexandria"] > 30

    def test_all_models_are_held_against_all_test_sets(self, done):
        out, _, _ = done
        with (out / "evaluation/scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {(row["model"], row["test_set"]) for row in rows} == {
            (model, test)
            for model in ("omat24", "mptrj", "matpes", "lemat", "omat24-lemat")
            for test in ("matpes", "omat24", "mptrj", "lemat")
        }
        energies = {(r["model"], r["test_set"]): float(r["value"]) for r in rows if r["metric"] == "energy_mae"}
        assert max(energies.values()) < 400, "zeros that differ by 500 to 1500 meV/atom are taken off"

    def test_the_tuned_model_begins_where_the_first_ended(self, done):
        out, _, _ = done
        card = json.loads((out / "models/omat24-lemat/card.json").read_text())
        assert card["recipe"]["foundation"] == str(out / "models/omat24/omat24.model")
        assert card["recipe"]["weights"] == [1, 100, 1]
        assert card["recipe"]["epochs"] == 1

    def test_the_others_have_two_stages(self, done):
        out, _, _ = done
        for name in ("omat24", "mptrj", "matpes", "lemat"):
            epochs = [row for row in metrics(out / "models" / name) if isinstance(row, Epoch)]
            assert [row.stage for row in epochs] == [1, 1, 2]

    def test_the_report_has_it_all(self, done):
        out, report, _ = done
        text = report.read_text("utf-8")
        assert report == out / "report.md"
        for word in (
            "| omat24-lemat | lemat | omat24 | 1 |",
            "energy MAE, meV/atom",
            "omat24-val.aselmdb",
            "fitted by",
        ):
            assert word in text, word
        _, *rows = re.search(r"## What models have seen\n\n.*?\n\n(.*?)\n\n", text, re.DOTALL)[1].splitlines()
        assert [row.split("|")[1].strip() for row in rows[1:]] == [
            "omat24", "mptrj", "matpes", "lemat", "omat24-lemat"
        ]  # fmt: skip
        seen = "| lemat | 2 of 2 (100%) | 1 of 2 (50%) | 2 of 2 (100%) | 2 of 2 (100%) |"
        assert rows[4] == seen, "all but gold are one alloy"
        unseen = (out / "evaluation/unseen.md").read_text("utf-8").splitlines()
        assert re.fullmatch(r"\| lemat \| - \| \d+\.\d \| - \| - \|", unseen[7])
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (out / link).is_file(), link

    def test_what_was_drawn_is_not_asked_for_again(self, done, settings):
        out, report, _ = done
        before = report.read_text("utf-8")
        source = settings.with_name("mptrj.parquet")
        source.rename(source.with_name("elsewhere"))
        try:
            run(load("lemat-appendix-d", settings), out)
        finally:
            source.with_name("elsewhere").rename(source)
        assert report.read_text("utf-8") == before

    def test_other_settings_are_refused_in_its_folder(self, done, settings):
        other = settings.with_name("other.toml")
        other.write_text(settings.read_text().replace("train = 36", "train = 30"))
        command = [sys.executable, "-m", "trajmill.cli", "experiment", "lemat-appendix-d", other, "--out", done[0]]
        found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert found.returncode == 2
        assert found.stderr.count("\n") == 1
        assert "holds an experiment with another frames.train; choose a new folder" in found.stderr


def test_elements_that_a_model_does_not_know_are_seen_before_anything_is_trained(settings, tmp_path):
    rng = np.random.default_rng(1)
    make_store(tmp_path / "silver", [run_of_emt(f"mp-{i}", rng, metals=("Cu", "Ag")) for i in range(12)])
    text = re.sub(r"lemat.address = .*", f'lemat.address = "{tmp_path / "silver"}"', settings.read_text())
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(ModelError, match=r"trainings\.omat24-lemat: lemat has Ag, which omat24 is not trained on"):
        run(load("lemat-appendix-d", tmp_path / "other.toml"), tmp_path / "out")
    assert not (tmp_path / "out/models").exists()


def test_an_address_that_is_none_is_seen_before_anything_is_drawn(settings, tmp_path):
    (tmp_path / "other.toml").write_text(
        re.sub(r"lemat.address = .*", 'lemat.address = "nowhere"', settings.read_text())
    )
    with pytest.raises(TrajmillError, match="nowhere"):
        run(load("lemat-appendix-d", tmp_path / "other.toml"), tmp_path / "out")
    assert not any((tmp_path / "out/data").iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_seen_before_anything_is_done(settings, tmp_path):
    with pytest.raises(ModelError, match="no GPU here"):
        run(load("lemat-appendix-d", settings), tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


def test_a_part_without_frames_is_seen_too(settings, tmp_path):
    (tmp_path / "other.toml").write_text(settings.read_text().replace("val = 12", "val = 1"))
    with pytest.raises(ModelError, match=r"data\.omat24: val has no frames; draw more"):
        run(load("lemat-appendix-d", tmp_path / "other.toml"), tmp_path / "out")


def test_it_is_that_of_the_paper():
    its = EXPERIMENTS["lemat-appendix-d"]
    assert list(its["trainings"]) == ["omat24", "mptrj", "matpes", "lemat", "omat24-lemat"]
    assert its["tests"] == ["matpes", "omat24", "mptrj", "lemat"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("train = 36", "train = 0"), "frames.train: Input should be greater"),
        (("mptrj.address", "mptrj.adress"), "data.mptrj.address: Field required"),
        (("epochs = 1", "epoch = 1"), "trainings.omat24-lemat.recipe: epoch: no such key"),
        (
            ("stage_two.start = 1", ""),
            "trainings.omat24.recipe: stage_two.start: there are but 2",
        ),
        (("[frames]", 'tests = ["mptj"]\n[frames]'), "no dataset mptj; there are omat24, mptrj, matpes, lemat"),
        (("[frames]", 'trainings.mptrj.after = "lemat"\n[frames]'), "no training lemat before it"),
        (("[frames]", "[frames"), "cannot be read"),
    ],
)
def test_settings_that_make_no_sense(settings, tmp_path, change, reason):
    (tmp_path / "other.toml").write_text(settings.read_text().replace(*change))
    with pytest.raises(ModelError, match=re.escape(reason)):
        load("lemat-appendix-d", tmp_path / "other.toml")


def test_an_experiment_that_is_none(settings):
    with pytest.raises(ModelError, match="no experiment lemat; there are lemat-appendix-d"):
        load("lemat", settings)


def test_the_settings_of_the_page_on_experiments(tmp_path):
    page = (DATA.parents[1] / "docs/use/experiment.md").read_text("utf-8")
    (tmp_path / "settings.toml").write_text(re.search(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])
    found = load("lemat-appendix-d", tmp_path / "settings.toml")
    assert (found.frames.train, found.recipe["stage_two"]["start"], found.tuning["epochs"]) == (1_000_000, 30, 10)
