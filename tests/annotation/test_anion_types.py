"""Whatever is recognised at a glance must be what pymatgen says, also near its thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_analyzer import oxide_type as pymatgen_oxide_type
from pymatgen.analysis.structure_analyzer import sulfide_type as pymatgen_sulfide_type
from pymatgen.core import Lattice, Structure

from trajmill.annotation import anion_types
from trajmill.annotation.anion_types import oxide_type, sulfide_type

FCC = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2


def said(function, *arguments):
    """An answer, or the kind of error in its place."""
    try:
        return function(*arguments) or "none"
    except (ValueError, IndexError) as error:
        return type(error).__name__


def agree(lattice, positions, numbers):
    structure = Structure(Lattice(lattice), numbers, positions, coords_are_cartesian=True)
    arguments = lattice, positions, np.array(numbers)
    if 8 in numbers:
        assert said(oxide_type, *arguments) == said(pymatgen_oxide_type, structure, 1.05)
    if 16 in numbers:
        assert said(sulfide_type, *arguments) == said(pymatgen_sulfide_type, structure)


@st.composite
def cells(draw):
    """Small cells of any shape, often with bonds near a threshold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 6))
    numbers = draw(st.lists(st.sampled_from([8, 16, 1, 26, 34, 6, 17, 10]), min_size=n, max_size=n))
    lattice = np.diag(rng.uniform(2, 8, 3)) + rng.normal(0, 0.8, (3, 3))
    if abs(np.linalg.det(lattice)) < 5 * n:
        lattice *= 2
    positions = rng.random((n, 3)) @ lattice
    if n > 1 and draw(st.booleans()):
        bond = draw(st.sampled_from([1.05 * 1.49, 1.05 * 1.35, 1.05 * 0.93, 2.0]))
        direction = rng.normal(size=3)
        offset = draw(st.sampled_from([-1e-3, -1e-7, 1e-7, 1e-3]))
        positions[1] = positions[0] + direction / np.linalg.norm(direction) * (bond + offset)
    return lattice, positions, numbers


@settings(max_examples=150, deadline=None)
@given(cells())
def test_like_pymatgen(cell):
    agree(*cell)


@pytest.mark.parametrize(
    ("numbers", "sites", "a", "oxide", "sulfide"),
    [
        ([12, 8], [[0] * 3, [0.5] * 3], 4.2, "oxide", None),
        ([30, 16], [[0] * 3, [0.25] * 3], 5.4, None, "sulfide"),
        ([16, 8], [[0] * 3, [0.25] * 3], 4.0, "oxide", "none"),
        ([8, 8], [[0] * 3, [0.25] * 3], 5.0, "None", None),
        ([16, 16], [[0] * 3, [0.25] * 3], 5.0, None, "none"),
    ],
)
def test_clear_cases_are_not_asked(numbers, sites, a, oxide, sulfide, monkeypatch):
    monkeypatch.setattr(anion_types, "_structure", lambda *_: pytest.fail("pymatgen was asked"))
    lattice = a * FCC
    arguments = lattice, np.array(sites) @ lattice, np.array(numbers)
    if oxide:
        assert oxide_type(*arguments) == oxide
    if sulfide:
        assert sulfide_type(*arguments) == sulfide
    monkeypatch.undo()
    agree(lattice, np.array(sites) @ lattice, numbers)


def test_peroxide():
    lattice = 6 * np.eye(3)
    positions = np.array([[0, 0, 0], [1.5, 0, 0], [3, 3, 3]])
    assert oxide_type(lattice, positions, np.array([8, 8, 56])) == "peroxide"


@pytest.mark.parametrize("numbers", [[8, 8, 56], [16, 16, 56], [16, 56, 56]])
def test_atoms_on_one_another(numbers):
    positions = np.array([[1.0, 1, 1], [1.0, 1, 1], [3, 3, 3]])
    agree(6 * np.eye(3), positions, numbers)
