"""Leakage that was planted is found, and nothing else."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import trajmill
from crystals import copied, everyone, quartz, run, rutile, scattered
from factories import make_store, make_trajectory
from trajmill.leakage import SIGNS, find_leakage, held_out


def rocksalt(name, a, *, supercell=False, shift=0.0, symbols=("Na", "Cl"), **fields):
    """A cubic crystal in its primitive cell, or in the conventional one, moved and turned."""
    lattice = a * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    numbers, sites = symbols, np.array([[0.0] * 3, [0.5] * 3])
    if supercell:
        centring = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
        lattice = a * np.eye(3)
        sites = np.concatenate([centring, centring + np.array([0.5, 0, 0])])
        numbers = [symbols[0]] * 4 + [symbols[1]] * 4
    positions = (sites + shift) @ lattice
    n = 2
    arrays = {
        "lattice": np.array([lattice] * n),
        "positions": np.array([positions] * n),
        "forces": np.full((n, len(numbers), 3), 0.1),
        "stress": np.zeros((n, 3, 3)),
        "space_group": np.full(n, 225, np.int32),
    }
    return make_trajectory(name, n_frames=n, symbols=numbers, **(arrays | fields))


@pytest.fixture
def opened(tmp_path):
    def make(name, runs):
        make_store(tmp_path / name, runs)
        return trajmill.open(tmp_path / name)

    return make


def test_what_was_planted_is_found(opened):
    train = opened("train", [
        rocksalt("mp-1", 5.6, immutable_id="mp-1"),
        rocksalt("mp-2", 4.2, immutable_id="mp-2", symbols=("Mg", "O")),
        make_trajectory("mp-3", symbols=("Fe", "O"), immutable_id="mp-3"),
    ])  # fmt: skip
    test = opened("test", [
        rocksalt("agm-1", 5.7, immutable_id="agm-1", supercell=True, shift=0.13),  # mp-1 again, in another cell
        rocksalt("mp-9", 4.2, immutable_id="mp-2", symbols=("Mg", "S")),  # the material by name only
        make_trajectory("mp-3", symbols=("Fe", "O"), immutable_id="mp-3"),  # the very same run
        rocksalt("mp-8", 6.6, immutable_id="mp-8", symbols=("K", "Br")),
    ])  # fmt: skip
    found = find_leakage(train, test)
    assert found.tested == 4
    assert found.found == {
        "prototype": [("agm-1-pbe", "mp-1-pbe"), ("mp-3-pbe", "mp-3-pbe")],
        "material": [("mp-3-pbe", "mp-3-pbe"), ("mp-9-pbe", "mp-2-pbe")],
        "trajectory": [("mp-3-pbe", "mp-3-pbe")],
        "structure": [("agm-1-pbe", "mp-1-pbe"), ("mp-3-pbe", "mp-3-pbe")],
    }
    assert found.trajectories == ["agm-1-pbe", "mp-3-pbe", "mp-9-pbe"]
    assert list(find_leakage(train, test, structures=False).found) == list(SIGNS[:3])


def test_the_same_formula_in_another_structure_is_no_leakage(opened):
    """Caesium chloride's structure against rock salt's."""
    cubic = rocksalt("mp-2", 3.5, immutable_id="mp-2", space_group=np.full(2, 221, np.int32))
    other = cubic.changed(lattice=np.array([3.5 * np.eye(3)] * 2), positions=np.array([[[0.0] * 3, [1.75] * 3]] * 2))
    found = find_leakage(opened("train", [rocksalt("mp-1", 5.6, immutable_id="mp-1")]), opened("test", [other]))
    assert not any(found.found.values())


def test_nothing_in_common(opened):
    found = find_leakage(opened("a", [rocksalt("mp-1", 5.6)]), opened("b", []))
    assert (found.tested, found.trajectories) == (0, [])


def test_a_list_that_is_to_be_unseen(opened):
    dataset = opened("a", [rocksalt(f"mp-{i}", 5.6, immutable_id=f"mp-{i}") for i in range(4)])
    assert held_out(dataset, ["mp-2", "mp-3", "wbm-1-2"]) == ["mp-2-pbe", "mp-3-pbe"]
    assert held_out(dataset, ["mp-0-pbe", "mp-2", "mp-2-pbe"]) == ["mp-0-pbe", "mp-2-pbe"]  # or of trajectories
    assert held_out(dataset, []) == []


COPIES = {
    "supercell": {"supercell": [2, 1, 1]},
    "another cell": {"supercell": [[1, 1, 0], [0, 1, 0], [0, 0, 1]]},
    "noise": {"supercell": [1, 1, 2], "noise": 0.01},
    "another lattice constant": {"scale": 1.02},
    "another source": {"scale": 0.985, "strain": 0.005, "noise": 0.01},
}
"""Each is turned and moved, with its atoms in another order, besides."""


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_in_whatever_cell(opened, how):
    rng = np.random.default_rng(0)
    crystals = everyone()
    train = opened("train", [run(f"mp-{i}", c) for i, c in enumerate(crystals.values())])
    copies = [copied(crystal, rng, **COPIES[how]) for crystal in crystals.values()]
    test = opened("test", [run(f"agm-{i}", c, source="alexandria") for i, c in enumerate(copies)])
    expected = sorted((f"agm-{i}-pbe", f"mp-{i}-pbe") for i in range(len(crystals)))
    found = find_leakage(train, test).found
    assert found["structure"] == expected
    assert found["material"] == found["trajectory"] == []
    if "strain" not in COPIES[how]:  # it breaks symmetry
        assert found["prototype"] == expected


def test_polymorphs_are_told_apart(opened):
    """Of one formula: quartz, silica as rutile and as fluorite, and twenty without any order; a copy of each."""
    rng = np.random.default_rng(0)
    fluorite = everyone()["fluorite"].copy()
    fluorite.replace_species({"Ca": "Si", "F": "O"})
    polymorphs = [quartz(), rutile(("Si", "O"), 4.2, 2.7), fluorite, *(scattered(rng) for _ in range(20))]
    train = opened("train", [run(f"mp-{i}", c) for i, c in enumerate(polymorphs)])
    test = opened("test", [run(f"agm-{i}", copied(c, rng, noise=0.01)) for i, c in enumerate(polymorphs)])
    found = find_leakage(train, test).found["structure"]
    assert found == sorted((f"agm-{i}-pbe", f"mp-{i}-pbe") for i in range(len(polymorphs)))


def test_tilted_octahedra_make_another_structure(opened):
    sites = [[0.036, 0.25, -0.007], [0, 0, 0.5], [0.484, 0.25, 0.071], [0.289, 0.037, 0.711]]
    tilted = Structure.from_spacegroup("Pnma", Lattice.orthorhombic(5.44, 7.64, 5.38), ["Ca", "Ti", "O", "O"], sites)
    both = opened("a", [run("mp-1", everyone()["perovskite"])]), opened("b", [run("mp-2", tilted)])
    assert not any(find_leakage(*both).found.values())


def test_only_the_last_frame_counts(opened):
    """One that begins in what the other ends in, and ends elsewhere."""
    begins = run("mp-1", quartz())
    strained = begins.lattice.copy()
    strained[1] *= [[0.6], [0.6], [2.5]]
    moved = np.einsum("fai,fij,fjk->fak", begins.positions, np.linalg.inv(begins.lattice), strained)
    elsewhere = begins.changed(lattice=strained, positions=moved)
    found = find_leakage(opened("a", [run("mp-2", quartz())]), opened("b", [elsewhere]))
    assert found.found["structure"] == []


def test_rows_without_a_space_group_or_a_material(opened, tmp_path):
    nothing = {"space_group": None, "immutable_id": None}
    train = opened("train", [run("mp-1", quartz(), **nothing), run("mp-2", rutile(), **nothing)])
    test = opened("test", [run("agm-1", quartz(), **nothing)])
    assert find_leakage(train, test).found == {
        "prototype": [("agm-1-pbe", "mp-1-pbe")], "material": [], "trajectory": [],
        "structure": [("agm-1-pbe", "mp-1-pbe")],
    }  # fmt: skip


def test_it_says_how_far_it_is(opened):
    train = opened("train", [run(f"mp-{i}", c) for i, c in enumerate([quartz(), rutile(), rutile()])])
    test = opened("test", [run("agm-1", rutile()), run("agm-2", everyone()["spinel"])])
    said = []
    find_leakage(train, test, report=lambda done, total: said.append((done, total)))
    assert said == [(i + 1, 4) for i in range(4)]  # three are read, one is compared; spinel has another formula
