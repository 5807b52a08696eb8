from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from functools import partial

import datasets
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import trajmill
from factories import RECIPE, make_store, make_trajectory
from trajmill.errors import ReleaseError, SplitError
from trajmill.inspection import inspect_release
from trajmill.recipe import load
from trajmill.releases.dataset_card import SplitSize, dataset_card
from trajmill.releases.hugging_face import release
from trajmill.releases.shipment import check
from trajmill.schema import FRAME_SCHEMA, PUBLISHED
from trajmill.sources.base import Rejection
from trajmill.splits import split
from trajmill.stores.delta import DeltaStore
from trajmill.units import KBAR_PER_EV_PER_A3


def trajectories():
    """Every configuration, two assets, a trajectory whose frames belong to two configurations."""
    b = "oqmd/dump/entries-000000000"
    coarse = make_trajectory("oqmd-7", asset=b, immutable_id="oqmd-7", n_frames=2)
    return [
        make_trajectory("mp-1", n_frames=5),
        make_trajectory("mp-2", functional="pbesol", energy_corrected=None),
        make_trajectory("mp-3", functional="scan", energy_corrected=None),
        make_trajectory("mp-4", functional="r2scan", energy_corrected=None, stress=np.full((3, 3, 3), np.nan)),
        make_trajectory("mp-5", symbols=("V", "O"), immutable_id="mp-5", cross_compatibility=np.zeros(3, bool)),
        replace(coarse, cross_compatibility=np.array([False, True])),
    ]


def inputs():
    t = make_trajectory("oqmd-7", asset="oqmd/dump/entries-000000000", n_frames=1, energy_corrected=None)
    return [replace(t, energy=np.full(1, np.nan), forces=np.full((1, 2, 3), np.nan), stress=np.full((1, 3, 3), np.nan))]


@pytest.fixture
def store(tmp_path):
    lost = Rejection(
        source="mp", asset="mp/tasks/a.jsonl.gz", rejected_by="license", detail="BY-NC", n_frames=4, task_id="mp-9"
    )
    return make_store(tmp_path / "store", trajectories(), [lost], inputs())


def digest(folder):
    return {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file()
    }


def test_each_configuration_holds_its_own(store, tmp_path):
    summary = release(store, tmp_path / "out", load())
    frames = {
        "compatible_pbe": 6, "compatible_pbesol": 3, "compatible_scan": 3, "compatible_r2scan": 3,
        "non_compatible": 4, "initial_structures": 1,
    }  # fmt: skip
    assert summary.frames == frames
    for name in frames:
        rows = pq.read_table(tmp_path / "out" / name)
        if name.startswith("compatible"):
            assert set(rows["functional"].to_pylist()) == {name.removeprefix("compatible_")}
            assert all(rows["cross_compatibility"].to_pylist())
        if name == "non_compatible":
            assert not any(rows["cross_compatibility"].to_pylist())
        if name == "initial_structures":
            assert rows["energy"].null_count == rows["forces"].null_count == 1


@pytest.mark.parametrize("rows_per_file", [1, 2, 5, 7, 1000])
def test_shards_lose_and_double_nothing(store, tmp_path, rows_per_file):
    release(store, tmp_path / "out", load(settings=[f"release.rows_per_file={rows_per_file}"]))
    files = sorted((tmp_path / "out").glob("*/train-*.parquet"))
    for f in files:
        n = len(list(f.parent.glob("*.parquet")))
        assert f.name.endswith(f"-of-{n:05d}.parquet")
        assert pq.read_metadata(f).num_rows <= rows_per_file
    ids = [i for f in files if f.parent.name != "initial_structures" for i in pq.read_table(f)["id"].to_pylist()]
    expected = [f"{t.trajectory_id}-{s}" for t in trajectories() for s in t.relaxation_step]
    assert sorted(ids) == sorted(expected)


def test_same_version_same_bytes(tmp_path):
    first = make_store(tmp_path / "a", trajectories(), (), inputs())
    other = make_store(tmp_path / "b", trajectories()[::-1], (), inputs())  # assets committed in another order
    release(first, tmp_path / "x", load())
    release(first, tmp_path / "y", load())
    release(other, tmp_path / "z", load())
    assert digest(tmp_path / "x") == digest(tmp_path / "y")
    parquet = {k: v for k, v in digest(tmp_path / "x").items() if k.endswith("parquet")}
    assert parquet == {k: v for k, v in digest(tmp_path / "z").items() if k.endswith("parquet") and k in parquet}


