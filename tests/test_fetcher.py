"""Whole fetches: disturbed, killed, interrupted, repeated, changed, they end as an undisturbed one or say why not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import chores
import disks
import trajmill.fetcher
from servers.faulty import FAULTS, FaultPlan, serve
from trajmill.errors import (
    DiskError,
    FetchError,
    RecipeError,
    RemoteContentError,
    RemoteNotFoundError,
    RemoteRefusedError,
    RemoteUnavailableError,
    SourceError,
)
from trajmill.fetcher import LOCK, FetchListener, fetch
from trajmill.raw import JOURNAL, MANIFEST, Journal, RawManifest, current, entry
from trajmill.recipe import Recipe
from trajmill.remotes import transfer

NAMES = [f"pbe/geo_opt_paths/alex_go_{letters}.json.bz2" for letters in ("aaa_000", "aaa_001", "aab_000", "aac_000")]
SIZES = [150_000, 20_000, 3_000, 60_000]
WHEN = 1751451000
SOME = NAMES[0]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture
def upstream(tmp_path):
    """Files as Alexandria's old layout has them."""
    folder = tmp_path / "upstream"
    for seed, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        publish(folder, name, seed=seed, size=size)
    return folder


@pytest.fixture
def server(upstream):
    with serve(upstream) as server:
        yield server


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw" / "alexandria"


@pytest.fixture
def undisturbed(server, tmp_path):
    get(server, tmp_path / "undisturbed")
    server.log.clear()
    return content(tmp_path / "undisturbed")


def publish(folder, name, *, seed=0, size=10_000, when=WHEN):
    target = folder / "data" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"BZh" + random.Random(seed).randbytes(size - 3))
    os.utime(target, (when, when))


def recipe_for(url, **changes):
    alexandria = {"url": f"{url}data/", "layout": "old", "sets": ["pbe"]} | changes.pop("alexandria", {})
    options = {"retries": 3, "timeout": 0.4, "min_rate": 10_000.0} | changes
    return Recipe.model_validate({"fetch": options | {"alexandria": alexandria}})


def get(server, root, *, dry_run=False, prune=False, listener=None, **changes):
    recipe = recipe_for(server.url, **changes)
    return fetch("alexandria", root, recipe, dry_run=dry_run, prune=prune, listener=listener)


def content(root):
    """What is in a folder: all files, and of the manifest all but where and when."""
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    files.pop(LOCK)
    manifest = json.loads(files.pop(MANIFEST))
    for file in manifest["files"]:
        for key in ("uri", "fetched_at", "mtime_ns"):
            assert file.pop(key)
    return files, manifest


def places(root):
    """Names of what is in a folder, lock and parts aside."""
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} - {LOCK}
    return {name for name in found if not name.endswith((".part", ".part.json"))}


def data_sent(server):
    return server.sent(".json.bz2")


