"""Raw files in object storage: the same store comes of them as of the same files in a folder."""

import hashlib
import shutil

import pytest

from making import DATA, content
from mp_samples import write_tables
from servers.moto_s3 import s3_server
from trajmill import raw
from trajmill.builder import Listener, build
from trajmill.engines.base import Failed
from trajmill.errors import RecipeError, SourceError, TrajmillError
from trajmill.fetcher import fetch
from trajmill.raw import JOURNAL, MANIFEST, RawFile, RawManifest
from trajmill.recipe import load
from trajmill.sources import open_sources
from trajmill.storage import as_path
from trajmill.stores import open_store
from trajmill.updater import update


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture
def put(server, aws):
    """Copy a folder into a new bucket; return where it is there."""

    def copy(folder):
        bucket = aws(server)
        server.put(bucket.parts[1], folder, "raw")
        return bucket / "raw"

    return copy


class Ear(Listener):
    """Nothing may fail unheard."""

    def happened(self, event):
        assert not isinstance(event, Failed), event


def built(path, source, store):
    """Build one source; without the annotation that takes long to import."""
    settings = [f"{source}.path={path}", f"store.path={store}", "engine.workers=1"]
    summary = build(load(None, [*settings, "annotation.energy_corrected=false"]), listener=Ear())
    assert not summary.stopped, "the tests were told to stop"
    return summary


def jsonl(folder):
    shutil.copytree(DATA / "mp" / "derived", folder)
    return "mp", ""


def delta_tables(folder):
    write_tables(folder)
    return "mp", ""


def plain_parquet(folder):
    (folder / "core" / "trajectories").mkdir(parents=True)
    shutil.copy(DATA / "mp" / "core_trajectories_sample.parquet", folder / "core" / "trajectories" / "0.parquet")
    return "mp", ""


def alexandria(folder):
    shutil.copytree(DATA / "alexandria" / "data", folder)
    return "alexandria", ""


def dump(folder):
    folder.mkdir()
    shutil.copy(DATA / "oqmd" / "real_entry_6126.sql.gz", folder / "qmdb__v1_6__112023.sql.gz")
    return "oqmd", ""


def dump_itself(folder):
    return dump(folder)[0], "qmdb__v1_6__112023.sql.gz"


def vasp(folder):
    shutil.copytree(DATA / "vasp", folder)
    return "vasp", ""


def vasp_file(folder):
    return vasp(folder)[0], "Si/vasprun.xml.relax1.gz"


def ase(folder):
    (folder / "deep").mkdir(parents=True)
    for place in (folder / "mp-149.extxyz", folder / "deep" / "again.extxyz"):
        shutil.copy(DATA / "evalsets" / "mptrj" / "mp-149.extxyz", place)
    return "ase", ""


@pytest.mark.parametrize(
    "lay", [jsonl, delta_tables, plain_parquet, alexandria, dump, dump_itself, vasp, vasp_file, ase]
)
def test_the_same_store_as_from_a_folder(lay, tmp_path, put):
    source, place = lay(tmp_path / "raw")
    there = put(tmp_path / "raw")
    first = built(tmp_path / "raw" / place, source, tmp_path / "here")
    second = built(there / place, source, tmp_path / "there")
    assert first.balance == second.balance
    assert first.balance.records
    assert content(tmp_path / "here") == content(tmp_path / "there")
    third = built(there / place, source, tmp_path / "here")
    assert (third.built, len(third.unchanged)) == ({}, len(first.built))


def test_raw_files_and_store_in_object_storage(tmp_path, put):
    alexandria(tmp_path / "raw")
    there = put(tmp_path / "raw")
    built(tmp_path / "raw", "alexandria", tmp_path / "here")
    store = there.parent / "store"
    built(there, "alexandria", store)
    found = {}
    for role in ("frame", "input", "rejection"):
        for _, path, _ in open_store(str(store)).files(role):
            with path.open() as file:
                found[path.relative_to(store).as_posix()] = file.read()
    assert found == content(tmp_path / "here")


# --- digests


def test_a_file_is_read_once_for_its_digest(tmp_path, put, server):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x").write_bytes(b"content")
    file = put(tmp_path / "raw") / "x"
    for _ in range(2):
        assert raw.sha256(file) == hashlib.sha256(b"content").hexdigest()
    assert sum(r.method == "GET" for r in server.requests) == 1
    server.put_bytes(file.parts[1], file.key, b"CONTENT")
    assert raw.sha256(file) == hashlib.sha256(b"CONTENT").hexdigest()


# --- manifests


