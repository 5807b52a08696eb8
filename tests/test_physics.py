"""Units and signs, proven from data."""

from dataclasses import replace

import numpy as np
import pytest

from making import DATA, make
from mp_samples import KEEP, by_id, opened, records
from physics import passes, residuals
from trajmill.curation import curate
from trajmill.recipe import load
from trajmill.sources.alexandria import Alexandria

WRONG = {
    "flipped sign": lambda t: replace(t, stress=-t.stress),
    "a tenth (GPa)": lambda t: replace(t, stress=t.stress / 10),
    "ten times": lambda t: replace(t, stress=t.stress * 10),
    "transposed cell": lambda t: replace(t, lattice=np.ascontiguousarray(t.lattice.transpose(0, 2, 1))),
    "forces flipped and stress flipped": lambda t: replace(t, stress=-t.stress, forces=-t.forces),
    "kBar": lambda t: replace(t, stress=t.stress * 1602.1766208),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Real calculations of the Materials Project, as read: all frames with forces, energy and cell."""
    found = [
        t
        for folder in ("real", "derived", "double")
        for t in by_id(records(opened(DATA / "mp" / folder, tmp_path_factory.mktemp("mp"), KEEP))).values()
    ]
    return [t.select(np.isfinite(t.lattice).all(axis=(1, 2)) & np.isfinite(t.energy)) for t in found]


@pytest.fixture(scope="module")
def generated():
    """Made with CHGNet, written and read again: proves that we read what was written, not that DFT's unit is kBar."""
    source = Alexandria(DATA / "alexandria")
    found = [t for a in source.assets() for r in source.read(a) for t in r.trajectories]
    return [rest for t in found if (rest := curate([t], load().rules)[0][0]) is not None]


def test_real_relaxations(real):
    found = residuals(real)
    assert len(found) > 180
    assert passes(found), (np.median(found), (found < 0.25).mean())


@pytest.mark.parametrize(("factor", "median"), [(-1.0, 1.0), (0.1, 0.4), (10.0, 4.0), (1602.1766208, 100.0)])
def test_a_wrong_stress_of_real_relaxations_is_found(real, factor, median):
    found = residuals(real, factor=factor)
    assert not passes(found)
    assert np.median(found) > median


def test_generated_alexandria(generated):
    found = residuals(generated)
    assert len(found) > 50
    assert passes(found), (np.median(found), (found < 0.25).mean())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_generated_data_are_found(generated, name):
    assert not passes(residuals(map(WRONG[name], generated)))


def test_the_check_itself_on_a_harmonic_crystal():
    """Energy, forces and stress of a made-up quadratic energy in strain and fractional coordinates."""
    random = np.random.default_rng(3)
    n, cell = 40, np.array([[4.0, 0.1, 0], [0.3, 5.0, 0.2], [0, 0.4, 6.0]])
    strain = 0.02 * (1 - np.linspace(0, 1, n))[:, None, None] * (m := random.normal(size=(3, 3)) / 3)
    strain = (strain + strain.transpose(0, 2, 1)) / 2
    assert m.any()
    lattice = cell @ (np.eye(3) + strain)
    stiffness, volume = 1.0, np.linalg.det(cell)
    energy = 0.5 * stiffness * volume * (strain**2).sum(axis=(1, 2))
    positions = np.array([[0.0, 0, 0], [0.4, 0.5, 0.6]]) @ lattice
    t = make(
        n, lattice=lattice, positions=positions, energy=energy, stress=stiffness * strain, forces=np.zeros((n, 2, 3))
    )
    found = residuals([t])
    assert len(found) > 5
    assert np.median(found) < 0.05
    assert not passes(residuals([replace(t, stress=-t.stress)]))


def test_pairs_never_cross_calculations_or_gaps():
    t = make(4, relaxation_number=np.array([0, 0, 1, 1], np.int32), relaxation_step=np.array([0, 2, 3, 5], np.int32))
    assert len(residuals([t])) == 0
