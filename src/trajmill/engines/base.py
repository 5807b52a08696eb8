"""What an engine is: it runs independent jobs somewhere and hands back their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
    """Where the work runs."""

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Run tasks in any order and yield what happens; `Done` or `Failed` once for each task that was started.

        Closing the generator stops what runs.

        Raises:
            KeyboardInterrupt: stopped at once. A first Ctrl-C only keeps new tasks from starting: the iterator ends
                when the running ones have.
        """
        ...