def test_columns_and_metadata(store, tmp_path):
    release(store, tmp_path / "out", load())
    schema = pq.read_schema(tmp_path / "out/compatible_pbe/train-00000-of-00001.parquet")
    assert schema.names == FRAME_SCHEMA.names
    assert schema.metadata[b"trajmill.stress_unit"] == b"eV/A^3"
    assert all(schema.field(n).metadata[b"description"] for n in schema.names)


class TestLematTraj:
    def rows(self, store, tmp_path, *settings):
        release(store, tmp_path / "out", load(settings=["release.format=lemat-traj", *settings]))
        table = pq.read_table(tmp_path / "out/compatible_pbesol")
        pbe = pq.read_table(tmp_path / "out/compatible_pbe")
        return table, pbe

    def test_exactly_the_published_columns(self, store, tmp_path):
        table, _ = self.rows(store, tmp_path)
        assert [(f.name, f.type) for f in table.schema] == [(c.name, c.type) for c in PUBLISHED]

    def test_stress_is_kbar_with_vasp_sign(self, store, tmp_path):
        table, _ = self.rows(store, tmp_path)
        ours = np.array(trajectories()[1].stress)
        np.testing.assert_allclose(table["stress_tensor"].to_pylist(), -ours * KBAR_PER_EV_PER_A3, rtol=1e-12)
        assert table.schema.metadata[b"trajmill.stress_unit"] == b"kBar"
        assert table.schema.field("stress_tensor").metadata[b"unit"] == b"kBar"

    def test_stress_option(self, store, tmp_path):
        table, _ = self.rows(store, tmp_path, "release.stress=ev")
        np.testing.assert_allclose(table["stress_tensor"].to_pylist(), trajectories()[1].stress, rtol=1e-12)
        assert table.schema.metadata[b"trajmill.stress_unit"] == b"eV/A^3"

    def test_missing_stress_stays_missing(self, store, tmp_path):
        self.rows(store, tmp_path)
        assert pq.read_table(tmp_path / "out/compatible_r2scan")["stress_tensor"].null_count == 3

    def test_energy_corrected_is_the_energy_outside_pbe(self, store, tmp_path):
        table, pbe = self.rows(store, tmp_path)
        assert table["energy_corrected"] == table["energy"]
        assert pbe["energy_corrected"] != pbe["energy"]

    def test_reading_it_back_gives_our_stress(self, store, tmp_path):
        self.rows(store, tmp_path)
        (t,) = trajmill.open(tmp_path / "out", "compatible_pbesol").trajectories()
        np.testing.assert_allclose(t.stress, trajectories()[1].stress, atol=1e-14)


class TestReaders:
    @pytest.fixture
    def out(self, store, tmp_path):
        release(store, tmp_path / "out", load(settings=["release.rows_per_file=4"]))
        return tmp_path / "out"

    def test_datasets(self, out, tmp_path):
        datasets.disable_progress_bars()
        for name, n in json.loads((out / "trajmill.json").read_text())["frames"].items():
            rows = datasets.load_dataset(str(out), name, split="train", cache_dir=str(tmp_path / "cache"))
            assert rows.num_rows == n
            assert rows.column_names == FRAME_SCHEMA.names
        info = datasets.load_dataset_builder(str(out), "compatible_pbe", cache_dir=str(tmp_path / "cache")).info
        assert info.splits["train"].num_examples == 6  # the card's YAML is what was read
        assert info.features.arrow_schema.types == FRAME_SCHEMA.types

    def test_polars_and_duckdb(self, out):
        files = str(out / "compatible_pbe" / "*.parquet")
        assert pl.scan_parquet(files).select(pl.len()).collect().item() == 6
        assert duckdb.connect().execute("SELECT count(DISTINCT id) FROM read_parquet(?)", [files]).fetchone() == (6,)


