"""Stores and releases in object storage, by the command line and back."""

import os
import subprocess
import sys

import pytest

import trajmill
from factories import make_store, make_trajectory
from making import DATA, content
from servers.moto_s3 import s3_server
from trajmill.errors import PublishError, ReleaseError
from trajmill.recipe import load
from trajmill.releases.hugging_face import release
from trajmill.releases.push import release_to
from trajmill.stores import open_store


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture
def bucket(server, aws):
    return aws(server)


@pytest.fixture
def store(tmp_path):
    trajectories = [make_trajectory("mp-1"), make_trajectory("mp-2", functional="r2scan", symbols=("Si",))]
    return make_store(tmp_path / "store", trajectories)


def run(*arguments):
    command = [sys.executable, "-m", "trajmill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def objects(folder):
    found = {}
    for path in folder.rglob("*"):
        with path.open() as file:
            found[path.relative_to(folder).as_posix()] = file.read()
    return found


def test_the_same_files_as_in_a_folder(store, bucket, tmp_path):
    told = []
    summary = release_to(store, f"{bucket}/release", load(), progress=lambda what, *_: told.append(what))
    here = release(store, tmp_path / "here", load())
    assert (summary.frames, str(summary.path)) == (here.frames, f"{bucket}/release")
    there = objects(bucket / "release")
    assert there.pop("SHA256SUMS")
    assert there == files(tmp_path / "here")
    assert {"checking", "uploading"} <= set(told)


def test_it_is_read_like_one_in_a_folder(store, bucket, tmp_path):
    release(store, tmp_path / "here", load())
    release_to(store, f"{bucket}/release", load())
    for options in ({}, {"configuration": "compatible_r2scan"}, {"functional": "pbe"}):
        here, there = (trajmill.open(place, **options) for place in (tmp_path / "here", f"{bucket}/release"))
        assert len(here) == len(there) > 0
        assert [b for b in here.batches()] == [b for b in there.batches()]  # noqa: C416 (equal batches)
        assert here.manifest == there.manifest
        assert len(list(there.trajectories())) == len(list(here.trajectories()))
    assert len(trajmill.open(f"{bucket}/release/compatible_pbe")) == 3
    with pytest.raises(ReleaseError, match=r"no configuration x; there are: compatible_pbe, compatible_r2scan"):
        trajmill.open(f"{bucket}/release", "x")
    with pytest.raises(ReleaseError, match="neither a trajmill store nor a release"):
        trajmill.open(f"{bucket}/none")


def test_a_place_that_holds_something_else_is_told_before_the_work(store, bucket, server, monkeypatch):
    server.put_bytes(bucket.parts[1], "thesis/README.md", b"")
    monkeypatch.setattr("trajmill.releases.push.release", None)
    with pytest.raises(PublishError, match="holds files, and no release; choose an empty or new folder"):
        release_to(store, f"{bucket}/thesis", load())
    with pytest.raises(PublishError, match="release into a folder and push it there"):
        release_to(store, "gs://bucket/x", load())


def test_the_commands(bucket, server, tmp_path):
    raw, store, there = f"{bucket}/raw", f"{bucket}/store", f"{bucket}/release"
    server.put(bucket.parts[1], DATA / "alexandria" / "data", "raw")
    quick = ("--workers", "1", "--set", "annotation.energy_corrected=false")
    done = run("build", "--alexandria", raw, "--out", store, *quick)
    assert done.returncode == 0, done.stderr
    assert f"{store}: version 3; 3 assets built, 0 unchanged" in done.stdout
    again = run("build", "--alexandria", raw, "--out", store, *quick)
    assert f"{store}: version 3; 0 assets built, 3 unchanged" in again.stdout
    here = run("build", "--alexandria", DATA / "alexandria" / "data", "--out", tmp_path / "store", *quick)
    assert here.returncode == 0, here.stderr
    found = objects(bucket / "store")
    assert {place: found[place] for place in content(tmp_path / "store")} == content(tmp_path / "store")
    assert open_store(store).balances() == open_store(tmp_path / "store").balances()
    for command in (["info", store], ["rejections", store], ["release", store, there], ["info", there]):
        done = run(*command)
        assert done.returncode == 0, done.stderr
    assert "ok: kept + rejected = read" in done.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["build", "--oqmd", "s3://nowhere/raw", "--out", "store"], "oqmd.path: s3://nowhere/raw does not exist"),
        (["build", "--oqmd", "s3://", "--out", "store"], "names no bucket; write s3://bucket/prefix"),
        (["build", "--oqmd", DATA / "oqmd", "--out", "s3://nowhere/store"], "there is no such bucket"),
        (["fetch", "oqmd", "--dest", "s3://nowhere/raw"], "raw files are fetched into a folder of this machine"),
        (["update", "--raw", "s3://nowhere/raw", "--out", "store"], "raw files are fetched into a folder"),
        (["info", "s3://nowhere/store"], "neither a store nor a release"),
        (["release", "s3://nowhere/store", "out"], "there is no such bucket"),
        (["rejections", "s3://nowhere/store"], "there is no such bucket"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_what_cannot_work_is_one_line(command, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in done.stderr
    assert list(tmp_path.glob("s3:*")) == [], "an address was taken for a folder"


def test_wrong_credentials_are_one_line(bucket, server):
    server.fault = lambda *_: 403
    for command in (["build", "--mp", bucket, "--out", f"{bucket}/store"], ["info", bucket]):
        done = run(*command)
        assert done.returncode == 2
        assert "access denied; check AWS_ACCESS_KEY_ID" in done.stderr
        assert done.stderr.count("\n") == 1
