"""Several builds at once into one store, in processes of their own: nothing is lost and nothing is there twice."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import chores
import fakes
from making import DATA
from servers.moto_s3 import s3_server
from trajmill.sources.mp_materials import UNUSED, Facts, Index
from trajmill.stores import open_store
from trajmill.stores.base import ROLES

NAMES = [f"mp/{letter}.raw" for letter in "abcd"]


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    """Address of a store that is not there yet."""
    if request.param == "folder":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("aws")(request.getfixturevalue("server")) / "store")


@pytest.fixture
def raw(tmp_path):
    return written(tmp_path / "raw", NAMES)


def written(folder, names):
    """Write raw files of these assets; what is in them follows from the name."""
    for name in names:
        fakes.write_raw(folder, name[3:-4], seed=NAMES.index(name), records=10)
    fakes.write_facts(folder)
    return folder


def content(address):
    """Bytes of all files of a store by their place."""
    store, found = open_store(address), {}
    for role in ROLES:
        for _, path, _ in store.files(role):
            with path.open("rb") as file:
                found[path.relative_to(store.path).as_posix()] = file.read()
    return found


@contextmanager
def building(*raws, store):
    """Start a build of each raw folder, all into one store; what they say comes in the list once all are done."""
    said = []
    command = [sys.executable, "-m", "fakes"]
    processes = [
        subprocess.Popen([*command, str(raw), store, "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for raw in raws
    ]
    try:
        yield processes, said
        for process in processes:
            out, err = process.communicate(timeout=chores.PATIENCE)
            assert process.returncode == 0, err
            said.append(json.loads(out))
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one build by itself makes of all assets."""
    folder = tmp_path_factory.mktemp("alone")
    with building(written(folder / "raw", NAMES), store=str(folder / "store")):
        pass
    return content(folder / "store")


def test_the_same_assets(raw, store, alone):
    with building(raw, raw, raw, store=store) as (_, said):
        pass
    assert set().union(*(told["built"] for told in said)) == set(NAMES)
    assert content(store) == alone
    there = open_store(store)
    assert there.version == len(NAMES), "one commit for each asset"
    assert list(there.commits()) == NAMES


def test_who_is_late_does_not_commit_again(raw, store, alone):
    control = fakes.arrange(raw, "mp/a.raw", "written", "pause")
    with building(raw, store=store) as (_, late):
        chores.wait_for(lambda: fakes.paused(control))
        with building(raw, store=store) as (_, early):
            pass
        assert early[0]["version"] == len(NAMES)
        control.unlink()
    assert late[0]["version"] == len(NAMES)
    assert content(store) == alone


def test_different_assets(tmp_path, store, alone):
    raws = [written(tmp_path / "one", NAMES[::2]), written(tmp_path / "other", NAMES[1::2])]
    control = fakes.arrange(raws[0], "mp/a.raw", "written", "pause")
    with building(*raws, store=store) as (processes, said):
        chores.wait_for(lambda: fakes.paused(control))
        processes[1].wait(chores.PATIENCE)
        control.unlink()
    assert [told["built"] for told in said] == [NAMES[::2], NAMES[1::2]]
    assert content(store) == alone
    assert open_store(store).version == len(NAMES)


def test_the_command_twice_with_sources_that_prepare(tmp_path):
    """The first prepares, the second waits and finds it done."""
    command = [sys.executable, "-m", "trajmill.cli", "build", "--mp", str(DATA / "mp" / "derived"), "--workers", "1"]
    command += ["--oqmd", str(DATA / "oqmd" / "real_entry_6126.sql.gz"), "--set", "annotation.energy_corrected=false"]
    stores = [tmp_path / name for name in ("one", "both", "both")]
    processes = [
        subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for out in stores
    ]
    for process in processes:
        _, err = process.communicate(timeout=2 * chores.PATIENCE)
        assert process.returncode == 0, err
    assert content(stores[1]) == content(stores[0])
    assert open_store(stores[1]).version == open_store(stores[0]).version


def test_an_index_that_another_build_reads_stays(tmp_path):
    def build(digest):
        return Index.build(tmp_path, "mp", digest, {"facts": [("mp-1", Facts(material_id=digest))]})

    old, other = build("old"), build("other")
    for index in (old, other):
        with index.open() as reader:
            assert reader.facts("mp-1").material_id in ("old", "other")
    assert old.path.exists()
    long_ago = time.time() - UNUSED - 60
    os.utime(old.path, (long_ago, long_ago))
    os.utime(other.path, (long_ago, long_ago))
    assert build("other") == other, "in use again"
    build("new")
    assert sorted(tmp_path.glob("*.sqlite")) == sorted({other.path, build("new").path})
