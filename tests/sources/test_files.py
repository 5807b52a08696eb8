"""Large files in parts: all records, each once, whatever reads them."""

import gzip
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import trajmill
from making import DATA
from mp_samples import REAL, write_tables
from sources.conformance import assert_equal, check_source
from trajmill import recipe
from trajmill.recipe import load
from trajmill.sources import open_sources
from trajmill.sources.alexandria import Alexandria
from trajmill.sources.base import Asset
from trajmill.sources.files import in_parts, takes, whole_file
from trajmill.stores import open_store


def asset(name="a/x.bz2", size=100):
    return Asset(name=name, path=Path("x.bz2"), size=size)


@pytest.mark.parametrize(
    ("size", "limit", "parts"),
    [(100, 100, [""]), (101, 100, ["0-of-2", "1-of-2"]), (0, 1, [""]), (300, 100, ["0-of-3", "1-of-3", "2-of-3"])],
)
def test_a_file_is_split_above_the_limit(size, limit, parts):
    found = in_parts([asset(size=size)], limit)
    assert [one.part for one in found] == parts
    assert [one.name for one in found] == [f"a/x.bz2/part-{part}" if part else "a/x.bz2" for part in parts]
    assert sum(one.size for one in found) in (size, size - 1)


def test_parts_are_sorted_by_name():
    names = [one.name for one in in_parts([asset(size=1100), asset("a/x.bz2-b", 1)], 100)]
    assert len(names) == 12
    assert names == sorted(names)


def test_an_identifier_is_in_one_part():
    parts = in_parts([asset(size=400)], 100)
    shares = Counter(one.part for i in range(1000) for one in parts if takes(one, f"agm{i:09d}"))
    assert shares.total() == 1000
    assert min(shares.values()) > 200
    assert [takes(one, "") for one in parts] == [True, False, False, False]
    assert sum(takes(one, "damaged \ud800") for one in parts) == 1
    assert takes(asset(), "agm000000001")


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("a/x.bz2", "a/x.bz2"),
        ("a/x.bz2/part-3-of-12", "a/x.bz2"),
        ("mp/core/trajectories/part-00000-1f.c000.snappy.parquet", None),
        ("oqmd/dump.sql.gz/entries-000000000", None),
    ],
)
def test_whole_file(name, whole):
    assert whole_file(name) == (whole or name)


SIC = "emmet_SiC_elastic.jsonl.gz"


def all_but_one(_, names):
    return {name for name in names if name != SIC}


@pytest.fixture(params=["alexandria", "mp", "mp-delta"])
def raw(request, tmp_path):
    """Name of a source and a folder of it, with a file that holds records twice and one that is cut off."""
    folder = tmp_path / "raw"
    if request.param == "alexandria":
        shutil.copytree(DATA / "alexandria", folder)
        file = next(folder.rglob("*aaa_000.json.bz2"))
        file.with_name("alex_go_cut.json.bz2").write_bytes(file.read_bytes()[:70_000])
    elif request.param == "mp":
        shutil.copytree(REAL / "materials", folder / "materials")
        file = Path(shutil.copytree(REAL / "tasks", folder / "tasks", ignore=all_but_one)) / SIC
        text = gzip.decompress(file.read_bytes())
        again = text.replace(b'"mp-fgddy"', b'"aaafgddy"').splitlines(keepends=True)
        odd = [b"{}\n", b"[1]\n", b'{"task_id": [1]}\n', b'{"task_id": "mp-1", "calcs_reversed": NaN}\n', b"not json\n"]
        file.write_bytes(gzip.compress(b"".join([text, *again, *odd])))
        file.with_name("cut.jsonl.gz").write_bytes(gzip.compress(text)[:40_000])
    else:
        write_tables(folder)
    return request.param.partition("-")[0], folder


def read(raw, workspace, *settings):
    """Return the records by asset."""
    name, folder = raw
    [source] = open_sources(load(settings=[f"{name}.path='{folder}'", *settings]))
    source.prepare(workspace)
    return {asset.name: list(source.read(asset)) for asset in source.assets()}


def test_parts_have_the_records_of_the_file(raw, tmp_path):
    expected = read(raw, tmp_path / "work")
    found = read(raw, tmp_path / "work", f"{raw[0]}.split=15000")
    assert len(found) > len(expected)
    assert {whole_file(part) for part in found} == set(expected)
    for file, records in expected.items():
        parts = [renamed(r, file) for part, rs in found.items() if whole_file(part) == file for r in rs]
        # records of one identifier keep their order; so does a stable sort
        assert_equal(sorted(parts, key=key), sorted(records, key=key))


def test_parts_pass_the_kit(tmp_path):
    check_source(Alexandria(DATA / "alexandria", recipe.Alexandria(split=15_000)), tmp_path / "work")


def key(record):
    """What tells records apart: identifiers, and the text of a rejection where there is none."""
    return str([x.task_id or x.detail for x in (*record.trajectories, *record.rejections)])


def renamed(record, file):
    rows = {kind: getattr(record, kind) for kind in ("trajectories", "rejections")}
    return replace(record, **{kind: tuple(replace(x, asset=file) for x in found) for kind, found in rows.items()})


def test_a_store_follows_when_a_file_is_split_and_when_it_is_not_any_more(raw, tmp_path):
    name, folder = raw
    quick = ("annotation.space_group=false", "annotation.energy_corrected=false", "engine.workers=1")
    where = [f"{name}.path='{folder}'", f"store.path='{tmp_path / 'store'}'", *quick]
    first = trajmill.build(load(settings=where))
    whole = rows(tmp_path / "store")
    assert whole["frame"]
    if (folder / "tasks").exists():  # the second time under the other form of its identifier
        assert first.balance.rejected["duplicate_trajectory"]
    for limit in (40_000, 15_000):
        summary = trajmill.build(load(settings=[*where, f"{name}.split={limit}"]))
        assert summary.dropped
        assert summary.vanished == []
        assert rows(tmp_path / "store") == whole
    last = trajmill.build(load(settings=where))
    assert last.built == {asset: first.built[asset] for asset in last.built}
    assert rows(tmp_path / "store") == whole
    assert open_store(str(tmp_path / "store")).assets() == sorted(first.built)


def rows(path):
    """Rows by role; a row does not say what file it came from."""
    store = open_store(str(path))
    roles = ("frame", "rejection")
    return {role: sorted(repr(row) for batch in store.read(role) for row in batch.to_pylist()) for role in roles}
