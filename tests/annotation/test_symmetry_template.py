"""Whatever is recognised without a search must be what a search finds, also where symmetry comes and goes."""

import moyopy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from making import DATA
from trajmill.annotation import symmetry
from trajmill.annotation.symmetry import analyse, space_groups
from trajmill.recipe import load
from trajmill.sources import open_sources

HEXAGONAL = np.array([[1, 0, 0], [-0.5, 3**0.5 / 2, 0], [0, 0, 1]])
FCC = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
Q = 0.47
PROTOTYPES = {
    "rock salt": (5.6 * FCC, [[0, 0, 0], [0.5] * 3], [11, 17]),
    "rock salt, conventional": (
        5.6 * np.eye(3),
        [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5] * 3],
        [11] * 4 + [17] * 4,
    ),
    "diamond": (3.6 * FCC, [[0, 0, 0], [0.25] * 3], [6, 6]),
    "zinc blende": (5.4 * FCC, [[0, 0, 0], [0.25] * 3], [30, 16]),
    "perovskite": (
        3.9 * np.eye(3), [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]], [56, 22, 8, 8, 8]
    ),
    "hcp": (HEXAGONAL * [3.2, 3.2, 5.2], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], [12, 12]),
    "wurtzite": (
        HEXAGONAL * [3.8, 3.8, 6.2],
        [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.38], [2 / 3, 1 / 3, 0.88]],
        [30, 30, 16, 16],
    ),
    "quartz": (  # chiral: 152 or 154
        HEXAGONAL * [4.9, 4.9, 5.4],
        [[Q, 0, 2 / 3], [0, Q, 1 / 3], [-Q, -Q, 0], [0.41, 0.27, 0.12], [-0.27, 0.14, 0.12 + 2 / 3],
         [0.27, 0.41, -0.12], [-0.14, -0.41, 0.12 + 1 / 3], [-0.41, -0.14, -0.12 + 2 / 3],
         [0.14, -0.27, -0.12 + 1 / 3]],
        [14] * 3 + [8] * 6,
    ),
    "rutile": (
        np.diag([4.6, 4.6, 2.96]),
        [[0, 0, 0], [0.5] * 3, [0.305, 0.305, 0], [0.695, 0.695, 0], [0.195, 0.805, 0.5], [0.805, 0.195, 0.5]],
        [22, 22, 8, 8, 8, 8],
    ),
    "P2 and P21": (
        [[4.0, 0, 0], [0, 5, 0], [0.7, 0, 6]],
        [[0.1, 0, 0.2], [-0.1, 0.5, -0.2], [0.4, 0.3, 0.1], [-0.4, 0.8, -0.1]],
        [3, 3, 8, 8],
    ),
    "no symmetry": (
        [[3.0, 0, 0], [0.4, 4, 0], [0.2, 0.9, 5]], [[0, 0, 0], [0.1, 0.2, 0.3], [0.7, 0.2, 0.4]], [1, 8, 9]
    ),
    "one atom": (3 * np.eye(3), [[0.3, 0.2, 0.1]], [84]),
}  # fmt: skip


@pytest.fixture
def searched(monkeypatch):
    """A list that grows by one for each search."""
    calls = []
    search = symmetry._search
    monkeypatch.setattr(symmetry, "_search", lambda *a: calls.append(1) or search(*a))
    return calls


def moyo(lattice, positions, numbers):
    found = []
    for cell, sites in zip(lattice, positions @ symmetry._inverses(lattice), strict=True):
        dataset = symmetry._search(cell.tolist(), sites.tolist(), numbers.tolist(), 1e-4)
        found.append(dataset.number if dataset else 0)
    return found


def prototype(name):
    lattice, sites, numbers = PROTOTYPES[name]
    return np.array(lattice, float), np.array(sites, float), np.array(numbers)


def doubled(lattice, sites, numbers, axis):
    """The same crystal in a cell twice as long."""
    half = np.where(np.arange(3) == axis, 0.5, 1.0)
    sites = np.concatenate([sites * half, sites * half + np.where(np.arange(3) == axis, 0.5, 0.0)])
    return lattice / half[:, None], sites, np.concatenate([numbers, numbers])


