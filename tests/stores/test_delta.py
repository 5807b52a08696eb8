"""The Delta Lake store: commits, repeats, readers, broken and full disks."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chores
import disks
import fakes
from trajmill.codec import encode, encode_rejections
from trajmill.errors import StoreError
from trajmill.schema import ADDED, LEDGER, PARTITIONS, PUBLISHED
from trajmill.stores import delta
from trajmill.stores.base import Balance, Commit
from trajmill.stores.delta import DeltaStore
from trajmill.stores.delta_log import DeltaLog

ODD = "alexandria/a b=c#d%e%2F&+/Übung 'x\" [1]*?.json.bz2"
VERSIONS = {"trajmill": "1"}
RECIPE = {"rules": {"elements": ["Yb"]}}


def fingerprint(text):
    return hashlib.sha256(text.encode()).hexdigest()


def write(store, asset, label="", *, frames=("t-1",), rejections=("r-1",), n_frames=3):
    """Write an asset's rows; return what commits them."""
    writer = store.writer(asset)
    if frames:
        batch = [fakes.trajectory(t, asset=asset, n_frames=n_frames, energy_corrected=None) for t in frames]
        writer.write("frame", encode(batch))
    if rejections:
        writer.write("rejection", encode_rejections([fakes.unreadable(r, asset=asset) for r in rejections]))
    digest = fingerprint(asset + label)
    balance = Balance(records=2, frames=3, kept=3, rejected=Counter(readable=len(rejections)))
    return Commit(asset, digest, writer.close(digest, VERSIONS), balance, VERSIONS, f"raw of {asset}", RECIPE)


def put(store, asset, label="", **content):
    commit = write(store, asset, label, **content)
    store.commit(commit)
    return commit


def rows(path, role="frame", version=None):
    """Read (asset, task_id) of a role as Polars users do."""
    table = pl.scan_delta(str(path), version=version).filter(pl.col("role") == role)
    return sorted(table.select("asset", "task_id").collect().rows())


@pytest.fixture
def store(tmp_path):
    return DeltaStore(tmp_path / "store", create=True)


# --- commits


def test_a_commit_replaces_the_rows_of_its_asset_alone(store):
    put(store, "mp/a", frames=("a-1", "a-2"), n_frames=1)
    put(store, "mp/b", frames=("b-1",), n_frames=1)
    put(store, "mp/a", "changed", frames=("a-3",), rejections=(), n_frames=1)
    assert rows(store.path) == [("mp/a", "a-3"), ("mp/b", "b-1")]
    assert rows(store.path, "rejection") == [("mp/b", "r-1")]
    assert store.assets() == ["mp/a", "mp/b"]


def test_nothing_is_visible_before_the_commit(store):
    put(store, "mp/a", frames=("old",), n_frames=1)
    commit = write(store, "mp/a", "changed", frames=("new",), n_frames=1)
    assert rows(store.path) == [("mp/a", "old")]
    store.commit(commit)
    assert rows(store.path) == [("mp/a", "new")]


def test_the_store_object_sees_what_it_committed(store):
    put(store, "mp/a")
    assert store.version == 1
    assert store.committed("mp/a", fingerprint("mp/a"))
    assert [count for _, _, count in store.files("frame", "mp/a")] == [3]
    assert list(store.balances()) == ["mp/a"]


def test_two_openers_commit_in_turn(store):
    other = DeltaStore(store.path)
    put(store, "mp/a")
    put(other, "mp/b")
    put(store, "mp/c")
    assert DeltaStore(store.path).assets() == ["mp/a", "mp/b", "mp/c"]


def test_an_asset_without_rows(store):
    put(store, "mp/a")
    put(store, "mp/a", "emptied", frames=(), rejections=())
    put(store, "mp/never", frames=(), rejections=())
    again = DeltaStore(store.path)
    assert again.assets() == []
    assert again.committed("mp/a", fingerprint("mp/aemptied"))
    assert again.committed("mp/never", fingerprint("mp/never"))
    assert list(again.task_ids("mp/never")) == []


