"""How figures look: one style, for print and for the colour-blind, and how they become files.

Colours are those of Okabe and Ito without yellow, which paper swallows. Nothing is set globally and pyplot is never
loaded: figures are objects, and the style holds within `applied()` alone.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from trajmill.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours without yellow."""

DASHES = ("-", (0, (6, 1.5)), (0, (3, 1)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))
"""Lines besides their colours, so that they differ in print, and one below another shows."""

HEAT = "cividis"
"""Colour map that looks the same to those who see no red, and grows lighter in print."""

NOTHING = "#EFEFEF"
"""Of what is not there."""

DPI = 200

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.titlesize": 11,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.5,
    "patch.linewidth": 1.5,
    "svg.hashsalt": "trajmill",  # the same figure is the same bytes
    "savefig.facecolor": "white",
}

_TIP = re.compile(r'<g id="tip:([^"]*)">')
_LINE = re.compile(r'<g id="line:([^"]*)">')


@contextmanager
def applied() -> Iterator[None]:
    """Apply the style to what is drawn and saved within.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `figures`).
    """
    with require("matplotlib", extra="figures").rc_context(RC):
        yield


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its panels, (rows, columns).

    Args:
        rows: of panels.
        columns: of panels.
        size: of each panel, inches.
        options: of `Figure.subplots`.
    """
    figure = require("matplotlib.figure", extra="figures").Figure(
        figsize=(columns * size[0], rows * size[1] + 0.3), layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def colours(n: int) -> list[str]:
    """Return so many colours, the first ones again when there are no more."""
    return list(islice(cycle(PALETTE), n))


def dashes(n: int) -> list[Any]:
    """Return so many patterns of lines, the first ones again when there are no more."""
    return list(islice(cycle(DASHES), n))


def tip(artist: Any, text: str) -> None:
    """Say something of an artist that SVG shows where the pointer is."""
    artist.set_gid(f"tip:{text}")


def belongs(artist: Any, line: str) -> None:
    """Say of which line an artist is a part, which a page may then hide."""
    artist.set_gid(f"line:{line}")


def short(n: float) -> str:
    """Write a count in few letters: 950, 1.2k, 12k, 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * size:
            return f"{n / size:.2g}{letter}" if n < 9.95 * size else f"{n / size:.0f}{letter}"
    return f"{n:.0f}"


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    with applied():
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": "trajmill"})
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG, what was said of its artists as titles."""
    buffer = io.StringIO()
    with applied():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "trajmill"})
    named = _LINE.sub(r'<g class="line" data-line="\1">', buffer.getvalue())
    return _TIP.sub(_titled, named)


def _titled(found: re.Match[str]) -> str:
    """Begin a group with a title, which the pointer finds also where nothing is painted."""
    return f'<g pointer-events="all"><title>{html.escape(html.unescape(found[1]), quote=False)}</title>'


def empty(panel: Any, text: str) -> None:
    """Say in a panel that there is nothing to see."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color="#555555")


def share(part: float, whole: float) -> str:
    """Write a share in per cent, two digits of a small one."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def ticks(axis: Any, *, counts: bool = False, factor: float = 1.0) -> None:
    """Put numbers that are easily read on a logarithmic axis, after all is drawn; decades alone where there are many.

    Args:
        axis: `panel.xaxis` or `panel.yaxis`.
        counts: whether the numbers count something, so that there is nothing between 0 and 1.
        factor: of a second axis, whose limits are not known yet, to the first; then `axis` is a pair of both.
    """
    ticker = require("matplotlib.ticker", extra="figures")
    axis, limits = axis if isinstance(axis, tuple) else (axis, axis)
    low, high = sorted(factor * x for x in limits.get_view_interval())
    decades = math.log10(high / max(low, 1) if counts else high / low)
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1,), numticks=6 if counts else 7))
    axis.set_minor_locator(ticker.LogLocator(subs=range(1, 10) if decades < 7 else (1,), numticks=99))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(lambda x, _: (short(x) if x >= 1 else "") if counts else number(x))


def number(x: float) -> str:
    """Write 0.02 or 500 as they are, and what is smaller or larger with a power of ten."""
    if 0.99e-2 <= x < 2000:
        return f"{x:g}"
    power = math.floor(math.log10(x) + 1e-9)
    digit = round(x / 10**power)
    times = "" if digit == 1 else f"{digit}\\times "
    return f"${times}10^{{{power}}}$"
