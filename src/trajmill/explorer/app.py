"""The addresses of the page: two pages, what they show as JSON, files to download, and a fixed list of assets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from trajmill.errors import TrajmillError, require
from trajmill.explorer.index import Index
from trajmill.explorer.query import QueryError, read
from trajmill.explorer.reading import FORMATS, Reader, document, file_name, file_of, trajectory_of

STATIC = Path(__file__).parent / "static"

PAGES = {"/": "index.html", "/trajectory": "trajectory.html"}

_JS, _CSS = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
ASSETS = {
    "style.css": _CSS,
    "common.js": _JS,
    "home.js": _JS,
    "elements.js": _JS,
    "groups.js": _JS,
    "trajectory.js": _JS,
    "charts.js": _JS,
    "structure.js": _JS,
    "icon.svg": "image/svg+xml",
    "vendor/3Dmol-min.js": _JS,
    "vendor/uPlot.iife.min.js": _JS,
    "vendor/uPlot.min.css": _CSS,
    "vendor/LICENSES": "text/plain; charset=utf-8",
}
"""All that is served from the folder, by name: a request picks one of these and never makes a path."""

ID_LENGTH = 500
"""Characters of an identifier, at most."""


def make_app(index: Index, reader: Reader, about: dict[str, Any]) -> Any:
    """Make the application.

    Args:
        index: of the dataset.
        reader: of its trajectories.
        about: what the pages say of the dataset besides what the index counts.

    Raises:
        MissingExtraError: Starlette is not installed (extra `explore`).
    """
    applications = require("starlette.applications", extra="explore")
    routing = require("starlette.routing", extra="explore")
    summary = _encode({**index.summary(), **about})
    pages = Pages(index, reader, summary)
    held = {name: (STATIC / name).read_bytes() for name in (*ASSETS, *PAGES.values())}

    def answer(path: str, name: str, media: str) -> Any:
        return routing.Route(path, _fixed(held[name], media), methods=["GET"])

    return applications.Starlette(
        routes=[
            *(answer(path, name, "text/html; charset=utf-8") for path, name in PAGES.items()),
            *(answer(f"/static/{name}", name, media) for name, media in ASSETS.items()),
            routing.Route("/api/dataset", pages.dataset, methods=["GET"]),
            routing.Route("/api/trajectories", pages.trajectories, methods=["GET"]),
            routing.Route("/api/trajectory", pages.trajectory, methods=["GET"]),
            routing.Route("/download", pages.download, methods=["GET"]),
        ]
    )


class Pages:
    """What is answered from the dataset. Methods run in threads, several at once.

    Args:
        index: of the dataset.
        reader: of its trajectories.
        summary: of the dataset, as JSON.
    """

    def __init__(self, index: Index, reader: Reader, summary: bytes) -> None:
        self._index, self._reader, self._summary = index, reader, summary

    def dataset(self, _: Any) -> Any:
        """Say what the dataset holds."""
        return _json(self._summary)

    def trajectories(self, request: Any) -> Any:
        """List a page of trajectories."""
        try:
            found = self._index.page(read(request.query_params))
        except QueryError as error:
            return _json(_encode({"error": str(error), "parameter": error.name}), 400)
        return _json(_encode(found))

    def trajectory(self, request: Any) -> Any:
        """Give all of one trajectory."""
        rows = self._rows(request.query_params.get("id", ""))
        return rows if _is_answer(rows) else _json(_encode(document(trajectory_of(rows))))

    def download(self, request: Any) -> Any:
        """Give one trajectory as a file."""
        asked = request.query_params
        rows, form, frame = self._rows(asked.get("id", "")), asked.get("format", ""), asked.get("frame", "0")
        if _is_answer(rows):
            return rows
        if form not in FORMATS:
            return _wrong(400, f"format is one of {', '.join(FORMATS)}")
        if not (frame.isascii() and frame.isdigit() and len(frame) < 9 and int(frame) < len(rows)):
            return _wrong(400, f"frame is a number from 0 to {len(rows) - 1}")
        try:
            content = file_of(rows, form, int(frame))
        except TrajmillError as error:
            return _wrong(501, str(error))
        t = trajectory_of(rows)
        step = int(t.relaxation_step[int(frame)]) if form == "cif" else None
        named = f'attachment; filename="{file_name(t.trajectory_id, form, step)}"'
        return _response(content, FORMATS[form], headers={"content-disposition": named, "cache-control": "no-store"})

    def _rows(self, trajectory_id: str) -> Any:
        """Return the rows of a trajectory, or an answer that says why not."""
        spans = self._index.spans(trajectory_id) if len(trajectory_id) <= ID_LENGTH else []
        if not spans:
            return _wrong(404, "there is no such trajectory")
        try:
            return self._reader.rows(trajectory_id, tuple(spans))
        except TrajmillError as error:
            return _wrong(410, str(error))


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value)  # NaN and infinities become null


def _is_answer(value: Any) -> bool:
    return hasattr(value, "status_code")


def _response(content: bytes, media: str, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    response = require("starlette.responses", extra="explore").Response
    return response(content, status, headers, media)


def _json(content: bytes, status: int = 200) -> Any:
    return _response(content, "application/json", status, {"cache-control": "no-store"})


def _wrong(status: int, text: str) -> Any:
    return _json(_encode({"error": text}), status)


def _fixed(content: bytes, media: str) -> Callable[[Any], Any]:
    """Answer with what does not change; a browser that has it is told so."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    def answer(request: Any) -> Any:
        if request.headers.get("if-none-match") == tag:
            return _response(b"", media, 304, headers)
        return _response(content, media, 200, headers)

    return answer
