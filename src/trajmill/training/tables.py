"""Scores as tables: models by test sets, in Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence

from trajmill.training.metrics import METRICS, Score

Scores = Mapping[tuple[str, str], Mapping[str, Score]]
"""By model and test set, every metric."""


def rows_of(scores: Scores) -> list[list[str]]:
    """Return the table: a row for each model and test set, a column for each metric with its interval."""
    return [[model, test, *(_shown(name, found[name]) for name in METRICS)] for (model, test), found in scores.items()]


HEAD = ("model", "test set", *METRICS.values())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a LaTeX table, for the package booktabs."""
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (head, *rows)]
    body = [r"\begin{tabular}{ll" + "r" * (len(head) - 2) + "}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}", ""])


def comma_separated(scores: Scores) -> str:
    """Write every number, in full: a row for each model, test set and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "test_set", "metric", "value", "low", "high"))
    for (model, test), found in scores.items():
        for name, s in found.items():
            writer.writerow((model, test, name, *("" if math.isnan(x) else repr(x) for x in (s.value, s.low, s.high))))
    return out.getvalue()


FORMATS: dict[str, Callable[[Scores], str]] = {
    "md": lambda scores: markdown(HEAD, rows_of(scores)),
    "csv": comma_separated,
    "tex": lambda scores: latex(HEAD, rows_of(scores)),
}
"""By suffix of the file."""


def _shown(name: str, s: Score) -> str:
    if math.isnan(s.value):
        return "-"
    digits = 3 if "cosine" in name else 1
    interval = "" if math.isnan(s.low) else f" ({s.low:.{digits}f} to {s.high:.{digits}f})"
    return f"{s.value:.{digits}f}{interval}"


def _escaped(text: str) -> str:
    for sign in "\\&%$#_{}":
        text = text.replace(sign, "\\" + sign if sign != "\\" else r"\textbackslash ")
    return text.replace("|F| >", "$|F| >$").replace("^3", "$^3$").replace("/A", r"/\AA ")
