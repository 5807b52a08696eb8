"""Hold trajmill against a pipeline with an object per frame, on the same raw files.

    python benchmarks/compare.py [--frames 10000] [--sources alexandria mp oqmd] [--save]

The other way is `objects.py`; it says what it does and what it leaves out. It works in a database of its own, made on
the PostgreSQL server of TRAJMILL_TEST_POSTGRES (postgresql://postgres@127.0.0.1:5432/test) and dropped afterwards.
OQMD's dump goes through the MariaDB server of TRAJMILL_MARIADB (127.0.0.1:3306). trajmill builds with one worker and
all its rules.

CPU time is that of the programs' processes. What the servers use is reported beside it, not counted: PostgreSQL's
process for the connection; what MariaDB uses is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import measuring

SERVER = os.environ.get("TRAJMILL_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")


def by_trajmill(source: str, folder: Path, store: str) -> dict[str, Any]:
    import trajmill

    summary = trajmill.build(measuring.recipe_of((source,), folder, Path(store)))
    if summary.failed:
        sys.exit(f"trajmill failed: {summary.failed}")
    size = sum(f.stat().st_size for role in ("frame", "input") for f in Path(store).glob(f"role={role}/**/*.parquet"))
    return {"frames": summary.balance.frames, "kept": summary.balance.kept, "bytes": size}


def by_objects(source: str, folder: Path, address: str) -> dict[str, Any]:
    from objects import build

    return build(source, measuring.source_path(source, folder), address)


WAYS: dict[str, Callable[[str, Path, str], dict[str, Any]]] = {"trajmill": by_trajmill, "objects": by_objects}


def measure(way: str, source: str, folder: Path, target: str) -> dict[str, Any]:
    watch = measuring.WorkerPeaks()
    watch.start()
    begin = time.perf_counter()
    result = WAYS[way](source, folder, target)
    wall = time.perf_counter() - begin
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
    return result | {
        "wall_s": round(wall, 1),
        "cpu_us_per_frame": round(1e6 * cpu / result["frames"], 1),
        "frames_per_s": round(result["frames"] / wall),
        "peak_mb": round(measuring.peak_mb() + watch.largest),
        "bytes_per_frame": round(result["bytes"] / max(result["kept"], 1), 1),
    }


def agreement(store: Path, address: str) -> dict[str, int]:
    """Compare what both made: frames of one only, and of the common ones how many differ."""
    import psycopg

    from trajmill.stores import open_store

    names = ["id", "energy", "energy_corrected", "space_group_it_number"]
    ours: dict[str, Any] = {}
    for role in ("frame", "input"):
        for batch in open_store(store).read(role, columns=names):
            ours |= {row["id"]: row for row in batch.to_pylist()}
    with psycopg.connect(address) as connection:
        columns = ", ".join(names)
        theirs = {
            row[0]: dict(zip(names, row, strict=True)) for row in connection.execute(f"SELECT {columns} FROM frames")
        }
    both = ours.keys() & theirs.keys()
    result = {"both": len(both), "only trajmill": len(ours) - len(both), "only objects": len(theirs) - len(both)}
    for name in names[1:]:
        result[f"other {name}"] = sum(not _close(ours[i][name], theirs[i][name]) for i in both)
    return result


def _close(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and abs(a - b) < 1e-9 * abs(a))


@contextmanager
def databases(source: str) -> Iterator[str]:
    """Give the address of an empty PostgreSQL database; OQMD gets one of the same name in MariaDB as well."""
    import psycopg

    from objects import mariadb

    name = f"trajmill_compare_{os.getpid()}"
    with ExitStack() as afterwards:
        postgres = afterwards.enter_context(psycopg.connect(SERVER, autocommit=True))
        postgres.execute(f"CREATE DATABASE {name}")
        afterwards.callback(postgres.execute, f"DROP DATABASE {name} WITH (FORCE)")
        if source == "oqmd":
            maria = afterwards.enter_context(mariadb()).cursor()
            maria.execute(f"CREATE DATABASE {name}")
            afterwards.callback(maria.execute, f"DROP DATABASE {name}")
        yield urlunsplit(urlsplit(SERVER)._replace(path=f"/{name}"))


def compare(source: str, folder: Path) -> dict[str, Any]:
    """Run both ways, each in a process of its own, into a store and databases that are gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch, databases(source) as address:
        store = Path(scratch) / "store"
        targets = {"trajmill": str(store), "objects": address}
        result = {
            way: measuring.call(__file__, "--measure", way, source, folder, target) for way, target in targets.items()
        }
        result["agreement"] = agreement(store, address)
    ratios = ("cpu_us_per_frame", "wall_s", "peak_mb", "bytes_per_frame")
    result["ratio"] = {key: round(result["objects"][key] / result["trajmill"][key], 2) for key in ratios}
    return result


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--sources", nargs="+", choices=measuring.SOURCES, default=list(measuring.SOURCES))
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--measure", nargs=4, metavar=("WAY", "SOURCE", "FOLDER", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, source, folder, target = arguments.measure
        print(json.dumps(measure(way, source, Path(folder), target)))
        return
    results = {source: compare(source, measuring.corpus(arguments.frames)) for source in arguments.sources}
    for source, result in results.items():
        print(f"\n{source}, {result['trajmill']['frames']:,} frames")
        for way in (*WAYS, "ratio", "agreement"):
            print(f"  {way:<10}" + ", ".join(f"{key} {value}" for key, value in result[way].items()))
    if arguments.save:
        measuring.save("compare", results, "psycopg", "pydantic")


if __name__ == "__main__":
    main()
