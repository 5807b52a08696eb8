"""Whole builds: killed, interrupted, repeated, changed, they end with the rows of an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest

import chores
import disks
import fakes
import trajmill.builder
from making import content
from trajmill.builder import Listener, build
from trajmill.engines.base import Done, Lost
from trajmill.errors import RecipeError, SourceError, StoreError
from trajmill.raw import JOURNAL, RawFile, RawManifest
from trajmill.stores.delta import DeltaStore

NAMES = ["mp/a.raw", "mp/b.raw", "mp/c.raw", "mp/d.raw"]


def make_raw(folder):
    """Make four raw files; the first is the largest and so the first to be built."""
    for i, name in enumerate("abcd"):
        fakes.write_raw(folder, name, seed=i, records=40 if name == "a" else 12 - i)
    fakes.write_facts(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Content of an undisturbed build with one worker, files by their place."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = fake_build(make_raw(folder / "raw"), folder / "store")
    assert json.loads(done.stdout)["built"] == NAMES
    return content(folder / "store")


@pytest.fixture
def raw(tmp_path):
    return make_raw(tmp_path / "raw")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def rows(store, role="frame", asset=None):
    """Read all rows of a role, sorted."""
    found = [r for _, path, _ in DeltaStore(store).files(role, asset) for r in pq.ParquetFile(path).read().to_pylist()]
    return sorted(found, key=lambda r: json.dumps(r, sort_keys=True))


@contextmanager
def started(raw, store, workers=1):
    """Start a build in a process of its own; kill it if it still runs in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fakes", raw, store, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def fake_build(raw, store, workers=1):
    """Run a build in a process of its own to its end."""
    with started(raw, store, workers) as process:
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess([], process.returncode, out, err)


@pytest.fixture
def build_here(raw, store, monkeypatch):
    """Run a build in this process (its workers are others) and return its summary."""
    monkeypatch.setattr(trajmill.builder, "open_sources", lambda _: [fakes.FakeSource(raw)])
    monkeypatch.setattr(trajmill.builder, "build_asset", fakes.build_asset)

    def run(*settings, workers=1, listener=None):
        (raw / "read.log").unlink(missing_ok=True)
        return build(fakes.recipe(store, workers, *settings), listener=listener)

    return run


def was_read(raw):
    log = raw / "read.log"
    return sorted(log.read_text().split()) if log.exists() else []


def no_leftovers(store):
    return not list(store.rglob("*.tmp"))


# --- content


def test_content_does_not_depend_on_the_number_of_workers(raw, tmp_path, undisturbed):
    for workers in (2, 4):
        assert fake_build(raw, tmp_path / str(workers), workers).returncode == 0
        assert content(tmp_path / str(workers)) == undisturbed


def test_summary_balances_with_the_store(build_here, store):
    seen = []

    class Ear(Listener):
        def preparing(self, source, done, total):
            seen.append((source, done, total))

        def started(self, assets):
            seen.append(sorted(assets))

        def happened(self, event):
            if isinstance(event, Done):
                seen.append((event.name, DeltaStore(store).committed(event.name, event.value.fingerprint)))

    summary = build_here(listener=Ear())
    assert seen[:2] == [("mp", 0, 0), NAMES]
    assert sorted(seen[2:]) == [(name, True) for name in NAMES]
    assert summary.balance == sum(DeltaStore(store).balances().values(), type(summary.balance)())
    assert summary.balance.kept == len(rows(store))
    assert summary.balance.rejected["targets"] > 0
    assert summary.balance.records_rejected["readable"] > 0
    assert (summary.version, summary.stopped, summary.failed, summary.vanished) == (4, False, {}, [])


# --- deaths


@pytest.mark.parametrize("phase", ["read", "middle", "written"])
def test_a_killed_worker_changes_nothing(raw, store, build_here, undisturbed, phase):
    fakes.arrange(raw, "mp/a.raw", phase, "kill")
    lost = []

    class Ear(Listener):
        def happened(self, event):
            lost.extend([event.name] * isinstance(event, Lost))

    summary = build_here(listener=Ear())
    assert lost == ["mp/a.raw"]
    assert sorted(summary.built) == NAMES
    assert content(store) == undisturbed
    assert no_leftovers(store)


