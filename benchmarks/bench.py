"""Measure what a frame costs, stage by stage, and how a build behaves as its input grows.

    python benchmarks/bench.py [--frames 10000 100000 1000000] [--sources alexandria mp oqmd] [--json FILE]

For each size and source a corpus is generated once (`make_corpus.py`, kept in `benchmarks/corpus`), then three things
run, each in a process of its own:

- `stages`: the pipeline's own functions over the corpus, CPU time per stage. Alexandria's decompression is what the
  thread beside the parser spent; elsewhere it is measured alone and taken off the stage that does it;
- `build`: `trajmill.build` with one worker: wall time, CPU time of the worker, its peak memory, bytes on disk;
- `baseline` (smallest size, Alexandria): the same frames through `json` and pymatgen's `Structure.from_dict`, as
  object-per-frame pipelines do, to compare the cost of reading.

CPU time is what to look at; wall time depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
STAGES = ("prepare", "decompress", "parse", "curate", "symmetry", "correction", "encode", "write", "other")


def corpus(frames: int) -> Path:
    """Generate the corpus of this size unless it is there."""
    folder = CORPUS / f"{frames}"
    if not (folder / "corpus.json").exists():
        print(f"generating {folder.name} frames a source ...", file=sys.stderr, flush=True)
        subprocess.run(
            [sys.executable, HERE / "make_corpus.py", folder, "--frames", str(frames)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return folder


def source_path(name: str, folder: Path) -> Path:
    return next((folder / name).glob("*.sql.gz")) if name == "oqmd" else folder / name


def recipe_of(name: str, folder: Path, store: Path) -> Any:
    from trajmill.recipe import load

    return load(settings=[f"{name}.path='{source_path(name, folder)}'", f"store.path='{store}'", "engine.workers=1"])


class Clock:
    """CPU time of the main thread, handed to named stages, and that of all other threads together."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.last = self.first = time.thread_time()
        self.process = time.process_time()

    def to(self, stage: str) -> None:
        now = time.thread_time()
        self.spent[stage] += now - self.last
        self.last = now

    def other_threads(self) -> float:
        """Return their CPU seconds since the last call."""
        now, process = time.thread_time(), time.process_time()
        spent = (process - self.process) - (now - self.first)
        self.first, self.process = now, process
        return spent


def measure_stages(name: str, folder: Path) -> dict[str, Any]:
    """Run the pipeline's functions over a corpus and say what each costs in CPU us per frame."""
    import gc

    from trajmill.annotation import cross_compatibility, energy_corrected, space_groups
    from trajmill.annotation.energy_correction import _scheme
    from trajmill.codec import encode, encode_rejections
    from trajmill.curation import curate
    from trajmill.pipeline import BATCH_SIZE
    from trajmill.sources import open_sources
    from trajmill.stores.delta import DeltaWriter

    _scheme()  # importing pymatgen takes a worker seconds once, not every frame
    with tempfile.TemporaryDirectory() as scratch:
        recipe = recipe_of(name, folder, Path(scratch) / "store")
        (source,) = open_sources(recipe)
        clock = Clock()
        source.prepare(Path(scratch) / "work")
        clock.to("prepare")
        clock.spent["prepare"] += clock.other_threads()
        frames = kept = 0
        gc.disable()
        for asset in source.assets():
            writer = DeltaWriter(Path(scratch), asset.name)
            batch, atoms, rejections = [], 0, []
            clock.to("other")
            for record in source.read(asset):
                clock.to("parse")
                frames += record.n_frames
                rejections += record.rejections
                for trajectory in record.trajectories:
                    t, lost = curate(trajectory, recipe.rules)
                    rejections += lost
                    clock.to("curate")
                    if t is None:
                        continue
                    groups = space_groups(t.lattice, t.positions, t.numbers)
                    clock.to("symmetry")
                    corrected, _ = energy_corrected(t)
                    clock.to("correction")
                    t = replace(
                        t, space_group=groups, energy_corrected=corrected, cross_compatibility=cross_compatibility(t)
                    )
                    t = t.select(t.labelled)
                    if len(t):
                        batch.append(t)
                        kept += len(t)
                        atoms += len(t) * t.n_atoms
                clock.to("other")
                if atoms > BATCH_SIZE:
                    rows = encode(batch)
                    clock.to("encode")
                    writer.write("frame", rows)
                    clock.to("write")
                    batch, atoms = [], 0
            clock.to("parse")
            if batch:
                rows = encode(batch)
                clock.to("encode")
                writer.write("frame", rows)
            if rejections:
                writer.write("rejection", encode_rejections(rejections))
            writer.close("0" * 64, {})
            clock.to("write")
    spent = dict(clock.spent)
    if name == "alexandria":  # decompressed in a thread of its own
        spent["decompress"] = clock.other_threads()
    else:
        spent["decompress"] = decompression(name, folder)
        spent["prepare" if name == "oqmd" else "parse"] -= spent["decompress"]
    per_frame = {stage: round(1e6 * spent.get(stage, 0.0) / frames, 1) for stage in STAGES}
    return {"frames": frames, "kept": kept, "us_per_frame": per_frame, "sum": round(sum(per_frame.values()), 1)}


