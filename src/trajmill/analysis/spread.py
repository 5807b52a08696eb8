"""Distributions over many orders of magnitude: counts in bins of the logarithm, one drawing for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trajmill.analysis import style
from trajmill.analysis.base import Line, Tables, lines, total
from trajmill.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = np.unique([*range(1, 11), *np.rint(np.geomspace(10, 1e6, 51))]).astype(np.int64)
"""Borders of bins of whole numbers: each up to 10 is alone, then ten bins a decade."""

COARSEST, ENOUGH = 5, 200
"""Bins in a decade that are drawn at least, and values for each of them that finer ones ask for."""


def log_counts(value: str, table: str, unit: str, per_decade: int, counted: str) -> str:
    """Write the SQL of a distribution of numbers of either sign.

    Its rows are bins with `sign` positive or negative, `low` and `high` being the borders of the absolute value; and
    one with `sign` zero and one with unknown, so that everything is counted.

    Args:
        value: SQL of the number.
        table: of `trajmill.analysis.numbers`, or a subquery.
        unit: of the number.
        per_decade: bins in a decade.
        counted: what a row of the table is, as the name of the column of counts.
    """
    return f"""
    SELECT source, functional, '{unit}' AS unit, sign, pow(10, bin / {per_decade}) AS low,
           pow(10, (bin + 1) / {per_decade}) AS high, count(*) AS {counted}
    FROM (
        SELECT source, functional,
               CASE WHEN x IS NULL OR NOT isfinite(x) THEN 'unknown' WHEN x = 0 THEN 'zero'
                    WHEN x > 0 THEN 'positive' ELSE 'negative' END AS sign,
               CASE WHEN isfinite(x) AND x <> 0 THEN floor(log10(abs(x)) * {per_decade}) END AS bin
        FROM (SELECT source, functional, {value} AS x FROM {table})
    )
    GROUP BY ALL ORDER BY ALL
    """


def draw_log(
    tables: Tables,
    *,
    counted: str,
    label: str,
    unit: str,
    negative: str | None = None,
    second: tuple[float, str] | None = None,
    lowest: float,
    zero: str = "exactly 0",
) -> Figure:
    """Draw distributions that `log_counts` counted, log-log, as shares of what is known, per decade of the value.

    Args:
        tables: by label of the dataset.
        counted: name of the column of counts.
        label: what positive values are called.
        unit: of the values.
        negative: what negative ones are called, which then have a panel of their own; None where there are none.
        second: factor and label of a second axis of values.
        lowest: what lies below is not shown, but counted.
        zero: what a value of 0 is called.
    """
    sides = [(label, "positive")] if negative is None else [(negative, "negative"), (label, "positive")]
    its = lines(tables)
    size = 6.8 / len(sides), 3.0 + 0.17 * len(its)
    figure, (row,) = style.panels(1, len(sides), size, sharey=True)
    for panel, (side, sign) in zip(row, sides, strict=True):
        panel.set(xscale="log", yscale="log", xlabel=f"{side} ({unit})")
        for line in its:
            known = total(line.table, counted) - total(line.table, counted, sign="unknown")
            edges, density = _bins(line.table, sign, counted, lowest, known)
            if len(density):
                steps = panel.stairs(density, edges, color=line.colour, linestyle=line.dash, baseline=None)
                style.belongs(steps, line.label)
        if not panel.patches:
            style.empty(panel, "none")
    row[0].set_ylabel(f"share of {counted} per decade")
    _align(row, mirrored=negative is not None)
    line_2d = require("matplotlib.lines", extra="figures").Line2D
    handles = [line_2d([], [], color=line.colour, linestyle=line.dash) for line in its]
    figure.legend(handles, [_described(line, counted, zero, lowest) for line in its], loc="outside lower center")
    if second is not None:
        for panel in row:
            _second_axis(panel, *second)
    for panel, (_, sign) in zip(row, sides, strict=True):
        _say_counts(panel, its, sign, counted, lowest, unit)
    return figure


def _say_counts(panel: Any, its: Sequence[Line], sign: str, counted: str, lowest: float, unit: str) -> None:
    """Lay an unseen strip over each bin, which says how many of each line are in it."""
    said: dict[tuple[float, float], list[str]] = {}
    for line in its:
        known = pc.and_(pc.equal(line.table["sign"], sign), pc.greater_equal(line.table["low"], lowest))
        bins = line.table.filter(known).group_by(["low", "high"]).aggregate([(counted, "sum")]).sort_by("low")
        for low, high, n in zip(*(bins[name].to_pylist() for name in ("low", "high", f"{counted}_sum")), strict=True):
            said.setdefault((low, high), []).append(f"{line.label} {n:,}")
    for (low, high), counts in said.items():
        strip = panel.axvspan(low, high, alpha=0, linewidth=0, zorder=5)
        style.tip(strip, f"{low:.3g} to {high:.3g} {unit}: {', '.join(counts)} {counted}")


def _align(row: Any, *, mirrored: bool) -> None:
    """Give panels the same axes, the first one mirrored; a little room below the smallest share."""
    drawn = [patch.get_data() for panel in row for patch in panel.patches]
    if not drawn:
        return
    low, high = (f(f(data.edges) for data in drawn) for f in (min, max))
    smallest = min(data.values[data.values > 0].min() for data in drawn)
    for panel in row:
        panel.set_xlim(low / 1.2, high * 1.2)
        panel.set_ylim(bottom=smallest / 2)
        style.ticks(panel.xaxis)
        style.ticks(panel.yaxis)
    if mirrored:
        row[0].invert_xaxis()


def _second_axis(panel: Any, factor: float, label: str) -> None:
    """Put the values in another unit above a panel."""
    above = panel.secondary_xaxis("top", functions=(lambda x: x * factor, lambda x: x / factor))
    above.set_xlabel(label)
    above.spines["top"].set_visible(True)
    if panel.patches:
        style.ticks((above.xaxis, panel.xaxis), factor=factor)


def _bins(
    table: pa.Table, sign: str, counted: str, lowest: float, known: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return borders and shares per decade of the bins of a sign; bins are twice as wide where there is little."""
    its = table.filter(pc.and_(pc.equal(table["sign"], sign), pc.greater_equal(table["low"], lowest)))
    if not len(its):
        return np.zeros(1), np.zeros(0)
    low, high, n = (its[name].to_numpy() for name in ("low", "high", counted))
    per_decade = np.rint(1 / np.log10(high[0] / low[0]))
    bins = np.rint(np.log10(low) * per_decade).astype(int)
    while per_decade > COARSEST and known < ENOUGH * per_decade:
        bins, per_decade = bins // 2, per_decade / 2
    counts = np.bincount(bins - bins.min(), weights=n)
    edges = 10 ** (np.arange(bins.min(), bins.max() + 2) / per_decade)
    return edges, counts / known * per_decade


def _described(line: Line, counted: str, zero: str, lowest: float) -> str:
    """Say how much a line stands for, and what of it is not in the drawing."""
    table = line.table
    small = table.filter(pc.less(table["low"], lowest))
    parts = {
        zero: total(table, counted, sign="zero"),
        f"below {style.number(lowest)}": total(small, counted),
        "unknown": total(table, counted, sign="unknown"),
    }
    said = [f"{total(table, counted):,} {counted}", *(f"{n:,} {what}" for what, n in parts.items() if n)]
    return f"{line.label}: {', '.join(said)}"


def per_number(numbers: Sequence[int], counts: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return borders of bins of whole numbers, and the count per number in each."""
    found, _ = np.histogram(numbers, LEVELS, weights=counts)
    last = np.flatnonzero(found).max(initial=0)
    density = found / np.diff(LEVELS)
    return (LEVELS - 0.5)[: last + 2], density[: last + 1]
