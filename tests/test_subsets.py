"""Subsets: frames and balance as asked for, by whole trajectories."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill.converting import convert
from trajmill.errors import SplitError
from trajmill.subsets import LEMAT_TRAJ, draw, lemat_traj

ELEMENTS = ("Na", "Cl", "O", "Fe", "Al", "H", "Mg")
PREFIX = {"mp": "mp-", "alexandria": "agm", "oqmd": "oqmd-"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Some 5,000 frames: PBE of three sources, PBEsol of two, SCAN of MP."""
    rng = np.random.default_rng(0)
    wanted = [("mp", "pbe", 80), ("oqmd", "pbe", 200), ("alexandria", "pbe", 500), ("mp", "pbesol", 20)]
    wanted += [("alexandria", "pbesol", 100), ("mp", "scan", 25)]
    runs = []
    for source, functional, n in wanted:
        for i in range(n):
            n_frames = int(rng.integers(1, 3 if source == "oqmd" else 13))
            symbols = tuple(rng.choice(ELEMENTS, 2, replace=False))
            runs.append(
                make_trajectory(
                    f"{PREFIX[source]}{i}", n_frames=n_frames, symbols=symbols, functional=functional,
                    asset=f"{source}/{functional}.jsonl", energy_corrected=None,
                )
            )  # fmt: skip
    path = tmp_path_factory.mktemp("subsets") / "store"
    make_store(path, runs)
    return trajmill.open(path)


def frames_of(made, dataset):
    """Count frames by part, functional and source."""
    counts = Counter()
    part = {i: name for name in made.names for i in made[name].to_pylist()}
    for batch in dataset.batches(columns=["trajectory_id", "functional", "source"]):
        for row in batch.to_pylist():
            counts[part[row["trajectory_id"]], row["functional"], row["source"]] += 1
    return counts


def test_the_paper_s_balance(dataset):
    made = lemat_traj(dataset, train=600, test=100, seed=0)
    assert made.names == ("train", "test", "rest")
    counts = frames_of(made, dataset)
    assert [counts["test", "pbe", s] for s in LEMAT_TRAJ] == [10, 10, 80]
    assert [counts["train", "pbe", s] for s in LEMAT_TRAJ] == [60, 60, 480]
    pbesol = [counts["test", "pbesol", s] for s in ("mp", "alexandria")]
    assert pbesol == pytest.approx([11, 89], abs=2), "as far as a source has it"
    assert counts["rest", "scan", "mp"] == 0
    scan = [len(made.ids.filter(np.array([i.endswith("scan") for i in made.ids.to_pylist()]) & (made.part == k)))
            for k in range(2)]  # fmt: skip
    assert scan == [20, 5]
    # of PBEsol MP has but 20 trajectories, which may not add up
    assert all(note.startswith("mp, pbesol: ") for note in made.notes), made.notes
    assert (pbesol[0] != 11) == any("test has" in note for note in made.notes)


def test_as_much_as_the_balance_allows(dataset):
    counts = frames_of(lemat_traj(dataset, test=100), dataset)
    total = sum(n for (part, functional, _), n in counts.items() if functional == "pbe" and part != "rest")
    assert min(counts["rest", "pbe", source] for source in LEMAT_TRAJ) < 10, "one of them is used up"
    for source, share in LEMAT_TRAJ.items():
        there = sum(counts[part, "pbe", source] for part in ("train", "test"))
        assert there == pytest.approx(share * total, abs=3)


def test_elements_of_the_test_set_are_trained_on_and_in_proportion(dataset):
    dataset = dataset.filter('functional = "pbe"')
    made = lemat_traj(dataset, train=1000, test=200, seed=2)
    has = {name: Counter() for name in made.names}
    part = {i: name for name in made.names for i in made[name].to_pylist()}
    for batch in dataset.batches(columns=["trajectory_id", "elements"]):
        for row in batch.to_pylist():
            has[part[row["trajectory_id"]]].update(row["elements"])
    assert has["test"].keys() <= has["train"].keys()
    for element in ELEMENTS:
        ours, theirs = (has[name][element] / has[name].total() for name in ("train", "test"))
        assert ours == pytest.approx(theirs, abs=0.05)


def test_a_balance_of_one_s_own(dataset):
    made = draw(
        dataset.filter('functional = "pbe"'), {"train": 300, "dev": 60}, balance={"mp": 0.5, "oqmd": 0.5}, seed=3
    )
    counts = frames_of(made, dataset.filter('functional = "pbe"'))
    assert {key: n for key, n in counts.items() if key[0] != "rest"} == {
        ("train", "pbe", "mp"): 150, ("train", "pbe", "oqmd"): 150, ("dev", "pbe", "mp"): 30, ("dev", "pbe", "oqmd"): 30
    }  # fmt: skip
    assert made.digest != draw(dataset.filter('functional = "pbe"'), {"train": 300, "dev": 60}).digest
    assert made.rule["balance"] == {"mp": 0.5, "oqmd": 0.5}


def test_without_a_balance_sources_are_in_proportion(dataset):
    counts = frames_of(draw(dataset, {"train": 100}), dataset)
    all_of_them = sum(counts[part, "pbe", "mp"] for part in ("train", "rest"))
    pbe = sum(n for (_, functional, _), n in counts.items() if functional == "pbe")
    assert counts["train", "pbe", "mp"] == round(100 * all_of_them / pbe)


def test_the_published_columns_have_no_source(dataset, tmp_path):
    convert(dataset, tmp_path / "published.parquet", "lemat-traj")
    published = trajmill.open(tmp_path / "published.parquet")
    assert (
        lemat_traj(published, train=500, test=100, seed=1).digest
        == lemat_traj(dataset, train=500, test=100, seed=1).digest
    )


@pytest.mark.parametrize(
    ("frames", "balance", "reason"),
    [
        ({"train": 10**6}, None, "has .* frames with"),
        ({"train": 0}, None, "say 1 or more"),
        ({"rest": 1}, None, "a name other than rest"),
        ({"train": 1}, {"mp": 0.5}, "add up to 1"),
        ({"train": 1}, {"cod": 1.0}, "none of the sources cod; there are"),
    ],
)
def test_what_cannot_be_had_is_said(dataset, frames, balance, reason):
    with pytest.raises(SplitError, match=reason):
        draw(dataset, frames, balance=balance)


def test_too_few_for_the_preset(dataset):
    with pytest.raises(SplitError, match="in this balance, fewer than"):
        lemat_traj(dataset)
