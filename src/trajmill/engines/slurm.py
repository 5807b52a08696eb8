"""SLURM jobs that hold dask workers: described in a TOML file, replaced when they end, given back when idle."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trajmill.errors import EngineError, RecipeError, require

LOOK_EVERY = 30.0
"""Seconds between two looks into SLURM's queue, which many users share."""

PROLOGUE = (
    "export ARROW_DEFAULT_MEMORY_POOL=system",  # Arrow's own keeps memory that it freed
    "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=false",  # a paused worker would keep its task from starting
)
"""What the script of a job begins with."""


class SlurmOptions(BaseModel):
    """What a job asks for, and what runs in it. Whatever is None is as dask-jobqueue has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    jobs: Annotated[int, Field(ge=1)] = Field(1, description="jobs at a time")
    cores: Annotated[int, Field(ge=1)] = Field(description="cores of a job")
    memory: str = Field(description='memory of a job, `"64GB"`; shared among its workers')
    processes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="workers of a job, of one asset at a time each; default one per core"
    )
    queue: str | None = Field(None, description="partition (`-p`)")
    account: str | None = Field(None, description="who pays (`-A`)")
    walltime: str | None = Field(None, description='`"12:00:00"`; longer than the largest asset takes')
    job_name: str | None = Field(None, description="name in the queue (`-J`)")
    job_cpu: int | None = Field(None, description="cores to ask for, where it is not `cores`")
    job_mem: str | None = Field(None, description="memory to ask for, where it is not `memory`")
    job_extra_directives: list[str] | None = Field(None, description='more `#SBATCH` lines: `["--qos=low"]`')
    job_directives_skip: list[str] | None = Field(None, description="`#SBATCH` lines with one of these are left out")
    job_script_prologue: list[str] | None = Field(
        None, description="shell commands before the worker starts: modules, variables"
    )
    log_directory: str | None = Field(None, description="folder for what jobs print")
    local_directory: str | None = Field(None, description="scratch folder on a node")
    shebang: str | None = Field(None, description="first line of the script")
    python: str | None = Field(None, description="interpreter on the nodes; default the one that runs the build")
    worker_extra_args: list[str] | None = Field(None, description="more arguments of `dask worker`")
    death_timeout: float | None = Field(None, description="s after which a worker ends that finds no scheduler")
    interface: str | None = Field(None, description="network between nodes and scheduler, `ib0`")
    protocol: str | None = Field(None, description="`tcp` or `tls`")
    scheduler_options: dict[str, Any] | None = Field(
        None,
        description='options of the scheduler: `{ host = "10.0.0.1", dashboard = true, dashboard_address = ":8787" }`',
    )


class SlurmJobs:
    """Jobs of one build.

    dask-jobqueue writes the script of a job and runs the scheduler here; submitting and watching are SLURM's own three
    commands, whose refusals reach the user as they are.

    Args:
        options: what a job is.
        origin: file the options stand in, for messages.

    Raises:
        MissingExtraError: dask-jobqueue is not installed.
        RecipeError: there is no SLURM on this machine.
    """

    def __init__(self, options: SlurmOptions, origin: str = "slurm") -> None:
        self.options = options
        self.ids: list[str] = []
        self._origin = origin
        self._jobqueue = dask_jobqueue()
        if shutil.which("sbatch") is None:
            raise RecipeError(f"{origin}: no sbatch on this machine; run where SLURM jobs can be submitted")
        self._script = ""
        self._looked = 0.0
        self._came = False

    @classmethod
    def load(cls, path: Path) -> SlurmJobs:
        """Read a TOML file.

        Raises:
            RecipeError: it cannot be read, or says something that is not understood.
        """
        try:
            options = SlurmOptions.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: not a TOML file ({error})") from error
        except ValidationError as error:
            raise RecipeError(f"{path}: {_explain(error)}") from error
        return cls(options, str(path))

    @contextmanager
    def scheduler(self) -> Iterator[Any]:
        """Run the scheduler that workers in jobs come to, on this machine; cancel all jobs in the end.

        Raises:
            RecipeError: dask-jobqueue refuses an argument.
        """
        try:
            cluster = self._jobqueue.SLURMCluster(**self.arguments(), silence_logs=logging.CRITICAL)
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # no such size, no such network
            raise RecipeError(f"{self._origin}: {error}") from error
        with cluster:
            self._script = cluster.job_script()
            try:
                yield cluster
            finally:
                if self.ids:
                    _call("scancel", *self.ids)
                    self.ids = []

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `dask_jobqueue.SLURMCluster`."""
        given = self.options.model_dump(exclude={"jobs"}, exclude_none=True)
        scheduler = {"dashboard": False, "dashboard_address": ":0"}
        return given | {
            "processes": given.get("processes", self.options.cores),
            "scheduler_options": scheduler | given.get("scheduler_options", {}),
            "job_script_prologue": [*PROLOGUE, *given.get("job_script_prologue", [])],
            # a script for all jobs: the name, which must be a worker's own, comes from SLURM
            "worker_extra_args": [*given.get("worker_extra_args", []), "--name", "slurm-$SLURM_JOB_ID"],
        }

    def tend(self, client: Any, idle: Sequence[str], busy: int, waiting: int) -> None:
        """Submit jobs that are needed, give back workers that are not.

        Args:
            client: `distributed.Client`, connected to the scheduler.
            idle: addresses of workers without a task.
            busy: number of workers that have one.
            waiting: number of tasks without a worker.

        Raises:
            EngineError: SLURM takes no job and none is there, or jobs end before their workers come.
        """
        self._came = self._came or bool(idle or busy)
        if idle and not waiting:
            with suppress(Exception):  # the worst is an idle worker
                client.retire_workers(list(idle))
        if self.ids and time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        self._forget_ended()
        workers = self.arguments()["processes"]
        wanted = min(self.options.jobs, -(-(busy + waiting) // workers))
        while len(self.ids) < wanted:
            submitted = _call("sbatch", "--parsable", script=self._script)
            if submitted.returncode:
                if self.ids:
                    return  # maybe more than this user may have; there are some, and it is tried again
                raise EngineError(f"{self._origin}: SLURM takes no job: {submitted.stderr}")
            self.ids.append(submitted.stdout.strip().partition(";")[0])
            self._came = False

    def _forget_ended(self) -> None:
        """Strike out jobs that SLURM has no more: at their time limit, cancelled, or failed."""
        listed = _call("squeue", "--noheader", "--me", "--format=%A")
        if listed.returncode:
            return  # SLURM does not answer now
        alive = [job for job in self.ids if job in listed.stdout.split()]
        if self.ids and not alive and not self._came:
            raise EngineError(
                f"{self._origin}: job {', '.join(self.ids)} ended before a worker came; what it printed is in "
                f"{self.options.log_directory or 'slurm-*.out in this folder'}. The nodes need the same environment, "
                "and must reach this machine (interface)"
            )
        self.ids = alive


def dask_jobqueue() -> Any:
    """Import dask-jobqueue, which makes Ctrl-C end the program with exit code 0 (0.9): that is undone.

    Raises:
        MissingExtraError: it is not installed.
    """
    before = signal.getsignal(signal.SIGINT)
    module = require("dask_jobqueue", extra="dask")
    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)
    return module


def _call(*command: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands, out of reach of a Ctrl-C in the terminal."""
    return subprocess.run(  # noqa: S603 (our own words)
        command, input=script, capture_output=True, text=True, check=False, start_new_session=True
    )


def _explain(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where}; known here: {', '.join(SlurmOptions.model_fields)}"
    return f"{where}: {fault['msg']} (got {fault.get('input')!r})"
