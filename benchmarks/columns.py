"""What each column costs on disk, and what other ways of writing the same frames would cost.

    python benchmarks/columns.py [--frames 10000] [--sources alexandria mp oqmd real] [--save]

Builds a store of each corpus (`real`: the Materials Project documents in tests/data, whatever rules say of them), and
writes its frames anew, row group by row group: as trajmill does, with other encodings and levels of zstd, and with
fewer digits. CPU time of writing and of reading everything back, one thread.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import measuring
from trajmill.schema import IDENTIFIERS, leaves, parquet_options
from trajmill.stores import open_store

SAMPLES = measuring.HERE.parent / "tests" / "data" / "mp" / "real"
OFF = ("license", "deprecated", "electronic_convergence")
LENGTHS = ("cartesian_site_positions", "lattice_vectors")

Rows = Sequence[pa.Table]
Options = Callable[[pa.Schema], dict[str, Any]]
Change = Callable[[pa.Table], pa.Table]


def numbers_of(schema: pa.Schema) -> list[str]:
    return leaves(schema, pa.types.is_floating)


def all_by_byte(schema: pa.Schema) -> dict[str, Any]:
    """Every number byte by byte, every string by dictionary."""
    options = parquet_options(schema)
    options["column_encoding"] = dict.fromkeys(numbers_of(schema), "BYTE_STREAM_SPLIT")
    options["use_dictionary"] += [name for name in IDENTIFIERS if name in schema.names]
    return options


def ids_by_dictionary(schema: pa.Schema) -> dict[str, Any]:
    options = parquet_options(schema)
    options["use_dictionary"] += options["column_encoding"].keys() & set(IDENTIFIERS)
    options["column_encoding"] = {k: v for k, v in options["column_encoding"].items() if k not in IDENTIFIERS}
    return options


def level(n: int) -> Options:
    return lambda schema: parquet_options(schema) | {"compression_level": n}


def same(table: pa.Table) -> pa.Table:
    return table


def changed(names: Sequence[str], change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Return what changes the numbers of these columns, list<list<double>> all of them."""

    def apply(table: pa.Table) -> pa.Table:
        for name in names:
            outer = table[name].combine_chunks()
            inner = outer.values
            numbers = pa.array(change(inner.values.to_numpy()))
            nested = pa.ListArray.from_arrays(inner.offsets, numbers)
            nested = pa.ListArray.from_arrays(outer.offsets, nested, mask=outer.is_null())
            table = table.set_column(table.schema.get_field_index(name), name, nested)
        return table

    return apply


def single(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


def binary_digits(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what rounds to a multiple of 2^-n."""
    return lambda x: np.round(x * 2.0**n) / 2.0**n


VARIANTS: dict[str, tuple[Options, Change]] = {
    "as trajmill writes": (parquet_options, same),
    "identifiers by dictionary": (ids_by_dictionary, same),
    "all numbers byte by byte, identifiers by dictionary": (all_by_byte, same),
    "zstd 1": (level(1), same),
    "zstd 6": (level(6), same),
    "zstd 12": (level(12), same),
    "forces in float32": (parquet_options, changed(["forces"], single)),
    "forces and lengths in float32": (parquet_options, changed(["forces", *LENGTHS], single)),
    "forces to 2^-17 eV/A": (parquet_options, changed(["forces"], binary_digits(17))),
    "forces to 2^-17 eV/A, lengths to 2^-20 A": (
        parquet_options,
        lambda t: changed(["forces"], binary_digits(17))(changed(LENGTHS, binary_digits(20))(t)),
    ),
}


def rows_of(source: str, frames: int) -> Rows:
    """Build a source and return its frames, a table for each row group."""
    import trajmill
    from trajmill.recipe import load

    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        if source == "real":
            off = [f"rules.{rule}.enabled=false" for rule in OFF]
            recipe = load(settings=[f"mp.path='{SAMPLES}'", f"store.path='{store}'", "engine.workers=1", *off])
        else:
            recipe = measuring.recipe_of((source,), measuring.corpus(frames), store)
        trajmill.build(recipe)
        return [pa.Table.from_batches([batch]) for batch in open_store(store).read("frame")]


def write(rows: Rows, options: Options) -> bytes:
    buffer = io.BytesIO()
    schema = rows[0].schema
    with pq.ParquetWriter(buffer, schema, **options(schema)) as writer:
        for group in rows:
            writer.write_table(group)
    return buffer.getvalue()


def by_column(file: bytes, n_frames: int) -> dict[str, float]:
    metadata = pq.read_metadata(io.BytesIO(file))
    spent: Counter[str] = Counter()
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            spent[column.path_in_schema.partition(".")[0]] += column.total_compressed_size
    return {name: round(size / n_frames, 2) for name, size in spent.most_common()}


def error(rows: Rows, changed: Rows) -> dict[str, float]:
    """Return the largest error of each column whose numbers are others now."""
    found = {}
    for name in ("forces", *LENGTHS):
        largest = 0.0
        for before, after in zip(rows, changed, strict=True):
            a, b = (t[name].combine_chunks().flatten().flatten().to_numpy() for t in (before, after))
            largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
        if largest:
            found[name] = float(f"{largest:.1e}")
    return found


def measure(rows: Rows) -> dict[str, Any]:
    n = sum(len(group) for group in rows)
    result: dict[str, Any] = {"frames": n, "variants": {}}
    result["atoms_per_frame"] = round(sum(sum(group["nsites"].to_pylist()) for group in rows) / n, 1)
    file = write(rows, parquet_options)
    pq.ParquetFile(io.BytesIO(file)).read(use_threads=False)  # the first one pays for what is set up once
    result["columns"] = by_column(file, n)
    for name, (options, change) in VARIANTS.items():
        groups = [change(group) for group in rows]
        begin = time.process_time()
        file = write(groups, options)
        written = time.process_time()
        pq.ParquetFile(io.BytesIO(file)).read(use_threads=False)
        read = time.process_time()
        result["variants"][name] = {
            "bytes_per_frame": round(len(file) / n, 1),
            "write_us": round(1e6 * (written - begin) / n, 1),
            "read_us": round(1e6 * (read - written) / n, 1),
            "largest_error": error(rows, groups),
        }
    return result


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--sources", nargs="+", default=[*measuring.SOURCES, "real"])
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    arguments = parser.parse_args()
    results = {}
    for source in arguments.sources:
        results[source] = measure(rows_of(source, arguments.frames))
        print(f"\n{source}, {results[source]['frames']:,} frames")
        for name, size in results[source]["columns"].items():
            if size >= results[source]["variants"]["as trajmill writes"]["bytes_per_frame"] / 100:
                print(f"  {name:<54}{size:8.1f} bytes per frame")
        for name, v in results[source]["variants"].items():
            cost = f"write {v['write_us']:5.1f} us, read {v['read_us']:5.1f} us"
            print(f"  {name:<54}{v['bytes_per_frame']:8.1f} bytes per frame, {cost} {v['largest_error'] or ''}")
    if arguments.save:
        measuring.save("columns", results)


if __name__ == "__main__":
    main()
