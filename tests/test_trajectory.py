import dataclasses

import numpy as np
import pytest

from making import ints, make
from trajmill.trajectory import FRAME_FIELDS, Frames, Trajectory

OPTIONAL = {
    "energy_sigma0": np.arange(3.0),
    "magnetic_moments": np.arange(6.0).reshape(3, 2),
    "encut": np.arange(3.0),
    "electronic_steps": ints(1, 2, 3),
    "nelm": ints(60, 60, 60),
    "ispin": ints(1, 2, 2),
    "is_input": np.array([True, False, False]),
    "space_group": ints(1, 2, 3),
    "energy_corrected": np.arange(3.0),
    "cross_compatibility": np.array([True, False, True]),
}


def test_select_cuts_every_field_of_the_frames():
    t = make(3, **OPTIONAL)
    rest = t.select(np.array([True, False, True]))
    for name in FRAME_FIELDS:
        np.testing.assert_array_equal(getattr(rest, name), getattr(t, name)[[0, 2]], err_msg=name)
    assert len(rest) == 2
    assert rest.labelled.tolist() == [False, True]  # nothing cached came along


def test_frame_fields_are_all_fields_whose_first_axis_is_the_frame():
    t = make(3, **OPTIONAL)
    arrays = {f.name for f in dataclasses.fields(Trajectory) if isinstance(getattr(t, f.name), np.ndarray)}
    assert arrays - {"numbers"} == set(FRAME_FIELDS)


def test_select_leaves_missing_fields_missing_and_moves_faults():
    t = make(4, faults={0: "first", 1: "second", 3: "fourth"})
    rest = t.select(np.array([False, True, False, True]))
    assert rest.faults == {0: "second", 1: "fourth"}
    assert rest.encut is None
    assert rest.is_input is None


def test_select_all_is_the_same_object():
    t = make()
    assert t.select(np.ones(3, bool)) is t


def test_facts_of_the_cell():
    t = make(1, ("O", "Ca", "O", "Ti"))
    assert t.n_atoms == 4
    assert t.symbols == ["O", "Ca", "O", "Ti"]
    assert list(t.composition.items()) == [("Ca", 1), ("O", 2), ("Ti", 1)]
    assert t.labelled.tolist() == [True]


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().energy = None


def test_a_changed_copy_leaves_the_original():
    t = make(2, is_input=np.array([True, False]))
    assert t.labelled.tolist() == [False, True]
    other = t.changed(is_input=None, notes=("new",))
    assert other.labelled.tolist() == [True, True], "nothing cached came along"
    assert (t.notes, other.notes, t.labelled.tolist()) == ((), ("new",), [False, True])
    assert other.forces is t.forces


def test_frames_of_many_trajectories():
    forces = np.ones((3, 2, 3))
    forces[1, 1, 2] = np.nan
    frames = Frames(
        [
            make(2, ("O",), is_input=np.array([True, True])),
            make(3, ("O", "H"), forces=forces),
            make(2, ("O",), is_input=np.array([False, True])),
        ]
    )
    assert frames.owner.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert frames.n_atoms.tolist() == [1, 1, 2, 2, 2, 1, 1]
    assert frames.follows.tolist() == [False, True, False, True, True, False, True]
    assert frames.labelled.tolist() == [False, False, True, True, True, True, False]
    assert frames.last.tolist() == [-1, 4, 5]
    assert np.flatnonzero(frames.any_component("forces", np.isnan)).tolist() == [3]


def test_frames_without_atoms():
    frames = Frames([make(1, ()), make(1, ("O",), forces=np.full((1, 1, 3), np.nan)), make(1, ())])
    assert frames.any_component("forces", np.isnan).tolist() == [False, True, False]
