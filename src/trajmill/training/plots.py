"""Figures of how far models are from DFT: parity, how errors are spread, and errors of forces by element.

Forces and stresses are read a batch at a time and counted in cells, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trajmill.analysis import style
from trajmill.analysis.files import write
from trajmill.analysis.periodic_table import draw_table, periodic_tables
from trajmill.elements import SYMBOLS
from trajmill.errors import require
from trajmill.training.metrics import AT_ONCE, Errors, Score, flat
from trajmill.training.tables import shown
from trajmill.trajectory import FloatArray
from trajmill.writing import file_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Counts = NDArray[np.int64]

FEW = 2000
"""Values that are drawn as points; more are counted in cells."""

CELLS = 150
"""Along each side of a panel."""

OUTSIDE = 1e-4
"""Share of the largest forces and stresses that a panel need not show, so that a few do not shrink all others."""

PER_DECADE, LOWEST, HIGHEST = 50, -9, 6
"""Bins of absolute values in a decade, and powers of ten that the first begins and the last ends with."""

EDGES = 10.0 ** (np.arange(PER_DECADE * (HIGHEST - LOWEST) + 1) / PER_DECADE + LOWEST)

DECADES = 4
"""Of errors that are shown at most, and one at least; atoms that symmetry holds in place have errors of nearly 0."""

MODEL_AXIS = {"none": "model, not shifted", "composition": "model, shifted per element"}
"""What the energies of a model are, by shift."""

DFT_AXIS = {"energy": "DFT", "energy_corrected": "DFT, corrected"}
"""What the energies of DFT are, by what models are held against."""


class Quantity(NamedTuple):
    """What is drawn in a panel.

    Attributes:
        column: of predictions.
        metric: its mean absolute error.
        unit: of values; errors are in thousandths of it.
        counted: what its values are.
    """

    column: str
    metric: str
    unit: str
    counted: str


ENERGY = Quantity("energy", "energy_mae", "eV/atom", "frames")
FORCES = Quantity("forces", "force_mae", "eV/Å", "components")
STRESS = Quantity("stress", "stress_mae", "eV/Å³", "components")
QUANTITIES = (ENERGY, FORCES, STRESS)


class Held(NamedTuple):
    """A model held against a test set.

    Attributes:
        file: predictions.
        errors: of them.
        scores: every metric of all frames.
    """

    file: Path
    errors: Errors
    scores: Mapping[str, Score]


class Spread(NamedTuple):
    """How the values of a quantity are spread.

    Attributes:
        n: how many there are.
        errors: (bins,) how many absolute errors there are between `EDGES`.
        sizes: (bins,) the same of the larger absolute value of DFT's and the model's.
    """

    n: int
    errors: Counts
    sizes: Counts


Found = Mapping[tuple[str, str], Held]
"""By model and test set."""


def save(found: Found, out: Path, *, energy: str, shift: str) -> list[Path]:
    """Draw all figures, as PNG and SVG.

    Args:
        found: models held against test sets.
        out: folder, made when it is not there: `errors` compares models, so does an `elements--` for each test set, and
            each file of predictions has a `parity--` of its name.
        energy: what models are held against.
        shift: how their energies were put on DFT's scale.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `figures`).
        OSError: the folder cannot be made.
        FigureError: a file cannot be written.
    """
    spreads = {key: [spread(its, quantity) for quantity in QUANTITIES] for key, its in found.items()}
    drawings = {"errors": partial(error_shares, spreads)}
    of_elements = {key: by_element(its) for key, its in found.items()}
    for test in dict.fromkeys(test for _, test in found):
        drawings[f"elements--{file_name(test)}"] = partial(force_errors, of_elements, test)
    for key, its in found.items():
        axes = DFT_AXIS[energy], MODEL_AXIS[shift]
        drawings[f"parity--{its.file.stem}"] = partial(parity, key, its, spreads[key], axes)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for name, drawing in drawings.items():
        with style.applied():
            figure = drawing()
        for suffix, content in ((".png", style.to_png(figure)), (".svg", style.to_svg(figure).encode())):
            made.append(out / f"{name}{suffix}")
            write(made[-1], content)
    return made


def pairs(its: Held, quantity: Quantity) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield what DFT and the model say, (n,) each, of frames that have both, some at a time."""
    if quantity is ENERGY:
        yield its.errors.energy_dft, its.errors.energy_model
        return
    columns = quantity.column, f"{quantity.column}_predicted"
    for batch in _batches(its.file, *columns):
        dft, model = (flat(batch[column]) for column in columns)
        yield dft, model