class TestUndisturbed:
    def test_all_is_fetched_and_noted(self, server, upstream, raw):
        summary = get(server, raw)
        assert (summary.new, summary.changed, summary.unchanged, summary.failed) == (NAMES, [], [], {})
        assert (summary.n_bytes, summary.source, summary.layout) == (sum(SIZES), "alexandria", "old")
        assert places(raw) == {*NAMES, MANIFEST}
        for name in NAMES:
            assert (raw / name).read_bytes() == (upstream / "data" / name).read_bytes()
            known = entry(raw, raw / name)
            assert known.uri == f"{server.url}data/{name}"
            assert (known.size, known.modified) == ((raw / name).stat().st_size, "2025-07-02T10:10:00")
            assert known.remote == {"size": known.size, "about": known.size, "modified": known.modified, "etag": None}
            assert known.fetched_at.endswith("+00:00")
            assert (known.vanished, known.part_of) == (False, name.partition("/")[0])
        assert current(raw, raw.rglob("*.bz2")) == [raw / name for name in NAMES]

    def test_again_transfers_nothing(self, server, raw):
        get(server, raw)
        before = content(raw)
        server.log.clear()
        summary = get(server, raw)
        assert (summary.new, summary.changed, summary.unchanged, summary.n_bytes) == ([], [], NAMES, 0)
        assert data_sent(server) == 0
        assert content(raw) == before

    def test_who_asks_is_named_and_asks_for_few_things_at_a_time(self, server, upstream, raw):
        for number in range(12):
            publish(upstream, f"pbe/geo_opt_paths/more_{number}.json.bz2", seed=number)
        server.linger = 0.02
        get(server, raw, connections=3)
        assert server.most_at_once == 3
        assert all(request.headers["user-agent"].startswith("trajmill/") for request in server.log)
        server.log.clear()
        server.most_at_once = 0
        get(server, raw.with_name("other"), connections=1)
        assert server.most_at_once == 1

    def test_the_default_is_polite(self):
        assert Recipe().fetch.connections <= 4

    def test_progress_is_told_in_bytes(self, server, raw):
        class Told(FetchListener):
            def __init__(self):
                self.calls, self.arrived, self.lock = [], 0, threading.Lock()

            def listing(self, source):
                self.calls.append(("listing", source))

            def planned(self, source, n_files, n_bytes):
                self.calls.append(("planned", source, n_files, n_bytes))

            def advanced(self, n_bytes):
                with self.lock:
                    self.arrived += n_bytes

            def finished(self, path, n_bytes):
                self.calls.append(("finished", path, n_bytes))

            def noted(self, text):
                self.calls.append(("noted", text))

        server.plan.arrange(SOME, "cut off", "short")
        told = Told()
        get(server, raw, listener=told)
        assert told.arrived == sum(SIZES)
        assert told.calls[:2] == [("listing", "alexandria"), ("planned", "alexandria", len(NAMES), sum(SIZES))]
        finished = {call[1:] for call in told.calls if call[0] == "finished"}
        assert finished == set(zip(NAMES, SIZES, strict=True))
        noted = [call[1] for call in told.calls if call[0] == "noted"]
        assert len(noted) == 2
        assert all(SOME in text and text.endswith("trying again") for text in noted)


