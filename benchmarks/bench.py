"""Measure what a frame costs, stage by stage, and how a build behaves as its input and its workers grow.

    python benchmarks/bench.py [--frames 10000 100000 1000000] [--sources alexandria mp oqmd]
                               [--only stages builds scaling] [--save]

For each size and source a corpus is generated once (`make_corpus.py`, kept in `benchmarks/corpus`), then there run,
each in a process of its own:

- `stages`: the pipeline in this process, asset by asset, with a clock around the functions it calls: CPU time per
  stage. What threads beside it spend (Alexandria's decompression, Arrow) is a stage of its own;
- `builds`: `trajmill.build` with one worker: wall time, CPU time of worker and parent, peak memory, bytes on disk;
- `scaling`: all sources of one corpus (the second largest size) in one build, with one worker and with two.

CPU time is what to look at; wall time depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import measuring

STAGES = ("prepare", "parse", "curate", "symmetry", "correction", "encode", "write", "commit", "other", "threads")
TARGETS = {"alexandria": 200, "mp": 200, "oqmd": 150}
"""CPU us per frame that a whole build may take."""
MOST_MB = 400
MOST_BYTES = 280
WORKERS = (1, 2)


class Clock:
    """CPU time of the main thread, handed to the stage it is in."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._stage = "other"
        self._last = time.thread_time()

    def _to(self, stage: str) -> str:
        now, before = time.thread_time(), self._stage
        self.spent[before] += now - self._last
        self._last, self._stage = now, stage
        return before

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Be in a stage; one within another counts for itself alone."""
        before = self._to(name)
        try:
            yield
        finally:
            self._to(before)

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Put a function that others look up at its owner, a module or a class, behind the clock.

        Of one that yields, what it does between two values counts.
        """
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage):
                value = function(*arguments, **options)
            return self._each(value, stage) if isinstance(value, Iterator) else value

        setattr(owner, name, timed)

    def _each(self, values: Iterator[Any], stage: str) -> Iterator[Any]:
        end = object()
        while True:
            with self.stage(stage):
                value = next(values, end)
            if value is end:
                return
            yield value