def spread(its: Held, quantity: Quantity) -> Spread:
    """Count values and errors of a quantity by their size."""
    n, errors, sizes = 0, _sizes(np.zeros(0)), _sizes(np.zeros(0))
    for dft, model in pairs(its, quantity):
        n += len(dft)
        errors += _sizes(model - dft)
        sizes += _sizes(np.maximum(np.abs(dft), np.abs(model)))
    return Spread(n, errors, sizes)


def parity(key: tuple[str, str], its: Held, spreads: list[Spread], axes: tuple[str, str]) -> Figure:
    """Draw what a model says over what DFT says.

    Args:
        key: model and test set.
        its: predictions.
        spreads: of each quantity.
        axes: what the energies of DFT and of the model are.
    """
    figure, (row,) = style.panels(1, len(QUANTITIES), (3.2, 3.7))
    images = []
    for panel, quantity, its_spread in zip(row, QUANTITIES, spreads, strict=True):
        dft, model = axes if quantity is ENERGY else ("DFT", "model")
        panel.set(xlabel=f"{dft} ({quantity.unit})", ylabel=f"{model} ({quantity.unit})")
        if its_spread.n:
            images += _panel(panel, its, quantity, its_spread)
        else:
            style.empty(panel, "none")
    if images:
        most = max(image.get_array().max() for image in images)
        scale = require("matplotlib.colors", extra="figures").LogNorm(1, max(most, 10))
        for image in images:
            image.set_norm(scale)
        figure.colorbar(images[0], ax=row, label="values in a cell", shrink=0.6, aspect=30, pad=0.01)
    figure.suptitle("\n".join(map(_name, key)))
    return figure


def error_shares(spreads: Mapping[tuple[str, str], list[Spread]]) -> Figure:
    """Draw which share of errors is below what, a row for each test set, a line for each model."""
    models, tests = (list(dict.fromkeys(names)) for names in zip(*spreads, strict=True))
    figure, grid = style.panels(len(tests), len(QUANTITIES), (3.2, 2.6), sharey=True)
    drawn = list(zip(models, style.colours(len(models)), style.dashes(len(models)), strict=True))
    for row, test in zip(grid, tests, strict=True):
        row[0].set(ylabel="share of errors below (%)", ylim=(0, 101))
        row[0].set_title(_name(test), loc="left").set_in_layout(False)  # it may be longer than the panel is wide
        for k, (panel, quantity) in enumerate(zip(row, QUANTITIES, strict=True)):
            _shares(panel, [(spreads[model, test][k], colour, dash) for model, colour, dash in drawn])
            panel.set_xlabel(f"error of {quantity.column} (m{quantity.unit})")
    line = partial(require("matplotlib.lines", extra="figures").Line2D, [], [])
    handles = [line(color=colour, linestyle=dash) for _, colour, dash in drawn]
    figure.legend(handles, list(map(_name, models)), loc="outside lower center")
    figure.suptitle("Absolute errors")
    return figure


def force_errors(errors: Mapping[tuple[str, str], Mapping[str, float]], test: str) -> Figure:
    """Draw the force MAE of each element as periodic tables, one for each model, two in a row.

    Args:
        errors: `by_element`, by model and test set; colours mean the same for all.
        test: which test set to draw.
    """
    drawn = {model: its for (model, of), its in errors.items() if of == test}
    figure, grid = periodic_tables(len(drawn))
    known = [mae for its in errors.values() for mae in its.values()] or [1.0]
    high = max(*known, 10.0)
    low = max(min(*known, high / 10), 1.0)  # a decade at least; below 1 all are good
    scale = require("matplotlib.colors", extra="figures").LogNorm(low, high, clip=True)
    colours = require("matplotlib", extra="figures").colormaps[style.HEAT]
    for panel, (model, its) in zip(grid.flat, drawn.items(), strict=False):
        texts = {e: (f"{mae:.2g}" if mae < 1 else f"{mae:.0f}", f"{mae:.3g} meV/Å") for e, mae in its.items()}
        draw_table(panel, its, texts, scale, colours)
        panel.set_title(_name(model))
    mappable = require("matplotlib.cm", extra="figures").ScalarMappable(scale, colours)
    label = "force MAE of its atoms (meV/Å)"
    bar = figure.colorbar(mappable, ax=grid, label=label, shrink=0.8, aspect=30, pad=0.01)
    style.ticks(bar.ax.yaxis)
    figure.suptitle(f"Errors of forces by element\n{_name(test)}")
    return figure


def by_element(its: Held) -> dict[str, float]:
    """Return the force MAE of the atoms of each element, meV/A."""
    totals, atoms = np.zeros(len(SYMBOLS)), np.zeros(len(SYMBOLS))
    for batch in _batches(its.file, "numbers", "forces", "forces_predicted"):
        numbers, dft, model = (flat(batch[column]) for column in batch.schema.names)
        error = 1000 * np.abs(model - dft).reshape(-1, 3).mean(axis=1)
        totals += np.bincount(numbers, weights=error, minlength=len(SYMBOLS))
        atoms += np.bincount(numbers, minlength=len(SYMBOLS))
    return {SYMBOLS[z]: float(totals[z] / atoms[z]) for z in np.flatnonzero(atoms)}


