"""Locks and folders of a process's own: of one process at a time, and never of one that is gone."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import chores
from trajmill import locking
from trajmill.locking import DAY, Lock, Scratch

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


def test_who_waits_gets_it_next(path):
    got = []

    def wait():
        with Lock(path, wait=True) as lock:
            got.append(lock.holder)

    with Lock(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert not got
    waiting.join(chores.PATIENCE)
    assert got == [None]


# --- folders of a process's own

WORK = """
import sys
from pathlib import Path
from trajmill.locking import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.path / "half a file").write_text("half")
print(scratch.path, flush=True)
sys.stdin.read()
"""


def there(root):
    return {folder.name for folder in root.iterdir()}


def test_a_folder_stays_while_its_process_works(tmp_path):
    command = [sys.executable, "-c", WORK, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        theirs = process.stdout.readline().strip().rpartition("/")[2]
        ours, again = Scratch(tmp_path), Scratch(tmp_path)
        assert there(tmp_path) == {theirs, ours.path.name, again.path.name}
        process.send_signal(signal.SIGKILL)
        process.wait(chores.PATIENCE)
        again.remove()
        last = Scratch(tmp_path)
        assert there(tmp_path) == {ours.path.name, last.path.name}
    ours.remove()
    last.remove()
    assert there(tmp_path) == set()


def test_what_another_machine_left_is_given_up_after_a_day(tmp_path):
    for name, age in {"elsewhere-1.tmp": DAY - 60, "elsewhere-2.tmp": DAY + 60}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "half a file").touch()
        for path in (tmp_path / name / "half a file", tmp_path / name):
            os.utime(path, (time.time() - age, time.time() - age))
    scratch = Scratch(tmp_path)
    assert there(tmp_path) == {"elsewhere-1.tmp", scratch.path.name}
    scratch.remove()


def test_without_locks_age_decides(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    one, other = Scratch(tmp_path), Scratch(tmp_path)
    assert there(tmp_path) == {one.path.name, other.path.name}
    monkeypatch.setattr(locking, "DAY", -1)
    last = Scratch(tmp_path)
    assert there(tmp_path) == {last.path.name}
    for scratch in (one, other, last):
        scratch.remove()
