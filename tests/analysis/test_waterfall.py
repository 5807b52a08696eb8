"""The waterfall is what the rejections of a store add up to."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from trajmill.analysis.base import NoFigureError, Subject
from trajmill.analysis.files import subjects
from trajmill.analysis.waterfall import FIGURE, KEPT, ORDER, READ, numbers
from trajmill.dataset import Dataset
from trajmill.recipe import load
from trajmill.releases.hugging_face import MANIFEST, release
from trajmill.stores import open_store


def table_of(path):
    return numbers(Subject(Dataset(path), path))


def by_source(table):
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["source"], {})[row["step"]] = row["frames"]
    return found


@pytest.mark.parametrize("name", ["samples", "mixed"])
def test_store(name, request):
    """Against the rows of frames and rejections themselves."""
    path = request.getfixturevalue(name)
    store = open_store(path)
    by_hand = {}
    for role in ("frame", "input", "rejection"):
        for batch in store.read(role, columns=["source", "rejected_by", "n_frames"]):
            for row in batch.to_pylist():
                its = by_hand.setdefault(row["source"], Counter())
                n = 1 if role != "rejection" else row["n_frames"] or 0
                its[KEPT if role != "rejection" else row["rejected_by"]] += n if role != "rejection" else -n
                its[READ] += n
    found = by_source(table_of(path))
    assert found.keys() == by_hand.keys()
    for source, steps in found.items():
        assert {step: n for step, n in steps.items() if n} == {step: n for step, n in by_hand[source].items() if n}
        assert sum(n for step, n in steps.items() if step != KEPT) == steps[KEPT]
        rules = [step for step in steps if step not in (READ, KEPT)]
        assert rules == sorted(rules, key=ORDER.index)


def test_release(samples, tmp_path):
    out = tmp_path / "release"
    release(open_store(samples), out, load())
    manifest = json.loads((out / MANIFEST).read_text())
    ((name, steps),) = by_source(table_of(out)).items()
    assert name == "all sources"
    assert steps[READ] == manifest["read"]["frames"]
    assert steps[KEPT] == sum(manifest["frames"].values())
    assert sum(n for step, n in steps.items() if step != KEPT) == steps[KEPT]
    for rule, n in manifest["rejected_at_release"].items():
        assert steps[rule] == -n


def test_frames_that_went_missing_show(samples, tmp_path):
    out = tmp_path / "release"
    release(open_store(samples), out, load())
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["read"]["frames"] += 1
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(NoFigureError, match="frames read, but"):
        table_of(out)


def test_files_that_know_nothing(published):
    with pytest.raises(NoFigureError, match="stands in a store or in a release"):
        table_of(next(published.glob("compatible_pbe/*.parquet")))


def test_a_part_of_a_store(samples):
    (subject,) = subjects([f"{samples}?source=mp"]).values()
    with pytest.raises(NoFigureError, match="it is a part of a dataset"):
        numbers(subject)


def test_bars_hang_from_what_was_left(mixed):
    table = table_of(mixed)
    figure = FIGURE.draw({"mixed": table})
    for panel in figure.axes[: len(by_source(table))]:
        steps = by_source(table)[panel.get_title()]
        read, *rules, kept = panel.patches
        assert read.get_width() == steps[READ]
        assert kept.get_width() == steps[KEPT]
        left = read.get_width()
        for bar in rules:
            assert bar.get_x() + max(bar.get_width(), 0) == left
            left += bar.get_width()
        assert left == kept.get_width()
