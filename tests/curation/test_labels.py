import numpy as np
import pytest

from making import ints, make
from trajmill import recipe
from trajmill.curation import labels

ON = recipe.Rule()


def broken(field, place, value):
    t = make(3)
    getattr(t, field)[place] = value
    return t


@pytest.mark.parametrize(
    ("t", "rejected"),
    [
        (make(3), {}),
        (broken("energy", 1, np.nan), {1: "energy is missing or not finite"}),
        (broken("energy", 2, -np.inf), {2: "energy is missing or not finite"}),
        (broken("forces", (0, 1, 2), np.nan), {0: "force on atom 1 is missing or not finite"}),
        (broken("forces", (0, 1, 2), np.inf), {0: "force on atom 1 is missing or not finite"}),
        (broken("forces", 2, np.nan), {2: "forces are missing"}),
        (broken("stress", 1, np.nan), {}),  # a missing stress costs the label, not the frame
    ],
)
def test_targets(t, rejected):
    assert labels.targets(t, ON) == rejected


def test_the_reader_knows_better_why():
    t = broken("forces", 1, np.nan)
    t = make(3, forces=t.forces, faults={1: "forces: row 0 has 1 components, expected 3", 0: "not about targets"})
    assert labels.targets(t, ON) == {1: "forces: row 0 has 1 components, expected 3"}


def test_inputs_need_no_targets():
    t = broken("energy", 0, np.nan)
    assert labels.targets(make(3, energy=t.energy, is_input=np.array([True, False, False])), ON) == {}


def crystal(fractional, symbols, lattice, n_frames=1):
    lattice = np.asarray(lattice, float)
    return make(
        n_frames,
        symbols,
        lattice=np.tile(lattice, (n_frames, 1, 1)),
        positions=np.tile(np.asarray(fractional) @ lattice, (n_frames, 1, 1)),
        forces=np.zeros((n_frames, len(symbols), 3)),
    )


FCC = 2.8 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
CASES = {
    "rock salt": (crystal([[0, 0, 0], [0.5] * 3], "Na Cl".split(), FCC), True),
    "diamond": (crystal([[0, 0, 0], [0.25] * 3], "C C".split(), FCC), True),
    "conventional rock salt": (
        crystal(
            [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5] * 3],
            ["Na"] * 4 + ["Cl"] * 4,
            5.6 * np.eye(3),
        ),
        True,
    ),
    "wurtzite, polar axis": (
        crystal(
            [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.38], [2 / 3, 1 / 3, 0.88]],
            "Zn Zn O O".split(),
            [[3.25, 0, 0], [-1.625, 3.25 * np.sqrt(0.75), 0], [0, 0, 5.2]],
        ),
        False,
    ),
    "rutile, O at (x, x, 0)": (
        crystal(
            [[0, 0, 0], [0.5] * 3, [0.3, 0.3, 0], [0.7, 0.7, 0], [0.8, 0.2, 0.5], [0.2, 0.8, 0.5]],
            "Ti Ti O O O O".split(),
            np.diag([4.6, 4.6, 2.96]),
        ),
        False,
    ),
    "inversion alone": (
        crystal([[0, 0, 0], [0.5, 0, 0]], "Na Cl".split(), [[4, 0, 0], [0.7, 5, 0], [0.3, 0.9, 6]]),
        True,
    ),
    "P1": (crystal([[0, 0, 0], [0.31, 0.17, 0.43], [0.6, 0.8, 0.2]], "H O F".split(), 5 * np.eye(3)), False),
}


@pytest.mark.parametrize("name", CASES)
def test_zero_forces(name):
    t, by_symmetry = CASES[name]
    expected = {} if by_symmetry else {0: "all forces are exactly 0 and no symmetry asks for it"}
    assert labels.zero_forces([t], ON)[0] == expected


def test_one_nonzero_component_is_enough():
    t = CASES["P1"][0]
    forces = t.forces.copy()
    forces[0, 2, 1] = 1e-8
    assert (
        labels.zero_forces([make(1, t.symbols, positions=t.positions, lattice=t.lattice, forces=forces)], ON)[0] == {}
    )


def test_a_single_atom_has_no_force():
    t = make(1, ("Fe",), lattice=np.array([[[2.5, 0.1, 0], [0.3, 2.6, 0], [0, 0.7, 2.9]]]))
    assert labels.zero_forces([make(1, ("Fe",), lattice=t.lattice, forces=np.zeros((1, 1, 3)))], ON)[0] == {}


def test_inputs_are_not_asked_for_forces():
    t = CASES["P1"][0]
    nothing = np.full((1, 3, 3), np.nan)
    t = make(1, t.symbols, positions=t.positions, lattice=t.lattice, forces=nothing, is_input=np.array([True]))
    assert labels.zero_forces([t], ON)[0] == {}


@pytest.mark.parametrize("lattice", [np.nan, 0.0])
def test_a_broken_cell_is_no_excuse_and_no_error(lattice):
    t = CASES["rock salt"][0]
    t = make(1, t.symbols, positions=t.positions, lattice=np.full((1, 3, 3), lattice), forces=t.forces)
    assert list(labels.zero_forces([t], ON)[0]) == [0]


@pytest.mark.parametrize(
    ("steps", "limit", "rejected"),
    [
        ((59, 5, 1), (60, 60, 60), {}),
        ((60, 61, 5), (60, 60, 60), {0: "60 electronic steps, NELM 60", 1: "61 electronic steps, NELM 60"}),
        ((60, 60, 60), (100, 60, 100), {1: "60 electronic steps, NELM 60"}),  # each calculation has its own limit
        ((-1, 5, 5), (60, -1, 60), dict.fromkeys((0, 1), "electronic steps or NELM not recorded")),
        ((0, 5, 5), (60, 60, 60), {0: "electronic steps or NELM not recorded"}),
    ],
)
def test_electronic_convergence(steps, limit, rejected):
    t = make(3, electronic_steps=ints(*steps), nelm=ints(*limit))
    assert labels.electronic_convergence(t, recipe.ElectronicConvergence()) == rejected
    known = {i: text for i, text in rejected.items() if "not recorded" not in text}
    assert labels.electronic_convergence(t, recipe.ElectronicConvergence(unknown="keep")) == known


@pytest.mark.parametrize(("unknown", "n"), [("reject", 3), ("keep", 0)])
def test_nothing_recorded(unknown, n):
    assert len(labels.electronic_convergence(make(3), recipe.ElectronicConvergence(unknown=unknown))) == n