def decompression(name: str, folder: Path) -> float:
    """CPU seconds to decompress all files of a source and do nothing with them."""
    from isal import igzip

    begin = time.process_time()
    for file in sorted((folder / name).rglob("*.gz")):
        with igzip.open(file) as stream:
            while stream.read(1 << 20):
                pass
    return time.process_time() - begin


class WorkerPeak(threading.Thread):
    """Watches the peak memory of this process's workers, MB.

    `getrusage` would do, were it not that a child begins with its parent's peak.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            for status in Path("/proc").glob("[0-9]*/status"):
                with contextlib.suppress(OSError):  # it has ended
                    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                    if int(fields["PPid"]) == os.getpid() and "VmHWM" in fields:
                        self.peak = max(self.peak, int(fields["VmHWM"].split()[0]) / 1024)
            time.sleep(0.5)


def measure_build(name: str, folder: Path) -> dict[str, Any]:
    """Run a whole build with one worker."""
    import trajmill

    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        watch = WorkerPeak()
        watch.start()
        begin, cpu = time.perf_counter(), time.process_time()
        summary = trajmill.build(recipe_of(name, folder, store))
        wall, parent = time.perf_counter() - begin, time.process_time() - cpu
        worker = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = sum(f.stat().st_size for f in store.glob("role=frame/**/*.parquet"))
        inputs = sum(f.stat().st_size for f in store.glob("role=input/**/*.parquet"))
    b = summary.balance
    frames = b.frames
    return {
        "frames": frames,
        "kept": b.kept,
        "rejected": dict(b.rejected),
        "frames_per_s": round(frames / wall),
        "cpu_us_per_frame": round(1e6 * (worker.ru_utime + worker.ru_stime + parent) / frames, 1),
        "parent_cpu_us_per_frame": round(1e6 * parent / frames, 1),
        "worker_peak_mb": round(watch.peak),
        "parent_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "bytes_per_frame": round((size + inputs) / max(b.kept, 1), 1),
    }


def measure_baseline(name: str, folder: Path) -> dict[str, Any]:
    """Read Alexandria's frames as objects, one pymatgen Structure each."""
    from pymatgen.core import Structure

    frames = 0
    begin = time.process_time()
    for file in sorted((folder / name).rglob("*.bz2")):
        for runs in json.loads(bz2.decompress(file.read_bytes())).values():
            for run in runs:
                for step in run["steps"]:
                    Structure.from_dict(step["structure"])
                    frames += 1
    cpu = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"frames": frames, "read_us_per_frame": round(1e6 * cpu / frames, 1), "peak_mb": round(peak)}


MEASUREMENTS = {"stages": measure_stages, "build": measure_build, "baseline": measure_baseline}


def in_process_of_its_own(what: str, name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, name, str(folder)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def show(results: list[dict[str, Any]]) -> None:
    print("\nCPU us per frame by stage")
    print(f"{'source':<12}{'frames':>9}" + "".join(f"{s:>12}" for s in STAGES) + f"{'sum':>9}")
    for r in results:
        stages = r["stages"]
        costs = "".join(f"{stages['us_per_frame'][s]:>12}" for s in STAGES)
        print(f"{r['source']:<12}{stages['frames']:>9}{costs}{stages['sum']:>9}")
    print("\nwhole build, one worker")
    keys = (
        "frames_per_s",
        "cpu_us_per_frame",
        "parent_cpu_us_per_frame",
        "worker_peak_mb",
        "parent_peak_mb",
        "bytes_per_frame",
    )
    print(f"{'source':<12}{'frames':>9}" + "".join(f"{k:>25}" for k in keys))
    for r in results:
        print(f"{r['source']:<12}{r['build']['frames']:>9}" + "".join(f"{r['build'][k]:>25}" for k in keys))
    for r in results:
        if baseline := r.get("baseline"):
            stages = r["stages"]["us_per_frame"]
            ours, theirs = stages["decompress"] + stages["parse"], baseline["read_us_per_frame"]
            print(
                f"\nreading, {r['source']}, {baseline['frames']} frames: {ours:.1f} us per frame; "
                f"json and pymatgen Structures {theirs:.1f} us, {theirs / ours:.1f} times as much"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sources", nargs="+", default=["alexandria", "mp", "oqmd"])
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, name, folder = arguments.measure
        print(json.dumps(MEASUREMENTS[what](name, Path(folder))))
        return
    results = []
    for frames in arguments.frames:
        folder = corpus(frames)
        for name in arguments.sources:
            print(f"measuring {name}, {frames} frames ...", file=sys.stderr, flush=True)
            result: dict[str, Any] = {"source": name, "corpus": frames}
            result |= {what: in_process_of_its_own(what, name, folder) for what in ("stages", "build")}
            if name == "alexandria" and frames == min(arguments.frames):
                result["baseline"] = in_process_of_its_own("baseline", name, folder)
            results.append(result)
    show(results)
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
