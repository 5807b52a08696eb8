"""What a figure is: a question to a dataset, whose answer are the numbers, and a drawing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from trajmill.analysis import style
from trajmill.dataset import Dataset
from trajmill.errors import FigureError, TrajmillError

if TYPE_CHECKING:
    from matplotlib import figure as drawn

Tables = Mapping[str, pa.Table]
"""The numbers of a figure, by label of the dataset."""


class NoFigureError(TrajmillError):
    """A figure cannot be drawn for a dataset; the message says why in a line."""


class Subject(NamedTuple):
    """A dataset that figures are drawn of.

    Attributes:
        dataset: its rows.
        address: of the store or release that it is all of; None for a part of one, of whose curation nothing is known.
    """

    dataset: Dataset
    address: str | Path | None = None


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: of its files, and on the command line.
        title: what it shows.
        numbers: SQL of DuckDB over the tables that `trajmill.analysis.numbers` makes, or a function of a dataset, which
            raises NoFigureError where there is nothing to be had.
        drawing: of the numbers, within the style.
        needs: columns that the dataset must have.
        note: how it was counted, for those who read the page.
    """

    name: str
    title: str
    numbers: str | Callable[[Subject], pa.Table]
    drawing: Callable[[Tables], drawn.Figure]
    needs: tuple[str, ...] = ()
    note: str = ""

    def draw(self, tables: Tables) -> drawn.Figure:
        """Draw the numbers of one dataset or several.

        Raises:
            MissingExtraError: matplotlib is not installed (extra `figures`).
        """
        with style.applied():
            figure = self.drawing(tables)
            figure.suptitle(self.title)
            return figure


class Line(NamedTuple):
    """What is drawn in one colour: a dataset, or a source of the only one.

    Attributes:
        label: its name.
        colour: its colour.
        dash: its pattern.
        table: its numbers.
    """

    label: str
    colour: str
    dash: Any
    table: pa.Table


def lines(tables: Tables) -> list[Line]:
    """Return a line for each dataset; for each source where there is only one dataset, but several sources."""
    if len(tables) == 1:
        ((_, table),) = tables.items()
        sources = sorted(pc.unique(table["source"]).to_pylist())
        if len(sources) > 1:
            tables = {source: table.filter(pc.equal(table["source"], source)) for source in sources}
    n = len(tables)
    return [Line(*its) for its in zip(tables, style.colours(n), style.dashes(n), tables.values(), strict=True)]


def total(table: pa.Table, column: str, **values: object) -> int:
    """Add up a column of counts, of the rows with these values alone."""
    for name, value in values.items():
        table = table.filter(pc.equal(table[name], value))
    return int(pc.sum(table[column]).as_py() or 0)


def totals(table: pa.Table, key: str, column: str) -> dict[object, int]:
    """Add up a column of counts by a key, keys in order."""
    grouped = table.group_by(key).aggregate([(column, "sum")]).sort_by(key)
    return dict(zip(grouped[key].to_pylist(), grouped[f"{column}_sum"].to_pylist(), strict=True))


def pick(figures: Sequence[Figure], names: Iterable[str] | None) -> list[Figure]:
    """Return the figures of these names, all for None.

    Raises:
        FigureError: there is none of such a name.
    """
    by_name = {figure.name: figure for figure in figures}
    wanted = list(dict.fromkeys(by_name if names is None else names))
    if unknown := [name for name in wanted if name not in by_name]:
        raise FigureError(f"no figure {unknown[0]}; there are {', '.join(by_name)}")
    return [by_name[name] for name in wanted]
