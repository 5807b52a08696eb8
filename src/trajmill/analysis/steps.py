"""How many frames the stages of relaxations have, and relaxations in all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from trajmill.analysis import style
from trajmill.analysis.base import Figure, Tables, total
from trajmill.analysis.spread import per_number

if TYPE_CHECKING:
    from matplotlib import figure as drawn

ALL = "all"
"""The stage that stands for whole trajectories."""

NUMBERS_SQL = f"""
SELECT source, functional, stage::VARCHAR AS stage, frames, count(*) AS runs FROM stages GROUP BY ALL
UNION ALL
SELECT source, functional, '{ALL}' AS stage, frames, count(*) AS runs FROM trajectories GROUP BY ALL
ORDER BY ALL
"""

SHOWN = 4
"""Stages that are drawn one by one, the first ones; later ones are drawn as one."""


def _draw(tables: Tables) -> drawn.Figure:
    """Draw a panel for each dataset: a line for each stage, one for whole trajectories."""
    n_columns = min(2, len(tables))
    n_rows = -(-len(tables) // n_columns)
    figure, grid = style.panels(n_rows, n_columns, (6.3 if n_columns == 1 else 5.0, 3.6), sharex=True)
    for panel in grid.flat[len(tables) :]:
        panel.set_axis_off()
    for panel, (label, table) in zip(grid.flat, tables.items(), strict=False):
        panel.set(xscale="log", yscale="log", xlabel="frames", ylabel="runs per number of frames")
        for (stage, its), colour in zip(_by_stage(table), (*style.PALETTE[: SHOWN + 1], "black"), strict=False):
            whole = stage == ALL
            edges, density = per_number(its["frames"].to_pylist(), its["runs"].to_pylist())
            n_frames = pc.sum(pc.multiply(its["frames"], its["runs"])).as_py()
            called = "trajectories" if whole else f"stage {stage}"
            panel.stairs(
                density, edges, baseline=None, label=f"{called}: {total(its, 'runs'):,} with {n_frames:,} frames",
                color="black" if whole else colour, linewidth=1.0 if whole else 1.6, linestyle=":" if whole else "-",
                zorder=3 if whole else 2,
            )  # fmt: skip
        panel.legend(loc="upper right")
        panel.tick_params("x", labelbottom=True)
        panel.set_ylim(top=panel.get_ylim()[1] * 10)  # room for the legend
        style.ticks(panel.xaxis, counts=True)
        style.ticks(panel.yaxis)
        if len(tables) > 1:
            panel.set_title(label)
    return figure


def _by_stage(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """Return the rows of each stage that is drawn, those of whole trajectories last."""
    stages = sorted({int(s) for s in pc.unique(table["stage"]).to_pylist() if s != ALL})
    found = [(str(s), table.filter(pc.equal(table["stage"], str(s)))) for s in stages[:SHOWN]]
    if later := [str(s) for s in stages[SHOWN:]]:
        found.append((f"{later[0]} and later", table.filter(pc.is_in(table["stage"], pa.array(later)))))
    return [*found, (ALL, table.filter(pc.equal(table["stage"], ALL)))]


FIGURE = Figure(
    "steps", "Frames of each stage of a relaxation, and of trajectories", NUMBERS_SQL, _draw,
    note="Frames that are in the dataset; a stage is a calculation of the run, numbered from 0.",
)  # fmt: skip
