"""The engine of clusters: workers of dask.distributed on this machine, at a scheduler's address, or in SLURM jobs.

Each task is sent to a worker that has none, as in the local engine. Dask carries messages, watches over workers and
restarts them; it does not choose: nothing is stolen, started twice, or queued behind a task that kills its worker, and
a worker never runs two tasks at once, however many threads it has. What a worker makes comes back as one small message;
the rows lie where the worker put them.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import platform
import re
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from trajmill.engines.base import ATTEMPTS, Drainable, Event, Failed, Progress, Queue, Task, cores, perform
from trajmill.errors import EngineError, RecipeError, require

if TYPE_CHECKING:
    from trajmill.engines.slurm import SlurmJobs

REPORT_EVERY = 2.0
"""Seconds between progress messages of a task: all of them pass through one scheduler."""

TICK = 1.0
"""Seconds without news after which the engine looks whether all is well."""

CONNECTING = 30.0
"""Seconds a scheduler may take to answer."""

NO_WORKERS = 60.0
"""Seconds without any worker after which the engine gives up, unless jobs are waiting in SLURM's queue."""

ADVICE = "if it was killed for memory, give each worker more: fewer of them per machine"

LONG = 1.0
"""Seconds after which a task may leave much to collect: looking through all that dask holds takes a tenth of that."""

LOST = "the connection to dask's scheduler was lost; what was committed is unharmed: run again to go on"

QUIET = {"logging": dict.fromkeys(("asyncio", "distributed", "distributed.client", "tornado"), "critical")}
"""Dask's loggers write to the terminal; what they say reaches the user as events and errors."""


@dataclass(frozen=True)
class _Joined:
    address: str


@dataclass(frozen=True)
class _Left:
    address: str


@dataclass(frozen=True)
class _Said:
    address: str
    progress: Progress


@dataclass(frozen=True)
class _Call:
    """A function with its arguments, which is called when it is unpickled.

    Dask is handed `pickle.loads` and bytes. A function of trajmill's own would be looked up by the scheduler and by the
    message loop of the worker, and where that fails, the worker is lost; so it is a task that fails, with the reason.
    """

    call: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        function, *arguments = self.call
        return function, tuple(arguments)


@dataclass
class _Worker:
    """A worker and what it is doing; `task` is None while it says which versions it has."""

    address: str
    executor: Executor
    future: Future[Any] | None = None
    task: Task | None = None
    heard: float = 0.0


