"""A report: one HTML page with all figures and the numbers behind them, which needs no network and no other file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajmill.analysis import files, style
from trajmill.analysis.base import Figure, Subject
from trajmill.analysis.numbers import Counts
from trajmill.errors import FigureError
from trajmill.schema import ADDED, PUBLISHED
from trajmill.stores import is_store, open_store, shown
from trajmill.uris import one_line
from trajmill.writing import StrPath

LARGEST = 6_000_000
"""Bytes of a page at most."""

ROWS = 400
"""Rows of a figure's numbers that a page has at most."""

ENLARGED = 1.25
"""Times its size in print is the width of a figure at most."""

GENERATOR = '<meta name="generator" content="trajmill">'
"""What tells our pages from others."""

PACKAGES = ("trajmill", "duckdb", "matplotlib", "numpy", "pyarrow")
"""That make a page."""

HOW = (
    "The pointer shows what a mark stands for; Ctrl and the wheel look closer, a double click shows all again; boxes "
    "above a figure hide its lines."
)


def write(
    counts: Counts,
    subjects: Mapping[str, Subject],
    out: StrPath,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> None:
    """Write a report.

    Args:
        counts: what to show.
        subjects: of which they are.
        out: file to make; one that is no report is not replaced.
        report: told figures done and figures in all.

    Raises:
        FigureError: the file is not ours, or cannot be written, or would be too large.
        MissingExtraError: matplotlib is not installed (extra `figures`).
    """
    out = Path(out)
    try:
        if out.exists() and GENERATOR not in out.read_text("utf-8", errors="replace")[:2000]:
            raise FigureError(f"{out}: is no report of trajmill; choose another name")
        content = page(counts, subjects, report=report).encode()
        if len(content) > LARGEST:
            raise FigureError(f"{out}: would have {len(content) / 1e6:.1f} MB, more than a page should; compare fewer")
        files.write(out, content)
    except OSError as error:
        raise FigureError(f"{out}: cannot be written ({one_line(error)})") from error


def page(
    counts: Counts,
    subjects: Mapping[str, Subject],
    *,
    report: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> str:
    """Return a report as HTML; arguments as `write`."""
    drawn = [figure for figure in counts.figures if figure.name in counts.tables]
    sections: list[tuple[str, str, str]] = [("datasets", "Datasets", _datasets(counts, subjects))]
    for done, figure in enumerate(drawn):
        report(done, len(drawn))
        sections.append((figure.name, figure.title, _figure(figure, counts)))
    report(len(drawn), len(drawn))
    if counts.left_out:
        sections.append(("left-out", "Left out", _left_out(counts)))
    sections += [("units", "Units", _units(subjects)), ("made", "How it was made", _made(subjects))]
    title = f"Relaxation trajectories: {', '.join(subjects)}"
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, head, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(head)}</h2>{text}</section>\n' for name, head, text in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_part('page.css')}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f'<nav>{links}</nav><p class="how">{HOW}</p>\n{body}<script>{_part("page.js")}</script></body></html>\n'
    )


def _part(name: str) -> str:
    return (resources.files("trajmill.analysis") / name).read_text("utf-8")


def _figure(figure: Figure, counts: Counts) -> str:
    """Write a figure and its numbers."""
    tables = counts.tables[figure.name]
    table = files.together(tables)
    cut = f", the first {ROWS:,} of {len(table):,} rows; `trajmill figures` writes all" if len(table) > ROWS else ""
    picture = figure.draw(tables)
    picture.suptitle("")  # it is the heading
    drawing = _inline(style.to_svg(picture), figure.name)
    note = f'<p class="note">{escape(figure.note)}</p>' if figure.note else ""
    return (
        f"<figure>{drawing}</figure>{note}<details><summary>Numbers{escape(cut)}</summary>"
        f'<button data-file="{figure.name}.csv">Save as CSV</button>{_table(table.slice(0, ROWS))}</details>'
    )


def _inline(svg: str, name: str) -> str:
    """Make SVG a part of a page: of the page's width, without a head, with names that are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    width = re.search(r' width="([\d.]+)pt"', head)
    head = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", head)
    if width:
        head += f' style="max-width: {ENLARGED * float(width[1]):.0f}pt"'
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", f"{head}>{rest}")


def _datasets(counts: Counts, subjects: Mapping[str, Subject]) -> str:
    """Count trajectories and frames, of each dataset and of its parts."""
    rows = []
    for label, subject in subjects.items():
        contents = counts.contents[label]
        n_runs, n_frames = (int(pc.sum(contents[name]).as_py() or 0) for name in ("trajectories", "frames"))
        address = "a part of a dataset" if subject.address is None else shown(subject.address)
        rows.append((label, address, n_runs, n_frames))
    heads = ("dataset", "address", "trajectories", "frames")
    return _rows(heads, rows) + _table(files.together(counts.contents))


def _left_out(counts: Counts) -> str:
    titles = {figure.name: figure.title for figure in counts.figures}
    rows = [(titles[n], label, reason) for n, reasons in counts.left_out.items() for label, reason in reasons.items()]
    return _rows(("figure", "dataset", "why"), rows)


def _units(subjects: Mapping[str, Subject]) -> str:
    """Tabulate units of columns, and in which unit each dataset has stress."""
    there = {name for subject in subjects.values() for name in subject.dataset.schema.names}
    rows = [(c.name, c.unit, c.description) for c in (*PUBLISHED, *ADDED) if c.unit and c.name in there]
    stress = [
        (label, (subject.dataset.schema.metadata or {}).get(b"trajmill.stress_unit", b"unknown").decode())
        for label, subject in subjects.items()
    ]
    return (
        "<p>Figures are in the units of this table, whatever those of the files.</p>"
        + _rows(("column", "unit", "meaning"), rows)
        + _rows(("dataset", "stress in its files"), stress)
    )


def _made(subjects: Mapping[str, Subject]) -> str:
    """Say what wrote rows and page, by which recipe."""
    parts = [_rows(("this page", "version"), [(name, version(name)) for name in PACKAGES])]
    for label, subject in subjects.items():
        about = _about(subject)
        packages = about.pop("packages", {})
        parts.append(f"<h3>{escape(label)}</h3>")
        if packages:
            parts.append(_rows(("rows written with", "version"), [(k, ", ".join(v)) for k, v in packages.items()]))
        text = escape(json.dumps(about, indent=1, ensure_ascii=False))
        parts.append(
            f"<details><summary>Recipe, raw files, counts</summary><pre>{text}</pre></details>"
            if about
            else "<p>Nothing is known of how its rows were made.</p>"
        )
    return "".join(parts)


def _about(subject: Subject) -> dict[str, Any]:
    """Return what a store or a release knows of itself."""
    if subject.address is None:
        return {}
    if is_store(subject.address):
        store = open_store(subject.address)
        return {"packages": store.versions(), "store_version": store.version, "upstream": store.upstream(),
                "recipe": store.built_with()}  # fmt: skip
    return dict(subject.dataset.manifest or {})


def _table(table: pa.Table) -> str:
    """Write a table."""
    return _rows(table.column_names, zip(*(column.to_pylist() for column in table.columns), strict=True))


def _rows(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:.6g}</td>'
    return f"<td>{escape('' if value is None else str(value))}</td>"
