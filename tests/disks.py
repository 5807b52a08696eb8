"""Small disks that tests can fill."""

import os
import subprocess
from contextlib import contextmanager, suppress

import pytest

AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


@contextmanager
def small_disk(path, size):
    """Mount a disk of a few hundred kB; only root can, or who may become root without a password."""
    path.mkdir()
    command = [*AS_ROOT, "mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        assert os.environ.get("CI") != "true", f"CI must be able to mount: {done.stderr}"
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run([*AS_ROOT, "umount", "-l", path], check=True)


def fill(path):
    """Take all room there is."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler
