"""How large the largest force of a frame is."""

from __future__ import annotations

from functools import partial

from trajmill.analysis.base import Figure
from trajmill.analysis.spread import draw_log, log_counts

FIGURE = Figure(
    "max_force",
    "Largest force on an atom of each frame",
    log_counts("max_force", "frames", "eV/A", 20, "frames"),
    partial(draw_log, counted="frames", label="largest norm of a force in the frame", unit="eV/Å", lowest=1e-6),
    ("forces",),
    note="Norms of forces as computed; forces of exactly 0 are those that symmetry forces, or frames of one atom.",
)
