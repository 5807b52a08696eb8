"""From upstream to a store and to its next version: the real samples, served as their publishers do."""

import bz2
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import chores
from making import DATA, content
from mp_samples import REAL, documents
from servers.faulty import serve
from servers.moto_s3 import s3_server
from trajmill.builder import build
from trajmill.errors import RecipeError, StoreError
from trajmill.fetcher import fetch
from trajmill.raw import RawManifest
from trajmill.recipe import load
from trajmill.stores.delta import DeltaStore
from trajmill.updater import update

PBE = "data/pbe/geo_opt_paths"
PAGE = """<html><body><h1>Download the OQMD</h1>
{}</body></html>"""
ENTRY = '<h3>OQMD v{0}</h3>\n<p><a href="/static/downloads/{1}">{1}</a> (gzipped MySQL dump)</p>\n'
QUICK = ["engine.workers=1", "annotation.energy_corrected=false"]  # a worker imports pymatgen for seconds
DUMPS = {"1.6": "qmdb__v1_6__112023.sql.gz", "1.10": "qmdb__v1_10__022026.sql.gz"}


def write_shard(path, *names, some=slice(None)):
    """Write a shard with ids of the sample shards."""
    records = {}
    for name in names:
        records |= json.loads(bz2.decompress((DATA / "alexandria/data" / name).read_bytes()).replace(b"NaN", b"null"))
    records = dict(list(records.items())[some])
    path.write_bytes(bz2.compress(json.dumps(records).encode()))


def publish_oqmd(web, *versions):
    (web / "static/downloads").mkdir(parents=True, exist_ok=True)
    for version in versions:
        shutil.copy(DATA / "oqmd" / DUMPS["1.6"], web / "static/downloads" / DUMPS[version])
    (web / "download").mkdir(exist_ok=True)
    return {"/download/": PAGE.format("".join(ENTRY.format(v, DUMPS[v]) for v in versions)).encode()}


@pytest.fixture
def web(tmp_path):
    """What upstream has: three shards of Alexandria, one dump of OQMD."""
    folder = tmp_path / "web"
    (folder / PBE).mkdir(parents=True)
    for i in (0, 1):
        shutil.copy(DATA / f"alexandria/{PBE}/alex_go_aaa_00{i}.json.bz2", folder / PBE)
    write_shard(folder / PBE / "alex_go_aaa_002.json.bz2", "pbesol/geo_opt_paths/alex_ps_go_000.json.bz2")
    return folder


@pytest.fixture
def upstream(web):
    with serve(web) as server:
        server.pages |= publish_oqmd(web, "1.6")
        yield server


def recipe(upstream, place, *more):
    settings = {
        "alexandria.path": place / "raw/alexandria",
        "oqmd.path": place / "raw/oqmd",
        "store.path": place / "store",
        "fetch.alexandria.url": f"{upstream.url}data/",
        "fetch.oqmd.url": f"{upstream.url}download/",
    }
    fixed = ["fetch.alexandria.layout=old", "fetch.alexandria.sets=['pbe']", "fetch.retries=1", *QUICK]
    return load(None, [*(f"{key}='{value}'" for key, value in settings.items()), *fixed, *more])


def shards(*numbers):
    return [f"pbe/geo_opt_paths/alex_go_aaa_00{n}.json.bz2" for n in numbers]


def assets(*numbers):
    return [f"alexandria/{path}" for path in shards(*numbers)]


def change(web):
    """Let upstream add one file, change one, remove one."""
    write_shard(web / PBE / "alex_go_aaa_003.json.bz2", "pbe/geo_opt_paths/alex_go_aaa_000.json.bz2", some=slice(0, 3))
    write_shard(web / PBE / "alex_go_aaa_001.json.bz2", "pbe/geo_opt_paths/alex_go_aaa_001.json.bz2", some=slice(2, 9))
    (web / PBE / "alex_go_aaa_002.json.bz2").unlink()