@st.composite
def relaxations(draw):
    """A prototype in some cell, and a path along which part of its symmetry is lost or gained, near the tolerance."""
    lattice, sites, numbers = prototype(draw(st.sampled_from(sorted(PROTOTYPES))))
    if draw(st.booleans()) and len(numbers) < 9:
        lattice, sites, numbers = doubled(lattice, sites, numbers, draw(st.integers(0, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    change = np.eye(3)
    for _ in range(draw(st.integers(0, 3))):
        i, j = rng.choice(3, 2, replace=False)
        change[i] += rng.integers(-2, 3) * change[j]
    lattice, sites = change @ lattice, sites @ np.linalg.inv(change) + rng.integers(-1, 2, sites.shape)
    displacement, strain = np.zeros(sites.shape), np.zeros((3, 3))
    kind = draw(st.sampled_from(["all", "one", "line", "strain", "all and strain"]))
    if kind.startswith("all"):
        displacement = rng.normal(size=sites.shape)
    elif kind == "one":
        displacement[rng.integers(len(sites))] = rng.normal(size=3)
    elif kind == "line":
        displacement = rng.normal(size=3) * (rng.random(len(sites)) < 0.5)[:, None]
    if kind.endswith("strain"):
        strain = rng.normal(size=(3, 3)) * (rng.random((3, 3)) < 0.4)
        strain = lattice @ (strain + strain.T) / 10
    size = 10 ** draw(st.floats(-7, -1))
    along = draw(st.sampled_from([np.linspace(-1, 1, 9), np.geomspace(1, 1e-4, 9), np.geomspace(1e-4, 1, 9)]))
    lattice = lattice + size * along[:, None, None] * strain
    return lattice, sites @ lattice + size * along[:, None, None] * displacement, numbers


@settings(max_examples=150, deadline=None)
@given(relaxations())
def test_symmetry_that_comes_and_goes(path):
    assert space_groups(*path).tolist() == moyo(*path)


@pytest.mark.parametrize("name", PROTOTYPES)
def test_strained_and_drifting_prototypes_cost_one_search(name, searched, monkeypatch):
    monkeypatch.setattr(symmetry, "_KNOWN", type(symmetry._KNOWN)())
    lattice, sites, numbers = prototype(name)
    lattices = lattice * np.linspace(0.9, 1.1, 30)[:, None, None]
    drift = np.linspace(0, 0.3, 30)[:, None, None]
    found = space_groups(lattices, (sites + drift) @ lattices, numbers).tolist()
    assert len(searched) == 1
    assert found == moyo(lattices, (sites + drift) @ lattices, numbers)


def test_another_compound_of_the_prototype_costs_no_search(searched):
    lattice, sites, numbers = prototype("rutile")
    space_groups(lattice[None], (sites @ lattice)[None], numbers)
    searched.clear()
    lattice = lattice * [1.1, 1.1, 1.2]
    assert space_groups(lattice[None], (sites @ lattice)[None], np.array([50, 50, 9, 9, 9, 9])).tolist() == [136]
    assert searched == []


def test_a_screw_axis_is_no_rotation_axis():
    """Rotations and permutations of atoms are the same; only the way between the structures tells them apart."""
    lattice, screw, numbers = prototype("P2 and P21")
    rotation = screw - [0, 0.5, 0] * np.array([[0], [1], [0], [1]])
    both = np.stack([screw @ lattice, rotation @ lattice, screw @ lattice])
    assert space_groups(np.stack([lattice] * 3), both, numbers).tolist() == [4, 3, 4]


def test_hands_are_told_apart():
    lattice, sites, numbers = prototype("quartz")
    both = np.stack([sites @ lattice, -sites @ lattice])
    assert sorted(space_groups(np.stack([lattice] * 2), both, numbers).tolist()) == [152, 154]


def test_what_was_seen_before_does_not_matter():
    """The same frames alone, together, in another order, after others: always the same answer."""
    rng = np.random.default_rng(0)
    trajectories = []
    for name in PROTOTYPES:
        lattice, sites, numbers = prototype(name)
        lattices = np.stack([lattice] * 6)
        noise = rng.normal(size=(6, *sites.shape)) * np.geomspace(1e-7, 1e-2, 6)[:, None, None]
        trajectories.append((lattices, sites @ lattices + noise, numbers))
    together = analyse(trajectories)
    for order in (range(len(trajectories)), reversed(range(len(trajectories)))):
        for i in order:
            ((groups, force_free),) = analyse([trajectories[i]])
            assert groups.tolist() == together[i][0].tolist() == moyo(*trajectories[i])
            assert force_free.tolist() == together[i][1].tolist()


def test_no_force_in_a_supercell():
    """All sites of rock salt stay without a force in a doubled cell, which has fewer operations of its own."""
    lattice, sites, numbers = doubled(*prototype("rock salt"), 2)
    shaken = np.stack([sites @ lattice, sites @ lattice + 1e-5 * np.arange(len(sites))[:, None]])
    ((groups, force_free),) = analyse([(np.stack([lattice] * 2), shaken, numbers)])
    assert (groups[0], force_free[0]) == (225, True)
    assert len(moyopy.MoyoDataset(moyopy.Cell(lattice, sites, numbers.tolist())).operations) < 96


@pytest.mark.parametrize(
    ("name", "path"),
    [("alexandria", "alexandria"), ("mp", "mp/real"), ("oqmd", "oqmd/qmdb__v1_6__112023.sql.gz")],
)
def test_samples(name, path, searched, tmp_path):
    (source,) = open_sources(load(settings=[f"{name}.path='{DATA / path}'"]))
    source.prepare(tmp_path)
    trajectories = [
        (t.lattice, t.positions, t.numbers)
        for asset in source.assets()
        for record in source.read(asset)
        for t in record.trajectories
        if np.isfinite(t.positions).all() and np.isfinite(t.lattice).all()
    ]
    found = analyse(trajectories)
    n_frames = sum(len(groups) for groups, _ in found)
    assert len(searched) < 0.8 * n_frames
    assert [groups.tolist() for groups, _ in found] == [moyo(*t) for t in trajectories]