class TestDryRun:
    def test_it_says_how_much_and_writes_nothing(self, server, raw):
        summary = get(server, raw, dry_run=True)
        assert (summary.new, summary.n_bytes, summary.at_most) == (NAMES, sum(SIZES), False)
        assert not raw.parent.exists()
        assert data_sent(server) == 0

    def test_it_knows_what_is_here(self, server, upstream, raw):
        get(server, raw)
        before = content(raw), (raw / MANIFEST).stat().st_mtime_ns
        publish(upstream, NAMES[1], seed=9, size=777, when=WHEN + 3600)
        publish(upstream, "pbe/geo_opt_paths/new.json.bz2", size=5_000)
        (upstream / "data" / NAMES[2]).unlink()
        summary = get(server, raw, dry_run=True, prune=True)
        assert summary.new == ["pbe/geo_opt_paths/new.json.bz2"]
        assert (summary.changed, summary.unchanged) == ([NAMES[1]], [NAMES[0], NAMES[3]])
        assert (summary.vanished, summary.n_bytes) == ([NAMES[2]], 5_777)
        assert (content(raw), (raw / MANIFEST).stat().st_mtime_ns) == before

    def test_what_has_arrived_is_not_counted_again(self, server, raw):
        server.plan.arrange(SOME, "cut off")
        assert list(get(server, raw, retries=0).failed) == [SOME]
        part = (raw / f"{SOME}.part").stat().st_size
        assert get(server, raw, dry_run=True).n_bytes == SIZES[0] - part > 0


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_passing_one_changes_nothing(self, server, raw, undisturbed, fault):
        server.plan.arrange(SOME, fault)
        if fault not in ("short", "long", "page", "page as data"):  # of a listing these are the truth
            server.plan.arrange("/geo_opt_paths/", fault)
        get(server, raw)
        assert content(raw) == undisturbed

    @pytest.mark.parametrize("fault", [*FAULTS, "forbidden", "missing", "silent midway", "nothing", "compressed"])
    def test_a_lasting_one_is_an_error_and_leaves_no_half_file(self, server, raw, undisturbed, fault):
        server.plan = FaultPlan(faults=(fault,), rate=1.0, budget=1000, matching="aaa_000")
        summary = get(server, raw, retries=1)
        assert list(summary.failed) == [SOME]
        assert summary.new == NAMES[1:]
        assert {p for p in places(raw) if ".part" not in p} == {*NAMES[1:], JOURNAL}
        assert not (raw / MANIFEST).exists()
        for name in places(raw) & set(NAMES):
            assert (raw / name).read_bytes() == undisturbed[0][name]
        server.plan = FaultPlan()
        server.log.clear()
        get(server, raw)
        assert content(raw) == undisturbed

    @pytest.mark.parametrize("fault", ["forbidden", "missing", "page"])
    def test_other_files_are_fetched_all_the_same_and_not_again(self, server, raw, fault):
        server.plan.arrange(SOME, *4 * [fault])
        assert list(get(server, raw).failed) == [SOME]
        server.log.clear()
        server.plan = FaultPlan()
        summary = get(server, raw)
        assert (summary.new, summary.unchanged) == ([SOME], NAMES[1:])
        assert data_sent(server) == SIZES[0]

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            ("forbidden", RemoteRefusedError),
            ("unauthorized", RemoteRefusedError),
            ("missing", RemoteNotFoundError),
            ("page", RemoteNotFoundError),
            ("unavailable", RemoteUnavailableError),
            ("silent", RemoteUnavailableError),
            ("unmeasured", RemoteContentError),
        ],
    )
    def test_a_listing_that_cannot_be_had(self, server, raw, undisturbed, fault, kind):
        get(server, raw)
        before = content(raw)
        server.plan = FaultPlan(faults=(fault,), rate=1.0, budget=1000)
        with pytest.raises(kind) as caught:
            get(server, raw, retries=1, prune=True)
        assert type(caught.value) is kind
        assert content(raw) == before == undisturbed

    @pytest.mark.parametrize("seed", range(4))
    def test_a_mix_changes_nothing(self, server, raw, undisturbed, seed):
        faults = tuple(fault for fault in FAULTS if "page" not in fault and fault not in ("short", "long"))
        server.plan = FaultPlan(seed, FAULTS, rate=0.6, budget=3, matching=".bz2")
        server.if_range, server.ranges = seed % 2 == 0, seed != 3
        get(server, raw, retries=8)
        assert content(raw) == undisturbed
        server.plan = FaultPlan(seed, faults, rate=0.6, budget=3)  # also of pages
        other = raw.with_name("other")
        get(server, other, retries=8)
        assert content(other) == undisturbed

    @pytest.mark.parametrize("seed", range(4))
    def test_runs_that_fail_add_up(self, server, raw, undisturbed, seed):
        """Without any patience: each run gets a bit further, and the last one is done."""
        faults = tuple(fault for fault in FAULTS if fault not in ("drip", "silent", "page", "page as data"))
        server.plan = FaultPlan(seed, faults, rate=0.7, budget=3, matching=".bz2")
        for _ in range(20):
            assert not (raw / MANIFEST).exists()
            try:
                if not get(server, raw, retries=0).failed:
                    break
            except FetchError:
                continue
        assert content(raw) == undisturbed

    def test_a_server_that_answers_for_none_is_given_up(self, server, upstream, raw):
        for number in range(20):
            publish(upstream, f"pbe/geo_opt_paths/x{number:02}.json.bz2")
        server.plan = FaultPlan(faults=("unavailable",), rate=1.0, budget=1000, matching=".bz2")
        with pytest.raises(RemoteUnavailableError, match="the server answers 503"):
            get(server, raw, retries=0, connections=1)
        asked = len(server.asked(".bz2"))
        assert trajmill.fetcher.GIVE_UP <= asked <= trajmill.fetcher.GIVE_UP + 1, "one may be on its way already"

    def test_what_was_complete_when_another_file_failed_is_not_fetched_again(self, server, upstream, raw):
        """All of them arrive in the same moment in which one fails for good."""
        for number in range(8):
            publish(upstream, f"pbe/geo_opt_paths/x{number}.json.bz2", size=1000)
        server.plan.arrange("x0.json.bz2", "unavailable")
        assert list(get(server, raw, retries=0, connections=12).failed) == ["pbe/geo_opt_paths/x0.json.bz2"]
        here = places(raw) - {JOURNAL}
        assert here == set(Journal(raw).read())
        server.log.clear()
        get(server, raw)
        assert {r.path.removeprefix("/data/") for r in server.asked(".bz2")}.isdisjoint(here)


