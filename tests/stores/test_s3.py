"""The Delta Lake store in object storage: the kit that all stores pass, and servers that misbehave."""

from dataclasses import replace

import polars as pl
import pyarrow.dataset as pads
import pytest
from deltalake import DeltaTable

import fakes
from servers.moto_s3 import s3_server
from stores.conformance import StoreConformance
from stores.test_delta import ODD, fingerprint, put, write
from trajmill import storage
from trajmill.codec import encode
from trajmill.errors import StoreError, TrajmillError
from trajmill.stores import is_store, open_store
from trajmill.stores.delta import DeltaStore


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture
def address(server, aws):
    return str(aws(server) / "below/store")


@pytest.fixture
def store(address):
    return DeltaStore(address, create=True)


class TestS3(StoreConformance):
    @pytest.fixture
    def address(self, server, aws):
        return str(aws(server) / "below/store")


def tasks(store):
    return sorted(t for batch in store.read("frame", columns=["task_id"]) for t in batch["task_id"].to_pylist())


# --- what is there


def test_commits_are_made_under_the_condition_that_nobody_else_made_them(store, server):
    put(store, "mp/a")
    logs = [r for r in server.requests if r.method == "PUT" and "_delta_log" in r.path and r.path.endswith(".json")]
    assert len(logs) == 2
    assert [r.headers.get("if_none_match") for r in logs] == ["*", "*"]


def test_the_files_are_those_of_a_store_in_a_folder(store, tmp_path):
    here = DeltaStore(tmp_path / "store", create=True)
    for asset in ("mp/a", ODD):
        commit = write(store, asset)
        store.commit(commit)
        assert commit == put(here, asset)
        for file in commit.files:
            with (store.path / file.path).open() as there:
                assert there.read() == (here.path / file.path).read_bytes()
    assert not list((tmp_path / "cache").rglob("*.tmp")), "a writer's files were left"


def test_others_read_it(store, address):
    put(store, "mp/a", frames=("a-1",), n_frames=2)
    put(store, ODD, frames=("odd",), n_frames=1)
    frames = pl.scan_delta(address, storage_options={"allow_http": "true"}).filter(pl.col("role") == "frame")
    assert sorted(frames.select("asset", "task_id").collect().rows()) == sorted(
        [(ODD, "odd"), ("mp/a", "a-1"), ("mp/a", "a-1")]
    )
    dataset = DeltaTable(address, storage_options={"allow_http": "true"}).to_pyarrow_dataset()
    assert dataset.count_rows(filter=pads.field("role") == "rejection") == 2


def test_columns_are_read_without_the_rest(store, server, monkeypatch):
    monkeypatch.setattr(storage, "COLUMNS", 500)
    commit = write_here(store)
    writer = store.writer("mp/a")
    for i in range(5):
        writer.write("frame", encode([fakes.trajectory(f"t-{i}", seed=i, n_frames=500, n_atoms=5)]))
    store.commit(replace(commit, files=writer.close(commit.fingerprint, commit.versions)))
    ((_, path, _),) = store.files("frame")
    server.requests.clear()
    assert sorted(set(tasks(store))) == [f"t-{i}" for i in range(5)]
    asked = sum(r.stop - r.start for r in server.requests if r.start is not None)
    assert 0 < asked < path.stat().st_size / 2


def test_a_store_is_told_from_what_is_none(store, address):
    assert is_store(address)
    assert not is_store(f"{address}/none")
    assert isinstance(open_store(address), DeltaStore)


# --- what is no store


def refused(address, **options):
    with pytest.raises(TrajmillError) as caught:
        DeltaStore(address, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "very-secret" not in text
    return text


def test_no_store_there(address, server):
    assert "no trajmill store here; `trajmill build` makes one" in refused(address)
    server.put_bytes(address.split("/")[2], "below/store/thesis.tex", b"")
    assert "not empty and no trajmill store; choose an empty or new folder" in refused(address, create=True)


def test_no_such_bucket(server, aws):
    aws(server)
    for create in (False, True):
        assert "there is no such bucket; make it, or check the name" in refused("s3://no-such/store", create=create)


def test_no_bucket_named():
    assert "names no bucket; write s3://bucket/prefix" in refused("s3://", create=True)


def test_wrong_credentials(store, address, server):
    server.fault = lambda *_: 403
    for create in (False, True):
        assert "access denied; check AWS_ACCESS_KEY_ID" in refused(address, create=create)
    with pytest.raises(StoreError, match="access denied") as caught:
        store.commit(write_here(store))
    assert "\n" not in str(caught.value)


def write_here(store):
    """Write an asset of no rows; nothing is sent before its commit."""
    return write(store, "mp/a", frames=(), rejections=())


def test_a_server_that_lets_commits_overwrite_each_other_is_refused(address, monkeypatch):
    monkeypatch.setattr(storage.ObjectPath, "create", lambda *_: True)
    assert "this server ignores If-None-Match" in refused(address, create=True)


def test_the_mode_that_lets_commits_overwrite_each_other_is_refused(address, monkeypatch):
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    assert "AWS_S3_ALLOW_UNSAFE_RENAME: lets two commits overwrite each other; unset it" in refused(address)


# --- servers that misbehave


@pytest.mark.parametrize("trouble", ["fault", "drop"])
def test_an_upload_that_is_interrupted_is_tried_again(store, server, trouble):
    turns = iter(range(3))
    again = {"fault": 503, "drop": True}[trouble]

    def at_uploads(method, path):
        return again if method == "PUT" and "role=" in path and next(turns, None) is not None else None

    setattr(server, trouble, at_uploads)
    put(store, "mp/a")
    assert next(turns, None) is None, "nothing was interrupted"
    assert tasks(open_store(store.address)) == ["t-1"] * 3


def test_an_upload_that_fails_for_good_can_be_made_up_for(store, server, monkeypatch):
    monkeypatch.setattr(storage, "RETRIES", 1)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another one, so that the bucket is opened anew")
    server.fault = lambda method, path: 503 if method == "PUT" and "role=" in path else None
    with pytest.raises(StoreError) as caught:
        write(store, "mp/a")
    assert "run again to go on" in str(caught.value)
    assert "\n" not in str(caught.value)
    server.behave()
    put(open_store(store.address), "mp/a")
    assert tasks(open_store(store.address)) == ["t-1"] * 3


@pytest.mark.parametrize("answered", [False, True], ids=["request lost", "answer lost"])
def test_a_commit_whose_connection_breaks_is_made_once(store, server, answered):
    """When the answer is lost, the commit finds itself in its own way."""
    commit = write(store, "mp/a")
    turns = iter(range(1))

    def is_commit(method, path):
        return method == "PUT" and path.endswith("1.json") and next(turns, None) is not None

    if answered:
        server.drop_answer = is_commit
    else:
        server.drop = is_commit
    store.commit(commit)
    assert next(turns, None) is None, "nothing was lost"
    again = DeltaStore(store.address)
    assert (again.version, again.committed("mp/a", fingerprint("mp/a"))) == (1, True)
    assert tasks(again) == ["t-1"] * 3
