"""A figure of how trainings went: errors on the validation set, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trajmill.analysis import style
from trajmill.analysis.files import write
from trajmill.errors import require
from trajmill.training.tasks import Epoch
from trajmill.trajectory import FloatArray

PANELS = {
    "loss": ("loss (of each stage its own)", 1.0),
    "energy_mae": ("energy MAE (meV/atom)", 1000.0),
    "force_mae": ("force MAE (meV/Å)", 1000.0),
    "stress_mae": ("stress MAE (meV/Å³)", 1000.0),
}
"""What is drawn: its name and what it is multiplied by."""


def curves(trainings: Mapping[str, Sequence[Epoch]], out: Path) -> list[Path]:
    """Draw validation errors over epochs, a line for each training.

    Args:
        trainings: by name, epoch by epoch.
        out: folder; `curves.png` and `curves.svg` are made.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `figures`).
        FigureError: the files cannot be written.
    """
    with style.applied():
        figure, (row,) = style.panels(1, len(PANELS), (3.2, 2.8))
        whole = require("matplotlib.ticker", extra="figures").MaxNLocator(integer=True)
        colours, dashes = style.colours(len(trainings)), style.dashes(len(trainings))
        for panel, (what, (label, factor)) in zip(row, PANELS.items(), strict=True):
            for (name, epochs), colour, dash in zip(trainings.items(), colours, dashes, strict=True):
                x, y = _line(epochs, what)
                panel.plot(x, factor * y, color=colour, linestyle=dash, marker=".", label=name)
            panel.set(xlabel="epoch", ylabel=label, yscale="log")
            panel.xaxis.set_major_locator(whole)
            style.ticks(panel.yaxis)
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle("Validation")
    made = [out / "curves.png", out / "curves.svg"]
    write(made[0], style.to_png(figure))
    write(made[1], style.to_svg(figure).encode())
    return made


def _line(epochs: Sequence[Epoch], what: str) -> tuple[FloatArray, FloatArray]:
    """Return epochs and what is drawn of them; a line of losses has a gap where a stage with another loss begins."""
    after = [e for e in epochs if e.epoch is not None]
    points = [(float(e.epoch or 0), getattr(e, what)) for e in after]
    if what == "loss":
        begins = next((i for i, e in enumerate(after) if e.stage == 2), 0)
        points.insert(begins, (points[begins][0] if points else 0.0, None))
    x, y = np.array(points, float).T.reshape(2, -1)  # None is NaN: a gap
    return x, y