def test_fingerprints_survive_checkpoints_and_reopening(store):
    for i in range(8):
        put(store, f"mp/{i}", frames=())
    table = DeltaTable(store.path)
    table.create_checkpoint()
    put(store, "mp/0", "changed", frames=())
    for log in (store.path / "_delta_log").glob("0*[0-7].json"):
        log.rename(log.with_suffix(".aside"))  # the checkpoint alone must know
    again = DeltaStore(store.path)
    assert [again.committed(f"mp/{i}", fingerprint(f"mp/{i}")) for i in range(8)] == [False, *[True] * 7]
    assert again.committed("mp/0", fingerprint("mp/0changed"))
    assert not again.committed("mp/9", fingerprint("mp/9"))


def test_checkpoints_are_made_and_the_history_is_kept(store, monkeypatch):
    """An old log that is cleaned up would take versions, fingerprints and balances with it."""
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 10)
    for i in range(25):
        store.commit(Commit(f"mp/{i}", fingerprint(str(i)), (), Balance(records=i), VERSIONS, str(i), RECIPE))
    log = store.path / "_delta_log"
    assert [int(file.name[:20]) for file in sorted(log.glob("*.checkpoint.parquet"))] == [10, 20]
    again = DeltaStore(store.path)
    assert len(again.balances()) == 25
    assert all(again.committed(f"mp/{i}", fingerprint(str(i))) for i in range(25))
    assert DeltaStore(store.path, version=5).version == 5


def test_a_checkpoint_that_fails_harms_nothing(store, monkeypatch):
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(DeltaTable, "create_checkpoint", lambda _: (_ for _ in ()).throw(OSError("no")))
    for name in "abc":
        put(store, f"mp/{name}", n_frames=1)
    assert rows(store.path) == [("mp/a", "t-1"), ("mp/b", "t-1"), ("mp/c", "t-1")]


def test_a_dropped_asset_leaves_no_trace_but_history(store):
    put(store, "mp/a", frames=("a-1",), n_frames=1)
    put(store, "mp/b", frames=("b-1",), n_frames=1)
    store.drop("mp/a")
    assert rows(store.path) == [("mp/b", "b-1")]
    assert (store.assets(), list(store.balances()), list(store.raw_digests())) == (["mp/b"],) * 3
    assert rows(store.path, version=2) == [("mp/a", "a-1"), ("mp/b", "b-1")]
    assert not store.committed("mp/a", fingerprint("mp/a")), "it would never be built again"
    put(store, "mp/a", frames=("a-1",), n_frames=1)
    assert store.assets() == ["mp/a", "mp/b"]


def test_raw_digests_are_those_of_the_newest_rows(store):
    put(store, "mp/a")
    old = DeltaStore(store.path)
    store.commit(replace(write(store, "mp/a", "changed"), raw="other raw"))
    assert store.raw_digests() == {"mp/a": "other raw"}
    assert old.raw_digests() == {"mp/a": "raw of mp/a"}


def test_recipes_are_recorded_once_and_those_in_use_are_told(store):
    put(store, "mp/a")
    put(store, "oqmd/a")
    put(store, "mp/b")
    assert store.built_with() == {"mp": [RECIPE], "oqmd": [RECIPE]}
    again = DeltaStore(store.path)
    again.commit(replace(write(again, "mp/a", "changed"), recipe={"rules": {}}))
    again.commit(replace(write(again, "mp/b", "changed"), recipe={"rules": {}}))
    assert DeltaStore(store.path).built_with() == {"mp": [{"rules": {}}], "oqmd": [RECIPE]}
    logs = [log.read_text() for log in (store.path / "_delta_log").glob("*.json")]
    assert sum("recipe_content" in log for log in logs) == 2
    assert DeltaStore(store.path, version=3).built_with() == {"mp": [RECIPE], "oqmd": [RECIPE]}


