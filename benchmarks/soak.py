"""Build while workers, and at times the build itself, are killed; then look whether anything shows.

    python benchmarks/soak.py [--frames 1000000] [--workers 2] [--every 10] [--seed 0] [--save]

The frames are those of three sources in equal parts. They are built once in peace; then again into another store,
where every so many seconds (on average, at random from the seed) SIGKILL goes to one of the workers of that build, or
in one of eight cases to the build, which is then started anew, as often as it takes. When a build ends with assets
that were given up, because their workers were killed too often, the pauses become longer: an asset that takes longer
than a pause could not be built at all.

In the end: kept + rejected = read = generated, no id twice, and the same files with the same digests in both stores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import measuring

OF_PARENT = 1 / 8
LONGER = 1.5
ID_SPACE = ("frame", "input")


def build(folder: Path, store: Path, workers: int) -> dict[str, Any]:
    import trajmill

    watch = measuring.WorkerPeaks()
    watch.start()
    summary = trajmill.build(measuring.recipe_of(measuring.SOURCES, folder, store, workers))
    return {
        "built": len(summary.built),
        "unchanged": len(summary.unchanged),
        "failed": {name: failed.reason for name, failed in summary.failed.items()},
        "worker_peak_mb": round(watch.largest),
        "parent_peak_mb": round(measuring.peak_mb()),
    }


def start(folder: Path, store: Path, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--build", str(folder), str(store), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a build, and nothing else that it may have started."""
    found = []
    for child in measuring.children(pid):
        with suppress(OSError):  # it has ended
            if b"trajmill.engines.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return sorted(found)


def disturbed(folder: Path, store: Path, workers: int, *, every: float, rng: random.Random) -> dict[str, Any]:
    """Build until nothing is left to do, killing all the while; say what was killed and how it went."""
    killed: Counter[str] = Counter()
    runs = given_up = 0
    while True:
        runs += 1
        process = start(folder, store, workers)
        try:
            while not ended_within(process, rng.expovariate(1 / every)):
                whole = rng.random() < OF_PARENT
                victims = [process.pid] if whole else workers_of(process.pid)
                if victims:
                    with suppress(ProcessLookupError):  # it has just ended
                        os.kill(rng.choice(victims), signal.SIGKILL)
                        killed["builds" if whole else "workers"] += 1
        finally:
            process.kill()
        output, _ = process.communicate()
        if process.returncode == -signal.SIGKILL:
            continue
        if process.returncode:
            sys.exit("the build failed; its words are above")
        result = json.loads(output)
        print(f"run {runs}: {dict(killed)} killed so far, {result['built']} assets built", file=sys.stderr, flush=True)
        if not result["failed"]:
            return {"runs": runs, "killed": dict(killed), "given_up": given_up, **result}
        given_up += len(result["failed"])
        every *= LONGER


def ended_within(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def digests(store: Path) -> dict[str, str]:
    """Return the digest of each file of rows."""
    return {
        file.relative_to(store).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.glob("role=*/**/*.parquet"))
    }


def check(store: Path, quiet: Path, generated: int) -> dict[str, Any]:
    """Raise AssertionError where the store is not what it would be without any disturbance."""
    from trajmill.stores import open_store
    from trajmill.stores.base import Balance

    opened = open_store(store)
    balance = sum(opened.balances().values(), Balance())
    rejected = balance.rejected.total()
    assert balance.frames == generated, f"{generated} frames were generated, {balance.frames} read"
    assert balance.frames == balance.kept + rejected, f"{balance.frames} read, {balance.kept} kept, {rejected} rejected"
    ids: Counter[str] = Counter()
    for role in ID_SPACE:
        for batch in opened.read(role, columns=["id"]):
            ids.update(batch["id"].to_pylist())
    assert len(ids) == ids.total(), f"ids that come twice: {[name for name, n in ids.items() if n > 1][:5]}"
    assert len(ids) == balance.kept, f"{balance.kept} kept, {len(ids)} in the store"
    ours, theirs = digests(store), digests(quiet)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    assert not different, f"files that differ from the undisturbed build: {different[:5]}"
    return {"read": balance.frames, "kept": balance.kept, "rejected": rejected, "files_equal": len(ours)}


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=10, help="seconds between kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--build", nargs=3, metavar=("FOLDER", "STORE", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        folder, store, workers = arguments.build
        print(json.dumps(build(Path(folder), Path(store), int(workers))))
        return
    folder = measuring.corpus(arguments.frames // len(measuring.SOURCES))
    corpus = json.loads((folder / "corpus.json").read_text())
    generated = sum(corpus[source]["frames"] for source in measuring.SOURCES)
    with tempfile.TemporaryDirectory() as scratch:
        quiet, store = Path(scratch) / "quiet", Path(scratch) / "store"
        begin = time.perf_counter()
        undisturbed = measuring.call(__file__, "--build", folder, quiet, arguments.workers)
        middle = time.perf_counter()
        assert not undisturbed["failed"], undisturbed["failed"]
        rng = random.Random(arguments.seed)
        result = disturbed(folder, store, arguments.workers, every=arguments.every, rng=rng)
        end = time.perf_counter()
        results = {
            "seed": arguments.seed,
            "workers": arguments.workers,
            **check(store, quiet, generated),
            **{name: value for name, value in result.items() if name not in ("built", "unchanged", "failed")},
            "undisturbed_s": round(middle - begin, 1),
            "disturbed_s": round(end - middle, 1),
            "undisturbed_peaks_mb": [undisturbed["worker_peak_mb"], undisturbed["parent_peak_mb"]],
        }
    for name, value in results.items():
        print(f"{name:<22}{value:,}" if isinstance(value, int) else f"{name:<22}{value}")
    print("nothing shows: same rows, same files")
    if arguments.save:
        measuring.save("soak", results)


if __name__ == "__main__":
    main()
