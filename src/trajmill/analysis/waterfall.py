"""What became of all frames that were read: what each rule took of each source, and what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from trajmill.analysis import style
from trajmill.analysis.base import Figure, NoFigureError, Subject, Tables
from trajmill.curation import RULES
from trajmill.releases.selection import RELEASE_RULES
from trajmill.stores import is_store, open_store
from trajmill.stores.base import Balance

if TYPE_CHECKING:
    from matplotlib import figure as drawn

READ, KEPT = "read", "kept"
ORDER = ("readable", *(rule.name for rule in RULES), *RELEASE_RULES)
"""The rules in the order they run."""

SCHEMA = pa.schema([("source", pa.string()), ("step", pa.string()), ("frames", pa.int64()), ("records", pa.int64())])


def numbers(subject: Subject) -> pa.Table:
    """Count frames and records read, rejected by each rule, and kept, source by source.

    Rejections are negative, so that the numbers of a source add up; records are null where nobody counted them.

    Raises:
        NoFigureError: nobody knows what was rejected, or frames are missing.
    """
    if subject.address is None:
        raise NoFigureError("it is a part of a dataset, and what was rejected is counted for all of it")
    if is_store(subject.address):
        return _of_store(subject.address)
    manifest = subject.dataset.manifest
    if manifest is None or "read" not in manifest:
        raise NoFigureError("what was rejected stands in a store or in a release's trajmill.json, and here is neither")
    return _of_release(manifest)


def _of_store(address: Any) -> pa.Table:
    """Count what the commits of a store counted, by source."""
    store = open_store(address)
    present = set(store.assets())
    by_source: dict[str, Balance] = {}
    for asset, balance in store.balances().items():
        if asset in present:
            source = asset.partition("/")[0]
            by_source[source] = by_source.get(source, Balance()) + balance
    parts = [
        _rows(source, b.frames, b.records, b.rejected, b.records_rejected, b.kept, b.records_kept)
        for source, b in sorted(by_source.items())
    ]
    return _joined(parts)


def _of_release(manifest: Mapping[str, Any]) -> pa.Table:
    """Count what a release's manifest says; it counts all sources together."""
    sources = {row["source"] for row in manifest["contents"]} | set(manifest.get("raw", {}))
    at_build, at_release = Counter(manifest["rejected_at_build"]), Counter(manifest["rejected_at_release"])
    records = Counter(manifest["records_rejected_at_build"])
    name = min(sources) if len(sources) == 1 else "all sources"
    kept, read = sum(manifest["frames"].values()), manifest["read"]
    return _joined([_rows(name, read["frames"], read["records"], at_build + at_release, records, kept, None)])


def _rows(
    source: str, read: int, records: int, frames: Counter[str], of_records: Counter[str], kept: int,
    records_kept: int | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write the rows of a source, whose frames must add up."""
    if read != kept + frames.total():
        raise NoFigureError(f"{source}: {read:,} frames read, but {kept:,} kept and {frames.total():,} rejected")
    rules = sorted({*frames, *of_records}, key=lambda rule: (ORDER.index(rule) if rule in ORDER else len(ORDER), rule))
    steps = [(READ, read, records), *((rule, -frames[rule], -of_records[rule]) for rule in rules)]
    return [
        {"source": source, "step": step, "frames": n, "records": n_records}
        for step, n, n_records in [*steps, (KEPT, kept, records_kept)]
    ]


def _joined(parts: Iterable[list[dict[str, Any]]]) -> pa.Table:
    return pa.Table.from_pylist([row for part in parts for row in part], SCHEMA)


def _draw(tables: Tables) -> drawn.Figure:
    """Draw a panel for each source of each dataset, bars hanging from what was left before."""
    parts = [
        (f"{label}: {source}" if len(tables) > 1 else source, table.filter(pc.equal(table["source"], source)))
        for label, table in tables.items()
        for source in pc.unique(table["source"]).to_pylist()
    ]
    n_columns = min(3, len(parts))
    n_rows = -(-len(parts) // n_columns)
    tallest = max((len(table) for _, table in parts), default=2)
    width = 6.3 if n_columns == 1 else 9.6 / n_columns
    figure, grid = style.panels(n_rows, n_columns, (width, 0.8 + 0.24 * tallest))
    for panel in grid.flat[len(parts) :]:
        panel.set_axis_off()
    for panel, (title, table) in zip(grid.flat, parts, strict=False):
        _draw_source(panel, table)
        panel.set_title(title)
    return figure


def _draw_source(panel: Any, table: pa.Table) -> None:
    """Draw the waterfall of a source."""
    steps, frames = table["step"].to_pylist(), table["frames"].to_pylist()
    read = max(frames[0], 1)
    left = 0
    for i, (step, n) in enumerate(zip(steps, frames, strict=True)):
        whole = step in (READ, KEPT)
        begin = 0 if whole else left
        bar = panel.barh(i, n, left=begin, height=0.7, color="#555555" if whole else style.PALETTE[1])[0]
        left = n if step == READ else left + (0 if whole else n)
        text = f"{n:,}" if whole else f"\u2212{-n:,}" if n else "0"
        text = f"{text} ({style.share(abs(n), read)})"
        style.tip(bar, f"{step}: {text} frames")
        low, high = sorted((begin, begin + n))
        aside, colour, place = "left", "black", high + 0.02 * read
        if high > 0.55 * read:  # no room on the right
            aside, colour, place = ("left", "white", 0.02 * read) if whole else ("right", "black", low - 0.02 * read)
        panel.text(place, i, text, va="center", ha=aside, fontsize=7, color=colour)
    panel.set(xlim=(0, read), yticks=range(len(steps)), yticklabels=steps, xlabel="frames")
    panel.xaxis.set_major_formatter(lambda n, _: style.short(n))
    panel.xaxis.get_major_locator().set_params(nbins=4, integer=True)
    panel.tick_params("y", labelsize=7)
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)


FIGURE = Figure(
    "curation", "What each rule took of what was read", numbers, _draw,
    note="Frames; the first rule that turns a frame away counts it. Kept are all that the store or release holds, "
    "unlabelled input geometries too.",
)  # fmt: skip
