"""Reading raw files: decompression beside the parser, large files in parts."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO
from zlib import crc32

from trajmill.sources.base import Asset, Report
from trajmill.storage import AnyPath

_PART = re.compile(r"/part-(\d+-of-\d+)$")


def in_parts(assets: Iterable[Asset], limit: int) -> list[Asset]:
    """Split the assets of large files, so that several workers share one.

    Each part reads the whole file and takes its records (`takes`): decompression is repeated, all else is shared.
    Names and parts depend on the size of the file and the limit alone.

    Args:
        assets: of whole files.
        limit: bytes; what a part has at most.

    Returns:
        Assets sorted by name.
    """
    split: list[Asset] = []
    for asset in assets:
        n = max(1, -(-asset.size // limit))
        parts = [f"{k}-of-{n}" for k in range(n)]
        split += [
            replace(asset, name=f"{asset.name}/part-{part}", part=part, size=asset.size // n) for part in parts
        ] if n > 1 else [asset]  # fmt: skip
    return sorted(split, key=lambda asset: asset.name)


def takes(asset: Asset, identifier: str) -> bool:
    """Tell whether a record belongs to an asset: the whole file has all, each part those of its identifiers.

    The records of one identifier are in one part, so that it sees which of them are repeated; those without any are in
    the first part.
    """
    if not asset.part:
        return True
    k, _, n = asset.part.partition("-of-")
    return crc32(identifier.encode("utf-8", "replace")) % int(n) == int(k)


def whole_file(name: str) -> str:
    """Return the name of the asset that has all of a file, from that of a part."""
    return _PART.sub("", name)


class Reading:
    """Tells how much of the files that a source prepares from has been read.

    Args:
        paths: all of them.
        report: told bytes.
    """

    def __init__(self, paths: Iterable[AnyPath], report: Report) -> None:
        self._sizes = {path: path.stat().st_size for path in paths}
        self._total, self._done = sum(self._sizes.values()), 0
        self._report = report

    def through(self, paths: Iterable[AnyPath]) -> Iterator[AnyPath]:
        """Go through some of them, each to be read before the next is asked for."""
        for path in paths:
            yield path
            self._done += self._sizes[path]
            self._report(self._done, self._total)


def read_ahead(open_file: Callable[[], BinaryIO], chunk: int = 1 << 20, ahead: int = 4) -> Iterator[bytes]:
    """Read a (compressed) file in a thread of its own, so that decompression does not hold up the parser.

    At most `ahead` chunks wait at any time; memory does not depend on the size of the file.

    Raises:
        OSError, EOFError, ValueError: what the decompressor raised, after everything before it was handed out.
    """
    chunks: queue.Queue[bytes | Exception] = queue.Queue(maxsize=ahead)
    abandoned = threading.Event()

    def put(item: bytes | Exception) -> None:
        while not abandoned.is_set():
            try:
                chunks.put(item, timeout=0.5)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            with open_file() as file:
                while not abandoned.is_set():
                    data = file.read1(chunk) if hasattr(file, "read1") else file.read(chunk)
                    put(data)
                    if not data:
                        return
        except Exception as error:  # noqa: BLE001 (handed to the reading thread, which raises it)
            put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while item := chunks.get():
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        abandoned.set()
        thread.join()
