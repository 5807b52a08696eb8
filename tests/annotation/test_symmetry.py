from collections import OrderedDict

import moyopy
import numpy as np
import pytest

from making import DATA, make
from trajmill.annotation import symmetry
from trajmill.annotation.symmetry import analyse, space_groups
from trajmill.sources.alexandria import Alexandria

SAMPLES = [
    t
    for source in [Alexandria(DATA / "alexandria")]
    for asset in source.assets()
    for record in source.read(asset)
    for t in record.trajectories
]
NACL = 2.8 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])


def moyo(lattice, positions, numbers, symprec):
    """moyopy's own answer, fractional coordinates solved for instead of multiplied by an inverse."""
    fractional = np.linalg.solve(lattice.T, positions.T).T
    return moyopy.MoyoDataset(moyopy.Cell(lattice, fractional, list(numbers)), symprec=symprec).number


@pytest.mark.parametrize("t", SAMPLES[::4], ids=lambda t: t.trajectory_id)
def test_sample_frames(t):
    frames = np.unique(np.linspace(0, len(t) - 1, 4).astype(int))
    found = space_groups(t.lattice[frames], t.positions[frames], t.numbers)
    assert found.tolist() == [moyo(t.lattice[i], t.positions[i], t.numbers, 1e-4) for i in frames]
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    ("lattice", "fractional", "numbers", "group"),
    [
        (NACL, [[0, 0, 0], [0.5] * 3], [11, 17], 225),
        (NACL, [[0, 0, 0], [0.25] * 3], [6, 6], 227),
        (NACL, [[0, 0, 0], [0.25] * 3], [30, 16], 216),
        (3 * np.eye(3), [[0, 0, 0], [0.5] * 3], [55, 17], 221),
        ([[3.0, 0, 0], [0.4, 4, 0], [0.2, 0.9, 5]], [[0, 0, 0], [0.1, 0.2, 0.3], [0.7, 0.2, 0.4]], [1, 8, 9], 1),
    ],
)
def test_known_groups(lattice, fractional, numbers, group):
    lattice = np.asarray(lattice)
    positions = (np.asarray(fractional) @ lattice)[None]
    assert space_groups(lattice[None], positions, np.array(numbers)).tolist() == [group]


def test_symprec_acts():
    positions = (np.array([[0, 0, 0], [0.5, 0.5, 0.501]]) @ NACL)[None]
    found = [space_groups(NACL[None], positions, np.array([11, 17]), symprec=p)[0] for p in (1e-4, 0.1)]
    assert found[0] != found[1] == 225


@pytest.mark.parametrize("lattice", [np.full((3, 3), np.nan), np.zeros((3, 3)), np.ones((3, 3))])
def test_failure_is_0_and_costs_its_own_frame(lattice):
    sites = np.array([[0, 0, 0], [0.5] * 3])
    lattices = np.stack([NACL, lattice, NACL])
    assert space_groups(lattices, sites @ lattices, np.array([11, 17])).tolist() == [225, 0, 225]


def test_atoms_on_one_another():
    assert space_groups(NACL[None], np.zeros((1, 2, 3)), np.array([11, 17])).tolist() == [0]


@pytest.mark.filterwarnings("ignore")
def test_a_panic_of_moyopy_is_a_failure(capfd):
    assert symmetry._search(NACL.tolist(), [], [], 1e-4) is None
    assert space_groups(NACL[None], np.zeros((1, 0, 3)), np.zeros(0, int)).tolist() == [0]
    assert "panicked" in capfd.readouterr().err  # if not, the next moyopy needs no guard


def vanish(lattice, fractional, numbers):
    lattice = np.asarray(lattice, float)
    fractional = np.broadcast_to(fractional, (len(lattice), *np.shape(fractional)[-2:]))
    return analyse([(lattice, fractional @ lattice, np.array(numbers))])[0][1].tolist()


ROCK_SALT = [[0, 0, 0], [0.5, 0.5, 0.5]]


def test_a_symmetric_trajectory_costs_one_search(monkeypatch):
    searches = []
    search = symmetry._search
    monkeypatch.setattr(symmetry, "_search", lambda *a: searches.append(1) or search(*a))
    monkeypatch.setattr(symmetry, "_KNOWN", OrderedDict())
    cells = NACL * np.linspace(1.0, 1.1, 20)[:, None, None]
    assert vanish(cells, ROCK_SALT, [11, 17]) == [True] * 20
    assert len(searches) == 1


def test_a_sheared_cell_keeps_what_symmetry_it_has():
    """Any homogeneous strain leaves rock salt its inversion centres."""
    shear = np.eye(3) + np.array([[0, 0.01, 0.003], [0, 0, 0.02], [0, 0, 0]])
    assert vanish([NACL, NACL @ shear, NACL], ROCK_SALT, [11, 17]) == [True] * 3


def test_zinc_blende_loses_it_under_strain():
    shear = np.eye(3) + 0.02 * np.array([[0, 1.0, 0.5], [0, 0, 0.7], [0, 0, 0]])
    assert vanish([NACL, NACL @ shear, NACL], [[0, 0, 0], [0.25] * 3], [30, 16]) == [True, False, True]


def test_a_frame_without_symmetry_says_nothing_about_the_next():
    shear = np.eye(3) + 0.02 * np.array([[0, 1.0, 0.5], [0, 0, 0.7], [0, 0, 0]])
    assert vanish([NACL @ shear, NACL], [[0, 0, 0], [0.25] * 3], [30, 16]) == [False, True]


def test_moving_atoms():
    sites = np.array([[[0, 0, 0], [0.25 + d] * 3] for d in (0, 0.02, 0)])
    assert vanish([NACL] * 3, sites, [30, 16]) == [True, False, True]


def test_wrapped_and_shifted_atoms():
    sites = np.array([ROCK_SALT, [[1, 0, -1], [1.5, -0.5, 0.5]], [[0.13, 0.2, 0.3], [0.63, 0.7, 0.8]]])
    assert vanish([NACL] * 3, sites, [11, 17]) == [True] * 3


@pytest.mark.parametrize("t", SAMPLES[::6], ids=lambda t: t.trajectory_id)
def test_forces_that_must_vanish_do(t):
    """On the samples: where symmetry leaves no force, the model's forces are zero."""
    usable = np.isfinite(t.forces).all(axis=(1, 2))
    found = analyse([(t.lattice[usable], t.positions[usable], t.numbers)])[0][1]
    assert (np.abs(t.forces[usable][found]) < 2e-3).all()


def test_annotation_of_a_frame_whose_cell_is_broken():
    """With the rule `geometry` off such a frame may be kept."""
    from trajmill import recipe
    from trajmill.annotation import annotate

    t = make(2, ("S", "O"), hubbard_u={}, potentials=("S", "O"))
    t.lattice[:] = np.nan
    done = annotate([t], recipe.Annotation())[0]
    assert done.space_group.tolist() == [0, 0]
    assert np.isnan(done.energy_corrected).all()
    assert done.notes


@pytest.mark.parametrize("key", ["space_group", "energy_corrected"])
def test_annotations_can_be_off(key):
    from trajmill import recipe
    from trajmill.annotation import annotate

    t = make(2, hubbard_u={}, potentials=("Na_pv", "Cl"))
    assert getattr(annotate([t], recipe.Annotation())[0], key) is not None
    assert getattr(annotate([t], recipe.Annotation(**{key: False}))[0], key) is None
