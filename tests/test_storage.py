"""Object storage as pathlib: what is listed and read, and what a server that misbehaves does."""

import pickle
from pathlib import Path

import pytest

from servers.moto_s3 import s3_server
from trajmill import storage
from trajmill.errors import TrajmillError
from trajmill.storage import ObjectPath, StorageError, as_path, parquet, readable


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture
def folder(server, aws, tmp_path):
    """A folder of a bucket, with the same files as one here."""
    for name, content in {
        "a.txt": b"a",
        "deep/b.txt": b"bb",
        "deep/er/c.txt.gz": b"ccc",
        "d e/%2F&+ü.txt": b"d",
    }.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(content)
    bucket = aws(server)
    server.put(bucket.parts[1], tmp_path / "here", "top")
    server.put(bucket.parts[1], tmp_path / "here", "top-secret")
    return bucket / "top"


# --- addresses


def test_an_address_stays_what_it_is():
    path = as_path("s3://bucket/a/b c")
    assert isinstance(path, ObjectPath)
    assert str(path) == f"{path}" == "s3://bucket/a/b c"
    assert str(path / "x.gz") == "s3://bucket/a/b c/x.gz"
    assert str(path.parent) == "s3://bucket/a"
    assert path.relative_to(as_path("s3://bucket/a")).as_posix() == "b c"
    assert (path.key, as_path("s3://bucket").key) == ("a/b c", "")
    assert pickle.loads(pickle.dumps(path)) == path
    assert as_path(path) is path
    assert as_path("s3://bucket/a/") == path.parent


def test_other_addresses_are_paths():
    assert as_path("raw/mp") == as_path(Path("raw/mp")) == Path("raw/mp")


@pytest.mark.parametrize("address", ["s3://", "s3:///key"])
def test_an_address_without_a_bucket(address):
    with pytest.raises(StorageError, match=r"names no bucket; write s3://bucket/prefix"):
        as_path(address)


# --- what is there


def test_the_same_is_listed_as_in_a_folder(folder, tmp_path):
    here = tmp_path / "here"
    for pattern in ("*.txt", "*.gz", "*"):
        listed = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob(pattern)}
        assert listed == {p.relative_to(here).as_posix(): p.stat().st_size for p in here.rglob(pattern) if p.is_file()}
    for pattern in ("*", "*.txt", "*/*.txt", "deep/*", "*/er/*"):
        found = sorted(p.relative_to(folder).as_posix() for p in folder.glob(pattern) if not p.is_dir())
        assert found == sorted(p.relative_to(here).as_posix() for p in here.glob(pattern) if p.is_file())
    assert (folder / "deep") in set(folder.glob("*"))
    for name in ("a.txt", "deep", "deep/er", "none", "to", "deep/b.txt"):
        there = folder / name
        assert (there.is_file(), there.is_dir(), there.exists()) == (
            (here / name).is_file(), (here / name).is_dir(), (here / name).exists(),
        )  # fmt: skip


def test_what_is_not_there(folder):
    for path in (folder / "none", as_path("s3://no-such-bucket/x")):
        assert not path.exists()
        assert list(path.rglob("*")) == []
        with pytest.raises(FileNotFoundError, match="not there") as caught:
            path.stat()
        assert isinstance(caught.value, TrajmillError)
        assert str(caught.value) == f"{path}: not there"


# --- reading


def test_a_file_is_read_like_one_here(server, aws, tmp_path):
    content = bytes(range(256)) * 40
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x").write_bytes(content)
    bucket = aws(server)
    server.put(bucket.parts[1], tmp_path / "here")
    with readable(bucket / "x", 1000) as file:
        assert file.read(10) == content[:10]
        assert file.seek(-5, 2) == len(content) - 5
        assert file.read() == content[-5:]
        assert file.read() == b""
        file.seek(3000)
        assert file.read(5000) == content[3000:8000]
    assert (bucket / "x").read_text("latin-1") == content.decode("latin-1")
    with pytest.raises(ValueError, match="wb"):
        (bucket / "x").open("wb")


def test_an_object_that_is_replaced_is_not_read_on(server, folder):
    with (folder / "a.txt").open() as file, (folder / "deep/er/c.txt.gz").open(buffering=1) as other:
        assert other.read(1) == b"c"
        server.put_bytes(folder.parts[1], "top/deep/er/c.txt.gz", b"xyz")
        assert file.read() == b"a"
        with pytest.raises(StorageError, match=r"was replaced while it was read; run again") as caught:
            other.read()
    assert caught.value.errno, "it says nothing about the content"


def test_columns_of_a_table(server, aws, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "here").mkdir()
    table = pa.table({"x": range(1000), "y": [str(i) for i in range(1000)]})
    for i in range(2):
        pq.write_table(table, tmp_path / "here" / f"{i}.parquet", row_group_size=100)
    bucket = aws(server)
    server.put(bucket.parts[1], tmp_path / "here")
    files = sorted(bucket.glob("*.parquet"))
    assert parquet(files).to_table(columns=["y"])["y"].to_pylist() == table["y"].to_pylist() * 2
    assert parquet(files).count_rows() == 2000


def test_a_large_file_goes_in_parts(server, aws, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PART", 5 << 20)
    content = bytes(12 << 20)
    (tmp_path / "large").write_bytes(content)
    bucket = aws(server)
    (bucket / "below/large").upload(tmp_path / "large")
    assert (bucket / "below/large").stat().st_size == len(content)
    assert sum(r.method == "PUT" and "partNumber" in r.query for r in server.requests) == 3


def test_what_is_there_is_not_created_again(server, aws):
    probe = aws(server) / "probe"
    assert [probe.create(b"1"), probe.create(b"2")] == [True, False]
    assert probe.read_text() == "1"


# --- servers that misbehave


def test_what_may_succeed_another_time_is_tried_again(server, folder):
    answers = iter([503, 500, None])
    server.fault = lambda *_: next(answers, None)
    assert (folder / "a.txt").read_text() == "a"
    breaks = iter([True, True])
    server.drop = lambda *_: next(breaks, False)
    assert (folder / "deep/b.txt").read_text() == "bb"
    assert next(breaks, None) is None


def test_a_server_that_is_down_is_one_line(folder, server, monkeypatch):
    monkeypatch.setattr(storage, "RETRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"^s3://.*/a\.txt: .*; run again to go on$") as caught:
        (folder / "a.txt").stat()
    assert "\n" not in str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), StorageError)


def test_refused_access_is_one_line_without_the_secret(folder, server):
    server.fault = lambda *_: 403
    for ask in (folder.exists, (folder / "a.txt").stat, lambda: (folder / "x").create(b"")):
        with pytest.raises(StorageError, match=r"access denied; check AWS_ACCESS_KEY_ID") as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
