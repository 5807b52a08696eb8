"""Views: inputs and targets belong together, and do not depend on order or company."""

import numpy as np
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill import views
from trajmill.errors import ViewError
from trajmill.recipe import load
from trajmill.releases.hugging_face import release
from trajmill.stores.delta import DeltaStore


def moving(name, n, **fields):
    """A trajectory whose atoms and cell move."""
    rng = np.random.default_rng(len(name) + n)
    lattice = np.eye(3) * (4 + 0.1 * np.arange(n))[:, None, None]
    arrays = {"positions": rng.random((n, 2, 3)) @ lattice, "forces": rng.normal(size=(n, 2, 3)), "lattice": lattice}
    return make_trajectory(name, n_frames=n, **(arrays | fields))


@pytest.fixture
def runs():
    return [moving("mp-1", 1), moving("mp-2", 5), moving("mp-3", 4, relaxation_number=np.array([0, 0, 1, 1], np.int32))]


@pytest.fixture
def dataset(tmp_path, runs):
    make_store(tmp_path / "store", runs)
    return trajmill.open(tmp_path / "store")


def test_relaxations(dataset, runs):
    found = list(views.relaxations(dataset))
    assert [r.id for r in found] == ["mp-2-pbe", "mp-3-pbe"]  # the other never moved
    np.testing.assert_array_equal(found[0].first.positions, runs[1].positions[0])
    np.testing.assert_array_equal(found[0].last.lattice, runs[1].lattice[-1])
    assert found[0].energy == runs[1].energy[-1]


def test_relaxations_begin_with_their_input(tmp_path):
    """OQMD keeps the geometry that a relaxation began with, without labels, and its result."""
    nothing = {"forces": np.full((1, 2, 3), np.nan), "stress": np.full((1, 3, 3), np.nan)}
    result = moving("oqmd-1", 1, asset="oqmd/a", relaxation_step=np.array([3], np.int32))
    given = moving(
        "oqmd-1", 1, asset="oqmd/a", energy=np.nan, energy_corrected=None, is_input=np.array([True]), **nothing
    )
    given = given.changed(positions=given.positions + 0.1)
    make_store(tmp_path / "store", [result], inputs=[given])
    release(DeltaStore(tmp_path / "store"), tmp_path / "out", load())
    for place in ("store", "out"):
        dataset, inputs = (trajmill.open(tmp_path / place, inputs=flag) for flag in (False, True))
        assert (len(dataset), len(inputs)) == (1, 1)
        assert list(views.relaxations(dataset)) == []
        (found,) = views.relaxations(dataset, inputs)
        np.testing.assert_array_equal(found.first.positions, given.positions[0])
        np.testing.assert_array_equal(found.last.positions, result.positions[0])
        assert found.energy == result.energy[0]


def test_steps_stay_within_a_calculation(dataset, runs):
    pairs = list(views.steps(dataset))
    assert [p.id for p in pairs] == ["mp-2-pbe"] * 4 + ["mp-3-pbe"] * 2
    np.testing.assert_array_equal(pairs[1].first.positions, runs[1].positions[1])
    np.testing.assert_array_equal(pairs[1].second.positions, runs[1].positions[2])
    assert pairs[1].difference == pytest.approx(-0.005)  # 0.01 eV a step, two atoms
    assert [p.id for p in views.steps(dataset, stride=3)] == ["mp-2-pbe"] * 2
    with pytest.raises(ViewError):
        next(views.steps(dataset, stride=0))


def test_ordered_pairs_fall_in_energy(dataset):
    pairs = list(views.ordered_pairs(dataset, n=3))
    assert {p.id for p in pairs} == {"mp-2-pbe", "mp-3-pbe"}
    assert all(p.difference < 0 for p in pairs)
    assert len(pairs) <= 6


