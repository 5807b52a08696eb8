"""Fingerprints do not depend on how a crystal is written, and lose nothing that StructureMatcher would find."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.prototypes import get_protostructure_label_from_moyopy
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystals import copied, cubic, everyone, geometry, quartz, rutile, scattered
from trajmill.matching import NEIGHBOURS, TOLERANCE, Crystals, Shelf, fingerprint, prototype

SUPERCELLS = (None, [2, 1, 1], [[1, 1, 0], [-1, 1, 0], [0, 0, 1]], [[1, 0, 0], [1, 2, 0], [0, 0, 1]])


def apart(one, other):
    """Root mean square difference of fingerprints."""
    return np.sqrt(np.square(fingerprint(geometry(one)) - fingerprint(geometry(other))).mean())


@pytest.mark.parametrize("name", everyone())
@pytest.mark.parametrize("supercell", SUPERCELLS, ids=str)
def test_a_fingerprint_is_the_same_in_any_cell(name, supercell):
    crystal = everyone()[name]
    found = fingerprint(geometry(crystal))
    assert found.shape == (len(crystal.elements) ** 2 * NEIGHBOURS,)
    other = copied(crystal, np.random.default_rng(0), supercell=supercell, scale=1.07)
    assert fingerprint(geometry(other)) == pytest.approx(found, abs=1e-5)
    assert fingerprint(geometry(crystal.get_primitive_structure())) == pytest.approx(found, abs=1e-5)


def test_a_fingerprint_is_mean_distances_to_neighbours():
    """Of caesium chloride: 8 unlike neighbours, 6 like ones; there are as many atoms as edges cubed, twice."""
    edge = 2 ** (1 / 3)
    like, unlike = [edge] * NEIGHBOURS, [edge * 3**0.5 / 2] * NEIGHBOURS
    found = fingerprint(geometry(cubic("caesium chloride")))
    assert found == pytest.approx([*like, *unlike, *unlike, *like], abs=1e-6)


def test_a_skewed_cell_and_a_lone_atom_in_a_large_one():
    skewed = cubic("rocksalt").make_supercell([[1, 0, 0], [7, 1, 0], [-5, 9, 1]], in_place=False)
    assert apart(skewed, cubic("rocksalt")) < 1e-5
    lone = Structure(Lattice.orthorhombic(3, 3, 60), ["W"], [[0, 0, 0]])
    length = 540 ** (1 / 3)
    assert fingerprint(geometry(lone)) * length == pytest.approx([3] * 4 + [3 * 2**0.5] * 2, abs=1e-4)


def test_one_of_a_hundred(monkeypatch):
    """Neighbours of a rare element are far away; in blocks or at once, they are the same."""
    alloy = cubic("tungsten").make_supercell([4, 4, 3], in_place=False)
    alloy.replace(0, "Ta")
    at_once = fingerprint(geometry(alloy))
    monkeypatch.setattr("trajmill.matching.BLOCK", 5000)
    assert fingerprint(geometry(alloy)) == pytest.approx(at_once, abs=1e-6)
    assert at_once[:NEIGHBOURS] * (alloy.volume / 96) ** (1 / 3) == pytest.approx([3 * 3.17] * 2 + [4 * 3.17] * 4)


@pytest.mark.parametrize(
    "broken",
    [
        (np.zeros((3, 3)), np.zeros((2, 3)), np.array([11, 17])),
        (np.full((3, 3), np.nan), np.zeros((2, 3)), np.array([11, 17])),
        (3 * np.eye(3), np.full((2, 3), np.nan), np.array([11, 17])),
        (3 * np.eye(3), np.zeros((0, 3)), np.zeros(0, int)),
    ],
)
def test_what_is_no_crystal_has_no_fingerprint_and_no_prototype(broken):
    assert fingerprint(broken) is None
    assert prototype(broken) is None
    with Crystals() as crystals:
        shelf = Shelf(crystals, 2)
        for _ in range(2):
            shelf.put(crystals.add(broken))
        assert shelf.find(0) is None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([*everyone(), "scattered"]),
    supercell=st.sampled_from(SUPERCELLS),
    moved=st.floats(0, 0.08),
    strain=st.floats(0, 0.03),
    scale=st.floats(0.95, 1.05),
    seed=st.integers(0, 10_000),
)
def test_nothing_is_lost_that_structure_matcher_would_find(name, supercell, moved, strain, scale, seed):
    """Whatever it takes for the same is compared, atoms moved by up to 0.08 A and cells strained by up to 3 %."""
    rng = np.random.default_rng(seed)
    crystal = scattered(rng) if name == "scattered" else everyone()[name]
    if len(crystal) > 24:
        supercell = None
    other = copied(crystal, rng, supercell=supercell, scale=scale)
    distortion = rng.uniform(-strain, strain, (3, 3))
    lattice = other.lattice.matrix @ (np.eye(3) + np.triu(distortion) + np.triu(distortion, 1).T)
    positions = other.frac_coords @ lattice + rng.uniform(-moved, moved, (len(other), 3))
    other = Structure(lattice, other.species, positions, coords_are_cartesian=True)
    assert apart(crystal, other) <= TOLERANCE
    same = StructureMatcher().fit(crystal, other)
    with Crystals() as crystals:
        shelf = Shelf(crystals, 1)
        shelf.put(crystals.add(geometry(crystal)))
        assert (shelf.find(crystals.add(geometry(other))) is not None) >= same


def test_most_of_what_differs_is_never_compared():
    rng = np.random.default_rng(0)
    with Crystals() as crystals:
        shelf = Shelf(crystals, 100)
        for _ in range(100):
            crystal = crystals.add(geometry(scattered(rng)))
            assert shelf.find(crystal) is None
            shelf.put(crystal)
        assert crystals.asked < 4950 / 20


def test_a_copy_whose_primitive_cell_is_not_found_is_found():
    """A noisy spinel in its cubic cell, of which pymatgen finds no smaller one."""
    noisy = copied(cubic("spinel"), np.random.default_rng(0), noise=0.02)
    with Crystals() as crystals:
        numbers = [crystals.add(geometry(c)) for c in (cubic("spinel"), noisy, cubic("perovskite"))]
        assert [crystals.same(numbers[0], n) for n in numbers] == [True, True, False]
        assert crystals.same(numbers[1], numbers[0])


def test_of_several_the_nearest_is_found():
    rng = np.random.default_rng(0)
    with Crystals() as crystals:
        shelf = Shelf(crystals, 3)
        for noise in (0.1, 0.0, 0.05):
            shelf.put(crystals.add(geometry(copied(rutile(), rng, noise=noise))))
        assert shelf.near(crystals.add(geometry(rutile()))) == [1, 2, 0]
        assert shelf.find(3) == 1


def test_prototypes():
    rng = np.random.default_rng(0)
    assert prototype(geometry(cubic("rocksalt"))) == "AB_cF8_225_a_b:Cl-Na"
    noisy = copied(cubic("rocksalt"), rng, supercell=[1, 1, 2], noise=0.01)
    assert prototype(geometry(noisy)) == "AB_cF8_225_a_b:Cl-Na"
    assert prototype(geometry(quartz())) != prototype(geometry(rutile(("Si", "O"))))


@pytest.mark.parametrize("name", everyone())
@pytest.mark.filterwarnings("ignore:gcd:FutureWarning")  # within pymatgen
def test_prototypes_are_labelled_as_by_pymatgen(name):
    rng = np.random.default_rng(0)
    for supercell in SUPERCELLS:
        copy = copied(everyone()[name], rng, supercell=supercell)
        assert prototype(geometry(copy)) == get_protostructure_label_from_moyopy(copy, raise_errors=True)
