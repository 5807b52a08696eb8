"""How the cost of a store's commits grows with its assets, up to 100,000 of them.

    python benchmarks/log.py [--assets 100 1000 10000 100000] [--commits 100] [--save]

A store gets its first asset through `DeltaStore`. The log of that commit is then repeated under other names until
the store has as many assets as asked for, checkpointed, and measured: a process of its own opens it, makes another
checkpoint, commits more assets for real (their files hold a row), asks whether an asset is up to date as a worker does,
lists assets and reads their balances.
The files that the repeated commits name are not there; nothing measured here reads them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring

CHECKPOINT = 5000
TARGETS = {"commit_ms": 50, "open_s": 2}
"""For a store of 100,000 assets."""
FIRST = "alexandria/asset-0000000"
VERSIONS = {"trajmill": "0", "moyopy": "0", "numpy": "0", "pyarrow": "0", "pymatgen": "0"}


def commit_of(store: Any, asset: str) -> Any:
    """Write an asset of a file of frames and one of rejections, a row each, and return what commits it."""
    from trajmill.codec import encode_rejections
    from trajmill.recipe import Recipe
    from trajmill.sources.base import Rejection
    from trajmill.stores.base import Balance, Commit

    rejection = Rejection(source="alexandria", asset=asset, rejected_by="readable", n_frames=1, task_id="a", detail="b")
    writer = store.writer(asset)
    for role in ("frame", "rejection"):
        writer.write(role, encode_rejections([rejection]))  # of frames too: only their files count here
    digest = hashlib.sha256(asset.encode()).hexdigest()
    files = writer.close(digest, VERSIONS)
    balance = Balance(records=1, frames=1, rejected={"readable": 1}, records_rejected={"readable": 1})
    return Commit(asset, digest, files, balance, VERSIONS, digest, Recipe().content("alexandria"))


def fill(path: Path, assets: int) -> None:
    """Make a store with this many assets, each committed by itself."""
    from deltalake import DeltaTable

    from trajmill.stores import open_store

    store = open_store(path, create=True)
    for i in range(2):  # the first one's commit holds the recipe as well
        store.commit(commit_of(store, f"{FIRST[:-7]}{i:07}"))
    log = path / "_delta_log"
    text = (log / f"{store.version:020}.json").read_text()
    name = f"asset-{1:07}"
    for i in range(2, assets):
        (log / f"{store.version - 1 + i:020}.json").write_text(text.replace(name, f"asset-{i:07}"))
        if i % CHECKPOINT == 0 or i == assets - 1:
            DeltaTable(path).create_checkpoint()  # not of all at once: what no checkpoint covers takes much memory


def look(sent: bytes, asset: str, fingerprint: str) -> None:
    """Do what a worker does before it decides whether an asset has to be read at all."""
    store = pickle.loads(sent)
    assert list(store.task_ids(asset)) == ["a"]
    assert store.committed(asset, fingerprint)


def measure(path: Path, assets: int, commits: int) -> dict[str, Any]:
    from deltalake import DeltaTable

    from trajmill.stores import open_store

    def clock(function: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    known = FIRST, hashlib.sha256(FIRST.encode()).hexdigest()
    log = path / "_delta_log"
    size = sum(f.stat().st_size for f in log.glob("*.json"))
    checkpoint = max(log.glob("*.checkpoint.parquet"))  # the last
    open_store(path)  # imports
    open_s = clock(lambda: open_store(path))
    store = open_store(path)
    sent = pickle.dumps(store.for_worker(FIRST))
    look_ms = 1e3 * statistics.median(clock(lambda: look(sent, *known)) for _ in range(10))
    checkpoint_s = clock(lambda: DeltaTable(path).create_checkpoint())
    with store.locked():
        ready = [commit_of(store, f"alexandria/more-{i:07}") for i in range(commits)]
        first_s = clock(lambda: store.commit(ready[0]))  # what is looked up once
        cpu = time.process_time()
        spent = [clock(lambda c=c: store.commit(c)) for c in ready[1:]]
        cpu = time.process_time() - cpu
    checks = [clock(lambda: store.committed(*known)) for _ in range(100)]
    result = {
        "assets": assets,
        "open_s": open_s,
        "look_ms": look_ms,
        "checkpoint_s": checkpoint_s,
        "first_commit_ms": 1e3 * first_s,
        "commit_ms": 1e3 * statistics.median(spent),
        "commit_cpu_ms": 1e3 * cpu / len(spent),
        "commit_mean_ms": 1e3 * statistics.mean(spent),
        "commit_max_ms": 1e3 * max(spent),
        "committed_us": 1e6 * statistics.median(checks),
        "assets_s": clock(store.assets),
        "balances_s": clock(store.balances),
        "log_mb": size / 1e6,
        "checkpoint_mb": checkpoint.stat().st_size / 1e6,
        "peak_mb": measuring.peak_mb(),
    }
    if len(store.assets()) != assets + commits:
        sys.exit(f"the store has {len(store.assets())} assets, not {assets + commits}")
    return {name: value if isinstance(value, int) else round(value, 3) for name, value in result.items()}


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--commits", type=int, default=101, help="how many to measure")
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--measure", nargs=3, metavar=("PATH", "ASSETS", "COMMITS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        path, assets, commits = arguments.measure
        print(json.dumps(measure(Path(path), int(assets), int(commits))))
        return
    results = []
    for assets in arguments.assets:
        with tempfile.TemporaryDirectory() as scratch:
            store = Path(scratch) / "store"
            fill(store, assets)
            results.append(measuring.call(__file__, "--measure", store, assets, arguments.commits))
        print(results[-1], flush=True)
    if arguments.save:
        measuring.save("log", {"targets": TARGETS, "rows": results})


if __name__ == "__main__":
    main()
