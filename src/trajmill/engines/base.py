"""What an engine is: it runs independent jobs somewhere and hands back their outcomes."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

ATTEMPTS = 3
"""How often a task is tried whose worker dies (killed, out of memory, a crash in native code)."""


@dataclass(frozen=True)
class Task:
    """A function of one argument to run elsewhere; both must be picklable and the function importable.

    The function is called as `function(argument, report)`; `report(*numbers)` may be called often and is passed on
    from time to time.
    """

    name: str
    function: Callable[..., Any]
    argument: Any


@dataclass(frozen=True)
class Done:
    """A task returned a value."""

    name: str
    value: Any


@dataclass(frozen=True)
class Failed:
    """A task raised, or its worker died too often.

    Attributes:
        error: the exception, when the task raised one that can travel between processes.
        traceback: its text, for the log; the last words of the worker when it died.
    """

    name: str
    reason: str
    error: Exception | None = None
    traceback: str = ""


@dataclass(frozen=True)
class Progress:
    """What a running task last reported."""

    name: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Lost:
    """A worker died; its task is tried again."""

    name: str
    reason: str


Event = Done | Failed | Progress | Lost


class Engine(Protocol):
    """Where the work runs.

    Attributes:
        draining: whether a first Ctrl-C came: what runs is finished, nothing new is started.
    """

    draining: bool

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Run tasks in any order and yield what happens; `Done` or `Failed` once for each task that was started.

        Closing the generator stops what runs.

        Raises:
            EngineError: there is nowhere to run them, or no more.
            KeyboardInterrupt: stopped at once. A first Ctrl-C only keeps new tasks from starting: the iterator ends
                when the running ones have.
        """
        ...


class Drainable:
    """What engines have in common when a user interrupts them."""

    draining = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """First Ctrl-C (or SIGTERM): finish what runs, start nothing new. Second: stop."""

        def stop(_: int, __: FrameType | None) -> None:
            if self.draining:
                raise KeyboardInterrupt
            self.draining = True

        self.draining = False
        if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
            yield
            return
        previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)


@dataclass
class Queue:
    """Tasks that wait for a worker, and how often each was tried."""

    waiting: deque[Task]
    attempts: dict[str, int] = field(default_factory=dict)

    def take(self) -> Task:
        """Take the next task, to be tried now."""
        task = self.waiting.popleft()
        self.attempts[task.name] = self.attempts.get(task.name, 0) + 1
        return task

    def lost(self, task: Task, reason: str, *, advice: str, last_words: str = "") -> Lost | Failed:
        """Put a task whose worker is gone back in front, unless it was tried often enough."""
        tried = self.attempts[task.name]
        if tried >= ATTEMPTS:
            return Failed(task.name, f"{reason} {tried} times; {advice}", traceback=last_words)
        self.waiting.appendleft(task)
        return Lost(task.name, reason)


def perform(task: Task, tell: Callable[[Progress], None], *, every: float) -> bytes:
    """Run a task, in a worker, and return its outcome pickled, so that what cannot travel is the task's failure.

    Args:
        task: what to run.
        tell: passes on what the task reports.
        every: s between two reports that are passed on.
    """
    last = time.monotonic()

    def report(*numbers: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            tell(Progress(task.name, numbers))

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


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
