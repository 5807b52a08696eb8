"""The log of a table: what deltalake and others write is followed, what we write is what they read."""

import json
import shutil

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from trajmill.errors import StoreError
from trajmill.stores.base import DataFile
from trajmill.stores.delta import DeltaStore
from trajmill.stores.delta_log import DeltaLog

ODD = "alexandria/a b=c#d%e%2F&+/Übung 'x\" [1]*?.json.bz2"


@pytest.fixture
def root(tmp_path):
    DeltaStore(tmp_path / "table", create=True)
    return tmp_path / "table"


def file(name, role="frame", asset="mp/a", rows=3):
    folder = f"role={role}/asset={asset.replace('/', '%2F')}"
    return DataFile(f"{folder}/{name}.parquet", 10, role, rows, json.dumps({"numRecords": rows}))


def held(log):
    """Return what a log holds: files as (asset, path, role, size, rows), and transactions."""
    files = [(a, p, f.role, f.size, f.rows) for a, fs in log.files.items() for p, f in fs.items()]
    return sorted(files), dict(log.transactions)


def held_by_deltalake(root, version=None):
    table = DeltaTable(root, version=version)
    names = ("partition.asset", "path", "partition.role", "size_bytes", "num_records")
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    files = sorted(tuple(a[name] for name in names) for a in actions)
    return files, {asset for asset in ("mp/a", "mp/b", ODD) if table.transaction_version(asset) is not None}


def test_no_table(tmp_path):
    assert DeltaLog(tmp_path).version == -1
    with pytest.raises(TableNotFoundError):
        DeltaTable(tmp_path)


def test_what_is_written_is_what_deltalake_reads(root):
    log = DeltaLog(root)
    assert log.write({"n": 1}, "mp/a", [file("x"), file("y", "rejection")], 7)
    assert log.write({"n": 2}, "mp/b", [file("z", asset="mp/b")], 8)
    assert log.write({"n": 3}, "mp/a", [file("y", "rejection"), file("new")], 9)
    assert log.write({"n": 4})
    files, transactions = held(log)
    assert [path.rpartition("/")[2] for _, path, *_ in files] == ["new.parquet", "y.parquet", "z.parquet"]
    assert transactions == {"mp/a": 9, "mp/b": 8}
    theirs, known = held_by_deltalake(root)
    assert [(a, role, size, rows) for a, _, role, size, rows in theirs] == [(f[0], *f[2:]) for f in files]
    assert known == {"mp/a", "mp/b"}
    assert [facts["n"] for facts in log.history()] == [4, 3, 2, 1]
    assert [h.get("trajmill") is not None for h in DeltaTable(root).history()] == [True] * 4 + [False]


def test_what_is_removed_is_named_so_that_a_vacuum_finds_it(root):
    log = DeltaLog(root)
    for name in ("old", "new"):
        place = root / file(name).path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"0123456789")
        log.write({}, "mp/a", [file(name)], 1)
    found = DeltaTable(root).vacuum(0, dry_run=True, enforce_retention_duration=False)
    assert [path.rpartition("/")[2] for path in found] == ["old.parquet"]


@pytest.mark.parametrize("checkpoint", [None, 1, 3, 4])
def test_followed_from_a_checkpoint_or_the_beginning_it_is_the_same(root, checkpoint):
    log = DeltaLog(root)
    seen = [held(log)]
    for i, asset in enumerate(["mp/a", ODD, "mp/a", "mp/b"]):
        log.write({}, asset, [file(f"{i}", asset=asset), file(f"{i}", "input", asset)], i)
        seen.append(held(log))
    if checkpoint is not None:
        DeltaTable(root, version=checkpoint).create_checkpoint()
    for version, expected in enumerate(seen):
        assert held(DeltaLog(root, version)) == expected
    again = DeltaLog(root)
    assert held(again) == seen[-1]
    assert again.description == log.description


def test_a_checkpoint_alone_is_enough(root):
    log = DeltaLog(root)
    log.write({}, ODD, [file("x", asset=ODD)], 2**59)
    DeltaTable(root).create_checkpoint()
    for entry in (root / "_delta_log").glob("*.json"):
        entry.unlink()
    assert held(DeltaLog(root)) == held(log)