def test_contrasts_are_two_frames_of_one_trajectory(dataset):
    pairs = list(views.contrasts(dataset))
    assert [p.id for p in pairs] == ["mp-2-pbe", "mp-3-pbe"]
    assert all((p.first.positions != p.second.positions).any() for p in pairs)


def test_noise_leads_back(dataset, runs):
    frames = {n.id: n for n in views.denoising(dataset, 0.1, strain=0.05)}
    assert len(frames) == 10
    for t in runs:
        for i in range(len(t)):
            noisy = frames[f"{t.trajectory_id}-{i}"]
            back = np.eye(3) + noisy.strain
            np.testing.assert_allclose(noisy.geometry.lattice @ back, t.lattice[i], atol=1e-12)
            np.testing.assert_allclose(
                (noisy.geometry.positions + noisy.displacement) @ back, t.positions[i], atol=1e-12
            )
            np.testing.assert_array_equal(noisy.strain, noisy.strain.T)
            np.testing.assert_array_equal(noisy.forces, t.forces[i])
            assert noisy.energy == t.energy[i]


def test_noise_has_the_deviation_it_says(tmp_path):
    make_store(tmp_path / "store", [moving("mp-1", 400)])
    frames = list(views.denoising(trajmill.open(tmp_path / "store"), views.noise_levels(0.01, 1.0, 3)))
    for sigma in (0.01, 0.1, 1.0):
        its = [n.displacement for n in frames if n.sigma == pytest.approx(sigma)]
        assert len(its) > 90
        assert np.std(its) == pytest.approx(sigma, rel=0.1)


def test_noise_of_relaxed_frames(dataset, runs):
    frames = list(views.denoising(dataset, 0.1, relaxed_only=True))
    assert [n.id for n in frames] == [f"{t.trajectory_id}-{len(t) - 1}" for t in runs]
    every = {n.id: n for n in views.denoising(dataset, 0.1)}
    assert all((every[n.id].displacement == n.displacement).all() for n in frames), "the same noise as with the others"


def test_levels():
    np.testing.assert_allclose(views.noise_levels(0.01, 10, 4), [0.01, 0.1, 1, 10])
    for wrong in ((0, 1, 2), (2, 1, 2), (0.1, 1, 0)):
        with pytest.raises(ViewError):
            views.noise_levels(*wrong)


def test_masked(dataset, runs):
    frames = list(views.masked(dataset, fraction=0.5))
    assert len(frames) == 10
    for m in frames:
        assert m.hidden.sum() == 1
        assert (m.geometry.numbers[m.hidden] == 0).all()
        np.testing.assert_array_equal(m.geometry.numbers[~m.hidden], m.numbers[~m.hidden])
    assert len({tuple(m.hidden) for m in frames}) == 2
    for fraction in (0, 1.1):
        with pytest.raises(ViewError):
            next(views.masked(dataset, fraction=fraction))


@pytest.mark.parametrize(
    "view",
    [
        lambda d, s: [n.displacement.tolist() for n in views.denoising(d, 0.1, seed=s) if n.id.startswith("mp-2")],
        lambda d, s: [m.hidden.tolist() for m in views.masked(d, fraction=0.5, seed=s) if m.id.startswith("mp-2")],
        lambda d, s: [p.difference for p in views.contrasts(d, seed=s) if p.id == "mp-2-pbe"],
        lambda d, s: [p.difference for p in views.ordered_pairs(d, n=2, seed=s) if p.id == "mp-2-pbe"],
    ],
)
def test_what_is_drawn_depends_on_seed_and_trajectory_alone(dataset, view):
    alone = dataset.only(["mp-2-pbe"])
    assert view(dataset, 0) == view(alone, 0) == view(dataset, 0)
    assert len({str(view(alone, seed)) for seed in range(10)}) > 1


def test_noise_that_makes_no_sense(dataset):
    with pytest.raises(ViewError):
        next(views.denoising(dataset, -0.1))
    with pytest.raises(ViewError):
        next(views.denoising(dataset, 0.1, strain=-1))
