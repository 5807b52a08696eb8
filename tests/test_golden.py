"""The shipped samples through the whole pipeline: counts per rule, each of which can be traced in the raw files."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import trajmill
from making import DATA
from trajmill.inspection import find_rejections
from trajmill.recipe import load

MP = f"mp.path='{DATA / 'mp/real'}'"
DOUBLE = f"mp.path='{DATA / 'mp/double'}'"
DERIVED = f"mp.path='{DATA / 'mp/derived'}'"
ALEXANDRIA = f"alexandria.path='{DATA / 'alexandria'}'"
OQMD = f"oqmd.path='{DATA / 'oqmd/qmdb__v1_6__112023.sql.gz'}'"
REAL_OQMD = f"oqmd.path='{DATA / 'oqmd/real_entry_6126.sql.gz'}'"
KEEP = "mp.tasks_without_material=keep"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build once per set of settings; gives the summary and the store's folder."""
    done = {}

    def build(*settings):
        if settings not in done:
            path = tmp_path_factory.mktemp("golden") / "store"
            recipe = load(settings=[*settings, f"store.path='{path}'", "engine.workers=2"])
            done[settings] = trajmill.build(recipe), path
        return done[settings]

    return build


@pytest.mark.parametrize(
    ("settings", "records", "frames", "rejected"),
    [
        # 365 ionic steps in 56 documents; O2 is under BY-NC; two tasks are deprecated; mp-688194 has no structures
        ((MP, KEEP), (56, 22), (365, 262), {"task_type": 54, "license": 43, "deprecated": 4, "targets": 2}),
        # without a material there is no licence: 34 documents more go for that
        ((MP,), (56, 13), (365, 184), {"license": 172, "task_type": 5, "deprecated": 4}),
        # hybrids, revPBE, PBEsol+U and LDA; one run that reached NELM in all 5 steps; one that ended far off
        (
            (DERIVED, KEEP),
            (50, 16),
            (212, 79),
            {"task_type": 61, "unsupported_functional": 58, "final_frame_outlier": 9, "electronic_convergence": 5},
        ),
        # nine double relaxations of VASP, 296 to 400 steps some of them; one starts 1.95 eV/atom uphill
        ((DOUBLE, KEEP), (9, 9), (1308, 1307), {"energy_window": 1}),
        # CASES.tsv: three ids with Yb; NaN energy, null and ragged force row, final frame without forces; three ids
        # that start far uphill, one of them in two frames; stages that begin with an exact copy of the frame before
        (
            (ALEXANDRIA,),
            (45, 42),
            (657, 580),
            {"duplicate_frames": 46, "elements": 23, "targets": 4, "energy_window": 4},
        ),
        (
            (OQMD,),
            (40, 22),
            (154, 55),
            {
                "task_type": 58, "relaxation_record": 18, "relaxation_converged": 15, "site_order": 3,
                "ordered_sites": 2, "oqmd_duplicate": 2, "targets": 1,
            },
        ),
        ((REAL_OQMD,), (1, 0), (3, 0), {"relaxation_converged": 3}),
        # with that rule off the real entry stays, all of it unlike the other sources (ispin 1, low cut-off)
        ((REAL_OQMD, "rules.relaxation_converged.enabled=false"), (1, 1), (3, 3), {}),
    ],
    ids=["mp-keep", "mp-reject", "mp-derived", "mp-double", "alexandria", "oqmd", "oqmd-6126", "oqmd-6126-kept"],
)  # fmt: skip
def test_counts(built, settings, records, frames, rejected):
    summary, _ = built(*settings)
    b = summary.balance
    assert not summary.failed
    assert (b.records, b.records_kept) == records
    assert (b.frames, b.kept) == frames
    assert b.rejected == Counter(rejected)


def trajectories(path):
    return {t.trajectory_id: t for t in trajmill.open(path).trajectories()}


def test_mp_runs_end_where_they_ended(built):
    """Final frames are kept and are the end of the last stage (pitfalls 1, 2)."""
    _, path = built(MP, KEEP)
    runs = trajectories(path)
    assert len(runs["mp-1201400-pbe"]) == 20
    run = runs["mp-1539165-pbe"]  # mp-djowr: 86 steps, then 4
    assert list(np.bincount(run.relaxation_number)) == [86, 4]
    assert run.relaxation_step[-1] == 89
    assert run.energy[-1] == -108.4961085


def test_gga_and_gga_u_are_told_apart(built):
    _, path = built(MP, KEEP)
    kinds = {t.run_type for t in trajectories(path).values() if t.functional == "pbe"}
    assert kinds == {"GGA", "GGA+U"}


def test_the_mislabelled_scan_relaxation_is_found(built):
    """mp-1120260: a calculation stored as GGA is a SCAN relaxation."""
    _, path = built(MP, KEEP)
    run = trajectories(path)["mp-1120260-scan"]
    assert set(run.relaxation_number) == {1, 2}
    assert any("stored as GGA" in note and "recomputed SCAN" in note for note in run.notes)
    rows, *_ = find_rejections(path, None, "mp-1120260", 0)
    assert [(row[0], row[4]) for row in rows] == [("task_type", 1)]


def test_ids_are_unique(built):
    for settings in ((MP, KEEP), (ALEXANDRIA,), (OQMD,)):
        _, path = built(*settings)
        ids = [i for batch in trajmill.open(path).batches(columns=["id"]) for i in batch["id"].to_pylist()]
        assert len(ids) == len(set(ids))


def test_the_real_oqmd_entry_is_of_another_surface(built):
    """Entry 6126 ran without spin polarisation and at 300 and 400 eV: never in a compatible configuration."""
    _, path = built(REAL_OQMD, "rules.relaxation_converged.enabled=false")
    run = trajectories(path)["oqmd-81278-pbe"]
    assert not run.cross_compatibility.any()
    np.testing.assert_allclose(run.encut, [300, 400])
    np.testing.assert_allclose(run.energy, [-40.256, -39.512], atol=5e-4)
    assert np.isnan(run.stress).all()  # nobody can know its unit
