"""Copies of stores: the same content, resumed where they were stopped, up to date for a build."""

import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from factories import make_store, make_trajectory
from making import content
from servers import postgres
from stores.conformance import frames, put, rejections, tasks
from trajmill.cli import app
from trajmill.copying import copy
from trajmill.errors import StoreError
from trajmill.stores import open_store
from trajmill.stores.base import ROLES


@pytest.fixture
def address():
    with postgres.schema() as address:
        yield address


@pytest.fixture
def source(tmp_path):
    store = open_store(tmp_path / "source", create=True)
    batches = [frames("t-1", "t-2"), frames("t-3", n_frames=50)]
    put(store, "mp/a", "first", frame=[frames("old")])
    put(store, "mp/a", frame=batches, rejection=[rejections("r-1"), rejections("r-2", "r-3")])
    put(store, "mp/empty", frame=[])
    put(store, "oqmd/b", frame=[frames("b-1", asset="oqmd/b")], input=[frames("b-2", asset="oqmd/b", n_frames=1)])
    store.note_upstream({"mp": {"version": {"tasks": "7"}, "digest": "d"}})
    return store


def same(a, b):
    for role in ROLES:
        assert [batch.to_pylist() for batch in a.read(role)] == [batch.to_pylist() for batch in b.read(role)]
    assert a.commits() == b.commits()
    assert a.upstream() == b.upstream()


def test_there_and_back(source, address, tmp_path):
    there = open_store(address, create=True)
    told = []
    summary = copy(source, there, report=lambda done, total: told.append((done, total)))
    assert summary.copied == {"mp/a": 59, "mp/empty": 0, "oqmd/b": 4}
    assert told[-1] == (63, 63)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert there.version == 4, "one commit each, and one for what is known of upstream"
    same(source, there)
    back = open_store(tmp_path / "back", create=True)
    copy(open_store(address), back)
    same(source, back)
    assert content(tmp_path / "back") == content(tmp_path / "source")


def test_a_folder_into_a_folder(source, tmp_path):
    copy(source, open_store(tmp_path / "target", create=True))
    same(source, open_store(tmp_path / "target"))
    assert content(tmp_path / "target") == content(tmp_path / "source")


def test_only_what_is_new_is_copied(source, tmp_path):
    target = open_store(tmp_path / "target", create=True)
    put(target, "alexandria/other")
    copy(source, target)
    version = target.version
    again = copy(source, target)
    assert (again.copied, again.unchanged) == ({}, ["mp/a", "mp/empty", "oqmd/b"])
    assert again.others == ["alexandria/other"]
    assert target.version == version
    put(source, "oqmd/b", "changed", frame=[frames("b-9", asset="oqmd/b")])
    assert copy(source, target).copied == {"oqmd/b": 3}
    assert tasks(target, assets=["oqmd/b"]) == [("oqmd/b", "b-9")] * 3


def test_an_older_version_can_be_copied(source, tmp_path):
    target = open_store(tmp_path / "target", create=True)
    copy(open_store(source.address, version=1), target)
    assert tasks(target) == [("mp/a", "old")] * 3


def test_stopped_at_any_row_it_goes_on(source, tmp_path):
    target = open_store(tmp_path / "target", create=True)
    for at in (0, 10, 58, 59, 61):

        def stop(done, total, at=at):
            if done > at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy(source, target, report=stop)
    assert open_store(tmp_path / "target").assets() == ["mp/a"]
    assert copy(source, open_store(tmp_path / "target")).unchanged == ["mp/a", "mp/empty"]
    assert content(tmp_path / "target") == content(tmp_path / "source")
    assert not list((tmp_path / "target").rglob("*.tmp"))


def test_killed_it_goes_on(source, address):
    code = f"""
import os, signal
from trajmill.copying import copy
from trajmill.stores import open_store
def report(done, total):
    if done > 59:
        os.kill(os.getpid(), signal.SIGKILL)
copy(open_store({source.address!r}), open_store({address!r}, create=True), report=report)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    target = open_store(address)
    assert target.assets() == ["mp/a"]
    copy(source, target)
    same(source, target)


@pytest.mark.parametrize("lost", ["a batch", "an asset"])
def test_a_source_that_lacks_rows_is_refused(source, tmp_path, lost):
    class Short(type(source)):
        def read(self, role, *, columns, assets):
            batches = list(super().read(role, columns=columns, assets=assets))
            return iter(batches[1:] if lost == "a batch" else [b for b in batches if b["asset"][0].as_py() != "mp/a"])

    target = open_store(tmp_path / "target", create=True)
    with pytest.raises(StoreError, match="mp/a has not the rows it says; nothing of it was copied"):
        copy(Short(source.address), target)
    assert target.assets() == []


def test_the_command_line(tmp_path):
    make_store(tmp_path / "source", [make_trajectory()])
    run = lambda *arguments: CliRunner().invoke(app, ["copy", *map(str, arguments)])  # noqa: E731
    done = run(tmp_path / "source", tmp_path / "target")
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'target'}: 1 asset (3 rows) copied, 0 unchanged" in done.output.replace("\n", "")
    none = run(tmp_path / "none", tmp_path / "other")
    assert "no trajmill store here" in str(none.exception)
    assert not (tmp_path / "other").exists()
