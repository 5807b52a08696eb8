"""Figures as files: PNG and SVG, and the numbers behind them as CSV and Parquet."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from trajmill.analysis import style
from trajmill.analysis.base import Subject, Tables
from trajmill.analysis.numbers import Counts
from trajmill.dataset import Dataset, _options
from trajmill.errors import FigureError
from trajmill.stores import shown
from trajmill.uris import one_line
from trajmill.writing import StrPath, whole

LISTING = "figures.json"
"""What says which files of a folder are ours, and what they show."""


def subjects(addresses: Sequence[str | Path]) -> dict[str, Subject]:
    """Open datasets, and label each with the last part of its address, or all of it where that is another's too.

    Args:
        addresses: of stores, releases and files, as `trajmill.open` takes them; options may follow.

    Raises:
        FigureError: the same dataset twice.
        TrajmillError: one cannot be opened.
    """
    named: dict[str, Subject] = {}
    for address in addresses:
        place, options = _options(address)
        name = shown(place).rstrip("/") + ("?" + urlencode(options) if options else "")
        if name in named:
            raise FigureError(f"{name}: is there twice; compare it with others")
        whole = not options.keys() - {"stress"}
        named[name] = Subject(Dataset(address), place if whole else None)
    ends = [re.sub(r"^[^?]*/", "", name) for name in named]
    labels = [end if ends.count(end) == 1 else name for name, end in zip(named, ends, strict=True)]
    return dict(zip(labels, named.values(), strict=True))


def save(
    counts: Counts, out: StrPath, *, report: Callable[[int, int], None] = lambda done, total: None  # noqa: ARG005
) -> list[Path]:  # fmt: skip
    """Write each figure and its numbers into a folder, and a listing of them.

    Files of an earlier run are replaced; others are not touched.

    Args:
        counts: what to draw.
        out: folder, made when it is not there.
        report: told figures done and figures in all.

    Returns:
        The pictures and tables that were written.

    Raises:
        FigureError: a file that is not ours has the name of one to be written, or the folder cannot be written.
        MissingExtraError: matplotlib is not installed (extra `figures`).
    """
    out = Path(out)
    drawn = [figure for figure in counts.figures if figure.name in counts.tables]
    names = {figure.name: [f"{figure.name}{end}" for end in (".png", ".svg", ".csv", ".parquet")] for figure in drawn}
    written: list[Path] = []
    try:
        ours = _listed(out)
        for name in (name for its in names.values() for name in its):
            if name not in ours and (out / name).exists():
                raise FigureError(f"{out / name}: was not written by trajmill figures; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        everything = sorted({*ours, *(name for its in names.values() for name in its)})
        _listing(out, counts, everything, names)  # first: what an interrupted run leaves is known to be ours
        for done, figure in enumerate(drawn):
            report(done, len(drawn))
            tables = counts.tables[figure.name]
            picture = figure.draw(tables)
            contents = (style.to_png(picture), style.to_svg(picture).encode(), *_tables(tables))
            for name, content in zip(names[figure.name], contents, strict=True):
                write(out / name, content)
                written.append(out / name)
        report(len(drawn), len(drawn))
    except OSError as error:
        raise FigureError(f"{out}: cannot be written ({one_line(error)})") from error
    return written


def write(file: Path, content: bytes) -> None:
    """Write a file, which is there as a whole or not at all."""
    with whole(file, FigureError) as aside:
        aside.write_bytes(content)


def _tables(tables: Tables) -> tuple[bytes, bytes]:
    """Return the numbers of all datasets as CSV and Parquet."""
    table = together(tables)
    as_text, as_parquet = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(table, as_text, pyarrow.csv.WriteOptions(quoting_style="needed"))
    pq.write_table(table, as_parquet, compression="zstd")
    return as_text.getvalue(), as_parquet.getvalue()


def together(tables: Tables) -> pa.Table:
    """Put the numbers of all datasets below each other, their labels in the first column."""
    parts = [
        table.add_column(0, "dataset", pa.array([label] * len(table), pa.string())) for label, table in tables.items()
    ]
    return pa.concat_tables(parts)


def _listed(out: Path) -> set[str]:
    """Return the names of the files in a folder that are ours."""
    file = out / LISTING
    if not file.exists():
        return set()
    try:
        return set(json.loads(file.read_text("utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise FigureError(f"{file}: was not written by trajmill figures; choose another folder") from error


def _listing(out: Path, counts: Counts, files: Sequence[str], names: Mapping[str, Sequence[str]]) -> None:
    """Write what is in a folder."""
    about: dict[str, Any] = {
        "written_by": f"trajmill {version('trajmill')}",
        "datasets": {label: contents.to_pylist() for label, contents in counts.contents.items()},
        "figures": {
            figure.name: {"title": figure.title, "note": figure.note, "files": names[figure.name]}
            for figure in counts.figures
            if figure.name in names
        },
        "left_out": counts.left_out,
        "files": list(files),
    }
    write(out / LISTING, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())


def summary(counts: Counts, where: Iterable[Path]) -> Iterator[str]:
    """Say in lines what was written, and what was left out and why."""
    for label, contents in counts.contents.items():
        n_runs, n_frames = (int(pc.sum(contents[name]).as_py() or 0) for name in ("trajectories", "frames"))
        yield f"{label}: {n_runs:,} trajectories, {n_frames:,} frames"
    yield from map(str, where)
    for name, reasons in counts.left_out.items():
        for label, reason in reasons.items():
            yield f"left out: {name} of {label}: {reason}"
