"""How far the energies of frames are above those that their trajectories end with."""

from __future__ import annotations

from functools import partial

from trajmill.analysis.base import Figure
from trajmill.analysis.spread import draw_log, log_counts

FIGURE = Figure(
    "energy",
    "Energy above the final frame",
    log_counts("above_final", "energies", "eV/atom", 10, "frames"),
    partial(
        draw_log,
        counted="frames",
        label="above",
        negative="below",
        unit="eV/atom",
        zero="at the last frame's energy",
        lowest=1e-7,
    ),
    ("energy", "nsites"),
    note="The last frame that is in the dataset; the bases of two stages differ, so that earlier stages may lie below.",
)