class TestChanges:
    def test_a_changed_file_is_fetched_again(self, server, upstream, raw):
        get(server, raw)
        before = RawManifest.load(raw)
        publish(upstream, NAMES[1], seed=9, size=SIZES[1], when=WHEN + 3600)
        server.log.clear()
        summary = get(server, raw)
        assert (summary.changed, summary.new) == ([NAMES[1]], [])
        assert data_sent(server) == SIZES[1]
        after = RawManifest.load(raw)
        assert after.files[NAMES[1]].sha256 != before.files[NAMES[1]].sha256
        assert after.digest != before.digest
        assert {p: f for p, f in after.files.items() if p != NAMES[1]} == {
            p: f for p, f in before.files.items() if p != NAMES[1]
        }

    def test_a_file_that_was_touched_here_is_fetched_again(self, server, raw, undisturbed):
        get(server, raw)
        (raw / NAMES[0]).write_bytes(b"oops")
        (raw / NAMES[1]).unlink()
        assert get(server, raw).changed == NAMES[:2]
        assert content(raw) == undisturbed

    def test_a_file_that_changes_after_it_was_listed_is_had_by_the_next_run(self, server, upstream, raw, undisturbed):
        class Change(FetchListener):
            def planned(self, *_):
                publish(upstream, SOME, seed=9, size=150_001, when=WHEN + 60)

        assert "150001 bytes are sent, 150000 were listed" in get(server, raw, listener=Change()).failed[SOME]
        assert not (raw / MANIFEST).exists()
        assert not get(server, raw).failed
        assert (raw / SOME).read_bytes() == (upstream / "data" / SOME).read_bytes()

    @pytest.mark.parametrize("if_range", [True, False])
    def test_a_file_that_changes_while_it_is_fetched_is_no_mix(self, server, upstream, raw, if_range):
        server.if_range = if_range
        server.plan.arrange(SOME, "hold")

        def change():
            chores.wait_for(lambda: server.sent(SOME) == 75_000)
            publish(upstream, SOME, seed=9, size=150_000, when=WHEN + 60)
            server.plan.arrange(SOME, "hold")
            server.closing.wait(1.0)  # longer than the timeout, so that the rest is asked for
            server.go.set()

        thread = threading.Thread(target=change)
        thread.start()
        assert not get(server, raw).failed
        thread.join()
        assert (raw / SOME).read_bytes() == (upstream / "data" / SOME).read_bytes()
        assert get(server, raw).changed == [SOME]  # the listing says so only now

    def test_the_manifest_stays_when_something_failed(self, server, upstream, raw):
        get(server, raw)
        before = (raw / MANIFEST).read_bytes()
        publish(upstream, NAMES[1], seed=9, size=5_000, when=WHEN + 3600)
        (upstream / "data" / NAMES[2]).unlink()
        server.plan.arrange(NAMES[1], "forbidden")
        assert list(get(server, raw, prune=True).failed) == [NAMES[1]]
        assert (raw / MANIFEST).read_bytes() == before
        assert (raw / NAMES[2]).exists()

    def test_a_vanished_file_is_kept_and_read(self, server, upstream, raw):
        get(server, raw)
        gone = upstream / "data" / NAMES[2]
        data = gone.read_bytes()
        gone.unlink()
        for _ in range(2):
            summary = get(server, raw)
            assert (summary.vanished, summary.pruned) == ([NAMES[2]], [])
            assert RawManifest.load(raw).files[NAMES[2]].vanished
            assert raw / NAMES[2] in current(raw, raw.rglob("*.bz2"))
        publish(upstream, NAMES[2], seed=2, size=SIZES[2])
        assert gone.read_bytes() == data
        server.log.clear()
        summary = get(server, raw)
        assert (summary.vanished, summary.unchanged) == ([], NAMES)
        assert not RawManifest.load(raw).files[NAMES[2]].vanished
        assert data_sent(server) == 0

    def test_a_vanished_file_is_deleted_when_told_so(self, server, upstream, raw):
        gone = "pbe/geo_opt_paths/only.json.bz2"
        publish(upstream, gone)
        get(server, raw)
        content = (upstream / "data" / gone).read_bytes()
        (upstream / "data" / gone).unlink()
        summary = get(server, raw, prune=True)
        assert (summary.vanished, summary.pruned) == ([], [gone])
        manifest = RawManifest.load(raw)
        assert manifest.dropped == {gone: "pruned"}
        assert set(manifest.files) == set(NAMES)
        assert places(raw) == {*NAMES, MANIFEST}
        assert (get(server, raw, prune=True).pruned, RawManifest.load(raw).dropped) == ([], manifest.dropped)
        (upstream / "data" / gone).write_bytes(content)
        assert get(server, raw).new == [gone]
        assert RawManifest.load(raw).dropped == {}

    def test_files_of_others_are_left_alone(self, server, raw):
        raw.mkdir(parents=True)
        (raw / "notes.txt").write_text("mine")
        get(server, raw)
        get(server, raw, prune=True)
        assert (raw / "notes.txt").read_text() == "mine"


