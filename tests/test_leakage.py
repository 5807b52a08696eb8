"""Leakage that was planted is found, and nothing else."""

import numpy as np
import pytest

import trajmill
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
        "formula and space group": [("agm-1-pbe", "mp-1-pbe"), ("mp-3-pbe", "mp-3-pbe")],
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