def test_card(store, tmp_path):
    release(store, tmp_path / "out", load())
    card = (tmp_path / "out/README.md").read_text()
    assert "| compatible_pbe | mp | pbe | GGA | 1 | 5 |" in card
    assert "| initial_structures | oqmd | pbe | GGA | 1 | 1 |" in card
    assert "| license | 4 | 1 |" in card
    assert "eV/A^3, positive under tension" in card
    for name in ("Materials Project", "Open Quantum Materials Database", "jain2013commentary", "CC BY 4.0"):
        assert name in card
    assert "alexandria.icams.rub.de" not in card
    assert all(f"| `{c}` |" in card for c in FRAME_SCHEMA.names)


def test_card_says_how_to_load_each_configuration(store, tmp_path, monkeypatch):
    out = tmp_path / "out"
    release(store, out, load())
    example, arrays = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    monkeypatch.setattr(datasets, "load_dataset", partial(datasets.load_dataset, cache_dir=str(tmp_path / "cache")))
    names = {}
    exec(example.replace("<this repository or folder>", str(out)), names)
    exec(arrays.replace("<folder>", str(out)), names)
    frames = json.loads((out / "trajmill.json").read_text())["frames"]
    assert {name: names[name].num_rows for name in frames} == frames
    assert names["trajectory"].energy.size


def test_card_front_matter(store, tmp_path):
    out = tmp_path / "out"
    release(store, out, load(settings=["release.rows_per_file=4"]))
    head = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["size_categories"] == ["n<1K"]
    assert [c["config_name"] for c in head["configs"]] == [i["config_name"] for i in head["dataset_info"]]
    for info in head["dataset_info"]:
        files = list((out / info["config_name"]).iterdir())
        assert info["download_size"] == sum(f.stat().st_size for f in files)
        assert info["dataset_size"] == info["splits"][0]["num_bytes"] > 0
        assert info["splits"][0]["num_examples"] == sum(pq.read_metadata(f).num_rows for f in files)


@pytest.mark.parametrize(
    ("frames", "size"),
    [(999, "n<1K"), (10**7, "10M<n<100M"), (112_932_152, "100M<n<1B"), (2 * 10**9, "1B<n<10B")],
)
def test_size_category(store, tmp_path, frames, size):
    release(store, tmp_path / "out", load())
    manifest = json.loads((tmp_path / "out/trajmill.json").read_text())
    manifest["frames"] = {"compatible_pbe": frames}
    sizes = {"compatible_pbe": {"train": SplitSize(frames, 1, 1)}}
    assert f"- {size}\n" in dataset_card(manifest, FRAME_SCHEMA, sizes)


def test_a_split_becomes_the_splits_of_the_hub(store, tmp_path):
    made = split(trajmill.open(tmp_path / "store"), {"train": 0.5, "test": 0.5}, seed=1)
    release(store, tmp_path / "out", load(), split=made)
    whole = trajmill.open(tmp_path / "out")
    assert len(whole) == 19
    for part in ("train", "test"):
        assert trajmill.open(tmp_path / "out", split=part).trajectory_ids().equals(made[part])
    names = {p.name.partition("-")[0] for p in (tmp_path / "out/initial_structures").iterdir()}
    oqmd = made.parts_of(pa.array(["oqmd-7-pbe"]))[0]
    assert names == {made.names[oqmd]}, "an input is where its relaxation is"
    found = datasets.load_dataset(str(tmp_path / "out"), "compatible_pbe", cache_dir=str(tmp_path / "cache"))
    ids = {name: set(rows["trajectory_id"]) for name, rows in found.items()}
    assert all(of_part <= set(made[name].to_pylist()) for name, of_part in ids.items())
    assert sum(map(len, found.values())) == 6
    manifest = json.loads((tmp_path / "out/trajmill.json").read_text())
    assert manifest["split"]["digest"] == made.digest
    assert sum(n for of_name in manifest["splits"].values() for n in of_name.values()) == 20
    assert check(tmp_path / "out", lambda *_: None)
    assert all(not problem for _, problem in inspect_release(tmp_path / "out").checks)
    assert made.digest in (tmp_path / "out/README.md").read_text()
    with pytest.raises(ReleaseError, match="no split dev; there are: test, train"):
        trajmill.open(tmp_path / "out", split="dev")


