"""Locks on files and folders: the kernel's, which are gone when their process is, however that ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import uuid4

DAY = 86_400
"""Seconds after which what another machine left is given up."""


class Lock:
    """A lock on a file. Without file locks (some network disks) everybody gets it.

    Args:
        path: the file; made when it is not there.
        wait: wait until whoever has the lock gives it back.

    Attributes:
        holder: process id of whoever has the lock already, None when it is ours.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.holder: str | None = None
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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


class Scratch:
    """A folder of this process's own, below one where others have theirs. What killed processes left there goes.

    Each holds a lock on its folder. One of this machine that is not locked is nobody's; one of another machine, whose
    locks may not be seen here, is given up after a day.

    Args:
        root: the folder below which all have theirs; made when it is not there.

    Attributes:
        path: the folder.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        gate = os.open(root, os.O_RDONLY)
        try:
            with suppress(OSError):  # no file locks here
                fcntl.flock(gate, fcntl.LOCK_EX)  # nobody sees a folder that is made and not yet locked
            for other in root.glob("*.tmp"):
                if _is_given_up(other):
                    shutil.rmtree(other, ignore_errors=True)
            self.path = root / f"{_host()}-{uuid4().hex}.tmp"
            self.path.mkdir()
            self._held = os.open(self.path, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(self._held, fcntl.LOCK_EX)
        finally:
            os.close(gate)

    def remove(self) -> None:
        """Remove the folder with what is in it, once."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._held)


def _is_given_up(folder: Path) -> bool:
    """Tell whether nobody works in a folder any more: its lock decides, its age where there are no locks to be seen."""
    try:
        if folder.name.startswith(f"{_host()}-"):
            held = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # no file locks here
                pass
            else:
                return True
            finally:
                os.close(held)
        return time.time() - max(entry.stat().st_mtime for entry in (folder, *folder.iterdir())) > DAY
    except OSError:  # gone already
        return False


def _host() -> str:
    return socket.gethostname().replace("/", "_")