def test_upstream_versions_are_recorded_once(store):
    assert store.upstream() == {}
    put(store, "mp/a")
    first, second = {"mp": {"version": {"dump": "1"}}}, {"mp": {"version": {"dump": "2"}}}
    store.note_upstream(first)
    store.note_upstream(first)
    assert (store.version, store.upstream()) == (2, first)
    store.note_upstream(second)
    assert DeltaStore(store.path).upstream() == second
    assert DeltaStore(store.path, version=2).upstream() == first
    assert rows(store.path) == [("mp/a", "t-1")] * 3


def test_there_and_back_again(store):
    """A fingerprint that returns is committed again, and all versions stay readable."""
    put(store, "mp/a", "A", frames=("first",), n_frames=1)
    put(store, "mp/a", "B", frames=("second",), n_frames=1)
    assert not store.committed("mp/a", fingerprint("mp/aA"))
    put(store, "mp/a", "A", frames=("first",), n_frames=1)
    assert store.committed("mp/a", fingerprint("mp/aA"))
    seen = [rows(store.path, version=v) for v in range(1, 4)]
    assert seen == [[("mp/a", "first")], [("mp/a", "second")], [("mp/a", "first")]]
    old = DeltaTable(store.path, version=2).to_pyarrow_dataset().to_table(columns=["task_id", "role"])
    assert Counter(old["role"].to_pylist()) == {"frame": 1, "rejection": 1}


def test_balances_and_versions_are_those_of_the_version_read(store):
    put(store, "mp/a", rejections=("r-1",))
    put(store, "mp/a", "changed", rejections=("r-1", "r-2"))
    put(store, "mp/b")
    assert store.balances()["mp/a"].rejected == Counter(readable=2)
    assert sum(store.balances().values(), Balance()).records == 4
    assert store.versions() == {"trajmill": ["1"]}
    old = DeltaStore(store.path, version=1).balances()
    assert list(old) == ["mp/a"]
    assert old["mp/a"].rejected == Counter(readable=1)


def test_task_ids_of_all_roles_each_once(store):
    put(store, "mp/a", frames=("x", "y"), rejections=("y", "z"))
    put(store, "mp/b", frames=("other",))
    assert sorted(store.task_ids("mp/a")) == ["x", "y", "z"]


def test_writing_the_same_again_gives_the_same_bytes(store):
    first = write(store, "mp/a")
    content = {f.path: (store.path / f.path).read_bytes() for f in first.files}
    again = write(DeltaStore(store.path), "mp/a")
    assert again == first
    assert {f.path: (store.path / f.path).read_bytes() for f in again.files} == content


def test_killed_between_files_in_place_and_commit(store):
    """Nothing is counted, and the next run replaces the files by equal ones."""
    lost = write(store, "mp/a")
    assert DeltaStore(store.path).assets() == []
    assert rows(store.path) == []
    commit = put(DeltaStore(store.path), "mp/a")
    assert commit == lost
    assert len(list(store.path.rglob("*.parquet"))) == 2


def test_what_a_killed_worker_left_is_cleared_by_the_next(store):
    killed = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import fakes
