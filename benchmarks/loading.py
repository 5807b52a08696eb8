"""How fast frames come back: from a release as it lies, beside Hugging Face `datasets`, ASE-LMDB and atompack.

    python benchmarks/loading.py [--frames 10000] [--save]

The frames are the same for all: Alexandria's of a generated corpus, built, released, saved as one Parquet file, and
converted for the others by `trajmill convert`. Each reader runs in a process of its own, one thread of Python, files in
the page cache. Every way hands out numbers, positions, lattice, energy, forces and stress of each frame, as arrays or
as ASE Atoms with results; `flat` and `batches` are arrays of many frames at once. The sums of energies and forces must
agree.
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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import measuring

BATCH = 128
AT_ONCE = 1000
LABELS = ["species_at_sites", "cartesian_site_positions", "lattice_vectors", "energy", "forces", "stress_tensor"]

UNKNOWN = np.full((3, 3), np.nan)

Sums = tuple[int, float, float]
"""Frames, their energies, the absolute forces: what a reader has seen."""


WARMING_UP = False
"""Whether a reader is only to begin, so that what it imports and opens is not counted."""


def seen(frames: Iterator[tuple[Any, Any]]) -> Sums:
    """Add up (energy, forces) of frames or of batches of frames."""
    n, energies, forces = 0, 0.0, 0.0
    for energy, force in islice(frames, 1 if WARMING_UP else None):
        n += np.size(energy)
        energies += float(np.sum(energy))
        forces += float(np.abs(force).sum())
    return n, energies, forces


# --- trajmill


def trajmill_flat(file: Path, _: bool) -> Sums:
    import trajmill

    return seen((frames.energy, frames.forces) for frames in trajmill.open(file).arrays())


def trajmill_arrays(file: Path, shuffled: bool) -> Sums:
    if shuffled:
        from trajmill.torch_data import FrameStream

        return seen((f.energy.numpy(), f.forces.numpy()) for f in FrameStream(_opened(file)))
    return seen((frame[3], frame[4]) for frame in _frames(file))


def trajmill_batches(file: Path, _: bool) -> Sums:
    from trajmill.torch_data import FrameStream

    return seen((b.energy.numpy(), b.forces.numpy()) for b in FrameStream(_opened(file), batch_size=BATCH))


def trajmill_atoms(file: Path, shuffled: bool) -> Sums:
    if shuffled:
        from trajmill.torch_data import FrameStream

        stream = FrameStream(_opened(file))
        arrays = (tuple(value.numpy() for value in frame[1:]) for frame in stream)
        return seen(_results(_atoms(*values)) for values in arrays)
    return seen(_results(atoms) for atoms in _opened(file).atoms())


def _opened(file: Path) -> Any:
    import trajmill

    return trajmill.open(file)


def _frames(file: Path) -> Iterator[tuple[Any, ...]]:
    for f in _opened(file).arrays():
        for i in range(len(f)):
            atoms = slice(f.offsets[i], f.offsets[i + 1])
            yield f.numbers[atoms], f.positions[atoms], f.lattice[i], f.energy[i], f.forces[atoms], f.stress[i]


def _atoms(numbers: Any, positions: Any, lattice: Any, energy: Any, forces: Any, stress: Any) -> Any:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import full_3x3_to_voigt_6_stress

    atoms = Atoms(numbers=numbers, positions=positions, cell=lattice, pbc=True)
    voigt = full_3x3_to_voigt_6_stress(stress)
    atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces, stress=voigt)
    return atoms


def _results(atoms: Any) -> tuple[Any, Any]:
    return atoms.calc.results["energy"], atoms.calc.results["forces"]


# --- datasets


def _dataset(file: Path, form: str, shuffled: bool, streaming: bool = False) -> Any:
    """Open it: streamed from Parquet as it lies, or from the uncompressed Arrow that `datasets` makes of it first."""
    import datasets

    datasets.disable_progress_bars()
    cache = str(file.parent / "datasets-cache")
    rows = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=cache, streaming=streaming)
    rows = rows.select_columns(LABELS)
    return (rows.shuffle(seed=0) if shuffled else rows).with_format(form)


def datasets_arrays(file: Path, shuffled: bool) -> Sums:
    return seen((row["energy"], row["forces"]) for row in _dataset(file, "numpy", shuffled))


def datasets_batches(file: Path, shuffled: bool, streaming: bool = False) -> Sums:
    def flattened() -> Iterator[tuple[Any, Any]]:
        for batch in _dataset(file, "arrow", shuffled, streaming).iter(BATCH if shuffled else 10_000):
            positions, lattice = batch["cartesian_site_positions"], batch["lattice_vectors"]
            for column in (positions, lattice, batch["stress_tensor"]):
                column.combine_chunks().flatten().flatten().to_numpy()
            batch["species_at_sites"].combine_chunks().flatten().dictionary_encode()
            yield batch["energy"].to_numpy(), batch["forces"].combine_chunks().flatten().flatten().to_numpy()

    return seen(flattened())


def streamed_batches(file: Path, shuffled: bool) -> Sums:
    return datasets_batches(file, shuffled, streaming=True)


def streamed_arrays(file: Path, shuffled: bool) -> Sums:
    return seen((row["energy"], row["forces"]) for row in _dataset(file, "numpy", shuffled, True))


def datasets_atoms(file: Path, shuffled: bool) -> Sums:
    from ase.data import atomic_numbers

    def atoms() -> Iterator[Any]:
        for row in _dataset(file, "numpy", shuffled):
            numbers = [atomic_numbers[symbol] for symbol in row["species_at_sites"]]
            positions, lattice, stress = (row[name] for name in LABELS[1:3] + LABELS[5:])
            stress = UNKNOWN if stress is None else stress
            yield _atoms(numbers, positions, lattice, row["energy"], row["forces"], stress)

    return seen(_results(a) for a in atoms())


# --- ASE-LMDB


def _database_rows(file: Path, shuffled: bool) -> Iterator[Any]:
    import ase.db

    with ase.db.connect(str(file), type="aselmdb", readonly=True) as database:
        order = np.arange(1, len(database) + 1)
        if shuffled:
            order = np.random.default_rng(0).permutation(order)
        for i in order:
            yield database.get(int(i))


def aselmdb_arrays(file: Path, shuffled: bool) -> Sums:
    return seen((row.energy, row.forces) for row in _database_rows(file, shuffled))


def aselmdb_atoms(file: Path, shuffled: bool) -> Sums:
    return seen(_results(row.toatoms()) for row in _database_rows(file, shuffled))


# --- atompack


def _atompack(file: Path, shuffled: bool) -> tuple[Any, Any]:
    import atompack

    database = atompack.Database.open(str(file))
    order = np.arange(len(database))
    return database, np.random.default_rng(0).permutation(order) if shuffled else order


def atompack_arrays(file: Path, shuffled: bool) -> Sums:
    def arrays() -> Iterator[tuple[Any, Any]]:
        database, order = _atompack(file, shuffled)
        for i in order.tolist():
            found = database[i]
            _ = found.positions, found.atomic_numbers, found.cell, found.stress
            yield found.energy, found.forces

    return seen(arrays())


def atompack_batches(file: Path, shuffled: bool) -> Sums:
    def batches() -> Iterator[tuple[Any, Any]]:
        database, order = _atompack(file, shuffled)
        size = BATCH if shuffled else AT_ONCE
        for i in range(0, len(order), size):
            flat = database.get_molecules_flat(order[i : i + size].tolist())
            yield flat["energy"], flat["forces"]

    return seen(batches())


def atompack_atoms(file: Path, shuffled: bool) -> Sums:
    import atompack

    database, order = _atompack(file, shuffled)
    return seen(_results(atompack.to_ase(database[i])) for i in order.tolist())


WAYS: dict[str, dict[str, Callable[[Path, bool], Sums]]] = {
    "trajmill": {"flat": trajmill_flat, "batches": trajmill_batches, "arrays": trajmill_arrays,
                 "atoms": trajmill_atoms},
    "datasets": {"flat": datasets_batches, "batches": datasets_batches, "arrays": datasets_arrays,
                 "atoms": datasets_atoms},
    "datasets, streaming": {"flat": streamed_batches, "batches": streamed_batches, "arrays": streamed_arrays},
    "aselmdb": {"arrays": aselmdb_arrays, "atoms": aselmdb_atoms},
    "atompack": {"flat": atompack_batches, "batches": atompack_batches, "arrays": atompack_arrays,
                 "atoms": atompack_atoms},
}  # fmt: skip
"""By library: `flat` many frames at once in order, `batches` of 128 shuffled, `arrays` and `atoms` frame by frame."""

TASKS = (("flat", False), ("arrays", False), ("atoms", False), ("batches", True), ("arrays", True), ("atoms", True))


def measure(library: str, form: str, shuffled: bool, path: Path) -> dict[str, Any]:
    """Read everything, after a first frame was read: what is imported and what `datasets` converts is not counted."""
    global WARMING_UP
    read = WAYS[library][form]
    WARMING_UP = True
    read(path, shuffled)
    WARMING_UP = False
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    n, energies, forces = read(path, shuffled)
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "library": library,
        "form": form,
        "shuffled": shuffled,
        "frames": n,
        "frames_per_s": round(n / wall),
        "cpu_us_per_frame": round(1e6 * cpu / n, 1),
        "peak_mb": round(measuring.peak_mb()),
        "sums": [round(energies, 2), round(forces, 2)],
    }


def prepare(frames: int, folder: Path) -> dict[str, Path]:
    """Build, release and convert; return where each library's files are."""
    import trajmill
    from trajmill.builder import build
    from trajmill.converting import convert
    from trajmill.recipe import load
    from trajmill.releases.hugging_face import release
    from trajmill.stores import open_store

    build(measuring.recipe_of(("alexandria",), measuring.corpus(frames), folder / "store"))
    release(open_store(folder / "store"), folder / "release", load())
    pbe = trajmill.open(folder / "release", "compatible_pbe")
    # atompack reads frames together only if all have the same labels
    whole = pbe.ask("SELECT trajectory_id AS t FROM wanted GROUP BY 1 HAVING count(stress_tensor) = count(*)")
    pbe.only(whole["t"]).save(folder / "frames.parquet")
    paths = dict.fromkeys(("trajmill", "datasets", "datasets, streaming"), folder / "frames.parquet")
    for library, suffix in (("aselmdb", "aselmdb"), ("atompack", "atp")):
        paths[library] = folder / f"frames.{suffix}"
        convert(trajmill.open(folder / "frames.parquet"), paths[library], library)
    return paths


