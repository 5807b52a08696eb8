"""Splits: what they promise, for any data; how they are kept and applied."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import SplitError
from trajmill.splits import GROUPS, Split, _whole_numbers, deal, split

PARTS = {"train": 0.8, "val": 0.1, "test": 0.1}
ELEMENTS = ("Na", "Cl", "O", "Fe", "Al", "H")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """60 trajectories of 20 materials, one of them with the only hydrogen."""
    rng = np.random.default_rng(0)
    runs = []
    for i in range(60):
        symbols = tuple(rng.choice(ELEMENTS[:5], 2, replace=False)) if i else ("H", "O")
        runs.append(make_trajectory(f"mp-{i}", n_frames=1 + i % 3, symbols=symbols, immutable_id=f"mp-{i // 3}"))
    path = tmp_path_factory.mktemp("split") / "store"
    make_store(path, runs)
    return trajmill.open(path)


def facts(dataset):
    columns = ["trajectory_id", "immutable_id", "chemical_formula_reduced", "elements", "chemical_formula_anonymous"]
    columns += ["space_group_it_number"]
    return {row["trajectory_id"]: row for batch in dataset.batches(columns=columns) for row in batch.to_pylist()}


@pytest.mark.parametrize("seed", range(3))
def test_fractions_are_exact_and_every_trajectory_is_in_one_part(dataset, seed):
    made = split(dataset, PARTS, seed=seed)
    assert [len(made[name]) for name in PARTS] == [48, 6, 6]
    assert sorted(i for name in PARTS for i in made[name].to_pylist()) == sorted(facts(dataset))


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("material", lambda row: row["immutable_id"]),
        ("formula", lambda row: row["chemical_formula_reduced"]),
        ("chemical_system", lambda row: tuple(row["elements"])),
        ("prototype", lambda row: (row["chemical_formula_anonymous"], row["space_group_it_number"])),
    ],
)
def test_no_group_is_on_two_sides(dataset, by, key):
    if by == "prototype":  # there is but one
        with pytest.raises(SplitError, match="1 groups by prototype cannot make 3 parts"):
            split(dataset, PARTS, by=by)
        return
    made, rows = split(dataset, PARTS, by=by), facts(dataset)
    sides = {name: {key(rows[i]) for i in made[name].to_pylist()} for name in PARTS}
    assert all(sides.values())
    assert not any(sides[a] & sides[b] for a in PARTS for b in PARTS if a < b)


@pytest.mark.parametrize("by", ["trajectory", "material"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_tested_was_trained_on(dataset, by, seed):
    made, rows = split(dataset, PARTS, by=by, seed=seed), facts(dataset)
    has = {name: {e for i in made[name].to_pylist() for e in rows[i]["elements"]} for name in PARTS}
    assert "H" in has["train"]
    assert has["val"] | has["test"] <= has["train"]


def test_the_same_seed_gives_the_same_split_another_one_another(dataset):
    first = split(dataset, PARTS, seed=1)
    assert split(dataset, PARTS, seed=1).digest == first.digest
    assert split(dataset, PARTS, seed=2).digest != first.digest


def lists(rows):
    return pa.array(rows, pa.list_(pa.string()))


@st.composite
def problems(draw):
    n_groups = draw(st.integers(3, 40))
    n = draw(st.integers(n_groups, 3 * n_groups))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    groups = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, n - n_groups)])
    of_group = [
        sorted(rng.choice(list("ABCDEFGHIJ"), rng.integers(1, 4), replace=False).tolist()) for _ in range(n_groups)
    ]
    shares = np.array(draw(st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (0.34, 0.33, 0.33), (1.0,), (0.9, 0.1)])))
    return groups, n_groups, lists([of_group[g] for g in groups]), shares


def dealt(groups, n_groups, elements, shares, names, seed):
    weight = np.bincount(groups, minlength=n_groups)
    rng = np.random.default_rng(seed)
    return deal(np.asarray(groups), weight, elements, _whole_numbers(shares * weight.sum()), names, rng)


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(0, 1000))
def test_guarantees(problem, seed):
    groups, n_groups, elements, shares = problem
    names = tuple("train val test".split()[: len(shares)])
    part, notes = dealt(groups, n_groups, elements, shares, names, seed)
    assert part.shape == (n_groups,)
    assert set(part.tolist()) <= set(range(len(shares)))
    has = [set() for _ in shares]
    for group, its in zip(groups, elements.to_pylist(), strict=True):
        has[part[group]] |= set(its)
    assert all(its <= has[0] for its in has)
    if n_groups == len(groups) and not notes:  # without groups the numbers are exact
        counts = np.bincount(part, minlength=len(shares))
        assert np.abs(counts - shares * len(groups)).max() < 1


def test_many_trajectories_have_each_element_in_proportion():
    """1e5 trajectories; the rarest of 80 elements is in 150 of them."""
    n, rng = 100_000, np.random.default_rng(0)
    weights = 1 / np.arange(1, 81) ** 1.2
    drawn = rng.choice(80, 3 * n, p=weights / weights.sum()).astype(np.int32)
    names = pa.DictionaryArray.from_arrays(pa.array(drawn), pa.array([f"E{i}" for i in range(80)])).cast(pa.string())
    elements = pa.ListArray.from_arrays(pa.array(np.arange(0, 3 * n + 1, 3, dtype=np.int32)), names)
    shares = np.array([0.8, 0.1, 0.1])
    part, notes = dealt(np.arange(n), n, elements, shares, tuple(PARTS), 0)
    assert notes == ()
    assert np.bincount(part).tolist() == [80_000, 10_000, 10_000]
    owner = np.repeat(part, 3)
    for element in range(80):
        there = np.bincount(owner[drawn == element], minlength=3)
        np.testing.assert_allclose(there / there.sum(), shares, atol=0.03)


def test_why_a_part_is_short_is_said():
    """Both groups of the only X are needed: as large as no other."""
    groups = np.array([0, 1, 2, 3, 4, 4, 4])
    elements = lists([["A"], ["A"], ["A"], ["A"], *[["A", "X"]] * 3])
    for seed in range(20):
        part, notes = dealt(groups, 5, elements, np.array([0.57, 0.43]), ("train", "test"), seed)
        assert part[4] == 0
        assert all(note == "test is 3 trajectories short, so that train has X" for note in notes)


# --- kept and applied


def test_saved_and_loaded_it_is_the_same(dataset, tmp_path):
    made = split(dataset, PARTS, by="material", seed=3)
    made.save(tmp_path / "split.parquet")
    again = Split.load(tmp_path / "split.parquet")
    assert (again.digest, again.rule, again.names) == (made.digest, made.rule, made.names)
    assert again.rule == {"fractions": PARTS, "by": "material", "stratify": True, "seed": 3}
    assert all(again[name].equals(made[name]) for name in PARTS)
    table = pq.read_table(tmp_path / "split.parquet")
    assert Counter(table["split"].to_pylist()) == {name: len(made[name]) for name in PARTS}


def test_parts_of_the_dataset(dataset):
    made = split(dataset, PARTS)
    parts = {name: made.of(dataset, name) for name in PARTS}
    assert sum(map(len, parts.values())) == len(dataset)
    for name, part in parts.items():
        assert part.trajectory_ids().equals(made[name])
    assert len(made.of(dataset.filter('elements HAS "H"'), "train")) == 1


def test_it_is_not_for_other_data(dataset, tmp_path):
    made = split(dataset.filter('elements HAS "Na"'), PARTS)
    with pytest.raises(
        SplitError, match=r"trajectories are not in this split, such as mp-.*it was made for other data"
    ):
        made.of(dataset, "train")
    with pytest.raises(SplitError, match="no part dev; there are train, val, test"):
        made["dev"]


@pytest.mark.parametrize("what", ["other", "empty", "changed", "missing"])
def test_what_is_no_split_is_said_in_one_line(dataset, tmp_path, what):
    path = tmp_path / "split.parquet"
    made = split(dataset, PARTS)
    made.save(path)
    if what == "other":
        pq.write_table(pa.table({"x": [1]}), path)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "changed":
        table = pq.read_table(path)
        pq.write_table(table.set_column(1, "split", pa.array(["train"] * 60)), path)
    else:
        path.unlink()
    with pytest.raises(SplitError) as caught:
        Split.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fractions", "by", "message"),
    [
        ({}, "trajectory", "positive and to add up to 1"),
        ({"a": 0.5, "b": 0.4}, "trajectory", "positive and to add up to 1"),
        ({"a": 1.5, "b": -0.5}, "trajectory", "positive and to add up to 1"),
        (PARTS, "colour", f"no groups by colour; there are {', '.join(GROUPS)}"),
    ],
)
def test_what_makes_no_sense_is_said(dataset, fractions, by, message):
    with pytest.raises(SplitError) as caught:
        split(dataset, fractions, by=by)
    assert message in str(caught.value)


def test_nothing_to_split(dataset):
    with pytest.raises(SplitError, match="0 groups"):
        split(dataset.filter("nsites > 100"), PARTS)


def test_the_manifest_says_how_it_was_made(dataset, tmp_path):
    split(dataset, PARTS, seed=5).save(tmp_path / "s.parquet")
    about = json.loads(pq.read_schema(tmp_path / "s.parquet").metadata[b"trajmill.split"])
    assert about["rule"]["seed"] == 5
    assert len(about["digest"]) == 64


def test_parts_of_some_trajectories(dataset):
    made = split(dataset, PARTS)
    assert made.parts_of(made["val"]).tolist() == [1] * len(made["val"])
    asked = pa.chunked_array([["nobody", made["test"][0].as_py()], [made["train"][0].as_py(), "zzz"]])
    assert made.parts_of(asked).tolist() == [-1, 2, 0, -1]
