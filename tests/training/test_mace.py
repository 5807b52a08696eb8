"""Real trainings of a small MACE on a CPU: the loss goes down, stages and fine-tuning load the weights, one goes on."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

import trajmill
from factories import make_store, make_trajectory
from making import DATA
from trajmill.errors import MissingExtraError, ModelError
from trajmill.splits import Split, split
from trajmill.training.evaluation import evaluate
from trajmill.training.mace import arguments, epochs, train
from trajmill.training.recipes import BUILT_IN, TrainingRecipe, load

SMALL = {"r_max": 4.0, "num_channels": 4, "max_L": 0, "max_ell": 2, "correlation": 2, "num_radial_basis": 6}


def run_of_emt(name, rng):
    """Copper and gold, shaken and strained, with EMT's labels: frames of no relaxation, but of one surface."""
    frames = []
    base = bulk("Cu", cubic=True)
    base.symbols[0] = "Au"
    for _ in range(6):
        atoms = base.copy()
        atoms.set_cell(atoms.cell * rng.uniform(0.98, 1.08), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = EMT()
        stress = atoms.get_stress(voigt=False)
        frames.append((atoms.cell[:], atoms.positions, atoms.get_potential_energy(), atoms.get_forces(), stress))
    lattice, positions, energy, forces, stress = (np.array(column) for column in zip(*frames, strict=True))
    t = make_trajectory(name, n_frames=6, symbols=tuple(base.get_chemical_symbols()), energy_corrected=None)
    return replace(t, lattice=lattice, positions=positions, energy=energy, forces=forces, stress=stress)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    make_store(folder / "store", [run_of_emt(f"mp-{i}", rng) for i in range(10)])
    dataset = trajmill.open(folder / "store")
    return dataset, split(dataset, {"train": 0.8, "val": 0.2}), folder


def recipe(**changes):
    return TrainingRecipe(**({"epochs": 3, "batch_size": 4, "lr": 0.01, "dtype": "float64", "model": SMALL} | changes))


@pytest.fixture(scope="module")
def trained(data):
    """A training in two stages, stopped after its first epoch and gone on with."""
    dataset, parts, folder = data
    two = {"start": 2, "weights": [100, 100, 1], "lr": 0.01}
    seen = []

    def stop(epoch):
        seen.append(epoch)
        if epoch.number == 1:  # its checkpoint may not be written yet, that of the first is
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dataset, parts, folder / "run", recipe(stage_two=two), report=stop)
    model = train(dataset, parts, folder / "run", recipe(stage_two=two), report=seen.append)
    return model, seen


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # torch's and MACE's of each other
class TestTraining:
    def test_errors_go_down_and_it_goes_on_where_it_was_stopped(self, trained):
        model, seen = trained
        assert model.name == "model_stagetwo.model"
        numbers = [epoch.number for epoch in seen]
        assert numbers[:3] == [None, 0, 1]
        assert numbers[-1] == 2
        assert numbers.count(0) == 1, "it did not begin anew"
        assert seen[-1].force_rmse < 0.8 * seen[0].force_rmse

    def test_fine_tuning_begins_where_training_ended(self, data, trained):
        dataset, parts, folder = data
        model, seen = trained
        again = []
        tuned = train(
            dataset, parts, folder / "tuned", recipe(name="tuned", epochs=1, foundation=model, weights=[1, 100, 1]),
            report=again.append,
        )  # fmt: skip
        assert tuned.name == "tuned.model"
        assert again[0].number is None
        ended = min(seen, key=lambda epoch: abs(epoch.force_rmse - again[0].force_rmse))
        assert again[0].force_rmse == pytest.approx(ended.force_rmse, rel=1e-4)
        assert again[0].energy_rmse == pytest.approx(ended.energy_rmse, rel=1e-3)
        assert ended.number == 2

    def test_a_card_says_what_was_done_and_another_recipe_is_refused(self, data, trained):
        dataset, parts, folder = data
        card = json.loads((folder / "run/card.json").read_text())
        assert card["split"]["digest"] == parts.digest
        assert card["elements"] == ["Au", "Cu"]
        assert card["packages"]["mace-torch"]
        with pytest.raises(ModelError, match="another recipe or split"):
            train(dataset, parts, folder / "run", recipe(lr=0.1))

    def test_the_model_can_be_held_against_dft(self, data, trained):
        dataset, parts, folder = data
        made = evaluate([f"mace:{trained[0]}"], {"val": parts.of(dataset, "val")}, folder / "evaluation")
        rows = dict(line.split(",")[2:4] for line in made[1].read_text().splitlines()[1:])
        last = trained[1][-1]
        assert float(rows["force_mae"]) == pytest.approx(1000 * last.force_rmse, rel=0.6), (
            "a mean beside a root mean square"
        )
        assert float(rows["stress_mae"]) < 1000 * last.stress_rmse


def test_stage_two_states_all_of_its_weights_and_stress_is_in_the_loss(tmp_path):
    given = arguments(recipe(stage_two={"start": 1}), tmp_path, {"Cu"}, "cpu")
    for flag in ("--loss=stress", "--compute_stress=True", "--stage_two", "--start_stage_two=1",
                 "--stage_two_energy_weight=100.0", "--stage_two_forces_weight=100.0", "--stage_two_stress_weight=1.0",
                 "--scheduler=ExponentialLR", "--lr_scheduler_gamma=1.0", "--atomic_numbers=[29]"):  # fmt: skip
        assert flag in given, flag
    (tmp_path / "m.model").touch()
    tuned = arguments(recipe(foundation=tmp_path / "m.model"), tmp_path, {"Cu"}, "cpu")
    assert "--multiheads_finetuning=False" in tuned


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
        ("epoch = 3", "epoch: Extra inputs"),
        ("epochs = 2\n[stage_two]\nstart = 2", "there are but 2 epochs"),
        ("foundation = 'none.model'", "none.model is not there"),
        ("epochs = ", "cannot be read"),
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
    assert not list(epochs(tmp_path / "run", recipe()))


def test_without_mace_the_extra_is_named(data, tmp_path, monkeypatch):
    dataset, parts, _ = data
    monkeypatch.setattr("trajmill.training.mace.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"trajmill\[mace\]"):
        train(dataset, parts, tmp_path / "run", recipe())
