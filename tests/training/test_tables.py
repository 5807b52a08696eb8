"""What tables say of the numbers in them."""

from __future__ import annotations

import csv

import pytest

from trajmill.training.metrics import METRICS, Score
from trajmill.training.tables import FORMATS, KEYS, MATRICES, labels

SCORES = {("model", test): {name: Score(1.0, 0.5, 2.0) for name in METRICS} for test in ("this", "that")}


@pytest.mark.parametrize(
    ("energy", "shift", "said"),
    [
        ("energy", "none", "energy MAE, meV/atom"),
        ("energy", "composition", "energy MAE, meV/atom, a constant per element fitted"),
        ("energy_corrected", "none", "energy MAE of corrected energies, meV/atom"),
    ],
)
def test_they_say_how_energies_were_held_against_each_other(energy, shift, said):
    called = labels(energy, shift)
    assert f"| {said} |" in FORMATS["md"](KEYS, SCORES, called)
    assert f"## {said}\n" in MATRICES["md"](SCORES, called)
    assert said in FORMATS["tex"](KEYS, SCORES, called)
    assert rf"\caption{{{said}}}" in MATRICES["tex"](SCORES, called)
    rows = list(csv.DictReader(FORMATS["csv"](KEYS, SCORES, called).splitlines()))
    assert {row["what"] for row in rows if row["metric"] == "energy_mae"} == {said}
    assert {row["what"] for row in rows if row["metric"] == "force_cosine"} == {"force cosine"}
