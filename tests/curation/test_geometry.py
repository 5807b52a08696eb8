import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from making import ints, make
from trajmill import recipe
from trajmill.curation import geometry
from trajmill.curation.geometry import shortest_distance

OPTIONS = recipe.Geometry()


def cell(lattice, positions, n_frames=1, symbols=None):
    symbols = symbols or ["H"] * len(positions)
    return make(
        n_frames,
        symbols,
        lattice=np.tile(np.asarray(lattice, float), (n_frames, 1, 1)),
        positions=np.tile(np.asarray(positions, float).reshape(-1, 3), (n_frames, 1, 1)),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["lattice", "positions"])
def test_not_finite(value, field):
    t = make(3)
    getattr(t, field)[1, 0, 2] = value
    assert geometry.geometry([t], OPTIONS)[0] == {1: "cell or positions missing or not finite"}


def test_the_reader_knows_better_why():
    t = make(2, faults={1: "3 sites, 2 before", 0: "not about geometry"})
    t.lattice[1] = np.nan
    assert geometry.geometry([t], OPTIONS)[0] == {1: "3 sites, 2 before"}


@pytest.mark.parametrize(
    ("lattice", "text"),
    [
        (np.diag([1.0, 1.0, 0.2]), "0.1 A^3 per atom, at least 0.1 wanted"),
        (np.diag([0.0, 5.0, 5.0]), "0 A^3 per atom, at least 0.1 wanted"),
        (np.zeros((3, 3)), "0 A^3 per atom, at least 0.1 wanted"),
        ([[1.0, 2, 3], [2, 4, 6], [0, 0, 1]], "0 A^3 per atom, at least 0.1 wanted"),
    ],
)
def test_volume_per_atom(lattice, text):
    assert geometry.geometry([cell(lattice, [[0, 0, 0], [0.5, 0.5, 0.5]])], OPTIONS)[0] == {0: text}


def test_a_left_handed_cell_has_a_volume():
    assert geometry.geometry([cell(np.diag([-5.0, 5.0, 5.0]), [[0, 0, 0], [2, 2, 2]])], OPTIONS)[0] == {}


@pytest.mark.parametrize(
    ("lattice", "positions", "distance"),
    [
        (5 * np.eye(3), [[0, 0, 0], [0.49, 0, 0]], 0.49),
        (5 * np.eye(3), [[0, 0, 0], [0.51, 0, 0]], None),
        (5 * np.eye(3), [[0.1, 0.1, 0.1], [4.9, 0.1, 0.1]], 0.2),  # through one face
        (5 * np.eye(3), [[0.1, 0.1, 0.1], [4.9, 4.9, 4.9]], 0.346),  # through a corner
        (5 * np.eye(3), [[0, 0, 0], [20.2, -15, 5]], 0.2),  # not wrapped
        (5 * np.eye(3), [[1, 1, 1], [1, 1, 1]], 0.0),
        ([[5.0, 0, 0], [4.9, 5, 0], [0, 0, 5]], [[0, 0, 0], [0.1, 4.9, 0]], 0.224),  # skewed
        (np.diag([0.4, 9.0, 9.0]), [[0, 0, 0]], 0.4),  # an atom and its own image
        (np.diag([0.6, 9.0, 9.0]), [[0, 0, 0]], None),
        ([[5.0, 0, 0], [0, 5, 0], [102.6, 0, 0.1]], [[0, 0, 0]], 0.283),  # very skewed: 2c - 41a = (0.2, 0, 0.2)
    ],
)
def test_distance(lattice, positions, distance):
    found = geometry.geometry([cell(lattice, positions)], OPTIONS)[0]
    expected = {0: f"two atoms {distance:.3f} A apart, at least 0.5 wanted"} if distance is not None else {}
    assert found == expected


@pytest.mark.parametrize(
    ("options", "rejected"), [({"min_distance": 0.3}, []), ({"min_distance": 2.0}, [0]), ({"min_volume": 63.0}, [0])]
)
def test_thresholds_act(options, rejected):
    t = cell(5 * np.eye(3), [[0, 0, 0], [0.4, 0, 0]])
    options = {"min_distance": 0.3} | options
    assert list(geometry.geometry([t], recipe.Geometry(**options))[0]) == rejected


@pytest.mark.parametrize("field", ["lattice", "positions"])
@pytest.mark.parametrize("value", [1e120, 1e200, 1e308, 1e-308])
def test_absurd_numbers_are_no_error(field, value):
    t = make(3)
    getattr(t, field)[1, 0, 0] = value
    assert set(geometry.geometry([t], OPTIONS)[0]) <= {1}


def test_each_frame_for_itself():
    t = make(5)
    t.lattice[0] = np.nan
    t.lattice[1] = 0
    t.positions[3, 1] = t.positions[3, 0] + [0, 0.1, 0]
    assert {i: text[:9] for i, text in geometry.geometry([t], OPTIONS)[0].items()} == {
        0: "cell or p",
        1: "0 A^3 per",
        3: "two atoms",
    }