def test_what_upstream_adds_changes_and_removes(upstream, web, tmp_path):
    first = update(recipe(upstream, tmp_path), prune=True)
    oqmd = [name for name in first.built.built if name.startswith("oqmd/")]
    assert [f.new for f in first.fetched] == [shards(0, 1, 2), [DUMPS["1.6"]]]
    assert sorted(first.built.built) == [*assets(0, 1, 2), *sorted(oqmd)]
    change(web)
    upstream.log.clear()
    # whoever opens a file that did not change will find nonsense in it
    untouched = tmp_path / "raw/alexandria" / shards(0)[0]
    status = untouched.stat()
    untouched.write_bytes(bytes(status.st_size))
    os.utime(untouched, ns=(status.st_atime_ns, status.st_mtime_ns))

    second = update(recipe(upstream, tmp_path), prune=True)
    alexandria, _ = second.fetched
    assert (alexandria.new, alexandria.changed) == (shards(3), shards(1))
    assert (alexandria.unchanged, alexandria.pruned) == (shards(0), shards(2))
    assert sorted(r.path for r in upstream.log if r.path.endswith(".bz2")) == [f"/data/{p}" for p in shards(1, 3)]
    assert sorted(second.built.built) == assets(1, 3)
    assert sorted(second.built.unchanged) == [*assets(0), *sorted(oqmd)]
    assert second.built.dropped == assets(2)
    assert not (tmp_path / "raw/alexandria" / shards(2)[0]).exists()

    fresh = tmp_path / "fresh"
    update(recipe(upstream, fresh))
    assert content(tmp_path / "store") == content(fresh / "store")
    raws = [DeltaStore(place / "store").raw_digests() for place in (tmp_path, fresh)]
    assert raws[0] == raws[1]
    assert DeltaStore(tmp_path / "store").upstream().keys() == {"alexandria", "oqmd"}

    upstream.log.clear()
    third = update(recipe(upstream, tmp_path))
    assert (third.built.built, third.built.version) == ({}, second.built.version)
    assert not upstream.asked(".bz2"), "fetched again"


def test_what_vanishes_is_kept_unless_pruned(upstream, web, tmp_path):
    update(recipe(upstream, tmp_path))
    before = content(tmp_path / "store")
    (web / PBE / "alex_go_aaa_002.json.bz2").unlink()
    kept = update(recipe(upstream, tmp_path))
    assert (kept.fetched[0].vanished, kept.built.dropped, kept.built.vanished) == (shards(2), [], [])
    assert content(tmp_path / "store") == before
    assert RawManifest.load(tmp_path / "raw/alexandria").files[shards(2)[0]].vanished
    gone = update(recipe(upstream, tmp_path), prune=True)
    assert (gone.fetched[0].pruned, gone.built.dropped) == (shards(2), assets(2))
    assert DeltaStore(tmp_path / "store").assets() == [
        a for a in DeltaStore(tmp_path / "store").assets() if "002" not in a
    ]


def test_a_newer_dump_replaces_the_rows_of_the_older(upstream, web, tmp_path):
    update(recipe(upstream, tmp_path))
    upstream.pages |= publish_oqmd(web, "1.6", "1.10")
    summary = update(recipe(upstream, tmp_path))
    assert (summary.fetched[1].new, summary.fetched[1].superseded) == ([DUMPS["1.10"]], [DUMPS["1.6"]])
    assert (tmp_path / "raw/oqmd" / DUMPS["1.6"]).exists(), "deleted without --prune"
    dumps = {a.split("/")[1] for a in DeltaStore(tmp_path / "store").assets() if a.startswith("oqmd/")}
    assert dumps == {DUMPS["1.10"]}
    assert {a.split("/")[1] for a in summary.built.dropped} == {DUMPS["1.6"]}
    assert DeltaStore(tmp_path / "store").upstream()["oqmd"]["version"] == {"dump": "1.10 of 2026-02"}
    update(recipe(upstream, tmp_path), prune=True)
    assert not (tmp_path / "raw/oqmd" / DUMPS["1.6"]).exists()