class TestSuperseded:
    """A dated folder is replaced by the next date's as a whole."""

    OLD, NEW = ("geo_opt_paths/2024.05.24/pbe/a.json.bz2", "geo_opt_paths/2025.07.02/pbe/a.json.bz2")

    @pytest.fixture
    def raw(self, server, upstream, tmp_path):
        publish(upstream, self.OLD, seed=1)
        raw = tmp_path / "raw"
        get(server, raw, alexandria={"layout": "new"})
        assert RawManifest.load(raw).version == {"pbe": "2024.05.24"}
        publish(upstream, self.NEW, seed=2)
        return raw

    def test_it_stays_on_disk_and_is_no_longer_read(self, server, raw):
        for superseded in ([self.OLD], []):
            summary = get(server, raw, alexandria={"layout": "new"})
            assert (summary.superseded, summary.vanished, summary.pruned) == (superseded, [], [])
            manifest = RawManifest.load(raw)
            assert manifest.version == {"pbe": "2025.07.02"}
            assert (set(manifest.files), manifest.dropped) == ({self.NEW}, {self.OLD: "superseded"})
            assert current(raw, raw.rglob("*.bz2")) == [raw / self.NEW]
            assert (raw / self.OLD).exists()
        summary = get(server, raw, alexandria={"layout": "new"}, prune=True)
        assert summary.pruned == [self.OLD]
        assert places(raw) == {self.NEW, MANIFEST}
        assert not (raw / self.OLD).parent.exists()

    def test_it_is_deleted_when_told_so(self, server, raw):
        summary = get(server, raw, alexandria={"layout": "new"}, prune=True)
        assert (summary.superseded, summary.pruned) == ([self.OLD], [self.OLD])
        assert places(raw) == {self.NEW, MANIFEST}

    def test_it_is_read_until_the_new_one_is_complete(self, server, raw):
        server.plan.arrange(self.NEW, "forbidden")
        assert get(server, raw, alexandria={"layout": "new"}, prune=True).failed
        assert RawManifest.load(raw).version == {"pbe": "2024.05.24"}
        assert current(raw, raw.rglob("*.bz2")) == [raw / self.OLD]

    def test_a_file_that_is_gone_from_the_same_date_is_kept(self, server, upstream, raw):
        other = self.NEW.replace("/a.", "/b.")
        publish(upstream, other, seed=3)
        get(server, raw, alexandria={"layout": "new"})
        (upstream / "data" / other).unlink()
        summary = get(server, raw, alexandria={"layout": "new"})
        assert (summary.vanished, summary.superseded) == ([other], [])
        assert current(raw, raw.rglob("*.bz2")) == [raw / self.NEW, raw / other]

    def test_what_a_fetch_left_that_was_overtaken_is_deleted_when_told_so(self, server, upstream, raw):
        """One file whole, one half: neither is in any manifest."""
        publish(upstream, self.NEW.replace("/a.", "/b."), seed=3)
        server.plan.arrange(self.NEW, "cut off")
        assert get(server, raw, alexandria={"layout": "new"}, retries=0, connections=1).failed
        assert get(server, raw, alexandria={"layout": "new"}, dry_run=True).new
        newest = "geo_opt_paths/2026.01.01/pbe/a.json.bz2"
        publish(upstream, newest, seed=4)
        get(server, raw, alexandria={"layout": "new"}, prune=True)
        assert {p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file()} == {newest, MANIFEST, LOCK}