from trajmill.codec import encode
from trajmill.stores.delta import DeltaStore
writer = DeltaStore({str(store.path)!r}).writer("mp/a")
writer.write("frame", encode([fakes.trajectory()]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", killed], check=False)
    assert len(list(store.path.rglob("*.tmp"))) == 1
    assert rows(store.path) == []
    put(store, "mp/a")
    assert list(store.path.rglob("*.tmp")) == []


def test_abort_leaves_nothing(store):
    writer = store.writer("mp/a")
    writer.write("frame", encode([fakes.trajectory()]))
    writer.abort()
    assert [p for p in store.path.rglob("*") if p.is_file() and "_delta_log" not in p.parts] == []


# --- readers


@pytest.mark.parametrize("asset", [ODD, "mp/a\\b", "mp/100%", "mp/$(x);`y`|<>:,{}~^@!", "mp/日本"])
def test_odd_characters_in_names_of_assets(store, asset):
    put(store, "mp/plain", n_frames=1)
    put(store, asset, frames=("odd",), n_frames=1)
    put(store, asset, "again", frames=("odd-2",), n_frames=1)
    assert rows(store.path) == sorted([(asset, "odd-2"), ("mp/plain", "t-1")])
    dataset = DeltaTable(store.path).to_pyarrow_dataset()
    frames = dataset.to_table(columns=["asset", "role", "task_id"]).to_pylist()
    assert sorted(f["task_id"] for f in frames if f["asset"] == asset) == ["odd-2", "r-1"]
    assert store.assets() == sorted([asset, "mp/plain"])
    assert sorted(store.task_ids(asset)) == ["odd-2", "r-1"]
    assert DeltaStore(store.path).committed(asset, fingerprint(asset + "again"))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12))
def test_any_name_of_an_asset(tmp_path, name):
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    store = DeltaStore(tmp_path / "store", create=True)
    asset = f"mp/{name}"
    put(store, "mp/plain", n_frames=1)
    put(store, asset, n_frames=1)
    put(store, asset, "again", frames=("second",), n_frames=1)
    assert [x for x in rows(store.path) if x[0] == asset] == [(asset, "second")]
    assert sorted(store.task_ids(asset)) == ["r-1", "second"]


def test_readers_of_frames_never_touch_rejections(store):
    put(store, "mp/a")
    put(store, ODD)
    for _, path, _ in store.files("rejection"):
        path.write_bytes(b"not Parquet")
    assert len(rows(store.path)) == 6
    assert pl.scan_delta(str(store.path)).filter(pl.col("role") == "frame").select("energy").collect().height == 6
    dataset = DeltaTable(store.path).to_pyarrow_dataset()
    assert dataset.to_table(columns=["energy"], filter=pc.field("role") == "frame").num_rows == 6
    assert [count for _, _, count in store.files("frame")] == [3, 3]
    with pytest.raises(pa.ArrowInvalid):  # had they touched them
        dataset.to_table(columns=["task_id"])


def test_unit_and_meaning_of_every_column_survive(store):
    put(store, "mp/a")
    schema = pa.schema(DeltaTable(store.path).schema().to_arrow())
    for column in (*PUBLISHED, *ADDED, *LEDGER, *PARTITIONS):
        metadata = schema.field(column.name).metadata
        assert (metadata[b"unit"], metadata[b"description"]) == (column.unit.encode(), column.description.encode())
    ((_, path, _),) = store.files("frame")
    written = pq.read_schema(path)
    assert written.metadata[b"trajmill.stress_unit"] == b"eV/A^3"
    assert written.field("stress_tensor").metadata[b"unit"] == b"eV/A^3"


# --- what is no store


