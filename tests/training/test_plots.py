"""Figures of evaluations show what was reckoned, whether values are drawn as points or counted in cells."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from training import offsets
from trajmill.analysis import style
from trajmill.elements import NUMBERS
from trajmill.errors import MissingExtraError
from trajmill.training import plots
from trajmill.training.evaluation import evaluate
from trajmill.training.metrics import errors_of, score
from trajmill.training.plots import ENERGY, FORCES, QUANTITIES, STRESS, Held
from trajmill.training.predictions import SCHEMA, predict
from trajmill.units import to_voigt

AXES = "DFT", "model, not shifted"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    runs = [
        make_trajectory("mp-1", n_frames=4),
        make_trajectory("mp-2", symbols=("Na", "Cl", "Cl"), n_frames=3, stress=np.full((3, 3, 3), np.nan)),
    ]
    for k, t in enumerate(runs):
        t.positions[:] += 0.01 * k
        for i in range(len(t)):
            stress = np.nan_to_num(to_voigt(t.stress[i]))
            offsets.ANSWERS[offsets.key(t.positions[i], t.lattice[i])] = (t.energy[i], t.forces[i], stress)
    path = tmp_path_factory.mktemp("plots") / "store"
    make_store(path, runs)
    return trajmill.open(path)


@pytest.fixture
def held(dataset, tmp_path):
    """A model held against the dataset."""

    def run(model, **options):
        file = predict(dataset, model, tmp_path / "p.parquet")
        errors = errors_of(file, **options)
        return Held(file, errors, score(errors))

    return run


@pytest.fixture
def random(tmp_path):
    """Predictions of 500 frames of 10 atoms, of which one is far off."""
    rng, n, n_atoms = np.random.default_rng(0), 500, 10
    forces = rng.normal(size=(n, n_atoms, 3))
    off = forces + rng.normal(0, 0.1, forces.shape)
    off[0, 0, 0] = 500
    columns = {
        "id": [str(i) for i in range(n)],
        "trajectory_id": [str(i // 3) for i in range(n)],
        "functional": ["pbe"] * n,
        "relaxation_step": [0] * n,
        "numbers": [[NUMBERS["Fe"]] * 4 + [NUMBERS["O"]] * 6] * n,
        "energy": rng.uniform(-80, -20, n),
        "energy_predicted": rng.uniform(-80, -20, n),
        "forces": forces.tolist(),
        "forces_predicted": off.tolist(),
        "stress": [None] * n,
    }
    table = pa.table([pa.array(columns.get(f.name, [None] * n), f.type) for f in SCHEMA], schema=SCHEMA)
    pq.write_table(table, tmp_path / "r.parquet")
    errors = errors_of(tmp_path / "r.parquet")
    return Held(tmp_path / "r.parquet", errors, score(errors)), np.abs(off - forces), forces


def drawn(its, axes=AXES):
    with style.applied():
        return plots.parity(("model", "a $set$ of $"), its, [plots.spread(its, q) for q in QUANTITIES], axes)


def test_files_are_made_and_named_after_predictions(dataset, tmp_path):
    datasets = {"all": dataset, "none": dataset.filter('functional = "scan"')}
    made = evaluate(["training.offsets:wrong"], datasets, tmp_path, plots=True, shift="composition")
    predictions = sorted(file.stem for file in (tmp_path / "predictions").iterdir())
    names = {"errors", "elements--all", "elements--none", *(f"parity--{stem}" for stem in predictions)}
    assert len(names) == 5
    pictures = [file for file in made if file.parent.name == "plots"]
    assert {file.name for file in pictures} == {f"{name}{end}" for name in names for end in (".png", ".svg")}
    assert all(file.stat().st_size > 5000 for file in pictures)


def test_matplotlib_is_missed_before_models_are_asked(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"trajmill\[figures\]"):
        evaluate(["training.offsets:perfect"], {"all": dataset}, tmp_path / "out", plots=True)
    assert not (tmp_path / "out").exists()


def test_points_of_parity(dataset, held):
    figure = drawn(held(offsets.wrong()))
    energy, forces, stress = figure.axes
    n_atoms = np.array([2] * 4 + [3] * 3)
    energies = np.concatenate([t.energy for t in dataset.trajectories()]) / n_atoms
    _, points = energy.lines
    np.testing.assert_allclose(points.get_xdata(), energies)
    np.testing.assert_allclose(points.get_ydata(), energies + np.repeat([0.005, 0], [4, 3]))
    x, y = (np.concatenate([line.get_data()[k] for line in forces.lines[1:]]) for k in (0, 1))
    assert len(x) == 3 * (4 * 2 + 3 * 3)
    np.testing.assert_allclose(y - x, np.tile([0.1, 0, 0], 17), atol=1e-12)
    assert len(stress.lines[1].get_xdata()) == 6 * 4, "of frames that have one"
    assert [panel.get_title(loc="left").splitlines()[1:] for panel in figure.axes] == [
        ["MAE 2.9 (0.0 to 5.0) meV/atom", "frames: 7"],
        ["MAE 33.3 (33.3 to 33.3) meV/Å", "components: 51"],
        ["MAE 1.0 (1.0 to 1.0) meV/Å³", "components: 24"],
    ]
    for panel in figure.axes:
        assert panel.get_xlim() == panel.get_ylim()
        assert panel.get_aspect() == 1
    assert (energy.get_xlabel(), energy.get_ylabel()) == ("DFT (eV/atom)", "model, not shifted (eV/atom)")


def test_energies_are_shifted_as_in_the_table(held):
    its = held(offsets.wrong(), shift="composition")
    figure = drawn(its, (plots.DFT_AXIS["energy_corrected"], plots.MODEL_AXIS["composition"]))
    points = figure.axes[0].lines[1]
    np.testing.assert_allclose(points.get_xdata(), points.get_ydata())
    assert figure.axes[0].get_ylabel() == "model, shifted per element (eV/atom)"
    assert figure.axes[0].get_xlabel() == "DFT, corrected (eV/atom)"
    assert its.errors.energy == pytest.approx(np.zeros(7), abs=1e-6)


def test_many_values_are_counted_in_cells(random):
    its, errors, _ = random
    figure = drawn(its)
    _, forces, stress, bar = figure.axes
    (image,) = forces.images
    assert image.get_array().sum() == errors.size - 1
    assert forces.get_title(loc="left").splitlines()[2] == "components: 15,000, 1 outside"
    low, high = forces.get_xlim()
    assert 3 < high < 6, "one that is far off does not shrink all others"
    assert low == -high
    cells = np.argwhere(~image.get_array().mask)  # row: model, column: DFT
    assert np.abs(cells[:, 0] - cells[:, 1]).max() * (high - low) / plots.CELLS < 0.6
    assert bar.get_ylabel() == "values in a cell"
    assert [text.get_text() for text in stress.texts] == ["none"]


def test_cells_are_counted_batch_by_batch(random, monkeypatch):
    its, *_ = random
    whole = plots.spread(its, FORCES), plots.by_element(its)
    monkeypatch.setattr(plots, "AT_ONCE", 7)
    assert len(list(plots.pairs(its, FORCES))) == 72
    parts = plots.spread(its, FORCES), plots.by_element(its)
    np.testing.assert_array_equal(parts[0].errors, whole[0].errors)
    np.testing.assert_array_equal(parts[0].sizes, whole[0].sizes)
    assert parts[1] == pytest.approx(whole[1])


def test_shares_of_errors(random):
    its, errors, _ = random
    with style.applied():
        figure = plots.error_shares({("m", "t"): [plots.spread(its, q) for q in QUANTITIES]})
    energy, forces, stress = figure.axes
    x, share = forces.lines[0].get_data()
    for k in range(0, len(x), 5):
        assert share[k] == pytest.approx(100 * (1000 * errors < x[k]).mean(), abs=0.05)
    assert energy.lines[0].get_ydata()[-1] == 100
    assert not stress.lines
    assert [text.get_text() for text in figure.legends[0].texts] == ["m"]
    assert forces.get_xlabel() == "error of forces (meV/Å)"


def test_every_size_has_a_bin():
    edges, last = plots.EDGES, len(plots.EDGES) - 2
    for value, place in ((0, 0), (1e-30, 0), (-1.01e-9, 0), (edges[7] * 1.01, 7), (9.9e5, last), (1e30, last)):
        assert np.flatnonzero(plots._sizes(np.array([value]))) == [place]


def test_errors_of_forces_by_element(random):
    its, errors, _ = random
    found = plots.by_element(its)
    assert found == pytest.approx({"O": 1000 * errors[:, 4:].mean(), "Fe": 1000 * errors[:, :4].mean()})
    with style.applied():
        svg = style.to_svg(plots.force_errors({("m", "t"): plots.by_element(its)}, "t"))
    said = re.findall(r"<title>(.*?)</title>", svg)
    assert len(said) == len(NUMBERS)
    assert f"Fe: {found['Fe']:.3g} meV/Å" in said
    assert "H: none" in said


def test_a_model_that_says_nothing(held):
    its = held(offsets.Offset(refuses=["Cl"]))
    assert [plots.spread(its, quantity).n for quantity in (ENERGY, FORCES, STRESS)] == [0, 0, 0]
    assert [panel.texts[0].get_text() for panel in drawn(its).axes] == ["none"] * 3
    with style.applied():
        style.to_png(plots.force_errors({("m", "t"): plots.by_element(its)}, "t"))
        style.to_png(plots.error_shares({("m", "t"): [plots.spread(its, quantity) for quantity in QUANTITIES]}))


def test_a_perfect_model(held):
    its = held(offsets.perfect())
    style.to_png(drawn(its))
    with style.applied():
        style.to_png(plots.error_shares({("m", "t"): [plots.spread(its, quantity) for quantity in QUANTITIES]}))


@pytest.mark.parametrize(("name", "shown"), [("a$b$", r"a\$b\$"), ("x" * 80, "…" + "x" * 59)])
def test_names_that_are_long_or_look_like_mathematics(name, shown):
    assert plots._name(name) == shown
