"""`croissant.json` has the structure of Croissant 1.0 and says what is in the release.

Descriptions made by this code were also read with mlcroissant 1.1.1, which found no fault and read the rows.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch

import pyarrow.parquet as pq
import pytest

from factories import make_store, make_trajectory
from trajmill.recipe import load
from trajmill.releases.citations import UNLICENSED, licence_of
from trajmill.releases.hugging_face import release


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("croissant")
    trajectories = [
        make_trajectory("mp-1", n_frames=5),
        make_trajectory("mp-2", functional="pbesol", energy_corrected=None),
        make_trajectory("oqmd-7", asset="oqmd/dump/entries-000000000", immutable_id="oqmd-7"),
    ]
    store = make_store(folder / "store", trajectories)
    release(store, folder / "out", load(settings=["release.rows_per_file=4"]))
    return folder / "out"


@pytest.fixture
def description(out):
    return json.loads((out / "croissant.json").read_text())


def test_head(description):
    assert description["@type"] == "sc:Dataset"
    assert description["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert description["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert description["version"] == "2.0.0"  # the store's
    assert "11 frames of DFT relaxations from mp, oqmd" in description["description"]
    for key in ("jain2013commentary", "kirklin2015open", "ramlaoui2025lemattraj", "trajmill"):
        assert key in description["citeAs"]
    assert "schmidt2024improving" not in description["citeAs"]
    used = {"citeAs", "conformsTo", "recordSet", "field", "dataType", "source", "extract", "column", "fileSet", "key"}
    assert used | {"includes", "repeated", "cr", "sc", "@vocab"} <= set(description["@context"])


def test_every_shard_with_its_digest(out, description):
    objects = [x for x in description["distribution"] if x["@type"] == "cr:FileObject"]
    shards = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.parquet")}
    assert len(shards) == 3
    assert {x["contentUrl"] for x in objects} == set(shards)
    for x in objects:
        assert x["@id"] == x["name"] == x["contentUrl"]
        assert x["sha256"] == hashlib.sha256(shards[x["contentUrl"]]).hexdigest()
        assert x["contentSize"] == f"{len(shards[x['contentUrl']])} B"
        assert x["encodingFormat"] == "application/x-parquet"


def test_every_column_of_every_configuration(out, description):
    assert [r["@id"] for r in description["recordSet"]] == ["compatible_pbe", "compatible_pbesol"]
    sets = {x["@id"]: x for x in description["distribution"] if x["@type"] == "cr:FileSet"}
    for records in description["recordSet"]:
        name = records["@id"]
        schema = pq.read_schema(next((out / name).iterdir()))
        fields = {f["name"]: f for f in records["field"]}
        assert list(fields) == schema.names
        assert records["key"] == {"@id": f"{name}/id"}
        for field in records["field"]:
            assert field["@id"] == f"{name}/{field['name']}"
            assert field["source"]["extract"] == {"column": field["name"]}
            files = sets[field["source"]["fileSet"]["@id"]]
            assert all(fnmatch(p.relative_to(out).as_posix(), files["includes"]) for p in (out / name).iterdir())
            assert field["description"]
        assert fields["energy"]["dataType"] == "sc:Float"
        assert fields["energy"]["description"].endswith("Unit: eV.")
        assert fields["nsites"]["dataType"] == "sc:Integer"
        assert fields["is_final"]["dataType"] == "sc:Boolean"
        assert (fields["forces"]["dataType"], fields["forces"]["repeated"]) == ("sc:Float", True)
        assert fields["elements"]["dataType"] == "sc:Text"
        assert "repeated" not in fields["energy"]


def test_identifiers_are_unique(description):
    ids = [x["@id"] for x in (*description["distribution"], *description["recordSet"])]
    ids += [f["@id"] for r in description["recordSet"] for f in r["field"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["BY-C", "CC-BY-4.0"], "cc-by-4.0"),
        (["BY-C", "BY-NC"], "cc-by-nc-4.0"),
        (["BY-C", UNLICENSED], "unknown"),
        (["BY-C", "CC-BY-SA-4.0"], "other"),
    ],
)
def test_the_strictest_licence_holds(licences, expected):
    assert licence_of({"licences": dict.fromkeys(licences, 1)}) == expected