def refused(path, **options):
    with pytest.raises(StoreError) as caught:
        DeltaStore(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    assert str(path) in text
    return text


def test_no_store_there(tmp_path):
    assert "no trajmill store here; `trajmill build` makes one" in refused(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "no trajmill store here" in refused(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    assert "not empty and no trajmill store; choose an empty or new folder" in refused(tmp_path, create=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(tmp_path / "file", create=True)
    assert "Not a directory" in refused(tmp_path / "file" / "below", create=True)


def test_a_folder_prepared_by_sources_alone_can_become_a_store(tmp_path):
    (tmp_path / "_work" / "mp").mkdir(parents=True)
    assert DeltaStore(tmp_path, create=True).version == 0


def test_another_data_model_is_refused(store):
    log = store.path / "_delta_log" / "00000000000000000000.json"
    log.write_text(log.read_text().replace("trajmill data model 1", "trajmill data model 99"))
    text = refused(store.path)
    assert "says 'trajmill data model 99', this version of trajmill reads 'trajmill data model 1'" in text
    assert "data model 99" in refused(store.path, create=True)


def test_a_delta_table_of_something_else_is_refused(tmp_path):
    DeltaTable.create(tmp_path / "other", pa.schema([("x", pa.int64())]))
    assert "this version of trajmill reads" in refused(tmp_path / "other", create=True)


def test_a_damaged_log_is_one_clear_line(store):
    put(store, "mp/a")
    (store.path / "_delta_log" / "00000000000000000001.json").write_text("{broken")
    assert "cannot be opened as a store" in refused(store.path)


def test_a_version_that_is_not_there(store):
    assert "99" in refused(store.path, version=99)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not read")
def test_a_folder_that_may_not_be_read(store, tmp_path_factory):
    """Delta would take it for an empty one."""
    store.path.chmod(0o700)
    tried = f"""
import os
os.chdir("/")
from trajmill.errors import StoreError
from trajmill.stores.delta import DeltaStore
os.setuid(65534)
for create in (False, True):
    try:
        DeltaStore({str(store.path)!r}, create=create)
    except StoreError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{store.path}: cannot be read (Permission denied)"] * 2


# --- several builds at a time


def test_a_commit_that_another_build_has_made_is_not_made_again(store):
    other = DeltaStore(store.path)
    commit = put(store, "mp/a")
    other.commit(commit)
    assert (other.version, other.assets()) == (1, ["mp/a"])
    other.drop("mp/a")
    store.drop("mp/a")
    assert (store.version, store.assets()) == (2, [])


def test_who_comes_second_replaces_what_the_first_has_put_there(store, monkeypatch):
    """What it was to replace is not what is there any more: two sets of rows would be left."""
    other = DeltaStore(store.path)
    commit = write(other, "mp/a", "second", frames=("second",), n_frames=1)
    update = DeltaLog.update
    behind = [None]

    def too_late(log, *version):
        """Let the other build commit between the look at the newest version and the commit on top of it."""
        update(log, *version)
        if log is other._log and behind:
            behind.clear()
            put(store, "mp/a", "first", frames=("first",), n_frames=1)

    monkeypatch.setattr(DeltaLog, "update", too_late)
    other.commit(commit)
    assert not behind
    assert rows(store.path) == [("mp/a", "second")]
    assert [rows(store.path, version=v) for v in range(3)] == [[], [("mp/a", "first")], [("mp/a", "second")]]


def test_a_commit_that_always_loses_gives_up(store, monkeypatch):
    other = DeltaStore(store.path)
    commit = write(other, "mp/a")
    update = DeltaLog.update
    turns = iter(range(99))

    def too_late(log, *version):
        update(log, *version)
        if log is other._log:
            put(store, f"mp/{next(turns)}", frames=(), rejections=())

    monkeypatch.setattr(DeltaLog, "update", too_late)
    monkeypatch.setattr(delta, "ATTEMPTS", 3)
    with pytest.raises(StoreError, match=r"3 attempts failed; .*what was committed before is unharmed") as caught:
        other.commit(commit)
    assert "\n" not in str(caught.value)
    assert not DeltaStore(store.path).committed("mp/a", commit.fingerprint)


def test_what_builds_of_several_sources_note_adds_up(store):
    other = DeltaStore(store.path)
    store.note_upstream({"mp": {"version": {"dump": "1"}}})
    other.note_upstream({"oqmd": {"version": {"dump": "7"}}})
    assert DeltaStore(store.path).upstream() == {"mp": {"version": {"dump": "1"}}, "oqmd": {"version": {"dump": "7"}}}
    store.note_upstream({"mp": None})
    assert DeltaStore(store.path).upstream() == {"oqmd": {"version": {"dump": "7"}}}
    store.note_upstream({"mp": None})
    assert store.version == 3


def test_two_that_make_the_store_at_once_make_one(tmp_path):
    """Deltalake would make it twice, the second one as version 1."""
    for turn in range(5):
        ready, stores = threading.Barrier(4), []

        def make(path=tmp_path / str(turn), ready=ready, stores=stores):
            ready.wait()
            stores.append(DeltaStore(path, create=True))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [s.version for s in stores] == [0] * 4
        assert DeltaStore(stores[0].path).version == 0


def test_files_of_a_writer_at_work_are_left_alone(store):
    writer = store.writer("mp/a")
    writer.write("frame", encode([fakes.trajectory()]))
    put(DeltaStore(store.path), "mp/a", "other")
    put(DeltaStore(store.path), "mp/b")
    files = writer.close(fingerprint("a"), VERSIONS)
    assert [(store.path / file.path).is_file() for file in files] == [True]


def test_a_recipe_is_recorded_although_the_first_commit_with_it_failed(store, monkeypatch):
    commit = write(store, "mp/a")
    with monkeypatch.context() as broken:
        broken.setattr(DeltaLog, "write", lambda *_, **__: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(StoreError):
            store.commit(commit)
    store.commit(commit)
    assert DeltaStore(store.path).built_with() == {"mp": [RECIPE]}


# --- full disks


def write_much(writer):
    for i in range(100):
        writer.write("frame", encode([fakes.trajectory(f"t-{i}", seed=i, n_frames=200)]))


FULL = r"the disk is full; make room and run the same command again \(what was committed before is unharmed\)$"


def test_disk_full_while_writing(tmp_path):
    with disks.small_disk(tmp_path / "disk", "2m") as disk:
        store = DeltaStore(disk / "store", create=True)
        put(store, "mp/a", n_frames=1)
        filler = disks.fill(disk)
        for _ in range(2):
            writer = store.writer("mp/b")
            with pytest.raises(StoreError, match=FULL):
                write_much(writer)
            writer.abort()
            assert list(store.path.rglob("*.tmp")) == []
        assert rows(store.path) == [("mp/a", "t-1")]
        filler.unlink()
        put(DeltaStore(store.path), "mp/b", n_frames=1)
        assert DeltaStore(store.path).assets() == ["mp/a", "mp/b"]


def test_disk_full_while_finishing_files_puts_none_in_place(tmp_path):
    with disks.small_disk(tmp_path / "disk", "2m") as disk:
        store = DeltaStore(disk / "store", create=True)
        writer = store.writer("mp/b")
        writer.write("frame", encode([fakes.trajectory()]))
        writer.write("rejection", encode_rejections([fakes.unreadable(f"r-{i}" * 50) for i in range(5000)]))
        filler = disks.fill(disk)
        with pytest.raises(StoreError, match=FULL):
            writer.close(fingerprint("b"), VERSIONS)
        writer.abort()
        assert list(store.path.rglob("*.parquet")) == list(store.path.rglob("*.tmp")) == []
        filler.unlink()


def test_disk_full_while_committing(tmp_path):
    with disks.small_disk(tmp_path / "disk", "2m") as disk:
        store = DeltaStore(disk / "store", create=True)
        put(store, "mp/a", n_frames=1)
        commit = write(store, "mp/b", n_frames=1)
        filler = disks.fill(disk)
        with pytest.raises(StoreError, match=FULL):
            store.commit(commit)
        again = DeltaStore(store.path)
        assert again.assets() == ["mp/a"]
        assert not again.committed("mp/b", commit.fingerprint)
        assert rows(store.path) == [("mp/a", "t-1")]
        filler.unlink()
        store.commit(commit)
        assert rows(store.path) == [("mp/a", "t-1"), ("mp/b", "t-1")]


def test_no_room_even_for_an_empty_store(tmp_path):
    before = chores.children()
    with disks.small_disk(tmp_path / "disk", "64k") as disk:
        disks.fill(disk)
        assert "cannot be created" in refused(disk / "store", create=True)
    assert chores.children() == before
