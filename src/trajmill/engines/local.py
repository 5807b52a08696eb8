"""The default engine: processes on this machine.

Workers are started as programs of their own and not forked: native libraries keep threads that do not survive a fork,
and a user's script needs no `if __name__ == "__main__"`. They form their own sessions, so that Ctrl-C in a terminal
reaches the parent alone, which then lets them finish. The parent sleeps until a worker has something to say.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO

from trajmill.engines.base import Done, Drainable, Event, Failed, Queue, Task, cores

LAST_WORDS = 4000
"""Bytes of a dead worker's output that are passed on."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    output: IO[bytes]
    task: Task | None = None

    def close(self) -> str:
        """End the process, which has nothing that is worth keeping, and return the end of what it wrote."""
        self.process.kill()
        self.connection.close()
        self.process.wait()
        with self.output as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - LAST_WORDS))
            return output.read().decode(errors="replace")


class LocalEngine(Drainable):
    """A pool of processes.

    Args:
        workers: how many; 0 takes one for each core this process may use.
    """

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers or cores()

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Run tasks in the order given, as many at a time as there are workers. See `Engine.run`."""
        queue = Queue(deque(tasks))
        pool: list[_Worker] = []
        with self.interruptible():
            try:
                while True:
                    if not self.draining:
                        self._hand_out(queue, pool)
                    busy = {w.connection: w for w in pool if w.task is not None}
                    if not busy:
                        return
                    for ready in wait(list(busy)):
                        yield _receive(busy[ready], pool, queue)  # type: ignore[index]  # wait() returns what it got
            finally:
                for worker in pool:
                    worker.process.kill()  # all of them, before one is waited for
                for worker in pool:
                    worker.close()

    def _hand_out(self, queue: Queue, pool: list[_Worker]) -> None:
        """Give waiting tasks to idle workers and to new ones."""
        idle = [worker for worker in pool if worker.task is None]
        while queue.waiting and (idle or len(pool) < self.workers):
            if not idle:
                idle.append(_start())
                pool.append(idle[0])
            worker = idle.pop()
            worker.task = queue.take()
            with suppress(BrokenPipeError, ConnectionResetError):  # it died idle: `_receive` sees to it
                worker.connection.send(worker.task)


def _start() -> _Worker:
    ours, theirs = socket.socketpair()
    output = tempfile.TemporaryFile()  # noqa: SIM115 (warnings and noise must not run into the parent's display)
    with theirs:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", "trajmill.engines.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={"ARROW_DEFAULT_MEMORY_POOL": "system", **os.environ},  # Arrow's own keeps some 25 MB that it freed
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return _Worker(process, Connection(ours.detach()), output)


def _receive(worker: _Worker, pool: list[_Worker], queue: Queue) -> Event:
    """Take a worker's message; when there is none because it died, put its task back in front."""
    task = worker.task
    assert task is not None  # noqa: S101 (only busy workers are waited for)
    try:
        event: Event = worker.connection.recv()
    except (EOFError, OSError):  # OSError: it died in the middle of a message
        pool.remove(worker)
        worker.process.wait()
        code = worker.process.returncode
        last_words = worker.close()
    else:
        if isinstance(event, (Done, Failed)):
            worker.task = None
        return event
    advice = "if it was killed for memory, use fewer workers"
    return queue.lost(task, f"its worker died ({_name(code)})", advice=advice, last_words=last_words)


def _name(code: int) -> str:
    """Say how a process ended."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
