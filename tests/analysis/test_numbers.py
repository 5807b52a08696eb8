"""Counts are those that Python and numpy come to, trajectory by trajectory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

import trajmill
from trajmill.analysis import FIGURES
from trajmill.analysis.base import Subject
from trajmill.analysis.files import subjects
from trajmill.analysis.numbers import count
from trajmill.analysis.space_groups import SYSTEMS
from trajmill.converting import convert
from trajmill.elements import SYMBOLS, composition, reduced_formula

SOURCES = {"agm": "alexandria", "oqm": "oqmd"}


def source_of(t):
    return t.source or SOURCES.get(t.trajectory_id[:3], "mp")


@pytest.fixture(params=["samples", "mixed", "published"], scope="module")
def found(request):
    """Trajectories of a dataset, and the numbers of its figures."""
    path = request.getfixturevalue(request.param)
    counts = count(subjects([path]), FIGURES)
    (label,) = counts.contents
    tables = {name: its[label] for name, its in counts.tables.items()}
    return list(trajmill.open(path).trajectories()), tables, counts.contents[label]


def as_counter(table, *keys):
    """Counts by their keys."""
    last = table.column_names[-1]
    return Counter({tuple(row[k] for k in keys): row[last] for row in table.to_pylist() if row[last]})


def spread(runs, values, per_decade):
    """Counts in bins of the logarithm, of a function that gives an array for each trajectory."""
    counted = Counter()
    for t in runs:
        for x in values(t):
            sign = "unknown" if not np.isfinite(x) else "zero" if x == 0 else "positive" if x > 0 else "negative"
            bin_ = int(np.floor(np.log10(abs(x)) * per_decade)) if sign in ("positive", "negative") else None
            counted[source_of(t), t.functional, sign, bin_] += 1
    return counted


def as_spread(table, per_decade):
    counted = Counter()
    for row in table.to_pylist():
        bin_ = None if row["low"] is None else round(np.log10(row["low"]) * per_decade)
        if bin_ is not None:
            assert row["high"] / row["low"] == pytest.approx(10 ** (1 / per_decade))
        *_, n = row.values()
        counted[row["source"], row["functional"], row["sign"], bin_] += n
    return counted


def test_contents(found):
    runs, _, contents = found
    frames = Counter()
    for t in runs:
        frames[source_of(t), t.functional] += len(t)
    assert as_counter(contents, "source", "functional") == frames
    assert sum(contents["trajectories"].to_pylist()) == len(runs)


def test_elements(found):
    runs, tables, _ = found
    by_hand = Counter((t.functional, SYMBOLS[z]) for t in runs for z in set(t.numbers.tolist()))
    assert as_counter(tables["elements"], "functional", "element") == by_hand


def test_max_force(found):
    runs, tables, _ = found
    by_hand = spread(runs, lambda t: np.linalg.norm(t.forces, axis=2).max(axis=1), 20)
    assert as_spread(tables["max_force"], 20) == by_hand
    assert set(tables["max_force"]["unit"].to_pylist()) == {"eV/A"}


def test_energy(found):
    runs, tables, _ = found
    assert as_spread(tables["energy"], 10) == spread(runs, lambda t: (t.energy - t.energy[-1]) / t.n_atoms, 10)


def test_stress(found):
    """Also of files in kBar with VASP's sign: those of `Trajectory` are converted."""
    runs, tables, _ = found
    by_hand = spread(runs, lambda t: np.trace(t.stress, axis1=1, axis2=2) / 3, 10)
    assert as_spread(tables["stress"], 10) == by_hand
    assert set(tables["stress"]["unit"].to_pylist()) == {"eV/A^3"}


def test_volume(found):
    runs, tables, _ = found

    def change(t):
        first, last = (abs(np.linalg.det(t.lattice[i])) for i in (0, -1))
        return [100 * (last / first - 1)]

    ours, by_hand = as_spread(tables["volume"], 10), spread([t for t in runs if len(t) > 1], change, 10)
    assert ours.total() == by_hand.total()
    large = {key for key in by_hand if key[3] is not None and key[3] > -80}  # below it is the rounding that differs
    assert {key: ours[key] for key in large} == {key: by_hand[key] for key in large}


def test_steps(found):
    runs, tables, _ = found
    by_hand = Counter()
    for t in runs:
        by_hand[source_of(t), t.functional, "all", len(t)] += 1
        for stage, n in Counter(t.relaxation_number.tolist()).items():
            by_hand[source_of(t), t.functional, str(stage), n] += 1
    assert as_counter(tables["steps"], "source", "functional", "stage", "frames") == by_hand


