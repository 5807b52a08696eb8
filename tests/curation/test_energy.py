import numpy as np
import pytest

from making import floats, ints, make
from trajmill import recipe
from trajmill.curation import curate, energy

WINDOW = recipe.EnergyWindow()


def ending_at_zero(*per_atom, **changes):
    """Two atoms, energies in eV/atom."""
    return make(len(per_atom), energy=2 * floats(*per_atom), **changes)


@pytest.mark.parametrize(
    ("above", "kept"),
    [
        ((1.0, 0.0, 0.0), True),
        ((1.001, 0.0, 0.0), False),
        ((-0.5, 0.0, 0.0), True),
        ((-0.501, 0.0, 0.0), False),
        ((5.0, 0.0, 0.0), False),
    ],
)
def test_two_sided_window_per_atom(above, kept):
    assert (energy.energy_window(ending_at_zero(*above), WINDOW) == {}) == kept


def test_detail():
    assert energy.energy_window(ending_at_zero(3.1771, -0.6, 0.0), WINDOW) == {
        0: "+3.177 eV/atom from the final frame, allowed -0.5 to +1.0",
        1: "-0.600 eV/atom from the final frame, allowed -0.5 to +1.0",
    }


@pytest.mark.parametrize(
    ("options", "rejected"),
    [({"above": 4.0}, [1]), ({"below": 1.0}, [0]), ({"above": 4.0, "below": 1.0}, []), ({"above": 0.1}, [0, 1, 2])],
)
def test_thresholds_act(options, rejected):
    t = ending_at_zero(3.0, -0.6, 0.2, 0.0)
    assert sorted(energy.energy_window(t, recipe.EnergyWindow(**options))) == rejected


def test_the_window_ends_at_the_last_stage():
    """Measured against the end of the first stage, the frames of the second would be outside."""
    t = ending_at_zero(0.4, 0.3, -0.6, -0.65, relaxation_number=ints(0, 0, 1, 1))
    assert sorted(energy.energy_window(t, WINDOW)) == [0]  # 1.05 above the end; 0.9 would be inside for step 1


@pytest.mark.parametrize("per_atom", [(0.0,), (7.0,), (-7.0,)])
def test_one_frame_is_always_inside(per_atom):
    t = ending_at_zero(*per_atom)
    assert energy.final_frame_outlier(t, WINDOW) is None
    assert energy.energy_window(t, WINDOW) == {}


@pytest.mark.parametrize(
    ("per_atom", "text"),
    [
        ((2.0, 0.0), None),  # one of two is not more than half
        ((2.0, 2.0, 0.0), "2 of 3 frames are outside the energy window around the final frame"),
        ((-2.0, -2.0, 0.0), "2 of 3 frames are outside the energy window around the final frame"),
        ((2.0, 2.0, 0.1, 0.0), None),
    ],
)
def test_final_frame_outlier(per_atom, text):
    assert energy.final_frame_outlier(ending_at_zero(*per_atom), WINDOW) == text


def test_inputs_are_neither_inside_nor_outside():
    t = ending_at_zero(np.nan, 2.0, 0.0, is_input=np.array([True, False, False]))
    assert energy.final_frame_outlier(t, WINDOW) is None  # one of two labelled frames
    assert list(energy.energy_window(t, WINDOW)) == [1]


def test_the_end_is_the_last_labelled_frame():
    t = ending_at_zero(2.0, 0.0, np.nan, is_input=np.array([False, False, True]))
    assert list(energy.energy_window(t, WINDOW)) == [0]


def test_inputs_alone():
    t = ending_at_zero(np.nan, np.nan, is_input=np.array([True, True]))
    assert energy.final_frame_outlier(t, WINDOW) is None
    assert energy.energy_window(t, WINDOW) == {}


@pytest.mark.parametrize(("threshold", "rejected"), [(50, {1: "force of 50.1 eV/A, allowed 50.0"}), (60, {})])
def test_max_force(threshold, rejected):
    forces = np.zeros((3, 2, 3))
    forces[0, 0] = [30.0, 0.0, 40.0]  # exactly 50
    forces[1, 1] = [0.0, -50.1, 0.0]
    assert energy.max_force(make(forces=forces), recipe.MaxForce(threshold=threshold)) == rejected


def test_max_force_is_off_by_default():
    t = make(forces=np.full((3, 2, 3), 1000.0))
    assert len(curate([t], recipe.Rules())[0][0]) == 3
    rest, rejections = curate([t], recipe.Rules(max_force=recipe.MaxForce(enabled=True)))[0]
    assert rest is None
    assert {r.rejected_by for r in rejections} == {"max_force"}
