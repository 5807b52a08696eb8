"""A dask cluster on loopback, for tests: a scheduler and workers as programs of their own, which end with the test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chores import children, wait_for

LIFETIME = "300"
"""Seconds after which all ends whatever happens."""


@contextmanager
def _program(name: str, folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    command = ["timeout", LIFETIME, sys.executable, "-m", f"distributed.cli.{name}", "--no-dashboard", *arguments]
    with (folder / f"{name}.log").open("a") as log:
        process = subprocess.Popen(command, env=os.environ | environment, cwd=folder, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a scheduler; give its address and pid."""
    file = folder / "scheduler.json"
    arguments = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    with _program("dask_scheduler", folder, *arguments, "--scheduler-file", str(file)) as process:
        told = wait_for(lambda: file.exists() and file.read_text().endswith("}") and json.loads(file.read_text()))
        yield told["address"], *children(process.pid)


@contextmanager
def workers(address: str, folder: Path, n: int = 2, *arguments: str, **environment: str) -> Iterator[None]:
    """Run workers, each with a nanny; they come when they are ready."""
    more = ["--nworkers", str(n), "--host", "127.0.0.1", "--local-directory", str(folder), *arguments]
    if "--nthreads" not in arguments:
        more += ["--nthreads", "1"]
    with _program("dask_worker", folder, address, *more, **environment):
        yield