@pytest.mark.parametrize("phase", ["read", "middle", "written"])
def test_a_killed_build_is_continued(raw, store, build_here, undisturbed, phase):
    control = fakes.arrange(raw, "mp/a.raw", phase, "pause")
    with started(raw, store):
        worker = chores.wait_for(lambda: fakes.paused(control))
        assert no_leftovers(store) is (phase != "middle")
    control.unlink()
    chores.wait_for(lambda: not chores.alive(worker), what="the worker to end")
    assert DeltaStore(store).assets() == []
    summary = build_here()
    assert sorted(summary.built) == NAMES
    assert content(store) == undisturbed
    assert no_leftovers(store)
    assert len(list(store.rglob("*.parquet"))) == len(undisturbed), "an orphan"


def test_killed_between_two_commits(raw, store, build_here, undisturbed):
    """What was committed is neither read nor written again."""
    control = fakes.arrange(raw, "mp/c.raw", "read", "pause")
    with started(raw, store):
        worker = chores.wait_for(lambda: fakes.paused(control))
    control.unlink()
    chores.wait_for(lambda: not chores.alive(worker), what="the worker to end")
    done = DeltaStore(store).assets()
    assert done == ["mp/a.raw", "mp/b.raw"]
    summary = build_here()
    assert (sorted(summary.built), sorted(summary.unchanged)) == (["mp/c.raw", "mp/d.raw"], done)
    assert was_read(raw) == ["mp/c.raw", "mp/d.raw"]
    assert content(store) == undisturbed


def test_a_worker_that_dies_each_time_costs_its_asset_alone(raw, store, build_here, monkeypatch):
    monkeypatch.setattr(trajmill.builder, "build_asset", fakes.die_on_b)
    summary = build_here(workers=2)
    assert list(summary.failed) == ["mp/b.raw"]
    assert "its worker died (SIGKILL) 3 times" in summary.failed["mp/b.raw"].reason
    assert DeltaStore(store).assets() == ["mp/a.raw", "mp/c.raw", "mp/d.raw"]


# --- signals


def test_ctrl_c_lets_running_assets_finish(raw, store, build_here, undisturbed):
    control = fakes.arrange(raw, "mp/a.raw", "middle", "pause")
    with started(raw, store) as process:
        chores.wait_for(lambda: fakes.paused(control))
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # it may not be quicker than the asset
        control.unlink()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out) == {"built": ["mp/a.raw"], "stopped": True, "version": 1}
    assert sorted(build_here().built) == NAMES[1:]
    assert content(store) == undisturbed


def test_a_second_ctrl_c_stops_at_once(raw, store, build_here, undisturbed):
    control = fakes.arrange(raw, "mp/b.raw", "middle", "pause")
    with started(raw, store) as process:
        worker = chores.wait_for(lambda: fakes.paused(control))
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # two signals at once are one
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err
    assert not chores.alive(worker)
    control.unlink()
    assert DeltaStore(store).assets() == ["mp/a.raw"]
    assert sorted(build_here().built) == NAMES[1:]
    assert content(store) == undisturbed
    assert no_leftovers(store)


# --- repeats and changes


@pytest.fixture
def first(raw, store, build_here):
    """A finished build."""
    build_here()
    return content(store)


def test_unchanged_is_nothing_to_do(raw, store, build_here, first):
    summary = build_here()
    assert (sorted(summary.unchanged), summary.built, summary.version) == (NAMES, {}, 4)
    assert was_read(raw) == []
    assert DeltaStore(store).version == 4


def test_one_changed_file_is_read_and_replaced_alone(raw, store, build_here, first):
    fakes.write_raw(raw, "b", seed=77, records=9)
    summary = build_here()
    assert list(summary.built) == was_read(raw) == ["mp/b.raw"]
    now = content(store)
    changed = {p.split("asset=")[1].split("/")[0] for p in first.keys() ^ now.keys()}
    assert changed == {"mp%2Fb.raw"}
    assert {p: now[p] for p in first.keys() & now.keys()} == {p: first[p] for p in first.keys() & now.keys()}
    assert len(now) == len(first)


def test_one_flipped_fact_rebuilds_the_assets_with_that_record(raw, store, build_here, first):
    before = len(rows(store))
    fakes.write_facts(raw, **{"c-1": "BY-NC"})
    summary = build_here()
    assert list(summary.built) == was_read(raw) == ["mp/c.raw"]
    assert summary.built["mp/c.raw"].rejected["license"] == 3
    assert len(rows(store)) == before - 3
    assert "c-1" not in {row["task_id"] for row in rows(store)}
    fakes.write_facts(raw)
    assert list(build_here().built) == ["mp/c.raw"]
    assert content(store) == first