class TestPlaces:
    @pytest.mark.parametrize(
        "href",
        [
            "../../../../x.json.bz2",
            "..%2f..%2f..%2fx.json.bz2",
            "%2e%2e/%2e%2e/x.json.bz2",
            "..%252f..%252fx.json.bz2",
            "%2fetc%2fx.json.bz2",
            "/x.json.bz2",
            "/data/x.json.bz2",
            "http://localhost:1/data/pbe/geo_opt_paths/x.json.bz2",
            "//localhost:1/x.json.bz2",
            "file:///x.json.bz2",
            "javascript:x.json.bz2",
            "deeper/x.json.bz2",
            "..\\x.json.bz2",
            "a%00.json.bz2",
            "a%0a.json.bz2",
        ],
    )
    def test_no_listing_leads_out_of_the_folder(self, server, upstream, raw, href):
        page = f'<html><pre><a href="{href}">x</a>  02-Jul-2025 10:10  10\n'
        page += '<a href="good.json.bz2">good</a>  02-Jul-2025 10:10  10000\n</pre></html>'
        server.pages["/data/pbe/geo_opt_paths/"] = page.encode()
        publish(upstream, "pbe/geo_opt_paths/good.json.bz2")
        around = {p for p in raw.parent.parent.rglob("*") if not p.is_relative_to(raw)}
        if href in ("a%00.json.bz2", "a%0a.json.bz2"):
            with pytest.raises(RemoteContentError, match="no place in a folder"):
                get(server, raw)
        else:
            assert "pbe/geo_opt_paths/good.json.bz2" in get(server, raw).new
            assert (raw / "pbe/geo_opt_paths/good.json.bz2").exists()
        assert {p for p in raw.parent.parent.rglob("*") if not p.is_relative_to(raw)} - around <= {raw.parent}
        folder = raw / "pbe" / "geo_opt_paths"
        assert all(p.parent in (raw, folder) for p in raw.rglob("*") if p.is_file())

    @pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", ".", "a\0b", MANIFEST, LOCK])
    def test_no_remote_leads_out_of_the_folder(self, raw, monkeypatch, path):
        """Nor onto what the fetch itself writes there."""
        from trajmill.remotes.base import PlainFile, Stage

        class Evil:
            name, layout = "alexandria", "old"

            def stages(self, session, root):
                yield Stage(files=[PlainFile(path=path, address="http://127.0.0.1:1/x")])

        monkeypatch.setattr(trajmill.fetcher, "open_remote", lambda *_: Evil())
        with pytest.raises(RemoteContentError, match="no place in a folder"):
            fetch("alexandria", raw, Recipe())

    def test_names_with_special_characters(self, server, upstream, raw):
        names = [f"pbe/geo_opt_paths/{name}.json.bz2" for name in ("a b", "a#b", "a?b", "a%b", "ä", "a&amp;b", "..x")]
        for name in names:
            publish(upstream, name, seed=len(name))
        assert set(get(server, raw).new) == {*NAMES, *names}
        for name in names:
            assert (raw / name).read_bytes() == (upstream / "data" / name).read_bytes()

    def test_another_source_or_layout_goes_into_another_folder(self, server, raw):
        get(server, raw)
        with pytest.raises(
            FetchError, match=r"holds alexandria in the layout old; fetch alexandria \(new\) into another"
        ):
            get(server, raw, alexandria={"layout": "new"})
        with pytest.raises(FetchError, match=r"holds alexandria in the layout old; fetch oqmd \(dump\) into another"):
            fetch("oqmd", raw, Recipe())

    def test_no_such_source(self, raw):
        with pytest.raises(RecipeError, match="no source cod; there are: mp, alexandria, oqmd"):
            fetch("cod", raw, Recipe())

    def test_a_file_where_the_folder_should_be(self, server, raw):
        raw.parent.mkdir()
        raw.touch()
        with pytest.raises(RecipeError, match="is a file; raw files are fetched into a folder"):
            get(server, raw)


