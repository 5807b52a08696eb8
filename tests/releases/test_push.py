"""Pushing, with the real huggingface_hub, `datasets` and s3fs against servers on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories import make_store, make_trajectory
from servers.hub import TOKEN, hub_server
from servers.moto_s3 import s3_server
from trajmill.errors import MissingExtraError, PublishError, ReleaseError
from trajmill.recipe import load
from trajmill.releases.hugging_face import release
from trajmill.releases.push import push

LOAD = """
import sys
import datasets
import pyarrow.parquet as pq
repo_id, revision, folder, *names = sys.argv[1:]
for name in names:
    rows = datasets.load_dataset(repo_id, name, split="train", revision=revision)
    pq.write_table(rows.data.table.combine_chunks(), f"{folder}/{name}.parquet")
"""


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """The same store released in shards of 4 rows, in whole shards, and with the published columns."""
    folder = tmp_path_factory.mktemp("releases")
    trajectories = [
        make_trajectory("mp-1", n_frames=9),
        make_trajectory("mp-2", functional="pbesol", energy_corrected=None),
        make_trajectory("mp-3", symbols=("V", "O"), immutable_id="mp-5", cross_compatibility=np.zeros(3, bool)),
    ]
    store = make_store(folder / "store", trajectories)
    release(store, folder / "small", load(settings=["release.rows_per_file=4"]))
    release(store, folder / "whole", load())
    release(store, folder / "lemat-traj", load(settings=["release.format=lemat-traj"]))
    return folder


@pytest.fixture
def small(releases):
    return releases / "small"


@pytest.fixture
def whole(releases):
    return releases / "whole"


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server
    assert server.errors == []


@pytest.fixture
def environment(tmp_path):
    """What a client needs to find servers on this machine and nothing else."""
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG")}
    aws = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secretSecret", "AWS_DEFAULT_REGION": "us-east-1"}
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    return keep | aws | home | {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "HF_TOKEN": TOKEN}


@pytest.fixture
def run(hub, environment):
    """Run `trajmill push` against the hub."""

    def run(*arguments, **changes):
        env = environment | {"HF_ENDPOINT": hub.endpoint} | changes
        command = [sys.executable, "-m", "trajmill.cli", "push", *map(str, arguments)]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=55, check=False)
        assert TOKEN not in result.stdout + result.stderr
        return result

    return run


def ok(result):
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result):
    """Return the one line that a failed push ends with."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def verify_sums(folder):
    """Check a target as its readers do."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines
    for digest, name in (line.split("  ") for line in lines):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def digests(folder):
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.parquet")}


def remote(hub, repo_id, revision="main"):
    tree = hub.repos[repo_id].tree(revision)
    return {path: hub.content(blob) for path, blob in tree.items() if path != ".gitattributes"}


class TestHub:
    def load_back(self, hub, environment, tmp_path, folder, revision="main"):
        """Read a pushed release with `datasets` and compare every row."""
        names = list(json.loads((folder / "trajmill.json").read_text())["frames"])
        command = [sys.executable, "-c", LOAD, "me/data", revision, str(tmp_path), *names]
        env = environment | {"HF_ENDPOINT": hub.endpoint}
        subprocess.run(command, env=env, capture_output=True, text=True, timeout=55, check=True)
        for name in names:
            there, here = pq.read_table(tmp_path / f"{name}.parquet"), pq.read_table(folder / name)
            assert there.column_names == here.column_names
            assert there.to_pylist() == here.to_pylist()
        assert len(names) == 3

    def test_push_and_load_back(self, hub, run, small, environment, tmp_path):
        out = ok(run(small, "me/data"))
        assert "9 files (" in out
        assert "verified" in out
        repo = hub.repos["me/data"]
        assert f"{hub.endpoint}/datasets/me/data/commit/{repo.refs['main']}" in out
        assert repo.messages == ["initial commit", "Release by trajmill"]
        assert remote(hub, "me/data") == contents(small)
        assert {b.lfs is not None for p, b in repo.tree().items() if p.endswith(".parquet")} == {True}
        self.load_back(hub, environment, tmp_path, small)

    def test_the_published_columns(self, hub, run, releases, environment, tmp_path):
        ok(run(releases / "lemat-traj", "hf://datasets/me/data"))
        self.load_back(hub, environment, tmp_path, releases / "lemat-traj")

    def test_again_is_nothing_to_do(self, hub, run, small):
        ok(run(small, "me/data"))
        hub.requests.clear()
        assert "nothing to do, 9 files are there already" in ok(run(small, "me/data"))
        assert {method for method, _ in hub.requests} == {"GET"}
        assert len(hub.repos["me/data"].messages) == 2

    def test_killed_while_uploading(self, hub, run, small, environment):
        hub.stall_after = 3
        command = [sys.executable, "-m", "trajmill.cli", "push", str(small), "me/data"]
        env = environment | {"HF_ENDPOINT": hub.endpoint}
        with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
            assert hub.stalled.wait(50)
            process.send_signal(signal.SIGKILL)
        hub.release.set()
        assert len(hub.received) == 3
        assert hub.repos["me/data"].messages == ["initial commit"]
        hub.heal()
        ok(run(small, "me/data"))
        assert sorted(hub.received) == sorted(digests(small))  # each was sent whole once
        assert hub.repos["me/data"].messages == ["initial commit", "Release by trajmill"]
        assert remote(hub, "me/data") == contents(small)

    def test_an_upload_that_is_cut_or_fails_is_repeated(self, hub, run, small):
        hub.cut = 1
        hub.fail("PUT", "/lfs/", 503, times=1)
        ok(run(small, "me/data"))
        assert remote(hub, "me/data") == contents(small)

    def test_large_files_go_in_parts(self, hub, run, small):
        hub.part_size = 10_000
        ok(run(small, "me/data"))
        assert remote(hub, "me/data") == contents(small)
        assert any(path.endswith("/complete") for _, path in hub.requests)

    def test_another_release_replaces_what_trajmill_wrote(self, hub, run, small, whole):
        foreign = {
            "notes.md": b"mine",
            "compatible_pbe/extra.parquet": b"mine too",
            "pictures/train-00000-of-00001.parquet": b"and this",
        }
        ok(run(small, "me/data"))
        for path, content in foreign.items():
            hub.push_by_hand("me/data", path, content)
        before = len(hub.received)
        out = ok(run(whole, "me/data"))
        assert remote(hub, "me/data") == contents(whole) | foreign
        assert len(hub.repos["me/data"].messages) == 2 + len(foreign) + 1
        assert "3 deleted" in out
        assert len(hub.received) - before == len(digests(whole) - digests(small))

    def test_other_bytes_at_the_far_end_are_found(self, hub, run, small):
        hub.corrupt = True
        line = refused(run(small, "me/data"))
        assert "does not hold what was sent: compatible_pbe/train-00000-of-00003.parquet and 4 more" in line

    def test_refused_token(self, hub, run, small):
        assert "the token was refused" in refused(run(small, "me/data", HF_TOKEN="hf_wrong"))
        assert hub.repos == {}

    def test_no_token(self, hub, run, small):
        assert "no Hugging Face token: run `hf auth login` or set HF_TOKEN" in refused(
            run(small, "me/data", HF_TOKEN="")
        )
        assert hub.requests == []

    def test_token_of_a_login(self, hub, run, small, environment):
        Path(environment["HF_HOME"]).mkdir()
        Path(environment["HF_HOME"], "token").write_text(TOKEN)
        ok(run(small, "me/data", HF_TOKEN=""))

    def test_forbidden_namespace(self, run, small):
        line = refused(run(small, "others/data"))
        assert "others/data: not allowed; the token needs the right to write to others" in line

    def test_the_token_is_struck_from_what_the_server_says(self, hub, run, small):
        hub.fail("GET", "/api/datasets", 403, message=f"no rights for {TOKEN}")
        assert "(the Hub says: no rights for ***)" in refused(run(small, "me/data"))

    @pytest.mark.parametrize(
        ("method", "path", "status", "message"),
        [
            ("GET", "^/api/datasets/me/data$", 503, "the Hub failed (503); run the same command again"),
            ("POST", "/commit/", 500, "the Hub failed (500); run the same command again"),
            ("POST", "/commit/", 409, "someone else changed the repository"),
            ("POST", "/commit/", 403, "not allowed"),
            ("POST", "/validate-yaml", 400, "the card is wrong"),
            ("PUT", "/lfs/", 400, "the Hub answered 400"),
            ("GET", "^/api/datasets/me/data$", 429, "too many requests"),
        ],
    )
    def test_failures_are_one_line(self, hub, run, small, method, path, status, message):
        hub.fail(method, path, status, message="the card is wrong")
        assert message in refused(run(small, "me/data"))
        hub.heal()
        ok(run(small, "me/data"))
        assert len(hub.received) == len(set(hub.received))
        assert remote(hub, "me/data") == contents(small)

    def test_nobody_answers(self, hub, run, small):
        line = refused(run(small, "me/data", HF_ENDPOINT="http://me:passwordWord@127.0.0.1:9"))
        assert "the connection to http://127.0.0.1:9 failed" in line

    def test_a_commit_in_between_is_not_lost(self, hub, run, small):
        hub.create("me/data")
        hub.before_commit = lambda: hub.push_by_hand("me/data", "README.md", b"theirs")
        line = refused(run(small, "me/data"))
        assert "someone else committed in between; nothing was committed, run the same command again" in line
        assert remote(hub, "me/data") == {"README.md": b"theirs"}
        received = len(hub.received)
        ok(run(small, "me/data"))
        assert len(hub.received) == received == len(digests(small))
        assert remote(hub, "me/data") == contents(small)

    def test_pull_request(self, hub, run, small):
        hub.create("lab/data")
        out = ok(run(small, "lab/data", "--create-pr"))
        assert f"{hub.endpoint}/datasets/lab/data/discussions/1" in out
        assert remote(hub, "lab/data") == {}
        assert remote(hub, "lab/data", "refs/pr/1") == contents(small)

    def test_nothing_to_open_a_pull_request_for(self, hub, run, small):
        assert "there is no such dataset" in refused(run(small, "me/data", "--create-pr"))
        hub.create("me/data")
        assert "has no branch v2" in refused(run(small, "me/data", "--create-pr", "--revision", "v2"))
        assert hub.repos["me/data"].refs.keys() == {"main"}

    def test_branch(self, hub, run, small, whole, environment, tmp_path):
        ok(run(small, "me/data", "--revision", "v2"))
        assert remote(hub, "me/data") == {}
        ok(run(whole, "me/data", "--revision", "v2"))
        assert remote(hub, "me/data", "v2") == contents(whole)
        self.load_back(hub, environment, tmp_path, whole, "v2")

    def test_private(self, hub, run, small):
        ok(run(small, "me/data", "--private"))
        ok(run(small, "me/data", "--private"))
        assert hub.repos["me/data"].private
        hub.create("me/open")
        assert "me/open: is public" in refused(run(small, "me/open", "--private"))
        assert remote(hub, "me/open") == {}

    def test_without_huggingface_hub(self, small, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(MissingExtraError, match=r"trajmill\[hub\]"):
            push(small, "me/data")


class TestFolder:
    def test_push(self, small, tmp_path):
        summary = push(small, str(tmp_path / "a/b"))
        there = contents(tmp_path / "a/b")
        sums = there.pop("SHA256SUMS").decode()
        assert there == contents(small)
        assert len(summary.uploaded) == 9
        assert summary.n_bytes == sum(map(len, there.values()))
        assert sorted(sums.splitlines()) == sorted(f"{hashlib.sha256(b).hexdigest()}  {n}" for n, b in there.items())

    def test_again_is_nothing_to_do(self, small, tmp_path):
        push(small, str(tmp_path / "out"))
        times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
        summary = push(small, str(tmp_path / "out"))
        assert (summary.uploaded, summary.deleted, len(summary.unchanged)) == ((), (), 9)
        assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}

    def test_a_damaged_file_is_sent_again(self, small, tmp_path):
        push(small, str(tmp_path))
        file = tmp_path / "compatible_pbe/train-00001-of-00003.parquet"
        file.write_bytes(b"x" * file.stat().st_size)
        assert push(small, str(tmp_path)).uploaded == ("compatible_pbe/train-00001-of-00003.parquet", "trajmill.json")
        assert file.read_bytes() == contents(small)["compatible_pbe/train-00001-of-00003.parquet"]

    def test_another_release(self, small, whole, tmp_path):
        push(small, str(tmp_path))
        (tmp_path / "compatible_pbe/mine.txt").write_text("mine")
        summary = push(whole, str(tmp_path))
        assert summary.deleted == tuple(f"compatible_pbe/train-0000{i}-of-00003.parquet" for i in range(3))
        there = contents(tmp_path)
        assert there.pop("compatible_pbe/mine.txt") == b"mine"
        assert set(there) - {"SHA256SUMS"} == set(contents(whole))

    def test_command_line(self, small, tmp_path):
        command = [sys.executable, "-m", "trajmill.cli", "push", str(small), "./out"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)
        assert "./out: 9 files" in ok(result)

    def test_a_project_folder_is_refused(self, small, tmp_path, monkeypatch):
        (tmp_path / "README.md").write_text("my project")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(PublishError, match=r"^\.: holds files, and no release; choose an empty or new folder$"):
            push(small, ".")
        assert contents(tmp_path) == {"README.md": b"my project"}

    def test_a_first_push_that_was_interrupted_goes_on(self, small, tmp_path, monkeypatch):
        def put_file(*_, **__):
            raise ConnectionResetError("gone")

        monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "put_file", put_file)
        with pytest.raises(PublishError, match="gone"):
            push(small, str(tmp_path / "out"))
        assert contents(tmp_path / "out").keys() == {"SHA256SUMS"}
        monkeypatch.undo()
        assert len(push(small, str(tmp_path / "out")).uploaded) == 9

    def test_files_that_were_copied_by_hand_are_noted(self, small, tmp_path):
        shutil.copytree(small, tmp_path / "out")
        assert push(small, str(tmp_path / "out")).uploaded == ()
        there = contents(tmp_path / "out")
        noted = {line.partition("  ")[2] for line in there.pop("SHA256SUMS").decode().splitlines()}
        assert noted == there.keys()
        verify_sums(tmp_path / "out")

    def test_notes_on_files_that_are_gone_go(self, small, tmp_path):
        push(small, str(tmp_path))
        with (tmp_path / "SHA256SUMS").open("a") as stream:
            stream.write(f"{'0' * 64}  gone.txt\n{'0' * 20}")  # cut, as by a full disk
        push(small, str(tmp_path))
        verify_sums(tmp_path)

    def test_a_copy_is_a_release_too(self, small, tmp_path):
        push(small, str(tmp_path / "copy"))
        assert len(push(tmp_path / "copy", str(tmp_path / "copy2")).uploaded) == 9
        assert push(tmp_path / "copy", str(tmp_path / "copy2")).uploaded == ()
        verify_sums(tmp_path / "copy2")

    def test_leftovers_of_a_killed_push_go(self, small, whole, tmp_path):
        push(small, str(tmp_path))
        mine = {".mine.txt.partial": b"mine", "compatible_pbe/.mine.parquet.partial": b"mine"}
        for name in (*mine, "compatible_pbe/.train-00000-of-00009.parquet.partial", ".SHA256SUMS.partial"):
            (tmp_path / name).write_bytes(b"mine")
        push(whole, str(tmp_path))
        there = contents(tmp_path)
        assert there.pop("SHA256SUMS")
        assert there == contents(whole) | mine

    def test_killed_before_anything_arrived(self, small, tmp_path):
        (tmp_path / ".SHA256SUMS.partial").touch()
        assert len(push(small, str(tmp_path)).uploaded) == 9
        assert not (tmp_path / ".SHA256SUMS.partial").exists()

    def test_a_file_is_no_folder(self, small, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(PublishError, match="is a file"):
            push(small, str(tmp_path / "file"))


class TestMemory:
    @pytest.fixture
    def memory(self):
        fs = fsspec.filesystem("memory")
        fs.store.clear()
        yield fs
        fs.store.clear()

    def test_push(self, small, memory):
        said = []
        push(small, "memory://x/y", progress=lambda *step: said.append(step))
        there = {p.removeprefix("/x/y/"): memory.cat_file(p) for p in memory.find("/x/y")}
        assert there.pop("SHA256SUMS")
        assert there == contents(small)
        total = sum(map(len, there.values()))
        assert said[-1] == ("uploading", total, total)
        assert ("checking", total, total) in said

    def test_foreign_files(self, small, memory):
        memory.pipe_file("/x/README.md", b"mine")
        with pytest.raises(PublishError, match="memory://x: holds files, and no release"):
            push(small, "memory://x")
        assert memory.find("/x") == ["/x/README.md"]

    def test_stopped_and_repeated(self, small, memory, monkeypatch):
        sent, send = [], type(memory).put_file

        def put_file(self, source, target, **options):
            if len(sent) == 4:
                raise ConnectionResetError("gone")
            sent.append(target)
            send(self, source, target, **options)

        monkeypatch.setattr(type(memory), "put_file", put_file)
        with pytest.raises(PublishError, match=r"memory://x: cannot be written .*gone.*run the same command again"):
            push(small, "memory://x")
        assert not memory.exists("/x/trajmill.json")
        sent.append("the failed one")
        summary = push(small, "memory://x")
        assert len(summary.unchanged) == 4
        assert len(sent) == 5 + 5
        assert sent[-1] == "/x/trajmill.json"

    def test_half_replaced_does_not_look_whole(self, small, whole, memory, monkeypatch):
        push(small, "memory://x")
        send = type(memory).put_file

        def put_file(self, source, target, **options):
            send(self, source, target, **options)
            if target.endswith("croissant.json"):
                raise ConnectionResetError("gone")

        monkeypatch.setattr(type(memory), "put_file", put_file)
        with pytest.raises(PublishError, match="gone"):
            push(whole, "memory://x")
        assert not memory.exists("/x/trajmill.json")
        assert b"croissant.json" not in memory.cat_file("/x/SHA256SUMS")  # what it holds is not known
        monkeypatch.undo()
        push(small, "memory://x")
        there = {p.removeprefix("/x/"): memory.cat_file(p) for p in memory.find("/x")}
        assert there.pop("SHA256SUMS")
        assert there == contents(small)

    def test_other_bytes_at_the_far_end_are_found(self, small, memory, monkeypatch):
        def put_file(self, source, target, **options):
            self.pipe_file(target, Path(source).read_bytes()[::-1])

        monkeypatch.setattr(type(memory), "put_file", put_file)
        with pytest.raises(PublishError, match="holds other bytes than were sent"):
            push(small, "memory://x")
        assert not memory.exists("/x/trajmill.json")


class TestS3:
    @pytest.fixture
    def server(self):
        with s3_server() as server:
            yield server

    @pytest.fixture
    def run(self, server, environment):
        def run(*arguments):
            env = environment | {"AWS_ENDPOINT_URL": server.endpoint}
            command = [sys.executable, "-m", "trajmill.cli", "push", *map(str, arguments)]
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=55, check=False)

        return run

    @pytest.fixture
    def client(self, server):
        options = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=server.endpoint, **options)
        yield client
        client.close()

    def test_push(self, server, run, client, small, whole):
        client.create_bucket(Bucket="data")
        client.put_object(Bucket="data", Key="release/mine.txt", Body=b"mine")
        assert "choose an empty or new folder" in refused(run(small, "s3://data/release"))
        assert client.list_objects_v2(Bucket="data")["KeyCount"] == 1
        client.delete_object(Bucket="data", Key="release/mine.txt")
        client.put_object(Bucket="data", Key="release/", Body=b"")  # how consoles make an empty folder
        assert "verified" in ok(run(small, "s3://data/release"))
        client.put_object(Bucket="data", Key="release/mine.txt", Body=b"mine")
        server.requests.clear()
        assert "nothing to do" in ok(run(small, "s3://data/release"))
        assert {r.method for r in server.requests} <= {"GET", "HEAD"}
        assert "3 deleted" in ok(run(whole, "s3://data/release"))
        keys = [o["Key"] for o in client.list_objects_v2(Bucket="data")["Contents"]]
        keys.remove("release/")
        there = {k.removeprefix("release/"): client.get_object(Bucket="data", Key=k)["Body"].read() for k in keys}
        assert there.pop("mine.txt") == b"mine"
        assert there.pop("SHA256SUMS")
        assert there == contents(whole)

    def test_no_bucket(self, run, small):
        line = refused(run(small, "s3://nowhere/release"))
        assert "s3://nowhere/release: cannot be written" in line
        assert "again" not in line
        assert "secretSecret" not in line

    def test_without_s3fs(self, small, monkeypatch):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(MissingExtraError, match=r"trajmill\[s3\]"):
            push(small, "s3://data/release")


class TestBefore:
    """What is wrong with a release is said before anything is sent."""

    @pytest.fixture
    def copy(self, small, tmp_path):
        return shutil.copytree(small, tmp_path / "copy")

    def lose_a_shard(self, folder):
        (folder / "compatible_pbe/train-00001-of-00003.parquet").unlink()

    def lose_rows(self, folder):
        file = folder / "compatible_pbe/train-00001-of-00003.parquet"
        pq.write_table(pq.read_table(file).slice(1), file)

    def cut_a_shard(self, folder):
        file = folder / "compatible_pbe/train-00001-of-00003.parquet"
        file.write_bytes(file.read_bytes()[:-9])

    def change_a_number(self, folder):
        file = folder / "compatible_pbe/train-00001-of-00003.parquet"
        rows = pq.read_table(file)
        index = rows.column_names.index("energy")
        pq.write_table(rows.set_column(index, "energy", pa.array([0.0] * len(rows))), file)

    def lose_the_card(self, folder):
        (folder / "README.md").unlink()

    def lose_the_manifest(self, folder):
        (folder / "trajmill.json").unlink()

    def cut_the_manifest(self, folder):
        (folder / "trajmill.json").write_text("{")

    def lose_the_energies(self, folder):
        (folder / "e0s.json").unlink()

    def lose_the_description(self, folder):
        (folder / "croissant.json").unlink()

    def add_an_empty_shard(self, folder):
        file = folder / "compatible_pbe/train-00001-of-00003.parquet"
        pq.write_table(pq.read_table(file).slice(0, 0), file.with_name("train-00009-of-00003.parquet"))

    def lose_an_empty_shard(self, folder):
        text = (folder / "croissant.json").read_text()
        part = {"@type": "cr:FileObject", "contentUrl": "compatible_pbe/train-00009-of-00003.parquet", "sha256": "0"}
        description = json.loads(text)
        description["distribution"].append(part)
        (folder / "croissant.json").write_text(json.dumps(description))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lose_a_shard, "5 rows in 2 shards, trajmill.json says 9; make the release again"),
            (lose_rows, "8 rows in 3 shards, trajmill.json says 9; make the release again"),
            (cut_a_shard, "a shard cannot be read"),
            (change_a_number, "changed after the release was made; make the release again"),
            (lose_the_card, "README.md is missing; make the release again"),
            (lose_the_energies, "e0s.json is missing; make the release again"),
            (lose_the_description, "croissant.json is missing; make the release again"),
            (
                add_an_empty_shard,
                "croissant.json has no digest of .*train-00009-of-00003.parquet; make the release again",
            ),
            (lose_an_empty_shard, "train-00009-of-00003.parquet is missing; make the release again"),
            (lose_the_manifest, r"no release here \(no trajmill.json\); make one with trajmill release"),
            (cut_the_manifest, "cannot be read"),
        ],
    )
    def test_not_whole(self, copy, tmp_path, damage, message):
        damage(self, copy)
        with pytest.raises(ReleaseError, match=message):
            push(copy, str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "text",
        [
            "{}",
            "[]",
            "null",
            '{"frames": null}',
            '{"frames": []}',
            '{"frames": {"../copy": 0}}',
            '{"frames": {"non_compatible": "1"}}',
        ],
    )
    def test_no_manifest_of_a_release(self, copy, tmp_path, text):
        (copy / "trajmill.json").write_text(text)
        with pytest.raises(ReleaseError, match=r"trajmill.json: does not state .*; make the release again$"):
            push(copy, str(tmp_path / "out"))

    @pytest.mark.parametrize(
        "text",
        ["{}", "[]", "null", '{"distribution": null}', '{"distribution": [1]}', '{"distribution": [{"sha256": 1}]}'],
    )
    def test_no_digests(self, copy, tmp_path, text):
        (copy / "croissant.json").write_text(text)
        with pytest.raises(ReleaseError, match=r"croissant.json has no digest of .*; make the release again$"):
            push(copy, str(tmp_path / "out"))

    def test_a_file_that_cannot_be_read(self, copy, tmp_path, monkeypatch):
        def open_(path, *arguments, **options):
            if path.name == "e0s.json":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        real = Path.open
        monkeypatch.setattr(Path, "open", open_)
        with pytest.raises(ReleaseError, match=r"e0s.json: cannot be read \(Permission denied\)"):
            push(copy, str(tmp_path / "out"))

    def test_what_is_no_part_of_a_release_stays_here(self, copy, small, tmp_path):
        strays = (
            ".cache/x",
            "notes.txt",
            "sub/secret.env",
            "SHA256SUMS",
            "compatible_pbe/notes.txt",
            "other/train-x.parquet",
        )
        for name in strays:
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).touch()
        push(copy, str(tmp_path / "out"))
        there = contents(tmp_path / "out")
        assert there.pop("SHA256SUMS")
        assert there == contents(small)

    @pytest.mark.parametrize("target", ["data", "a/b/c", "a b/c", "hf://models/a/b", "hf://datasets/a", ""])
    def test_wrong_target(self, small, target):
        with pytest.raises(PublishError, match="write namespace/name for a dataset of the Hub"):
            push(small, target)

    def test_options_of_the_hub(self, small, tmp_path):
        with pytest.raises(PublishError, match="are for the Hugging Face Hub"):
            push(small, str(tmp_path / "out"), private=True)

    def test_back_end_that_does_not_answer(self, small):
        with pytest.raises(PublishError, match=r"cannot be written .* run the same command again to go on") as error:
            push(small, "ftp://me:passwordWord@127.0.0.1:9/x")
        assert "passwordWord" not in str(error.value)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("nowhere://x/y", "nowhere://x/y: cannot be written .*Protocol not known: nowhere"),
            (
                "sftp://me:passwordWord@127.0.0.1:9/x",
                "sftp://127.0.0.1:9/x: needs a package that is missing .*paramiko",
            ),
            ("data:x", "write namespace/name"),
            ("ftp://me:secret/Word@127.0.0.1:9/x", "ftp://127.0.0.1:9/x: not a URL; .*%2F"),
        ],
    )
    def test_what_would_fail_again(self, small, target, message, monkeypatch):
        monkeypatch.setitem(sys.modules, "paramiko", None)
        with pytest.raises(PublishError, match=message) as error:
            push(small, target)
        assert not [word for word in ("Word", "secret", "again") if word in str(error.value)]

    def test_a_back_end_that_only_reads(self, small, monkeypatch):
        def pipe_file(*_, **__):
            raise NotImplementedError

        monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "pipe_file", pipe_file)
        with pytest.raises(PublishError, match=r"^memory://only: cannot be written \(NotImplementedError\)$"):
            push(small, "memory://only")

    def test_passwords_are_not_shown(self, small):
        with pytest.raises(PublishError, match=r"^sftp://host/x: --private"):
            push(small, "sftp://me:passwordWord@host/x", private=True)