def brute_force(lattice, positions, cutoff=np.inf, images=10):
    """Shortest distance over all images up to `images` in each direction, in a cell that is not too skewed."""
    shifts = np.array(list(itertools.product(range(-images, images + 1), repeat=3))) @ lattice
    own = shifts[np.any(shifts, axis=1)]
    best = np.linalg.norm(own, axis=1).min()
    for a, b in itertools.combinations(positions, 2):
        wrapped = (b - a) - np.rint((b - a) @ np.linalg.inv(lattice)) @ lattice
        best = min(best, np.linalg.norm(wrapped + shifts, axis=1).min())
    return best if best < cutoff else np.inf


numbers = st.floats(-1, 1, allow_subnormal=False)
vectors = st.lists(numbers, min_size=3, max_size=3)


@st.composite
def cells(draw):
    """Cells from thin to wide, from straight to skewed, with atoms that come close more often than chance has it."""
    shape = np.diag(draw(st.lists(st.sampled_from([0.3, 0.45, 0.6, 0.9, 1.5, 4.0]), min_size=3, max_size=3)))
    straight = shape + 0.25 * shape.min() * np.array(draw(st.lists(vectors, min_size=3, max_size=3)))
    assume(abs(np.linalg.det(straight)) > 0.3 * abs(np.linalg.det(shape)))
    skew = np.eye(3)
    for row, column, n in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-3, 3)), max_size=3)
    ):
        if row != column:
            skew[row] += n * skew[column]
    positions = 3 * np.array(draw(st.lists(vectors, min_size=1, max_size=4)))
    if len(positions) > 1 and draw(st.booleans()):
        image = np.array(draw(st.lists(st.integers(-2, 2), min_size=3, max_size=3))) @ straight
        positions[1] = positions[0] + image + 0.3 * np.array(draw(vectors))
    return straight, np.rint(skew), positions


@given(cells(), st.sampled_from([0.2, 0.5, 0.8]))
@example((np.diag([0.6, 0.6, 4.0]), np.eye(3), np.array([[0.0, 0, 0], [0.3, 0.3, 0.2]])), 0.5)
def test_distances_against_brute_force(drawn, cutoff):
    straight, skew, positions = drawn
    found = shortest_distance((skew @ straight)[None], positions[None], cutoff)[0]
    expected = brute_force(straight, positions, cutoff)
    if np.isfinite(expected) or np.isfinite(found):
        assert found == pytest.approx(expected, abs=1e-9)


def test_many_frames_are_the_single_frames(monkeypatch):
    random = np.random.default_rng(1)
    lattice = np.where(random.random((40, 1, 1)) < 0.3, 0.8, 4.0) * (np.eye(3) + 0.2 * random.normal(size=(40, 3, 3)))
    positions = random.uniform(0, 4, size=(40, 6, 3))
    one_by_one = [shortest_distance(lattice[[i]], positions[[i]], 0.9)[0] for i in range(40)]
    monkeypatch.setattr(geometry, "BLOCK_PAIRS", 50)  # blocks of three frames
    np.testing.assert_array_equal(shortest_distance(lattice, positions, 0.9), one_by_one)
    assert 0 < np.isfinite(one_by_one).sum() < 40


@pytest.mark.parametrize(
    ("frames", "rejected"),
    [
        ("AB", {}),
        ("AAB", {1: "equal to step 0"}),
        ("AAAB", {1: "equal to step 0", 2: "equal to step 0"}),
        ("ABB", {1: "equal to step 2"}),  # the final frame stays
        ("AA", {0: "equal to step 1"}),
        ("ABBB", {1: "equal to step 3", 2: "equal to step 3"}),
        ("ABA", {}),  # consecutive ones only
        ("AABB", {1: "equal to step 0", 2: "equal to step 3"}),
        ("A", {}),
    ],
)
def test_duplicate_frames(frames, rejected):
    assert geometry.duplicate_frames(of_letters(frames), recipe.Rule()) == rejected


def of_letters(frames):
    t = make(26)
    which = [ord(letter) - ord("A") for letter in frames]
    names = ("lattice", "positions", "energy", "forces", "stress")
    return make(len(frames), **{name: getattr(t, name)[which] for name in names})


@pytest.mark.parametrize("field", ["lattice", "positions", "energy", "forces", "stress"])
def test_a_difference_anywhere_is_no_duplicate(field):
    t = of_letters("AAB")
    getattr(t, field)[1].flat[-1] += 1e-9 if field != "energy" else 0
    if field == "energy":
        t.energy[1] += 1e-9
    assert geometry.duplicate_frames(t, recipe.Rule()) == {}


def test_missing_stress_equals_missing_stress_but_not_a_stress():
    t = of_letters("AAB")
    t.stress[:2] = np.nan
    assert list(geometry.duplicate_frames(t, recipe.Rule())) == [1]
    t.stress[0] = 0.0
    assert geometry.duplicate_frames(t, recipe.Rule()) == {}


def test_the_border_of_two_stages_is_no_duplicate_unless_all_labels_agree():
    t = of_letters("ABBC")
    t.relaxation_number[:] = ints(0, 0, 1, 1)
    assert list(geometry.duplicate_frames(t, recipe.Rule())) == [2]
    t.energy[2] += 0.05  # the basis was rebuilt
    assert geometry.duplicate_frames(t, recipe.Rule()) == {}


def test_inputs_are_no_duplicates():
    t = of_letters("AAB")
    t.energy[:2] = np.nan
    assert geometry.duplicate_frames(t, recipe.Rule()) == {}