def measure_stages(name: str, folder: Path) -> dict[str, Any]:
    """Run the pipeline over a corpus and say what each of its steps costs in CPU us per frame."""
    import pymatgen.analysis.structure_analyzer  # takes a worker seconds once, not every frame
    import pymatgen.entries.compatibility  # noqa: F401

    from trajmill import annotation, pipeline
    from trajmill.sources import open_sources
    from trajmill.stores import open_store
    from trajmill.stores.base import Balance

    with tempfile.TemporaryDirectory() as scratch:
        recipe = measuring.recipe_of((name,), folder, Path(scratch) / "store")
        (source,) = open_sources(recipe)
        store = open_store(recipe.store.path, create=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock, begin, thread = Clock(), time.process_time(), time.thread_time()
        with clock.stage("prepare"):
            source.prepare(Path(scratch) / "work")
            assets = source.assets()
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock.spent["prepare"] += (begun.ru_utime + begun.ru_stime) - (used.ru_utime + used.ru_stime)
        clock.watch(type(source), "read", "parse")
        clock.watch(pipeline, "curate", "curate")
        clock.watch(annotation, "analyse", "symmetry")
        clock.watch(annotation, "energy_corrected", "correction")
        clock.watch(pipeline, "encode", "encode")
        clock.watch(pipeline, "encode_rejections", "encode")
        for step in ("write", "close"):
            clock.watch(type(store.writer("")), step, "write")
        clock.watch(type(store), "commit", "commit")
        balance = Balance()
        for asset in assets:
            built = pipeline.build_asset(pipeline.Job(source, asset, recipe, store.for_worker(asset.name)))
            assert not isinstance(built, pipeline.Unchanged)
            store.commit(built)
            balance += built.balance
        with clock.stage("done"):
            clock.spent["threads"] = (time.process_time() - begin) - (time.thread_time() - thread)
    costs = {stage: round(1e6 * clock.spent[stage] / balance.frames, 1) for stage in STAGES}
    return {"frames": balance.frames, "kept": balance.kept, "us_per_frame": costs, "sum": round(sum(costs.values()), 1)}


def measure_build(names: str, folder: Path, workers: int) -> dict[str, Any]:
    """Run a whole build."""
    import trajmill

    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        watch = measuring.WorkerPeaks()
        watch.start()
        begin, cpu = time.perf_counter(), time.process_time()
        summary = trajmill.build(measuring.recipe_of(tuple(names.split(",")), folder, store, workers))
        wall, parent = time.perf_counter() - begin, time.process_time() - cpu
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = [f for role in ("frame", "input") for f in store.glob(f"role={role}/**/*.parquet")]
        size = sum(f.stat().st_size for f in rows)
    if summary.failed:
        sys.exit(f"failed: {summary.failed}")
    balance = summary.balance
    frames = balance.frames
    return {
        "workers": workers,
        "assets": len(summary.built),
        "frames": frames,
        "kept": balance.kept,
        "rejected": dict(balance.rejected),
        "wall_s": round(wall, 1),
        "frames_per_s": round(frames / wall),
        "cpu_us_per_frame": round(1e6 * (used.ru_utime + used.ru_stime + parent) / frames, 1),
        "parent_cpu_us_per_frame": round(1e6 * parent / frames, 1),
        "worker_peaks_mb": sorted(map(round, watch.by_worker.values())),
        "parent_peak_mb": round(measuring.peak_mb()),
        "bytes_per_frame": round(size / max(balance.kept, 1), 1),
    }


def show(rows: list[dict[str, Any]], *keys: str) -> None:
    """Print results, the nested ones spread out."""
    for row in rows:
        cells = {key: row[key] for key in keys} | row.get("us_per_frame", {})
        print("  " + ", ".join(f"{key} {value}" for key, value in cells.items()), flush=True)


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sources", nargs="+", choices=measuring.SOURCES, default=list(measuring.SOURCES))
    parser.add_argument("--only", nargs="+", choices=["stages", "builds", "scaling"])
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--measure", nargs=4, metavar=("WHAT", "SOURCE", "FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, names, folder, workers = arguments.measure
        stages = what == "stages"
        result = measure_stages(names, Path(folder)) if stages else measure_build(names, Path(folder), int(workers))
        print(json.dumps(result))
        return

    def measure(what: str, names: str, frames: int, workers: int = 1) -> dict[str, Any]:
        print(f"{what}: {names}, {frames:,} frames a source, {workers} worker(s) ...", file=sys.stderr, flush=True)
        found = measuring.call(__file__, "--measure", what, names, measuring.corpus(frames), workers)
        return {"source": names, "corpus": frames, **found}

    wanted = arguments.only or ["stages", "builds", "scaling"]
    each = [(name, frames) for frames in sorted(arguments.frames) for name in arguments.sources]
    if "stages" in wanted:
        rows = [measure("stages", name, frames) for name, frames in each]
        print("\nCPU us per frame by stage")
        show(rows, "source", "frames", "sum")
        if arguments.save:
            measuring.save("stages", {"rows": rows})
    keys = ("frames", "wall_s", "frames_per_s", "cpu_us_per_frame", "parent_cpu_us_per_frame", "worker_peaks_mb",
            "parent_peak_mb", "bytes_per_frame")  # fmt: skip
    if "builds" in wanted:
        rows = [measure("builds", name, frames) for name, frames in each]
        print("\nwhole builds, one worker")
        show(rows, "source", *keys)
        if arguments.save:
            targets = {"cpu_us_per_frame": TARGETS, "worker_peak_mb": MOST_MB, "bytes_per_frame": MOST_BYTES}
            measuring.save("builds", {"targets": targets, "rows": rows})
    if "scaling" in wanted:
        frames = sorted(arguments.frames)[-2:][0]
        rows = [measure("scaling", ",".join(arguments.sources), frames, workers) for workers in WORKERS]
        print("\nall sources in one build")
        show(rows, "workers", *keys)
        if arguments.save:
            measuring.save("scaling", {"rows": rows})


if __name__ == "__main__":
    main()