def _batches(file: Path, *columns: str) -> Iterator[pa.RecordBatch]:
    """Yield columns of predictions, of frames that have all of them."""
    with pq.ParquetFile(file, pre_buffer=False) as predictions:  # it would keep all that it has read of a file
        for batch in predictions.iter_batches(AT_ONCE, columns=list(columns)):
            yield batch.select(columns).drop_null()


def _sizes(values: FloatArray) -> Counts:
    """Count absolute values by their bin; smaller and larger ones than those are in the first and the last."""
    with np.errstate(divide="ignore"):  # the logarithm of 0 is below all bins
        bins = np.floor(PER_DECADE * (np.log10(np.abs(values)) - LOWEST))
    return np.bincount(np.clip(bins, 0, len(EDGES) - 2).astype(np.int64), minlength=len(EDGES) - 1)


def _panel(panel: Any, its: Held, quantity: Quantity, its_spread: Spread) -> list[Any]:
    """Draw the parity of a quantity, as points or as an image, and return the image if there is one."""
    limits = _limits(its, quantity, its_spread)
    panel.plot(limits, limits, color="black", linewidth=0.6, zorder=2)
    images = []
    if its_spread.n <= FEW:
        for dft, model in pairs(its, quantity):
            panel.plot(dft, model, ".", color=style.PALETTE[0], alpha=0.7, markersize=5, markeredgewidth=0)
        outside = 0
    else:
        counts = _cells(pairs(its, quantity), limits)
        outside = its_spread.n - int(counts.sum())
        seen = np.ma.masked_equal(counts.T, 0)
        drawn = {"origin": "lower", "extent": (*limits, *limits), "interpolation": "none"}
        images = [panel.imshow(seen, style.HEAT, zorder=1, **drawn)]  # above the grid
    ticker = require("matplotlib.ticker", extra="figures")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(4))
    panel.set(xlim=limits, ylim=limits, aspect="equal")
    mae = f"MAE {shown(quantity.metric, its.scores[quantity.metric])} m{quantity.unit}"
    number = f"{quantity.counted}: {its_spread.n:,}" + (f", {outside:,} outside" if outside else "")
    panel.set_title(f"{quantity.column}\n{mae}\n{number}", loc="left", fontsize=9)
    return images


def _cells(found: Iterator[tuple[FloatArray, FloatArray]], limits: tuple[float, float]) -> Counts:
    """Count values of DFT and the model in cells between the limits, (CELLS, CELLS)."""
    counts = np.zeros((CELLS, CELLS), np.int64)
    for dft, model in found:
        counts += np.histogram2d(dft, model, CELLS, range=(limits, limits))[0].astype(np.int64)
    return counts


def _limits(its: Held, quantity: Quantity, its_spread: Spread) -> tuple[float, float]:
    """Return the ends of both axes."""
    if quantity is ENERGY:
        values = np.concatenate([its.errors.energy_dft, its.errors.energy_model])
        low, high = float(values.min()), float(values.max())
    else:  # they are round 0
        last = np.searchsorted(np.cumsum(its_spread.sizes), (1 - OUTSIDE) * its_spread.n)
        high = max(float(EDGES[last + 1]), 0.01)
        low = -high
    room = max(0.05 * (high - low), 1e-4)
    return low - room, high + room


def _shares(panel: Any, lines: list[tuple[Spread, str, Any]]) -> None:
    """Draw the shares of errors below what, of each model with its colour and dashes."""
    lines = [line for line in lines if line[0].n]
    if not lines:
        style.empty(panel, "none")
        return
    shares = np.array([100 * np.cumsum(its.errors) / its.n for its, *_ in lines])
    for share, (_, colour, dash) in zip(shares, lines, strict=True):
        panel.plot(1000 * EDGES[1:], share, color=colour, linestyle=dash, drawstyle="steps-post")
    last = int(np.argmax((shares >= 99.9).all(axis=0)))
    begin = int(np.argmax((shares > 1).any(axis=0))) - 1
    first = int(np.clip(begin, last - DECADES * PER_DECADE, last - PER_DECADE).clip(0))
    panel.set(xscale="log", xlim=(1000 * EDGES[first], 1150 * EDGES[last + 1]))
    style.ticks(panel.xaxis)


def _name(text: str) -> str:
    """Write the end of a long name; a $ is no mathematics."""
    return (text if len(text) <= 60 else f"…{text[-59:]}").replace("$", r"\$")
