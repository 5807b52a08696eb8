"""The potential-energy surface: places that do not depend on the cell, energies as reckoned by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill.analysis.pes import Surface, interpolated, principal_components, save_points, surface
from trajmill.analysis.pes_drawing import save_figures
from trajmill.errors import FigureError


def relaxation(name, symbols, sizes, energy, **fields):
    """Cells of CsCl's kind, or simple cubic ones, that shrink to their end."""
    lattice = np.array([a * np.eye(3) for a in sizes])
    fractional = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])[: len(symbols)]
    t = make_trajectory(name, n_frames=len(sizes), symbols=symbols, energy_corrected=None, **fields)
    return replace(t, lattice=lattice, positions=fractional @ lattice, energy=np.array(energy, float))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    runs = [
        relaxation("mp-1", ("Fe",), (2.6, 2.5), (-8.0, -8.4)),
        relaxation("mp-2", ("Cu",), (2.5, 2.4), (-3.5, -3.7)),
        relaxation("mp-3", ("Fe", "Cu"), (3.1, 3.0, 2.9), (-11.0, -11.8, -12.3)),
        relaxation("mp-4", ("Fe", "Fe"), (3.0, 2.9), (-16.0, -16.7)),
        relaxation("mp-5", ("Fe", "Cu"), (3.2,), (-10.0,), run_type="GGA+U"),
        relaxation("mp-6", ("Fe", "O"), (3.2,), (-10.0,)),
        relaxation("mp-7", ("Fe", "Cu"), (3.05,), (-9.0,), functional="scan"),
    ]
    path = tmp_path_factory.mktemp("pes") / "store"
    make_store(path, runs)
    return trajmill.open(path)


@pytest.fixture(scope="module")
def found(dataset):
    return surface({"ours": dataset}, ["Fe", "Cu"], subsets=True)


def test_which_frames_and_what_energy(dataset, found):
    energy = {(t, s): e for t, s, e in zip(found.trajectory, found.step, found.energy, strict=True)}
    assert found.references == ({"Fe": -8.4, "Cu": -3.7},)
    assert {t for t, _ in energy} == {"mp-1-pbe", "mp-2-pbe", "mp-3-pbe", "mp-4-pbe"}, "no +U, no O, no SCAN"
    assert energy["mp-3-pbe", 2] == pytest.approx((-12.3 + 8.4 + 3.7) / 2)
    assert energy["mp-4-pbe", 1] == pytest.approx(-16.7 / 2 + 8.4)
    assert energy["mp-1-pbe", 1] == pytest.approx(0)
    exact = surface({"ours": dataset}, ["Fe", "Cu"], references={"Fe": -8.0, "Cu": -4.0})
    assert set(exact.trajectory) == {"mp-3-pbe"}
    assert exact.energy.tolist() == pytest.approx([(e + 12) / 2 for e in (-11.0, -11.8, -12.3)])


def test_a_supercell_is_in_the_same_place(tmp_path, dataset, found):
    """CsCl's cell doubled along an axis, and two iron atoms in one cell and in another."""
    t = next(t for t in dataset.trajectories() if t.trajectory_id == "mp-3-pbe")
    lattice = t.lattice * np.array([2, 1, 1])[:, None]
    positions = np.concatenate([t.positions, t.positions + t.lattice[:, :1]], axis=1)
    twice = relaxation("mp-9", ("Fe", "Cu", "Fe", "Cu")[:2], (1, 1, 1), 2 * t.energy)
    twice = replace(
        twice, numbers=np.tile(t.numbers, 2), lattice=lattice, positions=positions,
        forces=np.zeros((3, 4, 3)), magnetic_moments=None,
    )  # fmt: skip
    make_store(tmp_path / "store", [twice])
    both = surface({"ours": dataset, "twice": trajmill.open(tmp_path / "store")}, ["Fe", "Cu"], subsets=True,
                   references={"Fe": -8.4, "Cu": -3.7})  # fmt: skip
    ours = both.place[(both.label == 0) & (both.trajectory == "mp-3-pbe")]
    theirs = both.place[both.label == 1]
    assert np.abs(ours - theirs).max() < 1e-3 * np.ptp(both.place)
    np.testing.assert_allclose(both.energy[both.label == 1], both.energy[(both.trajectory == "mp-3-pbe")], atol=1e-12)


def test_principal_components_are_those_of_a_singular_value_decomposition():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 12)) * np.linspace(5, 0.1, 12)).astype(np.float32)
    place, explained = principal_components(features, batch=70)
    centred = features.astype(float) - features.mean(axis=0)
    _, s, vectors = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ vectors[:2].T
    for k in range(2):
        assert abs(np.corrcoef(place[:, k], expected[:, k])[0, 1]) == pytest.approx(1, abs=1e-6)
        assert np.ptp(place[:, k]) == pytest.approx(np.ptp(expected[:, k]), rel=1e-5)
    np.testing.assert_allclose(explained, (s**2 / (s**2).sum())[:2], rtol=1e-5)


def test_the_grid_is_linear_between_frames_and_empty_outside():
    rng = np.random.default_rng(1)
    place = rng.uniform(size=(50, 2)) * [1000, 1]
    energy = 3 * place[:, 0] / 1000 - 2 * place[:, 1]
    none = np.zeros(50, int)
    given = Surface(("Fe",), none, ("a",), none.astype(str), none, place, energy, np.ones(2), ({},))
    x, y, height = interpolated(given, 30)
    inside = ~np.isnan(height)
    plane = 3 * x[None, :] / 1000 - 2 * y[:, None]
    np.testing.assert_allclose(height[inside], plane[inside], atol=1e-4)
    assert 0.3 < inside.mean() < 1
    assert np.isnan(height[0, 0]) or np.isnan(height[-1, -1]) or np.isnan(height[0, -1]) or np.isnan(height[-1, 0])


def test_frames_on_a_line_make_no_surface():
    n = 5
    none = np.zeros(n, int)
    place = np.stack([np.arange(n), np.zeros(n)], axis=1)
    given = Surface(("Fe",), none, ("a",), none.astype(str), none, place, np.zeros(n), np.ones(2), ({},))
    with pytest.raises(FigureError, match="on a line"):
        interpolated(given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:plotly")
def test_drawings_and_what_is_behind_them(found, tmp_path):
    save_points(found, tmp_path)
    save_figures(found, tmp_path)
    made = {p.name: p for p in tmp_path.iterdir()}
    assert made["contours.png"].read_bytes()[:4] == made["surface.png"].read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in made["contours.svg"].read_text()[:2000]
    page = made["surface.html"].read_text()
    assert "mp-3-pbe, step 2" in page
    assert '<script src="http' not in page
    points = pq.read_table(made["points.parquet"]).to_pylist()
    assert len(points) == len(found) == 9
    assert points[0]["formation_energy"] == found.energy[0]
    about = json.loads(made["references.json"].read_text())
    assert about["references_ev_per_atom"] == {"ours": {"Fe": -8.4, "Cu": -3.7}}


@pytest.mark.parametrize(
    ("elements", "options", "reason"),
    [
        (["Fe", "Xx"], {}, "no element Xx"),
        (["Fe", "O"], {"subsets": True}, "no frames of O alone"),
        (["Na", "Cl"], {"references": {"Na": -1.0, "Cl": -2.0}}, "0 frames of Na-Cl"),
        (["Fe", "Cu"], {"references": {"Fe": -8.0}}, "no reference energy of Cu"),
    ],
)
def test_what_cannot_be_drawn_is_said(dataset, elements, options, reason):
    with pytest.raises(FigureError, match=reason):
        surface({"ours": dataset}, elements, **options)
