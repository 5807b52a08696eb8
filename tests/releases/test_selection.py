from __future__ import annotations

import pytest

from factories import make_store, make_trajectory
from trajmill import recipe
from trajmill.releases.selection import select


def left_out(store, rules=None):
    rows = select(store, rules or recipe.Rules()).to_pylist()
    return {(r["asset"].rpartition("/")[2], r["trajectory_id"]): r for r in rows}


class TestDuplicateTrajectory:
    def copies(self, old, new):
        return [
            make_trajectory("mp-1", asset="mp/tasks/b.jsonl.gz", last_modified=old),
            make_trajectory("mp-1", asset="mp/tasks/a.jsonl.gz", last_modified=new, n_frames=4),
            make_trajectory("mp-2", asset="mp/tasks/a.jsonl.gz", immutable_id="mp-2"),
        ]

    def test_newest_copy_stays_as_a_whole(self, tmp_path):
        store = make_store(tmp_path, self.copies("2024-01-01", "2025-01-01"))
        rows = left_out(store)
        assert list(rows) == [("b.jsonl.gz", "mp-1-pbe")]
        row = rows["b.jsonl.gz", "mp-1-pbe"]
        assert row["rule"] == "duplicate_trajectory"
        assert row["n_frames"] == 3
        assert row["detail"] == "a copy of 2024-01-01; kept the one of 2025-01-01 in mp/tasks/a.jsonl.gz"

    @pytest.mark.parametrize("date", ["2024-01-01", None])
    def test_without_a_newer_date_the_later_name_stays(self, tmp_path, date):
        store = make_store(tmp_path, self.copies(date, date))
        assert list(left_out(store)) == [("a.jsonl.gz", "mp-1-pbe")]

    def test_a_dated_copy_beats_an_undated_one(self, tmp_path):
        store = make_store(tmp_path, self.copies(None, "2020-01-01"))
        assert list(left_out(store)) == [("b.jsonl.gz", "mp-1-pbe")]

    def test_inputs_follow_their_trajectory(self, tmp_path):
        old, new, other = self.copies("2024-01-01", "2025-01-01")
        nan = old.energy[:1] * float("nan")
        first = make_trajectory("mp-1", n_frames=1, asset=old.asset, energy_corrected=None, last_modified="2024-01-01")
        from dataclasses import replace

        first = replace(first, energy=nan)
        store = make_store(tmp_path, [old, new, other], inputs=[first])
        assert left_out(store)["b.jsonl.gz", "mp-1-pbe"]["n_frames"] == 4

    def test_off(self, tmp_path):
        store = make_store(tmp_path, self.copies("2024-01-01", "2025-01-01"))
        rules = recipe.load(settings=["rules.duplicate_trajectory.enabled=false"]).rules
        assert not left_out(store, rules)


class TestPrimaryAgreement:
    def group(self, *energies, **fields):
        return [make_trajectory(f"mp-{i}", energy=e, **fields) for i, e in enumerate(energies, start=1)]

    def names(self, tmp_path, trajectories, *settings):
        store = make_store(tmp_path, trajectories)
        return sorted(t for _, t in left_out(store, recipe.load(settings=settings).rules))

    def test_lowest_is_primary_and_the_tolerance_is_per_atom(self, tmp_path):
        # two atoms: 20 meV/atom is 40 meV
        assert self.names(tmp_path, self.group(-6.0, -5.961, -5.959)) == ["mp-3-pbe"]

    def test_origin_is_primary_and_both_sides_count(self, tmp_path):
        group = self.group(-6.0, -5.9, -5.89)
        group[1] = make_trajectory("mp-2", energy=-5.9, material_origin=True)
        assert self.names(tmp_path, group) == ["mp-1-pbe"]

    def test_a_one_frame_origin_is_primary(self, tmp_path):
        group = self.group(-6.0, -5.9)
        group[1] = make_trajectory("mp-2", energy=-5.9, n_frames=1, material_origin=True)
        assert self.names(tmp_path, group) == ["mp-1-pbe"]

    def test_an_origin_that_was_rejected_takes_nothing_with_it(self, tmp_path):
        group = [make_trajectory(f"mp-{i}", energy=e, material_origin=False) for i, e in ((1, -6.0), (2, -5.99))]
        assert self.names(tmp_path, group) == []

    def test_run_types_functionals_and_materials_are_not_pooled(self, tmp_path):
        group = [
            make_trajectory("mp-1", energy=-6.0),
            make_trajectory("mp-2", energy=-3.0, run_type="GGA+U"),
            make_trajectory("mp-3", energy=-4.0, functional="pbesol"),
            make_trajectory("mp-4", energy=-5.0, immutable_id="mp-4"),
            make_trajectory("mp-5", energy=-1.0, symbols=("Na", "Na", "Cl")),
        ]
        assert self.names(tmp_path, group) == []

    def test_threshold_acts(self, tmp_path):
        assert self.names(tmp_path, self.group(-6.0, -5.9), "rules.primary_agreement.tolerance=0.06") == []

    def test_off(self, tmp_path):
        assert self.names(tmp_path, self.group(-6.0, -5.0), "rules.primary_agreement.enabled=false") == []

    def test_other_sources_have_no_primary(self, tmp_path):
        asset = "alexandria/a.json.bz2"
        assert (
            self.names(tmp_path, [make_trajectory("agm1", asset=asset), make_trajectory("agm2", energy=0, asset=asset)])
            == []
        )

    def test_a_duplicate_is_no_primary(self, tmp_path):
        group = [
            make_trajectory("mp-1", energy=-9.0, last_modified="2020-01-01", asset="mp/tasks/old.jsonl.gz"),
            make_trajectory("mp-1", energy=-6.0, last_modified="2025-01-01"),
            make_trajectory("mp-2", energy=-6.0),
        ]
        assert self.names(tmp_path, group) == ["mp-1-pbe"]  # the copy alone
