"""How long the explorer takes at a million frames: making the index, the first page, a filter, a trajectory.

    python benchmarks/explore.py [--frames 1000000] [--release FOLDER] [--save]

The frames are those of a release of Alexandria's generated corpus, repeated under other identifiers. The server runs
in a process of its own; times are wall times of what asks it over loopback, from the request to the last byte, or in
Chromium, where there is one, from the click to the page that is shown. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import measuring

FRAMES = 1_000_000
ROWS_PER_FILE = 500_000
ROWS_PER_GROUP = 10_000
SEED = 0
PAGES = 50
TARGETS = {"first_page_ms": 1000, "trajectory_ms": 200}
IDENTIFIERS = ("id", "trajectory_id", "immutable_id", "task_id")

FIRST = ("/", "/static/style.css", "/static/home.js", "/static/common.js", "/static/elements.js", "/static/groups.js",
         "/api/dataset", "/api/trajectories")  # fmt: skip
"""All that a browser asks for until the first page is complete."""

QUERIES = (
    {"include": "O"},
    {"include": "O", "exclude": "Fe", "sort": "energy"},
    {"system": "cubic", "max_sites": "10", "sort": "force", "descending": "1"},
    {"filter": 'elements HAS ANY "Fe","Co" AND max_force < 0.01', "sort": "frames", "page": "3"},
)


def released(frames: int, folder: Path) -> Path:
    """Build and release a corpus."""
    import trajmill
    from trajmill.stores import open_store

    store, out = folder / "store", folder / "release"
    recipe = measuring.recipe_of(("alexandria",), measuring.corpus(frames), store)
    trajmill.build(recipe)
    trajmill.release(open_store(store), out, recipe)
    return out


def repeated(release: Path, frames: int, folder: Path) -> Path:
    """Write the rows of a release again and again, under other identifiers, until there are so many."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from trajmill.dataset import Dataset
    from trajmill.schema import parquet_options

    dataset = Dataset(release)
    rows = pa.Table.from_batches(dataset.batches()).replace_schema_metadata(dataset.schema.metadata)
    folder.mkdir()
    written, copy, writer = 0, 0, None
    while written < frames:
        new = rows.slice(0, frames - written)
        for name in IDENTIFIERS:
            at = new.schema.names.index(name)
            new = new.set_column(at, new.schema.field(at), pc.binary_join_element_wise(f"c{copy}", new[name], "-"))
        if writer is None or written // ROWS_PER_FILE != (written - 1) // ROWS_PER_FILE:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(folder / f"{copy:03d}.parquet", new.schema, **parquet_options(new.schema))
        writer.write_table(new, row_group_size=ROWS_PER_GROUP)
        written, copy = written + len(new), copy + 1
    if writer is not None:
        writer.close()
    return folder


class Server:
    """The explorer in a process of its own."""

    def __init__(self, dataset: Path, cache: Path) -> None:
        command = [sys.executable, "-m", "trajmill.cli", "explore", str(dataset), "--port", "0", "--no-open"]
        began = time.perf_counter()
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.start_s = time.perf_counter() - began
        self.cpu_s = measuring.cpu_s(self.process.pid)
        self._connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)

    def ask(self, path: str) -> tuple[float, bytes]:
        """Return how long an answer takes, ms, and what it is."""
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == 200, (path, content)
        return 1000 * (time.perf_counter() - began), content

    @property
    def peak_mb(self) -> float:
        return measuring.peak_mb(self.process.pid)


def in_a_browser(url: str, trajectory: str) -> dict[str, float] | None:
    """Return how long pages take in Chromium until they show their content, ms; None where there is none."""
    sys.path.insert(0, str(measuring.HERE.parent / "tests"))
    from servers.chromium import MISSING, browsing

    if MISSING:
        return None
    seen = "{const done = arguments[0]; const look = () => %s ? done(performance.now()) : setTimeout(look, 2); look();}"
    found = {}
    with browsing() as driver:
        for name, path, shown in (
            ("first_page_ms", "", "document.querySelector('#rows tr')"),
            ("trajectory_ms", f"trajectory?{urlencode({'id': trajectory})}", "document.querySelector('[data-frame]')"),
        ):
            times = []
            for _ in range(6):
                driver.get(url + path)
                times.append(driver.execute_async_script(seen % shown))
            found[name] = round(statistics.median(times[1:]))
    return found


def measure(dataset: Path, cache: Path) -> dict[str, Any]:
    """Start the explorer without an index, and again with one; ask it."""
    with Server(dataset, cache) as server:
        first = {"start_s": round(server.start_s, 2), "cpu_s": round(server.cpu_s, 2), "peak_mb": round(server.peak_mb)}
    with Server(dataset, cache) as server:
        summary = json.loads(server.ask("/api/dataset")[1])
        page = [sum(server.ask(path)[0] for path in FIRST) for _ in range(6)]
        queries = {
            urlencode(query): [server.ask(f"/api/trajectories?{urlencode(query)}")[0] for _ in range(6)]
            for query in QUERIES
        }
        draw = random.Random(SEED)
        ids = []
        for _ in range(PAGES):
            n = draw.randrange(max(1, summary["trajectories"] // 50))
            rows = json.loads(server.ask(f"/api/trajectories?page={n}")[1])["rows"]
            ids.append(draw.choice(rows)["trajectory_id"])
        trajectories = [server.ask(f"/api/trajectory?{urlencode({'id': i})}")[0] for i in ids]
        browser = in_a_browser(server.url, ids[0])
        index = next(cache.glob("trajmill/explorer/*.duckdb"))
        return {
            "frames": summary["frames"],
            "trajectories": summary["trajectories"],
            "files_mb": round(sum(f.stat().st_size for f in dataset.rglob("*.parquet")) / 1e6),
            "index_mb": round(index.stat().st_size / 1e6, 1),
            "first_start": first,
            "second_start_s": round(server.start_s, 2),
            "first_page_ms": round(statistics.median(page)),
            "queries_ms": {query: round(statistics.median(times[1:]), 1) for query, times in queries.items()},
            "trajectory_ms": {"median": round(statistics.median(trajectories)), "most": round(max(trajectories))},
            "browser": browser,
            "peak_mb": round(server.peak_mb),
            "targets": TARGETS,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--release", type=Path, help="what to repeat; default is made of a corpus of 100,000 frames")
    parser.add_argument("--save", action="store_true", help="write the results where the documentation reads them")
    options = parser.parse_args()
    measuring.tidy_when_ended()
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        release = options.release or released(100_000, there)
        results = measure(repeated(release, options.frames, there / "repeated"), there / "cache")
    print(json.dumps(results, indent=1))
    if options.save and results["browser"] is None:
        sys.exit("not saved: no Chromium here, and the documentation shows what it measures")
    if options.save:
        measuring.save("explore", results, "starlette", "uvicorn")


if __name__ == "__main__":
    main()
