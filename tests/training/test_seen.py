"""What a training set has seen of a test set."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import ModelError
from trajmill.training.seen import find_seen


@pytest.fixture
def sets(tmp_path):
    """A training set and a test set: a run of both, one of the same structure, one of another."""

    def run(name, *symbols, **changes):
        return make_trajectory(name, symbols=symbols, immutable_id=name, **changes)

    other = {"asset": "alexandria/a.json.bz2", "source": "alexandria"}
    make_store(tmp_path / "train", [run("mp-1", "Na", "Cl"), run("mp-2", "Fe", "O")])
    make_store(tmp_path / "test", [run("mp-1", "Na", "Cl"), run("agm1", "Fe", "O", **other), run("mp-3", "Ni", "S")])
    return trajmill.open(tmp_path / "train"), trajmill.open(tmp_path / "test")


def test_runs_materials_and_structures(sets, tmp_path):
    told = []
    seen = find_seen(*sets, tmp_path / "seen.parquet", lambda *how_far: told.append(how_far))
    rows = [tuple(row.values()) for row in pq.read_table(tmp_path / "seen.parquet").to_pylist()]
    assert rows == [
        ("mp-1-pbe", "material", "mp-1-pbe"),
        ("mp-1-pbe", "trajectory", "mp-1-pbe"),
        ("agm1-pbe", "structure", "mp-2-pbe"),
        ("mp-1-pbe", "structure", "mp-1-pbe"),
    ]
    assert seen == {"mp-1-pbe", "agm1-pbe"}
    assert told[-1][0] == told[-1][1] > 0


def test_what_was_found_is_not_looked_for_again(sets, tmp_path):
    seen = find_seen(*sets, tmp_path / "seen.parquet")
    before = (tmp_path / "seen.parquet").stat().st_mtime_ns
    assert find_seen(None, None, tmp_path / "seen.parquet") == seen
    assert (tmp_path / "seen.parquet").stat().st_mtime_ns == before


def test_nothing_is_seen(sets, tmp_path):
    train, test = sets
    assert find_seen(train, test.only(["mp-3-pbe"]), tmp_path / "seen.parquet") == set()


def test_a_place_that_is_none(sets, tmp_path):
    with pytest.raises(ModelError, match="cannot be written"):
        find_seen(*sets, tmp_path / "nowhere/seen.parquet")