def test_nothing_moves_when_a_file_cannot_be_had(upstream, web, tmp_path):
    """The rows of the last complete version stay; the next update brings all."""
    update(recipe(upstream, tmp_path))
    before, version = content(tmp_path / "store"), DeltaStore(tmp_path / "store").version
    manifest = RawManifest.load(tmp_path / "raw/alexandria")
    change(web)
    upstream.plan.arrange("alex_go_aaa_003.json.bz2", "forbidden")
    summary = update(recipe(upstream, tmp_path))
    assert list(summary.fetched[0].failed) == shards(3)
    assert summary.failed == {"alexandria": f"{shards(3)[0]} could not be fetched"}
    assert {name.split("/")[0] for name in summary.built.unchanged} == {"oqmd"}, "the other source was not built"
    assert RawManifest.load(tmp_path / "raw/alexandria") == manifest
    assert (content(tmp_path / "store"), DeltaStore(tmp_path / "store").version) == (before, version)
    assert sorted(update(recipe(upstream, tmp_path)).built.built) == assets(1, 3)


def test_a_source_that_is_down_does_not_hold_up_another(upstream, web, tmp_path):
    update(recipe(upstream, tmp_path))
    upstream.plan.arrange("/geo_opt_paths/", "unavailable", times=9)
    upstream.pages |= publish_oqmd(web, "1.6", "1.10")
    summary = update(recipe(upstream, tmp_path))
    assert "the server answers 503" in summary.failed["alexandria"]
    assert {name.split("/")[1] for name in summary.built.built} == {DUMPS["1.10"]}
    assert assets(0)[0] in DeltaStore(tmp_path / "store").assets()