def test_a_fact_of_a_rejected_record_counts_too(raw, store, build_here, first):
    """Else a licence that is granted later would never bring its record in."""
    fakes.write_facts(raw, **{"c-4": "BY-NC"})  # c-4 is unreadable
    assert list(build_here().built) == ["mp/c.raw"]


def test_one_moved_threshold_rebuilds_all(raw, store, build_here, first):
    summary = build_here("rules.max_force.enabled=true", "rules.max_force.threshold=0.2")
    assert sorted(summary.built) == was_read(raw) == NAMES
    assert summary.balance.rejected["max_force"] > 0
    assert len(rows(store)) == summary.balance.kept


def test_a_vanished_asset_is_reported_and_kept(raw, store, build_here, first):
    (raw / "d.raw").unlink()
    summary = build_here()
    assert summary.vanished == ["mp/d.raw"]
    assert content(store) == first


def manifest(raw, names, **dropped):
    """Write the raw manifest that a fetch would leave."""
    files = {
        name: RawFile(
            path=name, uri="", remote={}, modified=None, size=(raw / name).stat().st_size, mtime_ns=0, sha256=name,
            fetched_at="", part_of="set",
        )
        for name in names
    }  # fmt: skip
    RawManifest(source="mp", version={"set": "2"}, files=files, dropped=dropped).save(raw)
    return [f"mp.path={json.dumps(str(raw))}"]


def test_rows_of_replaced_raw_files_go_when_all_else_is_done(raw, store, build_here, first):
    """The assets of a set's older version, be they the file or parts of it."""
    (raw / "d.raw").unlink()
    (raw / "c.raw").unlink()
    settings = manifest(raw, ["a.raw", "b.raw"], **{"d.raw": "superseded", "c.ra": "superseded"})
    fakes.write_raw(raw, "b", seed=1, error="this file is cursed")
    summary = build_here(*settings)
    assert (list(summary.failed), summary.dropped, summary.vanished) == (["mp/b.raw"], [], ["mp/c.raw"])
    assert DeltaStore(store).assets() == NAMES
    assert DeltaStore(store).upstream() == {}, "the version moved before all was committed"
    fakes.write_raw(raw, "b", seed=1, records=11)
    manifest(raw, ["a.raw", "b.raw"], **{"d.raw": "superseded", "c.ra": "superseded"})
    summary = build_here(*settings)
    assert (summary.dropped, summary.vanished) == (["mp/d.raw"], ["mp/c.raw"])
    assert DeltaStore(store).assets() == NAMES[:3]
    assert DeltaStore(store).upstream() == {"mp": {"version": {"set": "2"}, "digest": RawManifest.load(raw).digest}}
    version = summary.version
    assert build_here(*settings).version == version


@pytest.mark.parametrize("lacking", ["a file is gone", "a fetch is under way", "another folder without a manifest"])
def test_no_version_is_claimed_that_the_raw_files_do_not_bear_out(raw, store, build_here, lacking):
    settings = manifest(raw, ["a.raw", "b.raw", "c.raw", "d.raw"])
    build_here(*settings)
    assert DeltaStore(store).upstream()["mp"]["version"] == {"set": "2"}
    if lacking == "a file is gone":
        (raw / "d.raw").unlink()
    elif lacking == "a fetch is under way":
        (raw / JOURNAL).touch()
    else:
        settings = []
    build_here(*settings)
    assert DeltaStore(store).upstream() == {}


def test_a_file_that_the_manifest_beside_it_does_not_name(raw):
    """An older dump, built by name, has nothing of what the manifest says of the newest."""
    manifest(raw, ["a.raw"])
    recipe = fakes.load(None, [f"oqmd.path={json.dumps(str(raw / 'b.raw'))}"])
    assert trajmill.builder._manifest(recipe, "oqmd") is None
    recipe = fakes.load(None, [f"oqmd.path={json.dumps(str(raw / 'a.raw'))}"])
    assert trajmill.builder._manifest(recipe, "oqmd").files.keys() == {"a.raw"}


def test_rows_of_a_file_that_came_back_are_built_again(raw, store, build_here, first):
    text = (raw / "d.raw").read_text()
    (raw / "d.raw").unlink()
    assert build_here(*manifest(raw, ["a.raw"], **{"d.raw": "pruned"})).dropped == ["mp/d.raw"]
    (raw / "d.raw").write_text(text)
    assert list(build_here(*manifest(raw, ["a.raw", "d.raw"])).built) == ["mp/d.raw"]
    assert content(store) == first


