"""The flow for one asset: what comes in is kept or rejected, counted, and written in bounded memory."""

import gc
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fakes
from trajmill import pipeline
from trajmill.errors import BalanceError
from trajmill.pipeline import Job, Unchanged, build_asset
from trajmill.sources.base import Asset, Record
from trajmill.stores.delta import DeltaStore

ASSET = Asset(name="mp/one.json", path=Path("one.json"), size=1)


@dataclass(frozen=True)
class Listed:
    """A source of one asset with the records given."""

    records: tuple
    digest: str = "raw"
    facts: str = ""
    name: str = "mp"

    def raw_digest(self, asset):
        return self.digest

    def facts_digest(self, task_ids):
        return self.facts

    def read(self, asset):
        yield from self.records


def one(*trajectories, rejections=(), n_frames=None):
    """Make a record; `n_frames` is what the reader claims to have counted."""
    claimed = sum(map(len, trajectories)) + sum(r.n_frames or 0 for r in rejections)
    return Record(
        n_frames=claimed if n_frames is None else n_frames, trajectories=trajectories, rejections=tuple(rejections)
    )


def job(path, *records, **options):
    store = DeltaStore(path, create=True).for_worker(ASSET.name)
    return Job(Listed(records, **options), ASSET, fakes.recipe(path), store)


def built(path, *records):
    """Build and commit; return the commit and the rows of each role."""
    commit = build_asset(job(path, *records))
    store = DeltaStore(path)
    store.commit(commit)
    rows = {}
    for role in ("frame", "input", "rejection"):
        rows[role] = [row for _, file, _ in store.files(role) for row in pq.ParquetFile(file).read().to_pylist()]
    return commit, rows


def files(path):
    return [p for p in path.rglob("*") if p.is_file() and "_delta_log" not in p.parts]


# --- the balance


@pytest.mark.parametrize("claimed", [3, 5])
def test_a_reader_that_miscounts_is_never_committed(tmp_path, claimed):
    lying = job(tmp_path, one(fakes.trajectory("t-0")), one(fakes.trajectory("t-1"), n_frames=claimed))
    with pytest.raises(BalanceError, match=rf"record t-1 has {claimed} frames, but 4 were kept and 0 rejected"):
        build_asset(lying)
    assert files(tmp_path) == []


def test_a_record_that_vanishes_is_an_error(tmp_path):
    with pytest.raises(BalanceError, match="record None has 0 frames"):
        build_asset(job(tmp_path, Record(n_frames=0)))


def test_a_rule_that_loses_a_frame_is_an_error(tmp_path, monkeypatch):
    """Should curation drop a frame without a rejection."""
    monkeypatch.setattr(pipeline, "curate", lambda ts, _: [(t.select(np.arange(len(t)) > 0), []) for t in ts])
    with pytest.raises(BalanceError, match="has 4 frames, but 3 were kept and 0 rejected"):
        build_asset(job(tmp_path, one(fakes.trajectory())))


def test_repeated_steps_are_an_error(tmp_path):
    """They would make one id twice (pitfall 12)."""
    repeated = fakes.trajectory(relaxation_step=np.array([0, 1, 1, 2], np.int32))
    with pytest.raises(BalanceError, match="step numbers that do not grow"):
        build_asset(job(tmp_path, one(repeated)))


records = st.lists(
    st.tuples(
        st.integers(0, 6),  # task id: some come twice
        st.integers(1, 4),  # frames
        st.integers(1, 3),  # atoms
        st.sets(st.integers(0, 3)),  # frames without energy
        st.sampled_from(["BY-C", "BY-NC", None]),
        st.sampled_from(["pbe", "scan", None]),
        st.booleans(),  # the first frame is an input
        st.sampled_from([None, 0, 2]),  # an unreadable part with so many frames
    ),
    max_size=8,
)


