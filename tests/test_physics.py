"""Units and signs, proven from data."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store
from making import DATA, make
from mp_samples import KEEP, by_id, opened, records
from trajmill.converting import convert
from trajmill.curation import curate
from trajmill.dataset import to_atoms
from trajmill.physics import Pairs, check, judge, pairs_of, passes
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
    found = pairs_of(real).residuals()
    assert len(found) > 180
    assert passes(found), (np.median(found), (found < 0.25).mean())


@pytest.mark.parametrize(("factor", "median"), [(-1.0, 1.0), (0.1, 0.4), (10.0, 0.6), (1602.1766208, 0.9)])
def test_a_wrong_stress_of_real_relaxations_is_found(real, factor, median):
    found = pairs_of(real).residuals(factor)
    assert not passes(found)
    assert np.median(found) > median


def test_generated_alexandria(generated):
    found = pairs_of(generated).residuals()
    assert len(found) > 50
    assert passes(found), (np.median(found), (found < 0.25).mean())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_generated_data_are_found(generated, name):
    assert not passes(pairs_of(map(WRONG[name], generated)).residuals())


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
    found = pairs_of([t]).residuals()
    assert len(found) > 5
    assert np.median(found) < 0.05
    assert not passes(pairs_of([replace(t, stress=-t.stress)]).residuals())


def test_pairs_never_cross_calculations_or_gaps():
    t = make(4, relaxation_number=np.array([0, 0, 1, 1], np.int32), relaxation_step=np.array([0, 2, 3, 5], np.int32))
    assert len(pairs_of([t]).residuals()) == 0


# --- what a user sees of it: a dataset with a mistake made on purpose


@pytest.fixture(scope="module")
def release(real, tmp_path_factory):
    """Real relaxations in a file with the published columns, which are in kBar and do not say so."""
    folder = tmp_path_factory.mktemp("release")
    labelled = [
        replace(t, asset="mp/a.jsonl", space_group=np.ones(len(t), np.int32), energy_corrected=np.full(len(t), np.nan),
                cross_compatibility=np.ones(len(t), bool))
        for t in real if t.trajectory_id and t.functional and np.isfinite(t.forces).all()
    ]  # fmt: skip
    once = {t.trajectory_id: t for t in labelled}
    make_store(folder / "store", list(once.values()))
    convert(trajmill.open(folder / "store"), folder / "published.parquet", "lemat-traj")
    table = pq.read_table(folder / "published.parquet").replace_schema_metadata(None)
    pq.write_table(table, folder / "published.parquet")
    return folder


def test_real_data_are_right(release):
    for dataset in (trajmill.open(release / "store"), trajmill.open(release / "published.parquet", stress="kBar")):
        (verdict,) = check(dataset)
        assert (verdict.passed, verdict.looks_like) == (True, None), verdict
        assert verdict.pairs > 100


def test_a_unit_that_is_taken_for_another_is_named(release):
    (verdict,) = check(trajmill.open(release / "published.parquet", stress="eV/A^3"))
    assert (verdict.passed, verdict.looks_like) == (False, "kBar with VASP's sign")


@pytest.mark.parametrize(
    ("mistake", "looks_like"),
    [
        (lambda t: replace(t, stress=-t.stress), "the other sign"),
        (lambda t: replace(t, stress=t.stress * 160.21766208), "GPa"),
        (lambda t: replace(t, stress=t.stress * 0.1), "a tenth of what it should be"),
        (lambda t: replace(t, energy=t.energy / t.n_atoms), None),
        (lambda t: replace(t, forces=-t.forces, stress=-t.stress), None),
        (lambda t: replace(t, energy=t.energy[::-1]), None),
    ],
)
def test_mistakes_made_on_purpose_are_caught_in_files_of_others(release, tmp_path, mistake, looks_like):
    """Written as extended XYZ with the mistake, read as anybody would."""
    from ase.io import write

    spoiled = [mistake(t) for t in trajmill.open(release / "store").trajectories()]
    write(tmp_path / "spoiled.extxyz", list(to_atoms(spoiled)), format="extxyz")
    (verdict,) = check(trajmill.open(tmp_path / "spoiled.extxyz"))
    assert verdict.passed is False
    if looks_like:
        assert verdict.looks_like == looks_like


def test_single_frames_say_nothing():
    single = Pairs(*[np.zeros(0)] * 4, np.zeros(0, np.int64))
    assert judge("oqmd", single).passed is None
    assert np.isnan(judge("oqmd", single).median)