def test_of_two_that_write_the_same_version_one_does(root):
    first, second = DeltaLog(root), DeltaLog(root)
    assert first.write({}, "mp/a", [file("first")], 1)
    assert not second.write({}, "mp/a", [file("second")], 2)
    assert held(second) == ([], {}), "what was not written is not held"
    second.update()
    assert second.write({}, "mp/a", [file("second")], 2)
    assert [path.rpartition("/")[2] for _, path, *_ in held(second)[0]] == ["second.parquet"]
    assert list((root / "_delta_log").glob("*.tmp")) == []


def test_the_same_file_again_stays(root):
    """Removed and added in one version, it would be gone for some readers."""
    log = DeltaLog(root)
    for transaction in (1, 2):
        log.write({}, "mp/a", [file("x")], transaction)
    assert len(held(log)[0]) == len(held(DeltaLog(root))[0]) == len(held_by_deltalake(root)[0]) == 1


def test_only_one_asset(root):
    log = DeltaLog(root)
    for asset in ("mp/a", "mp/b"):
        log.write({}, asset, [file("x", asset=asset)], 3)
    part = log.only("mp/b")
    assert (list(part.files), part.transactions, part.version) == (["mp/b"], {"mp/b": 3}, 2)
    assert log.only("mp/none").files == log.only("mp/none").transactions == {}
    assert list(log.files) == ["mp/a", "mp/b"]


def test_what_other_tools_do_to_a_table_is_followed(root):
    """Files of one asset put together, with removals that do not say whose they are."""
    log = DeltaLog(root)
    log.write({}, "mp/a", [file("x"), file("y")], 1)
    removal = {"path": file("x").path.replace("%", "%25"), "dataChange": False, "deletionTimestamp": 1}
    lines = ({"commitInfo": {"operation": "OPTIMIZE"}}, {"remove": removal})
    (root / "_delta_log" / f"{2:020}.json").write_text("\n".join(map(json.dumps, lines)))
    log.update()
    assert (log.version, list(log.files["mp/a"])) == (2, [file("y").path])
    assert len(held_by_deltalake(root)[0]) == 1
    assert len(list(log.history())) == 1


def test_a_table_of_a_later_protocol_is_refused(root):
    DeltaTable(root).alter.set_table_properties({"delta.enableDeletionVectors": "true"})
    with pytest.raises(StoreError, match=r"another tool has brought this table to Delta protocol 3/7; trajmill knows"):
        DeltaStore(root)
    DeltaTable(root).create_checkpoint()
    for entry in (root / "_delta_log").glob("*.json"):
        entry.unlink()
    with pytest.raises(StoreError, match="Delta protocol 3/7"):
        DeltaStore(root)


@pytest.mark.parametrize("damage", ["{", "[1]", '{"add": {}}', '{"remove": {"path": "x"}}', "{}", "null"])
def test_a_damaged_log_is_one_clear_line(root, damage):
    (root / "_delta_log" / f"{1:020}.json").write_text(damage)
    with pytest.raises(StoreError, match="cannot be opened as a store") as caught:
        DeltaStore(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["_last_checkpoint", f"{1:020}.checkpoint.parquet"])
@pytest.mark.parametrize("damage", ["", "[]", "PAR1"])
def test_a_damaged_checkpoint_is_one_clear_line(root, name, damage):
    DeltaLog(root).write({}, "mp/a", [file("x")], 1)
    DeltaTable(root).create_checkpoint()
    (root / "_delta_log" / name).write_text(damage)
    with pytest.raises(StoreError, match="cannot be opened as a store") as caught:
        DeltaStore(root)
    assert "\n" not in str(caught.value)


def test_a_history_with_a_gap_is_said(root):
    log = DeltaLog(root)
    for i in range(3):
        log.write({}, "mp/a", [file(f"{i}")], i)
    DeltaTable(root).create_checkpoint()
    (root / "_delta_log" / f"{1:020}.json").unlink()
    store = DeltaStore(root)
    with pytest.raises(StoreError, match="not whole; a version is missing"):
        store.commits()


def test_a_log_that_cannot_be_written_is_said(root):
    log = DeltaLog(root)
    shutil.rmtree(root / "_delta_log")
    with pytest.raises(OSError, match="No such file"):
        log.write({}, "mp/a", [file("x")], 1)