def test_sizes(found):
    runs, tables, _ = found
    by_hand = Counter()
    for t in runs:
        by_hand[source_of(t), t.functional, "sites", t.n_atoms] += 1
        by_hand[source_of(t), t.functional, "elements", len(set(t.numbers.tolist()))] += 1
    assert as_counter(tables["sizes"], "source", "functional", "quantity", "number") == by_hand


def test_space_groups(found):
    runs, tables, _ = found
    first, last = (Counter(int(t.space_group[i]) for t in runs) for i in (0, -1))
    both = Counter(int(t.space_group[0]) for t in runs if t.space_group[0] == t.space_group[-1])
    rows = tables["space_groups"].to_pylist()
    assert [row["space_group"] for row in rows] == list(range(231))
    for row in rows:
        g = row["space_group"]
        assert (row["first"], row["last"], row["both"]) == (first[g], last[g], both[g])
    assert {row["crystal_system"] for row in rows} == {*SYSTEMS, "unknown"}
    assert rows[62]["crystal_system"] == "orthorhombic"
    assert rows[225]["crystal_system"] == "cubic"


def test_overlap(found):
    runs, tables, _ = found
    for name, key_of in (
        ("formula", lambda t: reduced_formula(composition(t.symbols))),
        ("formula and space group", lambda t: (reduced_formula(composition(t.symbols)), int(t.space_group[-1]))),
    ):
        having, members = {}, Counter()
        for t in runs:
            having.setdefault(key_of(t), set()).add(source_of(t))
            members[key_of(t)] += 1
        distinct = Counter(" & ".join(sorted(s)) for s in having.values())
        trajectories = Counter()
        for key, sources in having.items():
            trajectories[" & ".join(sorted(sources))] += members[key]
        its = [row for row in tables["overlap"].to_pylist() if row["key"] == name]
        assert {row["sources"]: row["distinct_keys"] for row in its} == distinct
        assert {row["sources"]: row["trajectories"] for row in its} == trajectories


def test_a_part_of_a_dataset(mixed):
    """What a filter leaves out does not count; what was rejected of a part is not known."""
    dataset = trajmill.open(mixed).filter('source = "mp" AND nsites > 2')
    counts = count({"part": Subject(dataset)}, FIGURES)
    assert sum(counts.contents["part"]["frames"].to_pylist()) == len(dataset)
    assert list(counts.left_out) == ["curation"]
    assert "it is a part of a dataset" in counts.left_out["curation"]["part"]


def test_columns_that_are_not_there(published, tmp_path):
    """A figure is left out with a reason, the others are drawn."""
    (file,) = published.glob("compatible_pbe/*.parquet")
    pq.write_table(pq.read_table(file).drop(["stress_tensor", "space_group_it_number"]), tmp_path / "few.parquet")
    counts = count(subjects([tmp_path / "few.parquet"]), FIGURES)
    reasons = {name: its["few.parquet"] for name, its in counts.left_out.items()}
    assert reasons["stress"] == "there is no column stress_tensor"
    assert reasons["space_groups"] == "there is no column space_group_it_number"
    assert reasons.keys() == {"stress", "space_groups", "curation"}
    assert counts.tables.keys() == {figure.name for figure in FIGURES} - reasons.keys()


def test_nothing_is_left_on_the_disk(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    count(subjects([mixed]), FIGURES)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told(mixed, samples):
    told = []
    count(subjects([mixed, samples]), FIGURES[:1], report=lambda *its: told.append(its))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_somebody_elses_format(samples, tmp_path):
    """Rows that can be read only once."""
    dataset = trajmill.open(samples, source="alexandria")
    convert(dataset, tmp_path / "frames.extxyz", "extxyz")
    ours, theirs = (count({"x": Subject(d)}, FIGURES) for d in (dataset, trajmill.open(tmp_path / "frames.extxyz")))
    assert set(theirs.contents["x"]["source"].to_pylist()) == {"extxyz"}
    assert sum(theirs.contents["x"]["frames"].to_pylist()) == len(dataset)
    for name, keys in (("sizes", ["quantity", "number"]), ("stress", ["sign"]), ("elements", ["element"])):
        both = [counts.tables[name]["x"] for counts in (ours, theirs)]
        last = both[0].column_names[-1]
        order = [(key, "ascending") for key in keys]
        by_key = [table.group_by(keys).aggregate([(last, "sum")]).sort_by(order) for table in both]
        assert by_key[0].equals(by_key[1]), name
