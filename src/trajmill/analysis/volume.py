"""How much the volume of the cell changes from the first frame of a trajectory to its last."""

from __future__ import annotations

from functools import partial

from trajmill.analysis.base import Figure
from trajmill.analysis.spread import draw_log, log_counts

FIGURE = Figure(
    "volume",
    "Change of volume from the first frame of a trajectory to the last",
    log_counts(
        "100 * (last_volume / first_volume - 1)", "(FROM trajectories WHERE frames > 1)", "%", 10, "trajectories"
    ),
    partial(
        draw_log,
        counted="trajectories",
        label="larger",
        negative="smaller",
        unit="%",
        zero="unchanged",
        lowest=1e-4,
    ),
    ("lattice_vectors",),
    note="Trajectories of more than one frame; what was rejected before the first frame is not seen.",
)
