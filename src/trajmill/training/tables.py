"""Scores as tables: models by test sets, in Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

from trajmill.training.metrics import METRICS, Score

Scores = Mapping[tuple[str, ...], Mapping[str, Score]]
"""Every metric by what it is of: a model and a test set, and a group of frames where there are groups."""

Rows = Sequence[Sequence[str]]

Labels = Mapping[str, str]
"""What each metric is called."""

KEYS = ("model", "test set")

ENERGIES = {"energy": "", "energy_corrected": " of corrected energies"}
SHIFTED = {"none": "", "composition": ", a constant per element fitted"}
"""What errors of energies are of, and what was taken off them; tables say it, since it changes what they mean."""


def labels(energy: str, shift: str) -> Labels:
    """Say what each metric is, its unit, and how energies were held against each other."""
    return METRICS | {"energy_mae": f"energy MAE{ENERGIES[energy]}, meV/atom{SHIFTED[shift]}"}


def table(keys: Sequence[str], scores: Scores, labels: Labels) -> tuple[list[str], Rows]:
    """Return head and rows: a column for each key and for each metric with its interval."""
    rows = [[*its, *(shown(name, found[name]) for name in METRICS)] for its, found in scores.items()]
    return [*keys, *labels.values()], rows


def matrix(scores: Scores, metric: str) -> tuple[list[str], Rows]:
    """Return head and rows of one metric with its interval: models below each other, test sets beside each other."""
    models, tests = (list(dict.fromkeys(names)) for names in zip(*scores, strict=True))
    rows = [[model, *(shown(metric, scores[model, test][metric]) for test in tests)] for model in models]
    return ["model", *tests], rows


def markdown(head: Sequence[str], rows: Rows) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def latex(head: Sequence[str], rows: Rows, texts: int) -> str:
    """Write a LaTeX table, for the package booktabs; the first so many columns are text."""
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (head, *rows)]
    columns = "l" * texts + "r" * (len(head) - texts)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}", ""])


def comma_separated(keys: Sequence[str], scores: Scores, labels: Labels) -> str:
    """Write every number, in full: a row for each metric of each model and test set."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(key.replace(" ", "_") for key in keys), "metric", "value", "low", "high", "what"])
    for its, found in scores.items():
        for name, s in found.items():
            numbers = ("" if math.isnan(x) else repr(x) for x in (s.value, s.low, s.high))
            writer.writerow((*its, name, *numbers, labels[name]))
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[str], Scores, Labels], str]] = {
    "md": lambda keys, scores, labels: markdown(*table(keys, scores, labels)),
    "csv": comma_separated,
    "tex": lambda keys, scores, labels: latex(*table(keys, scores, labels), len(keys)),
}
"""By suffix of the file."""

MATRICES: dict[str, Callable[[Scores, Labels], str]] = {
    "md": lambda scores, labels: "\n".join(
        f"## {label}\n\n{markdown(*matrix(scores, name))}" for name, label in labels.items()
    ),
    "tex": lambda scores, labels: "\n".join(
        _captioned(label, latex(*matrix(scores, name), 1)) for name, label in labels.items()
    ),
}
"""By suffix of the file: a matrix for each metric, below each other. As CSV the numbers are in the table of scores."""


def shown(metric: str, s: Score) -> str:
    """Write a score with its interval, in digits that say something."""
    if math.isnan(s.value):
        return "-"
    digits = 3 if "cosine" in metric else 1
    interval = "" if math.isnan(s.low) else f" ({s.low:.{digits}f} to {s.high:.{digits}f})"
    return f"{s.value:.{digits}f}{interval}"


def _captioned(caption: str, tabular: str) -> str:
    return f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(caption)}}}\n{tabular}\\end{{table}}\n"


_SIGNS = str.maketrans(
    {sign: "\\" + sign for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
)


def _escaped(text: str) -> str:
    text = text.translate(_SIGNS).replace("|F| >", "$|F| >$")
    return re.sub(r"eV/A\b", r"eV/\\AA{}", text).replace(r"\AA{}\textasciicircum{}3", r"\AA$^3$")
