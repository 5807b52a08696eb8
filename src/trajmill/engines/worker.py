"""A worker process of the local engine: `python -m trajmill.engines.worker FD`, started and fed over a socket."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection

from trajmill.engines.base import Done, Failed, Progress, Task

REPORT_EVERY = 0.5
"""Seconds between progress messages; each also notices that the parent is gone."""


def serve(connection: Connection) -> None:
    """Run tasks until the parent closes the connection."""
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        connection.send(_run(task, connection))
        gc.collect()


def _run(task: Task, connection: Connection) -> Done | Failed:
    last = time.monotonic()

    def report(*numbers: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY:
            last = now
            connection.send(Progress(task.name, numbers))

    try:
        return Done(task.name, task.function(task.argument, report))
    except (BrokenPipeError, ConnectionResetError):
        raise  # the parent is gone: nobody is left to commit this
    except Exception as error:  # noqa: BLE001 (reported to the parent; one asset's failure is not the worker's)
        return Failed(task.name, f"{type(error).__name__}: {error}", error, traceback.format_exc())


def main() -> None:
    """Serve on the file descriptor named on the command line; leave silently when the parent is gone."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError), Connection(int(sys.argv[1])) as connection:
        serve(connection)
    os._exit(0)  # threads of native libraries must not hold up the end


if __name__ == "__main__":
    main()
