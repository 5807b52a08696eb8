"""Reading raw files: decompression beside the parser."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO


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
