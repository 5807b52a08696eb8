"""Drawings of a potential-energy surface: contours, a surface in space, and one to turn in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trajmill.analysis.pes import Surface, interpolated
from trajmill.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST, LAST, PATH = "#009E73", "black", "#555555"
"""Colours of the first frame of a trajectory, of the last, and of the line between them."""

SHOWN = 200
"""Trajectories that are drawn as lines, those with most frames; more would cover the surface."""


def save_figures(found: Surface, folder: Path) -> None:
    """Write all drawings: `contours` and `surface` as PNG and SVG, and `surface.html`."""
    with np.errstate(over="ignore"):  # of matplotlib's shading, now and then
        for name, figure in (("contours", contours(found)), ("surface", in_space(found))):
            for suffix in ("png", "svg"):
                figure.savefig(folder / f"{name}.{suffix}", dpi=200)
    page(found, folder / "surface.html")


def contours(found: Surface) -> Figure:
    """Draw the surface from above, a panel for each dataset, with trajectories from circles to stars."""
    figure = require("matplotlib.figure", extra="pes").Figure(
        figsize=(1 + 4.2 * len(found.labels), 4), layout="constrained"
    )
    x, y, height = interpolated(found)
    low, high = float(found.energy.min()), float(np.quantile(found.energy, 0.98))
    levels = np.linspace(low, high if high > low else low + 1, 25)
    panels = figure.subplots(1, len(found.labels), sharex=True, sharey=True, squeeze=False)[0]
    for k, (panel, name) in enumerate(zip(panels, found.labels, strict=True)):
        filled = panel.contourf(x, y, height, levels=levels, cmap="viridis", extend="max")
        for its in _paths(found, k):
            panel.plot(*found.place[its].T, color=PATH, linewidth=0.6, alpha=0.8, zorder=2)
            panel.plot(*found.place[its[0]], "o", color=FIRST, markersize=3.5, zorder=3)
            panel.plot(*found.place[its[-1]], "*", color=LAST, markersize=5, zorder=4)
        n = int((found.label == k).sum())
        panel.set_title(f"{name}: {n:,} frames", fontsize=10)
        panel.set_xlabel(_axis(found, 0))
    panels[0].set_ylabel(_axis(found, 1))
    figure.colorbar(filled, ax=list(panels), format="%.2f", label="formation energy, eV/atom")
    handles = [panels[0].plot([], [], "o", color=FIRST)[0], panels[0].plot([], [], "*", color=LAST)[0]]
    panels[0].legend(handles, ["first frame", "last frame"], fontsize=8, loc="best")
    figure.suptitle("-".join(found.elements), fontsize=11)
    return figure  # type: ignore[no-any-return]


def in_space(found: Surface) -> Figure:
    """Draw the surface in space, with trajectories on it."""
    figure = require("matplotlib.figure", extra="pes").Figure(figsize=(6, 5), layout="constrained")
    require("mpl_toolkits.mplot3d", extra="pes")
    x, y, height = interpolated(found, points=80)
    axes: Any = figure.add_subplot(projection="3d")
    axes.plot_surface(*np.meshgrid(x, y), height, cmap="viridis", alpha=0.6, linewidth=0, antialiased=False)
    for k in range(len(found.labels)):
        for its in _paths(found, k):
            axes.plot(*found.place[its].T, found.energy[its], color=PATH, linewidth=0.8)
            axes.plot(*found.place[its[:1]].T, found.energy[its[:1]], "o", color=FIRST, markersize=3)
            axes.plot(*found.place[its[-1:]].T, found.energy[its[-1:]], "*", color=LAST, markersize=4)
    axes.set_xlabel(_axis(found, 0), fontsize=8)
    axes.set_ylabel(_axis(found, 1), fontsize=8)
    axes.set_zlabel("formation energy, eV/atom", fontsize=8)
    axes.set_title("-".join(found.elements), fontsize=11)
    return figure  # type: ignore[no-any-return]


def page(found: Surface, out: Path) -> None:
    """Write the surface as one HTML file that needs no network, to be turned and looked into."""
    go = require("plotly.graph_objects", extra="pes")
    x, y, height = interpolated(found, points=100)
    parts = [go.Surface(x=x, y=y, z=height, colorscale="Viridis", opacity=0.75, colorbar={"title": "eV/atom"})]
    for k, name in enumerate(found.labels):
        its = [part for path in _paths(found, k) for part in (path, [-1])]  # -1 lifts the pen
        order = np.concatenate(its) if its else np.zeros(0, int)
        lifted = order < 0
        columns = [np.where(lifted, np.nan, v[order]) for v in (*found.place.T, found.energy)]
        texts = np.where(
            lifted, "", [f"{t}, step {s}" for t, s in zip(found.trajectory[order], found.step[order], strict=True)]
        )
        parts.append(
            go.Scatter3d(
                x=columns[0], y=columns[1], z=columns[2], text=texts, name=name, mode="lines+markers",
                marker={"size": 2}, line={"width": 2}, hovertemplate="%{text}<br>%{z:.3f} eV/atom<extra></extra>",
            )
        )  # fmt: skip
    axes = {"xaxis_title": _axis(found, 0), "yaxis_title": _axis(found, 1), "zaxis_title": "formation energy, eV/atom"}
    title = f"{'-'.join(found.elements)}: {len(found):,} frames"
    go.Figure(parts, {"title": title, "scene": axes}).write_html(out, include_plotlyjs=True)


def _axis(found: Surface, k: int) -> str:
    return f"component {k + 1} ({found.explained[k]:.0%} of the variance)"


def _paths(found: Surface, label: int) -> Iterator[NDArray[np.int64]]:
    """Yield the frames of each trajectory of a dataset that is drawn, in the order computed."""
    its = np.flatnonzero(found.label == label)
    _, start, count = np.unique(found.trajectory[its], return_index=True, return_counts=True)
    for k in np.argsort(-count, kind="stable")[:SHOWN]:
        one = its[found.trajectory[its] == found.trajectory[its[start[k]]]]
        yield one[np.argsort(found.step[one], kind="stable")]