def _made(number, n_frames, n_atoms, bad, licence, functional, has_input, unread):
    name = f"t-{number}"
    t = fakes.trajectory(
        name, n_frames=n_frames, n_atoms=n_atoms, seed=number, license=licence, functional=functional,
        trajectory_id=f"{name}-{functional}", is_input=(np.arange(n_frames) == 0) & has_input,
    )  # fmt: skip
    t.energy[[i for i in bad if i < n_frames]] = np.nan
    t.energy[t.is_input] = np.nan
    return one(t, rejections=[] if unread is None else [fakes.unreadable(name, n_frames=unread)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=records)
def test_kept_and_rejected_are_what_was_read(tmp_path_factory, drawn):
    read = [_made(*values) for values in drawn]
    commit, rows = built(tmp_path_factory.mktemp("store"), *read)
    balance = commit.balance
    assert balance.records == len(read) == balance.records_kept + balance.records_rejected.total()
    assert balance.frames == sum(r.n_frames for r in read) == balance.kept + balance.rejected.total()
    assert len(rows["frame"]) + len(rows["input"]) == balance.kept
    assert len(rows["input"]) == balance.inputs
    counted = Counter()
    for row in rows["rejection"]:
        counted[row["rejected_by"]] += row["n_frames"] or 0
    assert +counted == +balance.rejected
    ids = [row["id"] for row in rows["frame"] + rows["input"]]
    assert len(set(ids)) == len(ids)
    assert all(row["rejected_by"] is None for row in rows["frame"] + rows["input"])


def test_an_id_that_comes_twice_in_an_asset_is_kept_once(tmp_path):
    twice = (one(fakes.trajectory("t-1", n_frames=2)), one(fakes.trajectory("t-1", n_frames=3)))
    commit, rows = built(tmp_path, *twice)
    assert [row["id"] for row in rows["frame"]] == ["t-1-pbe-0", "t-1-pbe-1"]
    (rejection,) = rows["rejection"]
    assert (rejection["rejected_by"], rejection["n_frames"]) == ("duplicate_trajectory", 3)
    assert rejection["trajectory_id"] == "t-1-pbe"
    assert commit.balance.rejected == {"duplicate_trajectory": 3}


def test_a_copy_takes_the_place_of_one_that_a_rule_rejected(tmp_path):
    first = fakes.trajectory("t-1", n_frames=2, license="BY-NC")
    _, rows = built(tmp_path, one(first), one(fakes.trajectory("t-1", n_frames=3)))
    assert len(rows["frame"]) == 3
    assert [row["rejected_by"] for row in rows["rejection"]] == ["license"]


def test_rejections_carry_identity_and_no_arrays(tmp_path):
    _, rows = built(tmp_path, one(fakes.trajectory("t-1", license="BY-NC")))
    (row,) = rows["rejection"]
    filled = {name for name, value in row.items() if value is not None}
    assert filled == {
        "source", "task_id", "trajectory_id", "immutable_id", "functional", "run_type", "relaxation_number",
        "rejected_by", "rejection_detail", "n_frames",
    }  # fmt: skip


# --- repeats


def test_the_same_again_is_not_read(tmp_path):
    record = one(fakes.trajectory())
    DeltaStore(tmp_path, create=True).commit(build_asset(job(tmp_path, record)))
    unreadable = replace(job(tmp_path), source=Listed(None))
    assert build_asset(unreadable) == Unchanged(ASSET.name)


@pytest.mark.parametrize("change", ["digest", "facts", "rule", "annotation"])
def test_any_change_of_what_decides_rows_builds_again(tmp_path, change):
    first = job(tmp_path, one(fakes.trajectory()))
    DeltaStore(tmp_path).commit(build_asset(first))
    first = replace(job(tmp_path), source=first.source)  # which knows of the commit
    options = {"rule": "rules.energy_window.above=0.5", "annotation": "annotation.symprec=1e-3"}
    if change in options:
        changed = replace(first, recipe=fakes.recipe(tmp_path, 1, options[change]))
    else:
        changed = replace(first, source=replace(first.source, **{change: "another"}))
    assert build_asset(changed) != Unchanged(ASSET.name)


def test_paths_and_workers_change_nothing(tmp_path):
    first = job(tmp_path, one(fakes.trajectory()))
    DeltaStore(tmp_path).commit(build_asset(first))
    again = fakes.recipe(tmp_path, 7, "mp.path=elsewhere", "release.rows_per_file=3")
    assert build_asset(replace(job(tmp_path), source=first.source, recipe=again)) == Unchanged(ASSET.name)


# --- resources


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("good", [True, False])
def test_the_garbage_collector_is_left_as_it_was(tmp_path, enabled, good):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        record = one(fakes.trajectory(), n_frames=4 if good else 9)
        if good:
            build_asset(job(tmp_path, record))
        else:
            with pytest.raises(BalanceError):
                build_asset(job(tmp_path, record))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_a_reader_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def read(self, asset):
        for i in range(50):
            yield one(fakes.trajectory(f"t-{i}"))
        raise OSError("the disk came loose")

    monkeypatch.setattr(Listed, "read", read)
    monkeypatch.setattr(pipeline, "BATCH_SIZE", 200)
    with pytest.raises(OSError, match="came loose"):
        build_asset(job(tmp_path))
    assert files(tmp_path) == []


@pytest.mark.parametrize("n_frames", [1, 500])
def test_what_waits_to_be_written_is_bounded(tmp_path, monkeypatch, n_frames):
    """Many tiny records no less than long ones."""
    monkeypatch.setattr(pipeline, "BATCH_SIZE", 3000)
    sizes = []
    encode = pipeline.encode

    def counting(trajectories):
        sizes.append((len(trajectories), sum(map(len, trajectories))))
        return encode(trajectories)

    monkeypatch.setattr(pipeline, "encode", counting)
    read = [one(fakes.trajectory(f"t-{i}", n_frames=n_frames, n_atoms=1)) for i in range(300 // n_frames + 10)]
    commit, rows = built(tmp_path, *read)
    assert len(rows["frame"]) == commit.balance.kept > 0
    assert max(n for n, _ in sizes) <= 100
    assert max(frames for _, frames in sizes) <= 500
    assert [row["id"] for row in rows["frame"]] == [
        f"{t.trajectory_id}-{step}" for r in read for t in r.trajectories for step in t.relaxation_step
    ]


def test_rejections_that_wait_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH_REJECTIONS", 10)
    sizes = []
    encode = pipeline.encode_rejections
    monkeypatch.setattr(pipeline, "encode_rejections", lambda r: (sizes.append(len(r)), encode(r))[1])
    _, rows = built(tmp_path, *(one(rejections=[fakes.unreadable(f"t-{i}")]) for i in range(35)))
    assert sizes == [10, 10, 10, 5]
    assert len(rows["rejection"]) == 35


def test_progress_counts_frames_read_and_rejected(tmp_path):
    told = []
    read = [one(fakes.trajectory("t-0")), one(fakes.trajectory("t-1", license="BY-NC"))]
    build_asset(job(tmp_path, *read), lambda *numbers: told.append(numbers))
    assert told == [(4, 0), (8, 0), (8, 4)]  # records are worked on many at a time
