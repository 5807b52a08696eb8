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
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import IO

from trajmill.engines.base import Done, Event, Failed, Lost, Task

ATTEMPTS = 3
"""How often a task is tried whose worker dies (killed, out of memory, a crash in native code)."""

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


@dataclass
class _Queue:
    """Tasks that wait for a worker, and how often each was tried."""

    waiting: deque[Task]
    attempts: dict[str, int] = field(default_factory=dict)

    def take(self) -> Task:
        task = self.waiting.popleft()
        self.attempts[task.name] = self.attempts.get(task.name, 0) + 1
        return task


class LocalEngine:
    """A pool of processes.

    Args:
        workers: how many; 0 takes one for each core this process may use.
    """

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers or _cores()
        self.draining = False

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Run tasks in the order given, as many at a time as there are workers. See `Engine.run`."""
        queue = _Queue(deque(tasks))
        pool: list[_Worker] = []
        self.draining = False
        with self._interruptible():
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

    def _hand_out(self, queue: _Queue, pool: list[_Worker]) -> None:
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

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """First Ctrl-C (or SIGTERM): finish what runs, start nothing new. Second: stop."""

        def stop(_: int, __: FrameType | None) -> None:
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


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _receive(worker: _Worker, pool: list[_Worker], queue: _Queue) -> Event:
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
    reason = f"its worker died ({_name(code)})"
    tried = queue.attempts[task.name]
    if tried >= ATTEMPTS:
        advice = "if it was killed for memory, use fewer workers"
        return Failed(task.name, f"{reason} {tried} times; {advice}", traceback=last_words)
    queue.waiting.appendleft(task)
    return Lost(task.name, reason)


def _name(code: int) -> str:
    """Say how a process ended."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
