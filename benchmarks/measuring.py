"""What the benchmarks share: corpora, the facts of the machine, peaks of memory, results as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
RESULTS = HERE / "results"
SOURCES = ("alexandria", "mp", "oqmd")
PACKAGES = ("trajmill", "deltalake", "duckdb", "isal", "moyopy", "msgspec", "numpy", "pyarrow", "pymatgen")
WATCH_EVERY = 0.2


def corpus(frames: int) -> Path:
    """Return the corpus with this many frames a source, generated unless it is there."""
    folder = CORPUS / f"{frames}"
    if not (folder / "corpus.json").exists():
        print(f"generating {frames:,} frames a source ...", file=sys.stderr, flush=True)
        command = [sys.executable, HERE / "make_corpus.py", folder, "--frames", str(frames)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def source_path(source: str, folder: Path) -> Path:
    return next((folder / source).glob("*.sql.gz")) if source == "oqmd" else folder / source


def recipe_of(sources: tuple[str, ...], folder: Path, store: Path, workers: int = 1) -> Any:
    """Return the recipe that builds these sources of a corpus, everything else as it is by default."""
    from trajmill.recipe import load

    paths = [f"{source}.path='{source_path(source, folder)}'" for source in sources]
    return load(settings=[*paths, f"store.path='{store}'", f"engine.workers={workers}"])


def machine(*more: str) -> dict[str, Any]:
    """Say where and with what something was measured; `more` are packages that matter besides."""
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ": unknown")
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in (*PACKAGES, *more)},
        "date": datetime.now(UTC).date().isoformat(),
    }


def save(name: str, results: Any, *packages: str) -> None:
    """Write results with the machine's facts where `docs/generate.py` finds them."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps({"machine": machine(*packages), "results": results}, indent=1) + "\n")
    print(f"written: {file.relative_to(HERE.parent)}; `make docs` puts it into the pages", file=sys.stderr)


def tidy_when_ended() -> None:
    """Let SIGTERM end a script as Ctrl-C does: what it started is stopped, what it made for itself removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))


def call(script: str, *arguments: object) -> Any:
    """Run a script in a process of its own, so that its memory is its own, and return the JSON that it prints."""
    done = subprocess.run([sys.executable, script, *map(str, arguments)], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return json.loads(done.stdout)


def peak_mb(pid: int | str = "self") -> float:
    """Return the most memory a process has held so far, MB.

    `getrusage` would do, were it not that a child begins with its parent's peak.
    """
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024 if "VmHWM" in fields else 0.0  # a zombie has none


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that are still there."""
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # that thread has ended
            found += map(int, tasks.read_text().split())
    return found


class WorkerPeaks(threading.Thread):
    """Watches the peak memory of each of this process's workers, MB by process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.by_worker: dict[int, float] = {}

    def run(self) -> None:
        while True:
            for pid in children(os.getpid()):
                with contextlib.suppress(OSError):  # it has ended
                    self.by_worker[pid] = max(self.by_worker.get(pid, 0.0), peak_mb(pid))
            time.sleep(WATCH_EVERY)

    @property
    def largest(self) -> float:
        return max(self.by_worker.values(), default=0.0)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a running process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
