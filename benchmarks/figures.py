"""Measure what it takes to draw all figures of a large dataset, and to write the report.

    python benchmarks/figures.py [--rows 1000000 10000000] [--save]

Rows are those of a release of the generated Alexandria corpus, again and again under new identifiers, for `mp`,
`alexandria` and `oqmd` in turn, as Parquet files; once with all columns and once with the 25 published ones, where
largest forces must be found from all forces. Each measurement runs in a process of its own; files are in the page cache
as far as it holds them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import measuring
from trajmill.dataset import Dataset
from trajmill.releases.hugging_face import as_released, release_schema
from trajmill.schema import parquet_options

OF_CORPUS = 100_000
SOURCES = {"mp": "mp-", "alexandria": "agm", "oqmd": "oqmd-"}
"""What identifiers begin with."""

ROWS_PER_FILE = 500_000
SCHEMAS = ("trajmill", "lemat-traj")


def release(folder: Path) -> Path:
    """Build the corpus and release it."""
    from trajmill.builder import build
    from trajmill.recipe import load
    from trajmill.releases.push import release_to
    from trajmill.stores import open_store

    store = folder / "store"
    build(measuring.recipe_of(("alexandria",), measuring.corpus(OF_CORPUS), store, workers=2))
    release_to(open_store(store), str(folder / "release"), load())
    return folder / "release"


def renamed(rows: pa.Table, turn: int, source: str) -> pa.Table:
    """Give rows other identifiers and another source."""
    begin = f"{SOURCES[source]}{turn:03d}"
    changed = {name: pc.replace_substring_regex(rows[name], "^agm", begin) for name in ("id", "trajectory_id")}
    changed["source"] = pa.chunked_array([pa.repeat(source, len(rows))])
    for name, values in changed.items():
        rows = rows.set_column(rows.schema.names.index(name), rows.schema.field(name), values)
    return rows


def corpus(n_rows: int, schema: str) -> Path:
    """Return a folder of Parquet files with so many rows, made unless it is there."""
    folder = measuring.CORPUS / f"figures-{n_rows}-{schema}"
    if folder.exists():
        return folder
    from trajmill.recipe import load

    print(f"generating {n_rows:,} rows with the columns of {schema} ...", file=sys.stderr, flush=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    columns, unit = release_schema(load(settings=[f"release.format='{schema}'"]))
    with tempfile.TemporaryDirectory(dir=measuring.CORPUS) as work:
        dataset = Dataset(release(Path(work)))
        rows = pa.Table.from_batches(dataset.batches(), dataset.schema)
    left, names = n_rows, list(SOURCES)
    writer: Any = None
    in_file = files = 0
    for turn in count():
        turned = renamed(rows, turn, names[turn % len(names)])
        part = as_released(turned, columns, unit).slice(0, left)
        if writer is None:
            writer = pq.ParquetWriter(partial / f"train-{files:05d}.parquet", columns, **parquet_options(columns))
        writer.write_table(part, row_group_size=10_000)
        left, in_file = left - len(part), in_file + len(part)
        if in_file >= ROWS_PER_FILE or not left:
            writer.close()
            writer, in_file, files = None, 0, files + 1
        if not left:
            break
    partial.replace(folder)
    return folder


def measure(what: str, folder: Path) -> dict[str, Any]:
    """Draw all figures, or write the report."""
    from trajmill.analysis import FIGURES, files, numbers, page

    begin = time.perf_counter()
    chosen = files.subjects([folder])
    counted = numbers.count(chosen, FIGURES)
    found = {"counted_s": round(time.perf_counter() - begin, 1)}
    with tempfile.TemporaryDirectory() as out:
        if what == "figures":
            files.save(counted, Path(out))
        else:
            file = Path(out) / "report.html"
            page.write(counted, chosen, file)
            found["megabytes"] = round(file.stat().st_size / 1e6, 2)
    frames = sum(pc.sum(table["frames"]).as_py() for table in counted.contents.values())
    wall = round(time.perf_counter() - begin, 1)
    return {"frames": frames, **found, "wall_s": wall, "peak_mb": round(measuring.peak_mb())}


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    rows = []
    for n_rows in sorted(arguments.rows):
        for schema in SCHEMAS:
            folder = corpus(n_rows, schema)
            for what in ("figures", "report"):
                row = {"schema": schema, "what": what, **measuring.call(__file__, "--measure", what, folder)}
                print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    if arguments.save:
        measuring.save("figures", {"rows": rows}, "matplotlib")


if __name__ == "__main__":
    main()
