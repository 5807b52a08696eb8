"""Tasks for tests of engines: importable by worker processes and quick to import.

A task gets a folder to leave traces in, and waits there for a file `go` when it is to take its time.
"""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

PATIENCE = 60.0
"""Seconds after which anything that waits gives up, so that a broken test ends."""


def wait_for(condition, *, what="it", patience=PATIENCE):
    """Poll until `condition()` is true; return what it returned."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {patience} s for {what}"
        time.sleep(0.01)
    return value


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid=None):
    """Pids of the child processes of a process, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == (pid or os.getpid()):
                found.add(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def started(folder):
    """Pids of the workers that left a trace in a folder, one for each task."""
    return [int(file.name.partition(".")[2]) for file in sorted(folder.glob("pid-*"))]


def started_names(folder):
    """Names that tasks of one letter left with their traces."""
    return {file.name[len("pid-")] for file in folder.glob("pid-*")}


def _trace(folder, name=""):
    (folder / f"pid-{name}{len(list(folder.glob('pid-*')))}.{os.getpid()}").touch()


def double(number, report):
    return 2 * number


def fail(text, report):
    raise ValueError(text)


class AwkwardError(Exception):
    """Cannot be unpickled: its arguments are not what it was made with."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


def fail_awkwardly(_, report):
    raise AwkwardError("trouble", "home")


def return_awkwardly(_, report):
    return lambda: None


def die(folder, report):
    """Die as an out-of-memory killer would have it."""
    _trace(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(folder, report):
    _trace(folder)
    if len(started(folder)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(started(folder))


def die_talking(_, report):
    """Die with half a message sent."""
    descriptor = int(sys.argv[1])
    os.write(descriptor, (1000).to_bytes(4, "big") + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def crash(text, report):
    print(text, file=sys.stderr, flush=True)
    os._exit(3)


def wait_for_go(folder, report):
    """Wait silently."""
    _trace(folder)
    wait_for((folder / "go").exists, what="go")
    return os.getpid()


def say_and_wait_for_go(argument, report):
    """Leave a name of one letter in the folder's trace and wait."""
    folder, name = argument
    _trace(folder, name)
    wait_for((folder / "go").exists, what="go")


def talk_until_go(folder, report):
    _trace(folder)

    def told():
        report(1, 2)
        return (folder / "go").exists()

    wait_for(told, what="go")


def meet(argument, report):
    """Return the pid once as many processes as named are here at the same time."""
    folder, n = argument
    (folder / str(os.getpid())).touch()
    wait_for(lambda: len(list(folder.iterdir())) >= n, what="the others")
    return os.getpid()


def make_noise(_, report):
    print("noise on stdout")
    print("noise on stderr", file=sys.stderr)
    warnings.warn("a warning", stacklevel=1)


def main():
    """Run two waiting tasks of a folder on two workers, to be killed: `python -m chores FOLDER`."""
    import chores
    from trajmill.engines.base import Task
    from trajmill.engines.local import LocalEngine

    folder = Path(sys.argv[1])
    for _ in LocalEngine(2).run([Task(str(i), chores.wait_for_go, folder) for i in range(2)]):
        pass


if __name__ == "__main__":
    main()