def test_a_split_of_other_data_or_with_odd_names_is_refused(store, tmp_path):
    some = split(trajmill.open(tmp_path / "store").filter('source = "mp"'), {"train": 0.5, "test": 0.5})
    with pytest.raises(SplitError, match="does not know oqmd-7-pbe"):
        release(store, tmp_path / "out", load(), split=some)
    odd = split(trajmill.open(tmp_path / "store"), {"for training": 0.5, "test": 0.5})
    with pytest.raises(SplitError, match="no name for a split: for training"):
        release(store, tmp_path / "out", load(), split=odd)
    assert not (tmp_path / "out").exists()


def test_card_cites_sources_lemat_traj_and_trajmill(store, tmp_path):
    release(store, tmp_path / "out", load())
    card = (tmp_path / "out/README.md").read_text()
    for text in ("@article{kirklin2015open", "eprint = {2508.20875}", "@software{trajmill", "BY-C (20)"):
        assert text in card
    assert "@article{schmidt2024improving" not in card


def test_manifest_records_the_recipe_without_places(store, tmp_path):
    here = load(settings=["mp.tasks_without_material=keep", "rules.max_force.enabled=true"])
    there = load(settings=["mp.tasks_without_material=keep", "rules.max_force.enabled=true", "engine.workers=3"])
    there = there.model_copy(update={"mp": there.mp.model_copy(update={"path": tmp_path, "layout": "delta"})})
    release(store, tmp_path / "a", here)
    release(store, tmp_path / "b", there)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    recipe = json.loads((tmp_path / "a/trajmill.json").read_text())["recipe"]
    assert recipe.keys() == {"build", "rules", "release"}
    assert recipe["release"] == here.release.model_dump()
    assert recipe["rules"].keys() == {"duplicate_trajectory", "primary_agreement"}


def test_manifest_records_what_the_rows_were_built_with(tmp_path):
    """The recipe given to the release may be another one."""
    make_store(tmp_path / "store", [make_trajectory()])
    store = DeltaStore(tmp_path / "store")
    store.note_upstream({"mp": {"version": {"materials": "2025-09-25"}, "digest": "of the manifest"}})
    release(store, tmp_path / "out", load(settings=["rules.max_force.enabled=true"]))
    manifest = json.loads((tmp_path / "out/trajmill.json").read_text())
    assert manifest["recipe"]["build"] == store.built_with() == {"mp": [RECIPE]}
    assert manifest["raw"] == {
        "mp": {
            "assets": 1,
            "digest": hashlib.sha256(b"mp/tasks/a.jsonl.gz raw\n").hexdigest(),
            "upstream": {"materials": "2025-09-25"},
            "manifest": "of the manifest",
        }
    }


def test_manifest_balances(store, tmp_path):
    release(store, tmp_path / "out", load())
    manifest = json.loads((tmp_path / "out/trajmill.json").read_text())
    assert sum(manifest["frames"].values()) + sum(manifest["rejected_at_build"].values()) == manifest["read"]["frames"]


def test_what_the_release_rules_reject_is_not_there(tmp_path):
    copies = [
        make_trajectory("mp-1", last_modified="2020", asset="mp/tasks/old.jsonl.gz"),
        make_trajectory("mp-1", n_frames=4),
    ]
    summary = release(make_store(tmp_path / "store", copies), tmp_path / "out", load())
    assert summary.rejected == {"duplicate_trajectory": 3}
    assert summary.frames == {"compatible_pbe": 4}
    (t,) = trajmill.open(tmp_path / "out").trajectories()
    assert t.asset == "mp/tasks/a.jsonl.gz"


def test_refuses_a_folder_in_use(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(ReleaseError, match="exists and is not empty"):
        release(store, tmp_path / "out", load())


def test_a_stopped_release_leaves_nothing(store, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        release(store, tmp_path / "out", load(), report=stop)
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_an_older_version_can_be_released(store, tmp_path):
    summary = release(DeltaStore(tmp_path / "store", version=1), tmp_path / "out", load())
    assert sum(summary.frames.values()) == 17  # the first asset alone


def test_a_schema_of_arrow_types_only():
    assert all(not pa.types.is_dictionary(t) for t in FRAME_SCHEMA.types)
