"""The benchmark of figures measures what it says, tried on the samples."""

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import figures
import measuring
import trajmill
from factories import make_store, make_trajectory
from trajmill.recipe import load
from trajmill.releases.hugging_face import release


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A small release instead of the corpus."""
    runs = [
        make_trajectory(f"agm00000000{i}", n_frames=4, asset="alexandria/a", immutable_id=f"agm00000000{i}")
        for i in range(3)
    ]
    out = tmp_path / "release"
    release(make_store(tmp_path / "store", runs), out, load())
    monkeypatch.setattr(figures, "release", lambda _: out)
    monkeypatch.setattr(measuring, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(figures, "ROWS_PER_FILE", 20)
    (tmp_path / "corpus").mkdir()


@pytest.mark.parametrize("schema", figures.SCHEMAS)
def test_rows_again_and_again(few, schema):
    folder = figures.corpus(40, schema)
    assert len(list(folder.glob("*.parquet"))) == 2
    dataset = trajmill.open(folder)
    assert len(dataset) == len(set(dataset.ask("SELECT id FROM wanted")["id"].to_pylist())) == 40
    assert ("source" in dataset.schema.names) == (schema == "trajmill")
    ids = dataset.trajectory_ids().to_pylist()
    assert {i.partition("0")[0] for i in ids} == {"mp-", "agm", "oqmd-"}
    assert figures.corpus(40, schema) == folder
    assert pq.read_schema(next(folder.glob("*.parquet"))).metadata[b"trajmill.stress_unit"]


@pytest.mark.parametrize("what", ["figures", "report"])
def test_what_is_measured(few, what):
    found = figures.measure(what, figures.corpus(40, "trajmill"))
    assert found["frames"] == 40
    assert 0 < found["counted_s"] <= found["wall_s"]
    assert found["peak_mb"] > 100
    assert ("megabytes" in found) == (what == "report")


def test_a_wrong_option_is_one_line():
    done = subprocess.run([sys.executable, figures.__file__, "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "figures.py: error: unrecognized arguments: --nonsense"
