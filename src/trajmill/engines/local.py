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
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType

from trajmill.engines.base import Done, Event, Failed, Lost, Task

ATTEMPTS = 3
"""How often a task is tried whose worker dies (killed, out of memory, a crash in native code)."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    task: Task | None = None

    def close(self) -> None:
        """End the process: at once if it is busy, else by closing its connection."""
        if self.task is not None:
            self.process.kill()
        self.connection.close()
        self.process.wait()


class LocalEngine:
    """A pool of processes.

    Args:
        workers: how many; 0 takes one for each core this process may use.
    """

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self.draining = False

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Run tasks in the order given, as many at a time as there are workers. See `Engine.run`."""
        waiting = deque((task, 1) for task in tasks)
        attempts: dict[str, int] = {}
        pool: list[_Worker] = []
        with self._interruptible():
            try:
                while True:
                    while waiting and not self.draining and len(pool) < self.workers:
                        pool.append(_start())
                    for worker in pool:
                        if worker.task is None and waiting and not self.draining:
                            worker.task, tried = waiting.popleft()
                            attempts[worker.task.name] = tried
                            _send(worker)
                    busy = {w.connection: w for w in pool if w.task is not None}
                    if not busy:
                        return
                    for ready in wait(list(busy)):
                        worker = busy[ready]  # type: ignore[index]  # wait() returns what it was given
                        event = self._receive(worker, pool, waiting, attempts)
                        if isinstance(event, (Done, Failed)):
                            worker.task = None
                        yield event
            finally:
                for worker in pool:
                    worker.close()

    def _receive(
        self, worker: _Worker, pool: list[_Worker], waiting: deque[tuple[Task, int]], attempts: dict[str, int]
    ) -> Event:
        """Take a worker's message; when there is none because it died, put its task back in front."""
        task = worker.task
        assert task is not None  # noqa: S101 (only busy workers are waited for)
        try:
            event: Event = worker.connection.recv()
            return event
        except (EOFError, ConnectionResetError):
            worker.close()
            pool.remove(worker)
        code = worker.process.returncode
        reason = f"its worker died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        tried = attempts[task.name]
        if tried >= ATTEMPTS:
            return Failed(task.name, f"{reason} {tried} times; if it was killed for memory, use fewer workers")
        waiting.appendleft((task, tried + 1))
        return Lost(task.name, reason)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """First Ctrl-C (or SIGTERM): finish what runs, start nothing new. Second: stop."""

        def stop(signum: int, _: FrameType | None) -> None:
            if self.draining:
                raise KeyboardInterrupt
            self.draining = True

        if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
            yield
            return
        previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)


def _start() -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", "trajmill.engines.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
    return _Worker(process, Connection(ours.detach()))


def _send(worker: _Worker) -> None:
    try:
        worker.connection.send(worker.task)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it died idle: receiving from it says so and puts the task back