@dataclass
class _Fleet:
    """The workers there are, what they do, and what is heard of them."""

    client: Any  # distributed.Client, which has no types
    queue: Queue
    timeout: float
    topic: str = field(default_factory=lambda: f"trajmill-{uuid.uuid4().hex}")
    workers: dict[str, _Worker] = field(default_factory=dict)
    inbox: SimpleQueue[_Joined | _Left | _Said | Future[Any]] = field(default_factory=SimpleQueue)
    looked: float = field(default_factory=time.monotonic)
    deserted: float = field(default_factory=time.monotonic)
    stillborn: int = 0

    def __post_init__(self) -> None:
        self.client.subscribe_topic(self.topic, self._hear_task)
        self.client.subscribe_topic("all", self._hear_scheduler)
        for address in self.client.nthreads():
            self._welcome(address)

    def _hear_task(self, event: tuple[float, list[Any]]) -> None:
        address, name, *numbers = event[1]
        self.inbox.put(_Said(address, Progress(name, tuple(numbers))))

    def _hear_scheduler(self, event: tuple[float, dict[str, Any]]) -> None:
        match event[1]:
            case {"action": "add-worker", "worker": address}:
                self.inbox.put(_Joined(address))
            case {"action": "remove-worker", "worker": address}:
                self.inbox.put(_Left(address))

    @property
    def busy(self) -> list[_Worker]:
        """Workers that work on a task."""
        return [worker for worker in self.workers.values() if worker.task]

    @property
    def idle(self) -> list[_Worker]:
        """Workers that wait for a task."""
        return [worker for worker in self.workers.values() if not worker.future]

    def hand_out(self) -> None:
        """Give waiting tasks to idle workers."""
        for worker in self.idle:
            if not self.queue.waiting:
                return
            worker.task = self.queue.take()
            self._submit(worker, _work, worker.task, self.topic, str(Path.cwd()))

    def _submit(self, worker: _Worker, *call: Any) -> None:
        worker.heard = time.monotonic()
        worker.future = worker.executor.submit(pickle.loads, pickle.dumps(_Call(call)))
        worker.future.add_done_callback(self.inbox.put)

    def _welcome(self, address: str) -> None:
        """Take in a worker, once it has shown that it makes the same rows as any other."""
        if address not in self.workers:
            executor = self.client.get_executor(workers=[address], allow_other_workers=False, pure=False)
            self.workers[address] = _Worker(address, executor)
            self._submit(self.workers[address], versions)

    def listen(self) -> Iterator[Event]:
        """Wait for news, for a while, and act on it."""
        if time.monotonic() - self.looked > TICK:
            self.looked = time.monotonic()
            yield from self._look_around()
        try:
            news = self.inbox.get(timeout=TICK)
        except Empty:
            return
        match news:
            case _Joined(address):
                self._welcome(address)
            case _Left(address):
                yield from self._give_up(address, f"its worker died ({address})")
            case _Said(address, progress):
                worker = self.workers.get(address)
                if worker and worker.task and worker.task.name == progress.name:
                    worker.heard = time.monotonic()
                    yield progress
            case Future():
                for worker in self.workers.values():
                    if worker.future is news:  # else of a worker that was given up
                        yield from self._outcome(worker, news)
                        break

    def _outcome(self, worker: _Worker, future: Future[Any]) -> Iterator[Event]:
        from distributed import KilledWorker

        if future.cancelled() or isinstance(future.exception(), KilledWorker):
            self._check_connection()
            yield from self._give_up(worker.address, f"its worker died ({worker.address})")
            return
        task, error = worker.task, future.exception()
        worker.future = worker.task = None
        if task is None:
            _compare(worker.address, error or future.result())
            self.stillborn = 0
        elif error is not None:  # of dask's own: a task's is an outcome
            yield Failed(task.name, f"{type(error).__name__}: {error}")
        else:
            yield pickle.loads(future.result())  # noqa: S301 (from our own workers)

    def _give_up(self, address: str, reason: str) -> Iterator[Event]:
        """Forget a worker; its task is tried elsewhere."""
        worker = self.workers.pop(address, None)
        if worker is None:
            return
        self.deserted = time.monotonic()
        if worker.task:
            yield self.queue.lost(worker.task, reason, advice=ADVICE)
        elif worker.future:
            self.stillborn += 1
            if self.stillborn >= ATTEMPTS:
                raise EngineError(f"workers die before they have worked, {address} the last; see what they print")
        if worker.future:
            worker.future.cancel()

    def _look_around(self) -> Iterator[Event]:
        self._check_connection()
        now = time.monotonic()
        late = [worker for worker in self.busy if self.timeout and now - worker.heard > self.timeout]
        for worker in late:
            yield from self._give_up(worker.address, f"its worker said nothing for {self.timeout:g} s")
        self._end(late)

    def _check_connection(self) -> None:
        if self.client.status != "running":
            raise EngineError(LOST)

    def _end(self, workers: Sequence[_Worker]) -> None:
        """End the processes of these workers, whatever they do; their nannies start new ones."""
        if workers:
            with suppress(OSError):  # a courtesy to who shares them: nobody waits any more for what they do
                self.client.run(os._exit, 1, workers=[w.address for w in workers], on_error="ignore")

    def leave(self) -> None:
        """End what still runs and hear no more."""
        if self.client.status == "running":
            self._end(self.busy)
            for topic in (self.topic, "all"):
                self.client.unsubscribe_topic(topic)


