"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trajmill.errors import TrajmillError
from trajmill.uris import one_line

StrPath = str | os.PathLike[str]
"""What a caller may name a file with."""


def file_name(text: str) -> str:
    """Return what a file about something may be called: an address or a name, without what systems of files mind."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_")[-60:]


@contextmanager
def whole(path: StrPath, error: type[TrajmillError]) -> Iterator[Path]:
    """Yield a place beside a file to write it to; at the end it takes the name of the file, and replaces an old one.

    Args:
        path: of the file.
        error: what to raise where it cannot be written, with the reason on one line.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        yield aside
        aside.replace(path)
    except TrajmillError:  # of what is read meanwhile
        raise
    except OSError as reason:
        raise error(f"{path}: cannot be written ({one_line(reason)})") from reason
    finally:
        with suppress(OSError):  # also where there is no such folder
            aside.unlink(missing_ok=True)