def test_where_the_store_cannot_be_is_said_before_anything_is_fetched(upstream, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/mine.txt").touch()
    with pytest.raises(StoreError, match="not empty and no trajmill store"):
        update(recipe(upstream, tmp_path))
    assert not upstream.log


def test_an_accident_upstream_changes_nothing_here(upstream, web, tmp_path):
    """A page that lists an older dump for a while, or a dump of which only a part is there yet."""
    upstream.pages |= publish_oqmd(web, "1.6", "1.10")
    update(recipe(upstream, tmp_path))
    before = content(tmp_path / "store")
    upstream.pages |= publish_oqmd(web, "1.6")
    summary = update(recipe(upstream, tmp_path), prune=True)
    assert "upstream has gone back from dump 1.10 of 2026-02 to 1.6 of 2023-11" in summary.failed["oqmd"]
    newest = "qmdb__v1_11__032026.sql.gz"
    upstream.pages["/download/"] = PAGE.format(ENTRY.format("1.11", newest)).encode()
    (web / "static/downloads" / newest).write_bytes((DATA / "oqmd" / DUMPS["1.6"]).read_bytes()[:30_000])
    summary = update(recipe(upstream, tmp_path), prune=True)
    assert "is it still being published?" in summary.failed["oqmd"]
    assert content(tmp_path / "store") == before
    assert (tmp_path / "raw/oqmd" / DUMPS["1.10"]).exists()
    accepting = recipe(upstream, tmp_path, "fetch.min_share=0.1")
    assert fetch("oqmd", tmp_path / "raw/oqmd", accepting).new == [newest]


def test_a_copied_folder_is_neither_fetched_nor_built_again(upstream, tmp_path):
    """Times on disk are other ones then; the content tells."""
    update(recipe(upstream, tmp_path))
    before = content(tmp_path / "store")
    for path in (tmp_path / "raw").rglob("*.*z*"):
        os.utime(path, ns=(1, 1))
    upstream.log.clear()
    summary = update(recipe(upstream, tmp_path))
    assert [len(fetched.unchanged) for fetched in summary.fetched] == [3, 1]
    assert not upstream.asked(".bz2")
    assert summary.built.built == {}
    assert content(tmp_path / "store") == before
    assert RawManifest.load(tmp_path / "raw/oqmd").files[DUMPS["1.6"]].mtime_ns == 1, "to be digested each time"


def test_a_build_between_two_versions(upstream, web, tmp_path):
    """A file was replaced, another could not be had: the rows of what is there, with their date, and no claim."""
    update(recipe(upstream, tmp_path))
    change(web)
    upstream.plan.arrange("alex_go_aaa_003.json.bz2", "forbidden")
    update(recipe(upstream, tmp_path))
    summary = build(recipe(upstream, tmp_path))
    assert sorted(summary.built) == assets(1)
    [(_, path, _)] = DeltaStore(tmp_path / "store").files("frame", assets(1)[0])
    assert None not in pq.read_table(path)["last_modified"].to_pylist()
    assert DeltaStore(tmp_path / "store").upstream().keys() == {"oqmd"}
    assert sorted(update(recipe(upstream, tmp_path)).built.built) == assets(3)
    assert DeltaStore(tmp_path / "store").upstream().keys() == {"alexandria", "oqmd"}


def test_sets_that_were_not_asked_for_are_left_alone(upstream, web, tmp_path):
    folder = web / "data/pbesol/geo_opt_paths"
    folder.mkdir(parents=True)
    write_shard(folder / "alex_ps_go_000.json.bz2", "pbesol/geo_opt_paths/alex_ps_go_000.json.bz2")
    both = recipe(upstream, tmp_path, "fetch.alexandria.sets=['pbe','pbesol']")
    update(both)
    before = content(tmp_path / "store")
    narrow = update(recipe(upstream, tmp_path), prune=True)
    assert narrow.fetched[0].unasked == ["pbesol/geo_opt_paths/alex_ps_go_000.json.bz2"]
    assert (narrow.fetched[0].vanished, narrow.fetched[0].pruned, narrow.built.dropped) == ([], [], [])
    assert content(tmp_path / "store") == before
    assert update(both).built.built == {}


def test_a_dry_run_touches_nothing(upstream, tmp_path):
    summary = update(recipe(upstream, tmp_path), dry_run=True)
    assert [len(f.new) for f in summary.fetched] == [3, 1]
    assert summary.fetched[0].n_bytes == sum(int(r.stat().st_size) for r in (upstream.root / PBE).glob("*.bz2"))
    assert summary.built is None
    assert not (tmp_path / "raw").exists()
    assert not (tmp_path / "store").exists()


def test_a_path_that_is_a_file(tmp_path):
    with pytest.raises(RecipeError, match="is a file; raw files are fetched into a folder"):
        update(load(None, [f"oqmd.path='{DATA / 'oqmd' / DUMPS['1.6']}'", f"store.path='{tmp_path}'"]))
    with pytest.raises(RecipeError, match="nothing to update"):
        update(load(None, [f"store.path='{tmp_path}'"]))


# --- Materials Project: documents joined with what another bucket says of them


@pytest.fixture
def bucket(tmp_path):
    """The JSON Lines layout on an S3 server: tasks, and a dated snapshot of the materials."""
    with s3_server() as server:
        server.put("materialsproject-parsed", REAL / "tasks", "tasks_atomate2/format=jsonl")
        server.put("materialsproject-parsed", DATA / "mp/plain/tasks", "tasks-legacy/tasks")
        server.put("materialsproject-build", REAL / "materials", "collections/2025-02-12/materials")
        yield server


def mp_recipe(bucket, place, layout="jsonl"):
    settings = {"mp.path": place / "raw", "store.path": place / "store", "fetch.mp.endpoint": bucket.endpoint}
    return load(None, [*(f"{k}='{v}'" for k, v in settings.items()), f"fetch.mp.layout={layout}", *QUICK])


def test_a_newer_snapshot_rebuilds_only_what_it_changes(bucket, tmp_path):
    first = update(mp_recipe(bucket, tmp_path))
    assert len(first.built.built) == len(list(REAL.glob("tasks/*.gz"))) + 1
    [source] = (REAL / "materials").glob("*.gz")
    snapshot = list(documents(source))
    flipped = next(m for m in snapshot if m["builder_meta"]["license"] == "BY-C" and not m["deprecated"])
    flipped["builder_meta"]["license"] = "BY-NC"
    newer = tmp_path / "newer"
    newer.mkdir()
    with gzip.open(newer / "all.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(material) + "\n" for material in snapshot)
    bucket.put("materialsproject-build", newer, "collections/2025-09-25/materials")
    summary = update(mp_recipe(bucket, tmp_path))
    [fetched] = summary.fetched
    assert fetched.new == ["collections/2025-09-25/materials/all.jsonl.gz"]
    assert fetched.superseded == [f"collections/2025-02-12/materials/{source.name}"]
    tasks = set(flipped["task_ids"])
    files = [*REAL.glob("tasks/*.gz"), *(DATA / "mp/plain/tasks").glob("*.gz")]
    holders = {file.name for file in files if tasks & {str(task["task_id"]) for task in documents(file)}}
    assert {name.rpartition("/")[2] for name in summary.built.built} == holders
    assert len(holders) == 2, "the same task in both places"
    fresh = tmp_path / "fresh"
    update(mp_recipe(bucket, fresh))
    assert content(tmp_path / "store") == content(fresh / "store")


# --- the command line


def trajmill(*arguments):
    command = [sys.executable, "-m", "trajmill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def flags(upstream):
    return [
        "--set", f"fetch.alexandria.url='{upstream.url}data/'", "--set", f"fetch.oqmd.url='{upstream.url}download/'",
        "--set", "fetch.alexandria.layout=old", "--set", "fetch.alexandria.sets=['pbe']", "--set", "fetch.retries=0",
        "--set", "annotation.energy_corrected=false",
    ]  # fmt: skip


def test_the_commands(upstream, web, tmp_path):
    raw, store = tmp_path / "raw", tmp_path / "store"
    dry = trajmill("fetch", "alexandria", "oqmd", "--dest", raw, "--dry-run", *flags(upstream))
    assert dry.returncode == 0, dry.stderr
    assert "3 new, 0 changed, 0 unchanged files" in dry.stdout
    assert "to fetch" in dry.stdout
    assert "together " in dry.stdout
    assert dry.stdout.count("the disk can hold that") == 3
    assert not raw.exists()
    done = trajmill("fetch", "oqmd", "--dest", raw, *flags(upstream))
    assert "1 new, 0 changed, 0 unchanged files; 63.6 kB" in done.stdout
    assert "upstream: dump 1.6 of 2023-11" in done.stdout
    updated = trajmill(
        "update", "--source", "alexandria", "--source", "oqmd", "--raw", raw, "--out", store, "--workers", 1,
        *flags(upstream),
    )  # fmt: skip
    assert updated.returncode == 0, updated.stderr
    assert "0 new, 0 changed, 1 unchanged file" in updated.stdout
    assert re.search(r"store: version \d+; \d assets built, 0 unchanged", updated.stdout)
    (web / PBE / "alex_go_aaa_002.json.bz2").unlink()
    pruned = trajmill("update", "--source", "alexandria", "--raw", raw, "--out", store, "--prune", *flags(upstream))
    assert "1 file deleted:\n  pbe/geo_opt_paths/alex_go_aaa_002.json.bz2" in pruned.stdout
    assert "rows of 1 asset removed: raw files replaced or pruned" in pruned.stdout


def test_files_of_ones_own_are_built_where_they_lie(upstream, tmp_path):
    """There is nothing to fetch of them; an update builds what is new there too."""
    shutil.copytree(DATA / "vasp/Si", tmp_path / "mine/Si")
    settings = f"vasp.path={tmp_path / 'mine'}"
    first = update(recipe(upstream, tmp_path, settings))
    assert sorted({summary.source for summary in first.fetched}) == ["alexandria", "oqmd"]
    assert [name for name in first.built.built if name.startswith("vasp/")] != []
    shutil.copytree(DATA / "vasp/LiFeO2", tmp_path / "mine/LiFeO2")
    second = update(recipe(upstream, tmp_path, settings))
    assert list(second.built.built) == ["vasp/LiFeO2"]
    only = recipe(upstream, tmp_path, settings).with_paths({"alexandria": None, "oqmd": None})
    with pytest.raises(RecipeError, match="nothing to update: give a path for one of mp, alexandria, oqmd"):
        update(only)


def test_commands_that_cannot_work_say_so_in_one_line(upstream, tmp_path):
    upstream.plan.arrange("/geo_opt_paths/", "unavailable", "missing", "forbidden")
    for arguments, message in (
        (["fetch", "mpp"], "no source mpp; there are: mp, alexandria, oqmd"),
        (
            ["fetch", "vasp"],
            "vasp: files of your own are nowhere to be fetched from; trajmill build --vasp FOLDER reads",
        ),
        (["update", "--source", "ase", "--raw", tmp_path], "trajmill build --ase FOLDER reads them where they lie"),
        (["fetch", "mp", "--layout", "parquet"], "fetch.mp.layout"),
        (["fetch", "mp", "--set", "mp.layout=jsonl"], "mp.layout is jsonl and fetch.mp.layout delta"),
        (["fetch", "mp", "--set", "fetch.mp.endpoint=localhost:9000"], "fetch.mp.endpoint"),
        (["fetch", "oqmd", "--set", f"oqmd.path='{DATA / 'oqmd' / DUMPS['1.6']}'"], "is a file; raw files"),
        (["fetch"], "Missing argument"),
        (["update"], "nothing to update: give a path"),
        (["update", "--source", "mp"], "--raw"),
        (["update", "--raw", tmp_path / "raw"], "say where the store is to be"),
        *((["fetch", "alexandria", "--dest", tmp_path], m) for m in ("answers 503", "answers 404", "answers 403")),
    ):
        more = flags(upstream) if arguments[1:2] == ["alexandria"] else []
        done = trajmill(*arguments, *more)
        assert done.returncode == 2, done.stdout
        assert message in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_file_that_fails_is_named_and_the_exit_code_is_1(upstream, tmp_path):
    upstream.plan.arrange("alex_go_aaa_001.json.bz2", "missing")
    done = trajmill("fetch", "alexandria", "--dest", tmp_path, *flags(upstream))
    assert done.returncode == 1
    assert "failed: pbe/geo_opt_paths/alex_go_aaa_001.json.bz2" in done.stdout
    assert "1 file could not be fetched; run the same command again to go on" in done.stdout
    again = trajmill("fetch", "alexandria", "--dest", tmp_path, *flags(upstream))
    assert again.returncode == 0
    assert "1 new, 0 changed, 2 unchanged files" in again.stdout


def test_ctrl_c_says_how_to_go_on(upstream, tmp_path):
    upstream.plan.arrange("alex_go_aaa_001.json.bz2", "silent")
    command = [sys.executable, "-m", "trajmill.cli", "fetch", "alexandria", "--dest", tmp_path, *flags(upstream)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=as_a_shell_would) as process:
        chores.wait_for(lambda: upstream.asked("alex_go_aaa_001.json.bz2"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "trajmill: stopped; run the same command again to go on\n")


def as_a_shell_would():
    """Children of a background job ignore Ctrl-C unless told otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_names_that_look_like_markup(upstream, tmp_path):
    dest = tmp_path / "raw [old] [/x]"
    done = trajmill("fetch", "oqmd", "--dest", dest, *flags(upstream))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{dest}/oqmd: oqmd (dump): 1 new" in done.stdout


def test_fetch_alone(upstream, tmp_path):
    summary = fetch("oqmd", tmp_path / "oqmd", recipe(upstream, tmp_path))
    assert summary.new == [DUMPS["1.6"]]
