"""A worker process of the local engine: `python -m trajmill.engines.worker FD`, started and fed over a socket."""

from __future__ import annotations

import gc
import os
import pickle
import select
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from trajmill.engines.base import Done, Failed, Progress, Task

REPORT_EVERY = 0.5
"""Seconds between progress messages."""


def serve(connection: Connection) -> None:
    """Run tasks until the parent closes the connection."""
    while True:
        task: Task = connection.recv()
        connection.send_bytes(_run(task, connection))
        gc.collect()


def _run(task: Task, connection: Connection) -> bytes:
    """Run a task and return its outcome pickled, so that what cannot travel is the task's failure."""
    last = time.monotonic()

    def report(*numbers: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY:
            last = now
            connection.send(Progress(task.name, numbers))

    try:
        return pickle.dumps(Done(task.name, task.function(task.argument, report)))
    except Exception as error:  # noqa: BLE001 (reported to the parent; one asset's failure is not the worker's)
        reason, text = f"{type(error).__name__}: {error}", traceback.format_exc()
        return pickle.dumps(Failed(task.name, reason, _portable(error), text))


def _portable(error: Exception) -> Exception | None:
    """Return the error if it survives pickling, which many with arguments of their own do not."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
    except Exception:  # noqa: BLE001 (any error may do anything there)
        return None
    return error


def _leave_with_parent(connection: Connection) -> None:
    """End this process as soon as the other end is gone: nobody is left to commit what it makes."""
    hung_up = select.poll()
    hung_up.register(connection.fileno(), 0)  # no event asked for: only the hang-up, which always tells
    hung_up.poll()
    os._exit(0)


def main() -> None:
    """Serve on the file descriptor named on the command line; leave silently when the parent is gone."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_leave_with_parent, args=[connection], daemon=True).start()
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # threads of native libraries must not hold up the end


if __name__ == "__main__":
    main()