def test_parts_of_a_replaced_dump_go_with_it(store):
    """Assets of a large file are its partitions."""
    raw = {"oqmd": RawManifest(source="oqmd", dropped={"qmdb__v1_6.sql.gz": "superseded"})}
    assert trajmill.builder._is_outdated("oqmd/qmdb__v1_6.sql.gz/entries-000000000", raw)
    assert not trajmill.builder._is_outdated("oqmd/qmdb__v1_6.sql.gz2/entries-000000000", raw)


def test_a_renamed_folder_changes_nothing(raw, store, tmp_path, build_here, first, monkeypatch):
    shutil.copytree(raw, tmp_path / "elsewhere")
    monkeypatch.setattr(trajmill.builder, "open_sources", lambda _: [fakes.FakeSource(tmp_path / "elsewhere")])
    assert sorted(build_here().unchanged) == NAMES


# --- failures


def test_an_asset_that_fails_does_not_stop_the_others(raw, store, build_here):
    fakes.write_raw(raw, "b", seed=1, error="this file is cursed")
    fakes.write_raw(raw, "c", seed=2, lie=3)
    summary = build_here()
    assert sorted(summary.built) == ["mp/a.raw", "mp/d.raw"]
    assert summary.failed["mp/b.raw"].reason == "RuntimeError: this file is cursed"
    assert "in read" in summary.failed["mp/b.raw"].traceback
    assert summary.failed["mp/c.raw"].reason.startswith("BalanceError: mp/c.raw: record c-3 has")
    assert not summary.stopped
    assert DeltaStore(store).assets() == ["mp/a.raw", "mp/d.raw"]
    make_raw(raw)
    assert sorted(build_here().built) == ["mp/b.raw", "mp/c.raw"]


def test_an_asset_that_fails_keeps_the_rows_it_had(raw, store, build_here, first):
    fakes.write_raw(raw, "b", seed=1, error="this file is cursed")
    assert list(build_here().failed) == ["mp/b.raw"]
    assert content(store) == first


def test_a_store_that_cannot_be_written_stops_the_build(raw, store, build_here, monkeypatch):
    monkeypatch.setattr(trajmill.builder, "build_asset", fakes.no_room)
    before = chores.children()
    with pytest.raises(StoreError, match="the disk is full"):
        build_here(workers=2)
    assert chores.children() == before


def test_a_full_disk_stops_a_build_that_goes_on_once_there_is_room(raw, tmp_path, build_here, undisturbed):
    with disks.small_disk(tmp_path / "disk", "2m") as disk:
        (disk / "store").mkdir()
        (tmp_path / "store").symlink_to(disk / "store")

        class Ear(Listener):
            def happened(self, event):
                if isinstance(event, Done):
                    disks.fill(disk)

        with pytest.raises(StoreError, match="the disk is full; make room and run the same command again"):
            build_here(listener=Ear())
        assert DeltaStore(disk / "store").assets() == ["mp/a.raw"]
        (disk / "filler").unlink()
        assert sorted(build_here().built) == NAMES[1:]
        assert content(disk / "store") == undisturbed
        assert no_leftovers(disk / "store")


def test_two_builds_at_once(raw, store, build_here, undisturbed):
    """They were kept apart once; now both do the work, and what one has committed the other does not commit again."""
    control = fakes.arrange(raw, "mp/a.raw", "read", "pause")
    with started(raw, store) as process:
        chores.wait_for(lambda: fakes.paused(control))
        control.unlink()
        summary = build_here()
        out, _ = process.communicate(timeout=60)
    assert sorted({*json.loads(out)["built"], *summary.built}) == NAMES
    assert content(store) == undisturbed
    assert DeltaStore(store).version == len(NAMES)


def test_nowhere_to_write():
    with pytest.raises(RecipeError, match="say where the store is to be"):
        build(fakes.load(None))


def test_a_source_without_files(tmp_path, store, monkeypatch):
    monkeypatch.setattr(trajmill.builder, "open_sources", lambda _: [fakes.FakeSource(tmp_path)])
    with pytest.raises(SourceError, match=r"no \*\.raw files"):
        build(fakes.recipe(store))


def test_an_asset_listed_twice(raw, store, monkeypatch):
    monkeypatch.setattr(trajmill.builder, "open_sources", lambda _: [fakes.FakeSource(raw)] * 2)
    with pytest.raises(SourceError, match=r"mp/a.raw is listed twice"):
        build(fakes.recipe(store))


def test_a_build_from_a_thread(build_here):
    """As a notebook or a server may run it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(build_here()))
    thread.start()
    thread.join()
    assert sorted(results[0].built) == NAMES
    assert os.getpid() not in chores.children()