class TestDamage:
    def test_of_the_manifest(self, server, raw):
        get(server, raw)
        (raw / MANIFEST).write_text("{")
        with pytest.raises(SourceError, match="remove it and fetch again"):
            get(server, raw)
        (raw / MANIFEST).unlink()
        assert get(server, raw).new == NAMES

    def test_of_the_journal(self, server, raw, undisturbed):
        server.plan.arrange(NAMES[3], "forbidden")
        get(server, raw, connections=1)
        journal = raw / JOURNAL
        lines = [line for line in journal.read_text().splitlines() if line]
        assert json.loads(lines[0]) == {"source": "alexandria", "layout": "old"}
        assert [json.loads(line)["path"] for line in lines[1:]] == NAMES[:3]
        os.truncate(journal, journal.stat().st_size - 20)
        with pytest.raises(SourceError, match="not complete"):
            current(raw, [])
        summary = get(server, raw)
        assert (summary.unchanged, summary.new) == (NAMES[:2], NAMES[2:])
        assert content(raw) == undisturbed

    def test_other_files_called_part_are_left_alone(self, server, raw):
        get(server, raw)
        (raw / "mine.part").touch()
        get(server, raw, prune=True)
        assert (raw / "mine.part").exists()

    def test_an_interrupted_first_fetch_of_another_layout(self, server, upstream, raw):
        server.plan.arrange(SOME, "forbidden")
        assert get(server, raw).failed
        with pytest.raises(FetchError, match=r"holds alexandria in the layout old; .* set fetch.alexandria.layout"):
            get(server, raw, alexandria={"layout": "new"})

    def test_of_parts(self, server, raw, undisturbed):
        server.plan.arrange(SOME, "cut off")
        assert get(server, raw, retries=0).failed
        (raw / f"{SOME}.part.json").write_text("[]")
        get(server, raw)
        assert content(raw) == undisturbed


class TestDisk:
    @pytest.fixture(autouse=True)
    def _no_reserve(self, monkeypatch):
        monkeypatch.setattr(trajmill.fetcher, "RESERVE", 0)

    def test_what_does_not_fit_is_not_begun(self, server, tmp_path):
        with disks.small_disk(tmp_path / "disk", "128k") as disk:
            with pytest.raises(DiskError, match=r"0.0 GB are to be fetched, .*choose another folder or make room"):
                get(server, disk)
            assert data_sent(server) == 0
            assert places(disk) == set()

    def test_a_disk_that_fills_up(self, server, tmp_path, monkeypatch, undisturbed):
        monkeypatch.setattr(trajmill.fetcher._Fetch, "_check_room", lambda *_: None)
        with disks.small_disk(tmp_path / "disk", "512k") as disk:
            filler = disk / "filler"
            filler.write_bytes(bytes(400_000))
            with pytest.raises(DiskError, match="the disk is full; make room and run again to go on"):
                get(server, disk, connections=1)
            assert not (disk / MANIFEST).exists()
            filler.unlink()
            get(server, disk)
            assert content(disk) == undisturbed

    @pytest.mark.parametrize("what", ["add", "save"])
    def test_a_disk_with_no_room_for_the_bookkeeping(self, server, raw, monkeypatch, undisturbed, what):
        import errno

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Journal if what == "add" else RawManifest, what, full)
            with pytest.raises(DiskError, match="the disk is full"):
                get(server, raw)
        assert not (raw / MANIFEST).exists()
        get(server, raw)
        assert content(raw) == undisturbed


FETCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from trajmill.fetcher import fetch
from trajmill.recipe import Recipe
from trajmill.remotes import transfer
transfer.BACKOFF = 0.01
recipe = Recipe.model_validate_json(sys.argv[1])
try:
    print(sorted(fetch("alexandria", Path(sys.argv[2]), recipe).new), flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""


def start(server, raw, **changes):
    """Fetch in a process of its own."""
    recipe = recipe_for(server.url, **{"timeout": 60.0} | changes)
    command = [sys.executable, "-c", FETCH, recipe.model_dump_json(), raw]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_half(server, raw):
    """Wait until half of the held file is on disk, and the others are whole."""
    part = raw / f"{SOME}.part"
    chores.wait_for(lambda: part.exists() and part.stat().st_size == SIZES[0] // 2, what="half a file")
    chores.wait_for(lambda: len(Journal(raw).read()) == len(NAMES) - 1, what="the other files")


class TestProcesses:
    def test_killed_and_run_again_it_goes_on(self, server, raw, undisturbed):
        server.plan.arrange(SOME, "hold")
        with start(server, raw) as process:
            wait_for_half(server, raw)
            process.kill()
            assert process.wait(chores.PATIENCE) == -signal.SIGKILL
        assert not (raw / SOME).exists()
        assert not (raw / MANIFEST).exists()
        server.go.set()
        server.log.clear()
        with start(server, raw) as process:
            assert process.communicate(timeout=chores.PATIENCE)[0] == f"{[SOME]}\n"
        assert [(r.path, r.range) for r in server.asked(".bz2")] == [(f"/data/{SOME}", f"bytes={SIZES[0] // 2}-")]
        assert data_sent(server) == SIZES[0] - SIZES[0] // 2
        assert content(raw) == undisturbed

    def test_killed_at_any_moment_it_ends_the_same(self, server, raw, undisturbed):
        server.pause = 0.02
        for delay in (0.0, 0.05, 0.15):
            server.log.clear()
            with start(server, raw) as process:
                chores.wait_for(lambda: server.log, what="the listing")
                time.sleep(delay)
                process.kill()
        server.pause = 0.0
        get(server, raw)
        assert content(raw) == undisturbed

    @pytest.mark.parametrize("fault", ["silent", "silent midway", "silent listing"])
    def test_interrupted_it_ends_at_once_and_goes_on_later(self, server, raw, undisturbed, fault):
        server.plan.arrange("/geo_opt_paths/" if fault == "silent listing" else SOME, fault.removesuffix(" listing"))
        with start(server, raw) as process:
            if fault == "silent midway":
                wait_for_half(server, raw)
            else:
                chores.wait_for(lambda: any(r.fault for r in server.log), what="the silence")
                time.sleep(0.3)
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            said, told = process.communicate(timeout=chores.PATIENCE)
            assert time.monotonic() - begin < 15.0  # and not the minute that a silent server is given
        assert said == "interrupted\n"
        assert told.rstrip().endswith("KeyboardInterrupt")
        assert process.returncode in (-signal.SIGINT, 130)
        assert not (raw / MANIFEST).exists()
        get(server, raw)
        assert content(raw) == undisturbed

    def test_two_at_a_time_are_one_too_many(self, server, raw, undisturbed):
        server.plan.arrange(SOME, "hold")
        with start(server, raw) as process:
            wait_for_half(server, raw)
            with pytest.raises(FetchError, match=rf"another fetch \(process {process.pid}\) is at work here") as caught:
                get(server, raw)
            assert type(caught.value) is FetchError
            server.go.set()
            assert process.communicate(timeout=chores.PATIENCE)[0] == f"{NAMES}\n"
        assert content(raw) == undisturbed

    def test_many_silent_connections_do_not_add_up(self, server, upstream, raw, monkeypatch):
        for number in range(20):
            publish(upstream, f"pbe/geo_opt_paths/x{number:02}.json.bz2")
        server.plan = FaultPlan(faults=("silent",), rate=1.0, matching="/x")
        for name in NAMES:
            server.plan.arrange(name, "silent")
        for number in range(15, 20):
            server.plan.arrange(f"x{number}.json.bz2", "unavailable")
        begin = time.monotonic()
        with pytest.raises(RemoteUnavailableError):
            get(server, raw, connections=32, retries=0, timeout=30.0)
        assert time.monotonic() - begin < 8.0


def test_a_folder_made_by_hand_is_taken_over(server, upstream, raw):
    """Files somebody copied are fetched once more: nothing says what they are."""
    shutil.copytree(upstream / "data", raw)
    assert get(server, raw).new == NAMES
    assert Path(raw, MANIFEST).exists()
