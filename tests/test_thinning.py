import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajmill.errors import FilterError
from trajmill.thinning import energy_steps, every, farthest

ENERGY = np.array([1.0, 0.5, 0.495, 0.3, 0.305, 0.1, 0.0])


def kept(thin, energy=ENERGY):
    return np.flatnonzero(thin(energy)).tolist()


def test_every_kth_counts_from_the_end():
    assert kept(every(3)) == [0, 3, 6]
    assert kept(every(4)) == [2, 6]
    assert kept(every(1)) == list(range(7))
    assert kept(every(100)) == [6]


def test_energy_steps():
    assert kept(energy_steps(0.01)) == [0, 2, 4, 5, 6]
    assert kept(energy_steps(0.0)) == list(range(7))
    assert kept(energy_steps(0.5)) == [0, 6]
    assert kept(energy_steps(0.1), np.array([0.0, np.nan, 0.0])) == [0, 1, 2]  # unknown is different from all


def test_farthest():
    assert kept(farthest(1)) == [6]
    assert kept(farthest(2)) == [0, 6]
    assert kept(farthest(3)) == [0, 1, 6]
    assert kept(farthest(100)) == list(range(7))
    assert kept(farthest(2), np.zeros(3)) == [0, 2]


@pytest.mark.parametrize(
    "make", [lambda: every(0), lambda: energy_steps(-1), lambda: energy_steps(np.nan), lambda: farthest(0)]
)
def test_what_makes_no_sense_is_said(make):
    with pytest.raises(FilterError):
        make()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.integers(1, 8), st.floats(0, 1))
def test_what_every_way_promises(energies, n, difference):
    energy = np.array(energies)
    for thin in (every(n), energy_steps(difference), farthest(n)):
        keep = thin(energy)
        assert keep.shape == energy.shape
        assert keep[-1]
    assert farthest(n)(energy).sum() == min(n, len(energy))
    steps = energy[energy_steps(difference)(energy)]
    assert (np.abs(np.diff(steps)) > difference).all() or len(steps) == 1
