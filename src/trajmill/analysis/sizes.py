"""How many sites and how many elements cells have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from trajmill.analysis import style
from trajmill.analysis.base import Figure, Tables, lines, totals
from trajmill.analysis.spread import per_number

if TYPE_CHECKING:
    from matplotlib import figure as drawn

NUMBERS_SQL = """
SELECT source, functional, 'sites' AS quantity, sites AS number, count(*) AS trajectories
FROM trajectories GROUP BY ALL
UNION ALL
SELECT source, functional, 'elements' AS quantity, len(regexp_extract_all(formula, '[A-Z][a-z]?'))::INTEGER AS number,
       count(*) AS trajectories
FROM trajectories GROUP BY ALL
ORDER BY ALL
"""


def _draw(tables: Tables) -> drawn.Figure:
    """Draw sites on the left, elements on the right."""
    figure, ((left, right),) = style.panels(1, 2, (3.6, 3.2))
    its = lines(tables)
    for line in its:
        counts = _counts(line.table, "sites")
        edges, density = per_number(list(counts), list(counts.values()))
        steps = left.stairs(density, edges, color=line.colour, linestyle=line.dash, baseline=None)
        style.belongs(steps, line.label)
    left.set(xscale="log", yscale="log", xlabel="sites in the cell", ylabel="trajectories per number of sites")
    style.ticks(left.xaxis, counts=True)
    style.ticks(left.yaxis)
    width = 0.8 / len(its)
    for i, line in enumerate(its):
        counts = _counts(line.table, "elements")
        places = np.array(list(counts)) + (i - (len(its) - 1) / 2) * width
        bars = right.bar(places, list(counts.values()), width, color=line.colour, label=line.label)
        for bar, (number, n) in zip(bars, counts.items(), strict=True):
            style.tip(bar, f"{line.label}, {number} elements: {n:,} trajectories")
    right.set(yscale="log", xlabel="elements in the cell", ylabel="trajectories")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.grid(axis="x", visible=False)
    right.set_ylim(bottom=0.7)
    style.ticks(right.yaxis, counts=True)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(its)))
    return figure


def _counts(table: Any, quantity: str) -> dict[int, int]:
    """Return trajectories by the number of sites or elements."""
    its = totals(table.filter(pc.equal(table["quantity"], quantity)), "number", "trajectories")
    return {int(str(number)): n for number, n in its.items() if number is not None}


FIGURE = Figure(
    "sizes", "Sites and elements of the cells", NUMBERS_SQL, _draw, ("nsites", "chemical_formula_reduced")
)  # fmt: skip
