"""A worker process of the local engine: `python -m trajmill.engines.worker FD`, started and fed over a socket."""

from __future__ import annotations

import gc
import os
import select
import sys
import threading
from multiprocessing.connection import Connection

from trajmill.engines.base import Task, perform

REPORT_EVERY = 0.5
"""Seconds between progress messages."""


def serve(connection: Connection) -> None:
    """Run tasks until the parent closes the connection."""
    while True:
        task: Task = connection.recv()
        connection.send_bytes(perform(task, connection.send, every=REPORT_EVERY))
        gc.collect()


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
