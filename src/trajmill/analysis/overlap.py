"""What sources have in common: compositions, and compositions with the space group that trajectories end in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from trajmill.analysis import style
from trajmill.analysis.base import Figure, Tables

if TYPE_CHECKING:
    from matplotlib import figure as drawn

KEYS = {"formula": "formula", "formula and space group": "formula, last_group"}
"""What is compared, as SQL."""

NUMBERS_SQL = " UNION ALL ".join(
    f"""
    SELECT '{name}' AS key, sources, count(*) AS distinct_keys, sum(n)::BIGINT AS trajectories
    FROM (
        SELECT string_agg(DISTINCT source, ' & ' ORDER BY source) AS sources, count(*) AS n
        FROM trajectories GROUP BY {columns}
    )
    GROUP BY ALL
    """
    for name, columns in KEYS.items()
) + " ORDER BY key, distinct_keys DESC, sources"  # fmt: skip

SHOWN = 12
"""Combinations of sources that are drawn, the largest."""


def _draw(tables: Tables) -> drawn.Figure:
    """Draw a row for each dataset: bars of each combination of sources over the dots that say which."""
    figure, grid = style.panels(
        2 * len(tables), 2, (4.2, 1.8), height_ratios=[3, 1.1] * len(tables), sharex=False
    )  # fmt: skip
    for i, (label, table) in enumerate(tables.items()):
        sources = sorted({s for text in table["sources"].to_pylist() for s in text.split(" & ")})
        for j, key in enumerate(KEYS):
            its = table.filter(pc.equal(table["key"], key)).slice(0, SHOWN)
            _draw_sets(grid[2 * i, j], grid[2 * i + 1, j], its, sources)
            grid[2 * i, j].set_ylabel("distinct ones")
            grid[2 * i, j].set_title(f"{label}\nby {key}" if len(tables) > 1 else f"by {key}")
    return figure


def _draw_sets(bars: Any, dots: Any, table: pa.Table, sources: list[str]) -> None:
    """Draw the bars and dots of one key."""
    counts = table["distinct_keys"].to_pylist()
    members = [text.split(" & ") for text in table["sources"].to_pylist()]
    drawn = bars.bar(range(len(counts)), counts, 0.6, color=style.PALETTE[0])
    for i, (bar, n, its) in enumerate(zip(drawn, counts, members, strict=True)):
        style.tip(bar, f"{' and '.join(its)}{' alone' * (len(its) == 1)}: {n:,}")
        bars.annotate(style.short(n), (i, n), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        rows = [sources.index(source) for source in its]
        dots.plot([i, i], [min(rows), max(rows)], color="black", linewidth=1.2)
        for row in range(len(sources)):
            dots.plot(i, row, "o", color="black" if row in rows else "#D5D5D5", markersize=5)
    width = max(len(counts), 4) - 0.4
    bars.set(yscale="log", xticks=[], xlim=(-0.6, width))
    bars.set_ylim(bottom=0.7, top=2.5 * max(counts, default=4))
    style.ticks(bars.yaxis, counts=True)
    dots.set(
        xticks=[], yticks=range(len(sources)), yticklabels=sources, xlim=(-0.6, width),
        ylim=(len(sources) - 0.5, -0.5),
    )  # fmt: skip
    dots.grid(visible=False)
    for spine in dots.spines.values():
        spine.set_visible(False)
    dots.tick_params("both", length=0)


FIGURE = Figure(
    "overlap", "What sources have in common", NUMBERS_SQL, _draw, ("chemical_formula_reduced",),
    note="Distinct reduced formulas, and formulas with the space group of the last frame, that exactly these sources "
    "have; of any functional.",
)  # fmt: skip
