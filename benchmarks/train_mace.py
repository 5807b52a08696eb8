"""How fast MACE trains on frames as they lie in a release, beside MACE's own way, a copy in LMDB.

    python benchmarks/train_mace.py [--frames 10000] [--save]

The same frames for both: those of Alexandria's generated corpus, built, released, saved as one Parquet file, and
converted by `trajmill convert --to mace-lmdb` for MACE. `load` makes shuffled batches of graphs, and nothing else;
`train` also takes steps of a small model on the first of them. Both by MACE's `LMDBDataset` and its DataLoader, and by
`FrameStream` with `ToGraphs`; each way in a process of its own, one thread. The numbers of atoms and edges must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import measuring

BATCH = 32
CUTOFF = 6.0
STEPS = 30
MODEL = {"r_max": CUTOFF, "num_channels": 32, "max_L": 0, "max_ell": 2, "correlation": 2}


def elements(file: Path) -> list[int]:
    import trajmill
    from trajmill.elements import NUMBERS

    table = trajmill.open(file).ask("SELECT DISTINCT unnest(elements) AS e FROM wanted")
    return sorted(NUMBERS[symbol] for symbol in table["e"].to_pylist())


def batches(way: str, paths: dict[str, Path]) -> Iterator[Any]:
    """Yield shuffled batches of graphs."""
    known = elements(paths["trajmill"])
    if way == "trajmill":
        import trajmill
        from trajmill.mace_data import ToGraphs
        from trajmill.torch_data import FrameStream

        yield from FrameStream(trajmill.open(paths[way]), batch_size=BATCH, transform=ToGraphs(CUTOFF, known))
        return
    from mace.data import LMDBDataset
    from mace.tools import AtomicNumberTable
    from mace.tools.torch_geometric.dataloader import DataLoader

    dataset = LMDBDataset(str(paths[way]), r_max=CUTOFF, z_table=AtomicNumberTable(known), heads=["Default"])
    yield from DataLoader(dataset=dataset, batch_size=BATCH, shuffle=True)


def trainer(known: list[int]) -> Any:
    """Return what takes a step with a batch: a small model, by MACE's own parts."""
    import numpy as np
    import torch
    from mace import modules
    from mace.tools import AtomicNumberTable, build_default_arg_parser, check_args
    from mace.tools.model_script_utils import configure_model
    from mace.tools.train import take_step

    given = {"name": "model", "train_file": "none", "loss": "stress", "avg_num_neighbors": 40, **MODEL}
    args, _ = check_args(build_default_arg_parser().parse_args([f"--{name}={value}" for name, value in given.items()]))
    args.mean, args.std = [0.0], [1.0]
    for output in ("energy", "forces", "dipole", "polarizability"):
        setattr(args, f"compute_{output}", output in ("energy", "forces"))
    table = AtomicNumberTable(known)
    model, outputs = configure_model(args, None, np.zeros((1, len(known))), heads=["Default"], z_table=table)
    loss = modules.WeightedEnergyForcesStressLoss(1, 10, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return lambda batch: take_step(model, loss, batch, optimizer, None, outputs, 10.0, torch.device("cpu"))


def measure(way: str, task: str, paths: dict[str, Path]) -> dict[str, Any]:
    """Go through all batches, after a first was read (and learned from), so that imports are not counted."""
    import torch

    warnings.simplefilter("ignore")  # torch's and e3nn's of each other
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    step = trainer(elements(paths["trajmill"])) if task == "train" else lambda _: None
    for batch in islice(batches(way, paths), 3):
        step(batch)
    frames = atoms = edges = 0
    loading = 0.0
    found = batches(way, paths)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(STEPS if task == "train" else 10**9):
        asked = time.perf_counter()
        batch = next(found, None)
        loading += time.perf_counter() - asked
        if batch is None:
            break
        step(batch)
        frames, atoms, edges = (
            frames + batch.num_graphs,
            atoms + len(batch.positions),
            edges + batch.edge_index.shape[1],
        )
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "way": way,
        "task": task,
        "frames": frames,
        "atoms_per_frame": round(atoms / frames, 1),
        "edges_per_frame": round(edges / frames),
        "frames_per_s": round(frames / wall, 1),
        "cpu_us_per_frame": round(1e6 * cpu / frames),
        "loading": round(loading / wall, 3),
        "peak_mb": round(measuring.peak_mb()),
    }


def prepare(frames: int, folder: Path) -> tuple[dict[str, Path], float]:
    """Build, release and convert; return where each way's files are, and how long MACE's took."""
    import trajmill
    from trajmill.builder import build
    from trajmill.converting import convert
    from trajmill.recipe import load
    from trajmill.releases.hugging_face import release
    from trajmill.stores import open_store

    build(measuring.recipe_of(("alexandria",), measuring.corpus(frames), folder / "store"))
    release(open_store(folder / "store"), folder / "release", load())
    paths = {"trajmill": folder / "frames.parquet", "mace-lmdb": folder / "lmdb"}
    trajmill.open(folder / "release", "compatible_pbe").save(paths["trajmill"])
    began = time.perf_counter()
    convert(trajmill.open(paths["trajmill"]), paths["mace-lmdb"], "mace-lmdb")
    return paths, time.perf_counter() - began


def size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_blocks * 512 for file in files)


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "TASK", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, task, folder = arguments.measure
        paths = {"trajmill": Path(folder) / "frames.parquet", "mace-lmdb": Path(folder) / "lmdb"}
        with contextlib.redirect_stdout(sys.stderr):  # MACE prints
            found = measure(way, task, paths)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as scratch:
        paths, took = prepare(arguments.frames, Path(scratch))
        rows = [
            measuring.call(__file__, "--measure", way, task, scratch) for task in ("load", "train") for way in paths
        ]
        n = rows[0]["frames"]
        sizes = {way: round(size(path) / n) for way, path in paths.items()}
    for row in rows:
        speed = (
            f"{row['frames_per_s']:>9,} frames/s  {row['cpu_us_per_frame']:>7,} us CPU  loading {row['loading']:.0%}"
        )
        print(f"{row['task']:<6} {row['way']:<10} {speed}  {row['peak_mb']:>5} MB")
    print(f"bytes per frame: {sizes}; to copy into LMDB: {1e6 * took / n:.0f} us a frame")
    if len({(row["frames"], row["atoms_per_frame"], row["edges_per_frame"]) for row in rows[:2]}) > 1:
        sys.exit("not the same graphs")
    if arguments.save:
        found = {"frames": n, "batch": BATCH, "rows": rows, "bytes_per_frame": sizes, "copy_us": round(1e6 * took / n)}
        measuring.save("train_mace", found, "mace-torch", "torch", "matscipy")


if __name__ == "__main__":
    main()
