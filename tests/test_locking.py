"""The lock on a folder: one process at a time, and never one that is gone."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

import chores
from trajmill.locking import Lock

HOLD = """
import sys, time
from pathlib import Path
from trajmill.locking import Lock
with Lock(Path(sys.argv[1])) as lock:
    print(lock.holder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def test_the_first_has_it_and_the_next_is_told_who(path):
    with Lock(path) as first:
        assert first.holder is None
        for _ in range(2):
            with Lock(path) as second:
                assert second.holder == str(os.getpid())
    with Lock(path) as third:
        assert third.holder is None


def test_it_is_gone_with_its_process(path):
    command = [sys.executable, "-c", HOLD, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "None\n"
        with Lock(path) as lock:
            assert lock.holder == str(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait(chores.PATIENCE)
        with Lock(path) as lock:
            assert lock.holder is None
            assert path.read_text() == str(os.getpid())


def test_a_disk_without_locks_stops_nobody(path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with Lock(path) as one, Lock(path) as other:
        assert (one.holder, other.holder) == (None, None)
