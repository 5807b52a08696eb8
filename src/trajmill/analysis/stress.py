"""How much the cells of frames are under tension or compression."""

from __future__ import annotations

from functools import partial

from trajmill.analysis.base import Figure
from trajmill.analysis.spread import draw_log, log_counts
from trajmill.units import KBAR_PER_EV_PER_A3

GPA_PER_EV_PER_A3 = KBAR_PER_EV_PER_A3 / 10

FIGURE = Figure(
    "stress",
    "Mean normal stress of each frame",
    log_counts("stress", "frames", "eV/A^3", 10, "frames"),
    partial(
        draw_log,
        counted="frames",
        label="tension",
        negative="compression",
        unit="eV/Å³",
        second=(GPA_PER_EV_PER_A3, "(GPa)"),
        lowest=1e-7,
    ),
    ("stress_tensor",),
    note="A third of the trace. ASE's sign: positive under tension. Stress in kBar with VASP's sign is converted.",
)
