"""One process at a time: a lock on a file, which is gone when its process is, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self


class Lock:
    """A lock on a file. Without file locks (some network disks) everybody gets it.

    Args:
        path: the file; made when it is not there.

    Attributes:
        holder: process id of whoever has the lock already, None when it is ours.
    """

    def __init__(self, path: Path) -> None:
        self.holder: str | None = None
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            self.holder = self._file.read()
            return
        except OSError:
            pass
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