class DaskEngine(Drainable):
    """Workers of a dask cluster.

    Args:
        workers: processes to start on this machine when there is neither scheduler nor jobs; 0 takes one for each core.
        scheduler: address of a running scheduler.
        jobs: SLURM jobs to start workers in.
        timeout: s without a word from a task after which it is tried elsewhere; 0 waits for ever.

    Raises:
        MissingExtraError: dask.distributed is not installed.
        RecipeError: the scheduler's address is none.
    """

    def __init__(
        self,
        workers: int = 0,
        *,
        scheduler: str | None = None,
        jobs: SlurmJobs | None = None,
        timeout: float = 0.0,
    ) -> None:
        self.workers = workers or cores()
        self.scheduler = scheduler
        self.jobs = jobs
        self.timeout = timeout
        if scheduler is not None and not re.fullmatch(r"(tcp|tls|ucx|wss?)://\S+:\d+", scheduler):
            # dask's client would complain too, and then hang when the program ends
            raise RecipeError(
                f"engine.scheduler: {scheduler} is no address; the scheduler says it when it starts: tcp://host:8786"
            )
        with require("dask.config", extra="dask").set(QUIET):
            self._dask = require("distributed", extra="dask")

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Run tasks in the order given, on as many workers as there are. See `Engine.run`."""
        waiting = Queue(deque(tasks))
        if not tasks:
            return
        with self.interruptible(), self._connected(len(tasks)) as client:
            fleet = _Fleet(client, waiting, self.timeout)
            try:
                while True:
                    if not self.draining:
                        fleet.hand_out()
                    if not fleet.busy and (self.draining or not waiting.waiting):
                        return
                    self._tend(fleet)
                    yield from fleet.listen()
            except OSError as error:  # dask's, in the middle of a call
                raise EngineError(LOST) from error
            finally:
                fleet.leave()

    def _tend(self, fleet: _Fleet) -> None:
        """See to it that there are workers, and no more than are needed."""
        if self.jobs:
            waiting = 0 if self.draining else len(fleet.queue.waiting)
            self.jobs.tend(fleet.client, [worker.address for worker in fleet.idle], len(fleet.busy), waiting)
        elif not fleet.workers and time.monotonic() - fleet.deserted > NO_WORKERS:
            raise EngineError(
                f"no worker came to dask's scheduler for {NO_WORKERS:g} s; start some: dask worker "
                f"{self.scheduler or 'ADDRESS'} --nthreads 1 --nworkers N"
            )

    @contextmanager
    def _connected(self, n_tasks: int) -> Iterator[Any]:
        """Connect to the scheduler; start one first, with workers, where none was named."""
        with ExitStack() as stack:
            where: Any = self.scheduler
            if self.jobs:
                where = stack.enter_context(self.jobs.scheduler())
            elif not where:
                where = stack.enter_context(self._local(min(self.workers, n_tasks)))
            try:
                client = stack.enter_context(self._dask.Client(where, timeout=CONNECTING, set_as_default=False))
            except OSError as error:
                raise EngineError(f"engine.scheduler: no dask scheduler answers at {where}") from error
            yield client

    def _local(self, n_workers: int) -> AbstractContextManager[Any]:
        """Start workers on this machine."""
        try:
            cluster: AbstractContextManager[Any] = self._dask.LocalCluster(
                n_workers=n_workers, threads_per_worker=1, preload=__name__, silence_logs=logging.CRITICAL,
                dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # else port 8787
                env={"ARROW_DEFAULT_MEMORY_POOL": "system"},
            )  # fmt: skip
        except RuntimeError as error:
            raise EngineError(f"dask's workers do not start on this machine: {error.__cause__ or error}") from error
        return cluster


def dask_setup(worker: Any) -> None:
    """Set a worker on this machine apart: Ctrl-C does not reach it, and what it prints stays off the display.

    Dask calls this because the module is a `preload` of the worker.
    """
    worker.memory_manager.memory_pause_fraction = False  # else a worker that is full might never start its task
    os.setsid()
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def versions() -> dict[str, str]:
    """Return the versions that have to be the same wherever rows are made."""
    from trajmill.pipeline import package_versions

    python = platform.python_version().rpartition(".")[0]
    return {"python": python, **{name: version(name) for name in ("distributed", "msgpack")}, **package_versions()}


def _compare(address: str, theirs: dict[str, str] | BaseException) -> None:
    """Refuse a worker that would make other rows, or none.

    Raises:
        EngineError: it has other versions.
    """
    if isinstance(theirs, BaseException):
        raise EngineError(
            f"worker {address} cannot run trajmill ({type(theirs).__name__}: {theirs}); workers need the same "
            "environment as this machine"
        )
    differing = [
        f"{name} {theirs.get(name, 'none')} and not {ours}"
        for name, ours in versions().items()
        if theirs.get(name) != ours
    ]
    if differing:
        raise EngineError(
            f"worker {address} has {', '.join(differing)}; workers need the same environment as this machine"
        )


def _work(task: Task, topic: str, folder: str) -> bytes:
    """Run a task in a worker of dask's."""
    from distributed import get_worker

    worker, started = get_worker(), time.monotonic()
    with suppress(OSError):  # what is relative is relative to the client's folder; there may be nothing relative
        os.chdir(folder)

    def tell(said: Progress) -> None:
        worker.log_event(topic, [worker.address, said.name, *said.numbers])

    try:
        return perform(task, tell, every=REPORT_EVERY)
    finally:
        if time.monotonic() - started > LONG:
            gc.collect()
