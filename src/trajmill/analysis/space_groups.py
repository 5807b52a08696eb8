"""Space groups that trajectories end in, and how many begin in the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajmill.analysis import style
from trajmill.analysis.base import Figure, Tables

if TYPE_CHECKING:
    from matplotlib import figure as drawn

SYSTEMS = {
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
}
"""The last space group of each crystal system."""

_SYSTEM = " ".join(f"WHEN space_group <= {last} THEN '{system}'" for system, last in SYSTEMS.items())

NUMBERS_SQL = f"""
SELECT space_group, CASE WHEN space_group = 0 THEN 'unknown' {_SYSTEM} END AS crystal_system,
       coalesce(sum(at_first), 0)::BIGINT AS first, coalesce(sum(at_last), 0)::BIGINT AS last,
       coalesce(sum(at_both), 0)::BIGINT AS both
FROM (SELECT unnest(range(231))::INTEGER AS space_group)
LEFT JOIN (
    SELECT first_group AS space_group, count(*) AS at_first, 0 AS at_last,
           count(*) FILTER (last_group = first_group) AS at_both
    FROM trajectories GROUP BY ALL
    UNION ALL
    SELECT last_group, 0, count(*), 0 FROM trajectories GROUP BY ALL
) USING (space_group)
GROUP BY ALL ORDER BY space_group
"""


def _draw(tables: Tables) -> drawn.Figure:
    """Draw a row for each dataset: all space groups on the left, agreement by crystal system on the right."""
    figure, grid = style.panels(len(tables), 2, (5.0, 3.0), width_ratios=(3, 1.1))
    colours = dict(zip(SYSTEMS, style.colours(len(SYSTEMS)), strict=True))
    for (left, right), (label, table) in zip(grid, tables.items(), strict=True):
        known = table.filter(pc.greater(table["space_group"], 0))
        _draw_groups(left, known, colours)
        _draw_agreement(right, known, colours)
        unknown = table.filter(pc.equal(table["space_group"], 0))["last"][0].as_py()
        said = f"{pc.sum(known['last']).as_py():,} trajectories" + (f", {unknown:,} more unknown" if unknown else "")
        left.set_title(f"{label}: {said}" if len(tables) > 1 else said)
    legends = [panel.get_legend_handles_labels() for panel in grid[:, 0]]
    figure.legend(*max(legends, key=lambda its: len(its[1])), loc="outside lower center", ncols=4)
    return figure


def _draw_groups(panel: Any, known: pa.Table, colours: dict[str, str]) -> None:
    groups, last, first = (known[name].to_numpy() for name in ("space_group", "last", "first"))
    if not last.any():
        style.empty(panel, "no known space group")
        return
    of_system = np.array(known["crystal_system"].to_pylist())
    for system, colour in colours.items():
        its = (of_system == system) & (last > 0)
        bars = panel.bar(groups[its], last[its], 1.0, color=colour, linewidth=0)
        panel.bar(0, 0, color=colour, label=system)  # for the legend, also of a system without any
        for bar, group, n in zip(bars, groups[its], last[its], strict=True):
            style.tip(bar, f"space group {group}, {system}: {n:,} trajectories end in it")
    begun = first > 0
    panel.plot(
        groups[begun], first[begun], "o", color="black", markersize=2.6, markeredgecolor="white", markeredgewidth=0.4,
        label="of first frames", zorder=3,
    )  # fmt: skip
    panel.set(
        yscale="log", xlim=(0, 231), xlabel="space group of the last frame", ylabel="trajectories",
        xticks=list(SYSTEMS.values()),
    )  # fmt: skip
    panel.tick_params("x", labelsize=7)
    panel.set_ylim(bottom=0.7, top=max(10, 1.5 * max(last.max(), first.max())))
    style.ticks(panel.yaxis, counts=True)
    panel.grid(axis="x", visible=False)


def _draw_agreement(panel: Any, known: pa.Table, colours: dict[str, str]) -> None:
    """Draw the share of trajectories that end in the space group they begin in, by the system they begin in."""
    names = [*colours, "all"]
    for i, system in enumerate(names):
        its = known if system == "all" else known.filter(pc.equal(known["crystal_system"], system))
        first, both = (int(pc.sum(its[name]).as_py() or 0) for name in ("first", "both"))
        share = 100 * both / first if first else 0.0
        bar = panel.barh(i, share, color=colours.get(system, "#555555"), height=0.75)[0]
        style.tip(bar, f"{system}: {both:,} of {first:,} trajectories")
        panel.text(share + 2, i, style.share(both, first) if first else "none", va="center", fontsize=7)
    panel.set(xlim=(0, 125), xticks=[0, 50, 100], xlabel="first = last (%)")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.tick_params("y", labelsize=7)
    panel.grid(axis="y", visible=False)


FIGURE = Figure(
    "space_groups", "Space groups", NUMBERS_SQL, _draw, ("space_group_it_number",),
    note="On the right: the share of trajectories whose last frame has the space group of the first, by the crystal "
    "system of the first. 0 in the numbers is unknown.",
)  # fmt: skip
