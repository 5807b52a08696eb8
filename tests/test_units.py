import numpy as np
import pytest

from trajmill.units import KBAR_PER_EV_PER_A3, stress_from_vasp

SYMMETRIC = np.array([[10.0, 1.0, 2.0], [1.0, 20.0, 3.0], [2.0, 3.0, 30.0]])


def test_sign_and_size():
    stress = stress_from_vasp(SYMMETRIC)
    assert stress[0, 0] == -10.0 / 1602.1766208  # 10 kBar pressing outwards is compression: negative for ASE
    np.testing.assert_allclose(stress, -SYMMETRIC / KBAR_PER_EV_PER_A3, rtol=0)


def test_agrees_with_ase():
    from ase.units import GPa

    np.testing.assert_allclose(stress_from_vasp(SYMMETRIC), -0.1 * GPa * SYMMETRIC, rtol=1e-6)


def test_zero_has_no_sign():
    assert not np.signbit(stress_from_vasp(np.zeros((3, 3)))).any()


def test_there_and_back():
    np.testing.assert_allclose(-stress_from_vasp(SYMMETRIC) * KBAR_PER_EV_PER_A3, SYMMETRIC, rtol=1e-14)


@pytest.mark.parametrize(("asymmetry", "good"), [(0.0, True), (1.0, True), (1.01, False), (-1.01, False)])
def test_asymmetry(asymmetry, good):
    skewed = SYMMETRIC.copy()
    skewed[0, 1] += asymmetry
    assert np.isfinite(stress_from_vasp(skewed)).all() == good


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_a_missing_component_costs_the_label_of_its_frame_only(value, place):
    frames = np.stack([SYMMETRIC, SYMMETRIC])
    frames[(0, *place)] = value
    stress = stress_from_vasp(frames)
    assert np.isnan(stress[0]).all()
    assert np.isfinite(stress[1]).all()


def test_no_frames():
    assert stress_from_vasp(np.zeros((0, 3, 3))).shape == (0, 3, 3)
