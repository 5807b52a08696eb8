"""Trajectories per element, as periodic tables, one for each functional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from trajmill.analysis import style
from trajmill.analysis.base import Figure, Tables, totals
from trajmill.elements import NUMBERS
from trajmill.errors import require

if TYPE_CHECKING:
    from matplotlib import figure as drawn

NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)
"""Atomic numbers that periods end with."""

ORDER = ("pbe", "pbesol", "scan", "r2scan")
"""Functionals as they are shown."""

NUMBERS_SQL = """
SELECT functional, element, count(*) AS trajectories
FROM (SELECT functional, unnest(regexp_extract_all(formula, '[A-Z][a-z]?')) AS element FROM trajectories)
GROUP BY ALL ORDER BY ALL
"""


def place(number: int) -> tuple[float, int]:
    """Return row and group of an element, from 1; lanthanides and actinides lie below the others."""
    period = next(i for i, last in enumerate(NOBLE) if number <= last)
    column, length = number - NOBLE[period - 1], NOBLE[period] - NOBLE[period - 1]
    if length == 32 and 3 <= column <= 17:
        return period + 2.4, column
    if column <= 2 and number != 2:
        return period, column
    return period, column + 18 - length


def _draw(tables: Tables) -> drawn.Figure:
    """Draw a periodic table for each dataset and functional that it has, two in a row."""
    there = {name for table in tables.values() for name in table["functional"].to_pylist()}
    functionals = [*(name for name in ORDER if name in there), *sorted(there - {*ORDER})] or [ORDER[0]]
    has = {label: set(table["functional"].to_pylist()) or {functionals[0]} for label, table in tables.items()}
    shown = [(label, functional) for label in tables for functional in functionals if functional in has[label]]
    figure, grid = periodic_tables(len(shown))
    highest = max((n for t in tables.values() for n in t["trajectories"].to_pylist()), default=1)
    scale = require("matplotlib.colors", extra="figures").LogNorm(1, max(highest, 10))
    colours = require("matplotlib", extra="figures").colormaps[style.HEAT]
    for panel, (label, functional) in zip(grid.flat, shown, strict=False):
        its = tables[label].filter(pc.equal(tables[label]["functional"], functional))
        counts = {str(element): n for element, n in totals(its, "element", "trajectories").items()}
        texts = {e: (style.short(n), f"{n:,} trajectories") for e, n in counts.items()}
        draw_table(panel, counts, texts, scale, colours)
        panel.set_title(f"{label}: {functional}" if len(tables) > 1 else functional)
    mappable = require("matplotlib.cm", extra="figures").ScalarMappable(scale, colours)
    figure.colorbar(mappable, ax=grid, label="trajectories with the element", shrink=0.8, aspect=30, pad=0.01)
    return figure


def periodic_tables(n: int) -> tuple[drawn.Figure, Any]:
    """Return a figure with room for so many periodic tables, two in a row, and its panels."""
    n_columns = min(2, n)
    figure, grid = style.panels(-(-n // n_columns), n_columns, (6.6, 3.5) if n_columns == 1 else (5.4, 3.0))
    for panel in grid.flat[n:]:
        panel.set_axis_off()
    return figure, grid


def draw_table(
    panel: Any, values: Mapping[str, float], texts: Mapping[str, tuple[str, str]], scale: Any, colours: Any
) -> None:
    """Draw one periodic table.

    Args:
        panel: axes of matplotlib.
        values: by element; those of elements that are not there, or 0, are shown as none.
        texts: by element, what is written in its cell, and what is shown when it is pointed at.
        scale: of matplotlib, from values to what colours are for.
        colours: map of matplotlib.
    """
    rectangle = require("matplotlib.patches", extra="figures").Rectangle
    for element, number in NUMBERS.items():
        row, column = place(number)
        value = values.get(element, 0)
        colour = colours(scale(value)) if value else style.NOTHING
        written, tip = texts.get(element, ("", "none"))
        cell = panel.add_patch(rectangle((column, row), 0.94, 0.94, facecolor=colour, linewidth=0))
        style.tip(cell, f"{element}: {tip}")
        ink = "#999999" if not value else "white" if scale(value) < 0.55 else "black"
        how = {"ha": "center", "va": "center", "color": ink}
        panel.text(column + 0.47, row + (0.36 if value else 0.5), element, fontsize=6.2, **how)
        if value:
            panel.text(column + 0.47, row + 0.72, written, fontsize=4.2, **how)
    for artist in (*panel.texts, *panel.patches):
        artist.set_in_layout(False)  # they are within the panel, and measuring them takes seconds
    panel.set(xlim=(0.9, 19.05), ylim=(10.5, 0.9), aspect="equal")
    panel.set_axis_off()


FIGURE = Figure(
    "elements", "Trajectories by element and functional", NUMBERS_SQL, _draw, ("chemical_formula_reduced",),
    note="A trajectory counts once for each element of its cell.",
)  # fmt: skip