def manifest(folder, *left_out):
    """Write the manifest that a fetch would have written."""
    files = {
        (name := path.relative_to(folder).as_posix()): RawFile(
            path=name, uri="https://x/y", remote={}, modified="2024-01-01T00:00:00", size=path.stat().st_size,
            mtime_ns=1, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), fetched_at="2025-01-01", part_of="set",
        )
        for path in sorted(folder.rglob("*.bz2"))
    }  # fmt: skip
    dropped = dict.fromkeys(left_out, "superseded")
    files = {name: file for name, file in files.items() if name not in left_out}
    RawManifest(source="alexandria", version={"set": "1"}, files=files, dropped=dropped).save(folder)
    return list(files)


def test_a_fetched_folder_that_was_copied(tmp_path, put):
    """What its manifest names is read, with upstream's dates; the store knows the version it is complete for."""
    alexandria(tmp_path / "raw")
    names = manifest(tmp_path / "raw", "pbesol/geo_opt_paths/alex_ps_go_000.json.bz2")
    there = put(tmp_path / "raw")
    summary = built(there, "alexandria", tmp_path / "there")
    assert sorted(summary.built) == [f"alexandria/{name}" for name in names]
    built(tmp_path / "raw", "alexandria", tmp_path / "here")
    assert content(tmp_path / "here") == content(tmp_path / "there")
    known = {"alexandria": {"version": {"set": "1"}, "digest": RawManifest.load(tmp_path / "raw").digest}}
    assert open_store(tmp_path / "there").upstream() == open_store(tmp_path / "here").upstream() == known


def test_a_copy_that_is_not_whole_is_no_version(tmp_path, put):
    alexandria(tmp_path / "raw")
    lacking = tmp_path / "raw" / manifest(tmp_path / "raw")[0]
    lacking.unlink()
    built(put(tmp_path / "raw"), "alexandria", tmp_path / "there")
    assert open_store(tmp_path / "there").upstream() == {}


def test_a_fetch_that_was_not_complete_when_it_was_copied(tmp_path, put):
    alexandria(tmp_path / "raw")
    (tmp_path / "raw" / JOURNAL).write_text("{}")
    with pytest.raises(SourceError, match="the first fetch into this folder is not complete"):
        built(put(tmp_path / "raw"), "alexandria", tmp_path / "there")


def test_a_damaged_manifest(tmp_path, put, server):
    alexandria(tmp_path / "raw")
    (tmp_path / "raw" / MANIFEST).write_text("[]")
    with pytest.raises(SourceError, match="no raw manifest"):
        built(put(tmp_path / "raw"), "alexandria", tmp_path / "there")


# --- what goes wrong


def test_nothing_there(tmp_path, put):
    alexandria(tmp_path / "raw")
    there = put(tmp_path / "raw")
    for path in (there / "none", as_path("s3://no-such-bucket/raw")):
        with pytest.raises(RecipeError, match=r"alexandria\.path: s3://.* does not exist"):
            open_sources(load(None, [f"alexandria.path={path}"]))
    with pytest.raises(RecipeError, match="names no bucket"):
        load(None, ["alexandria.path=s3://"])


def test_refused(tmp_path, put, server):
    alexandria(tmp_path / "raw")
    there = put(tmp_path / "raw")
    server.fault = lambda *_: 403
    with pytest.raises(TrajmillError, match="access denied") as caught:
        built(there, "alexandria", tmp_path / "there")
    assert "\n" not in str(caught.value)


def test_a_server_that_stumbles_costs_nothing(tmp_path, put, server):
    """Neither a record that seems damaged nor the build."""
    alexandria(tmp_path / "raw")
    there = put(tmp_path / "raw")
    turns = iter(range(999))
    server.drop = lambda method, path: path.endswith(".bz2") and next(turns) % 3 == 1
    built(there, "alexandria", tmp_path / "there")
    assert next(turns) > 3
    built(tmp_path / "raw", "alexandria", tmp_path / "here")
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_file_that_is_replaced_while_it_is_read_is_no_damaged_file(tmp_path, put, server):
    alexandria(tmp_path / "raw")
    there = put(tmp_path / "raw")
    (source,) = open_sources(load(None, [f"alexandria.path={there}"]))
    asset = source.assets()[0]
    server.put_bytes(asset.path.parts[1], asset.path.key, b"something else")
    with pytest.raises(TrajmillError, match="was replaced while it was read; run again"):
        list(source.read(asset))


@pytest.mark.parametrize("run", [lambda recipe: fetch("oqmd", recipe.oqmd.path, recipe), update])
def test_fetching_is_into_folders(run, tmp_path):
    recipe = load(None, ["oqmd.path=s3://bucket/raw", f"store.path={tmp_path / 'store'}"])
    with pytest.raises(RecipeError, match="raw files are fetched into a folder of this machine"):
        run(recipe)
    assert not (tmp_path / "store").exists()