def show(results: list[dict[str, Any]], bytes_per_frame: dict[str, int]) -> None:
    for form, shuffled in TASKS:
        print(f"\n{form}, {'shuffled' if shuffled else 'in order'}")
        for row in results:
            if (row["form"], row["shuffled"]) == (form, shuffled):
                speed = f"{row['frames_per_s']:>10,} frames/s  {row['cpu_us_per_frame']:>8} us CPU"
                print(f"  {row['library']:<20} {speed}  {row['peak_mb']:>6} MB")
    print("\nbytes per frame: " + ", ".join(f"{name} {n}" for name, n in bytes_per_frame.items()))


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--measure", nargs=4, metavar=("LIBRARY", "FORM", "SHUFFLED", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        os.environ["HF_DATASETS_OFFLINE"] = "1"
        library, form, shuffled, path = arguments.measure
        print(json.dumps(measure(library, form, shuffled == "True", Path(path))), flush=True)
        os._exit(0)  # threads that `datasets` leaves behind may end the process with an error
    with tempfile.TemporaryDirectory() as scratch:
        paths = prepare(arguments.frames, Path(scratch))
        results = [
            measuring.call(__file__, "--measure", library, form, shuffled, paths[library])
            for form, shuffled in TASKS
            for library in WAYS
            if form in WAYS[library]
        ]
        n = results[0]["frames"]
        bytes_per_frame = {library: round(path.stat().st_blocks * 512 / n) for library, path in paths.items()}
        del bytes_per_frame["datasets, streaming"]
        cache = Path(scratch) / "datasets-cache"
        bytes_per_frame["datasets"] = round(sum(f.stat().st_size for f in cache.rglob("*.arrow")) / n)
    show(results, bytes_per_frame)
    wrong = [row for row in results if (row["frames"], row["sums"]) != (n, results[0]["sums"])]
    if wrong:
        sys.exit(f"not the same frames: {wrong}")
    if arguments.save:
        found = {"frames": n, "batch": BATCH, "rows": results, "bytes_per_frame": bytes_per_frame}
        measuring.save("loading", found, "ase", "ase-db-backends", "atompack-db", "datasets", "torch")


if __name__ == "__main__":
    main()
