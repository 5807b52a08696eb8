"""Measure what it takes to find leakage and duplicates, and what narrowing the pairs to compare loses.

    python benchmarks/leakage.py [--sizes 10000 50000] [--polymorphs 3000] [--save]

For each size two datasets of that many one-frame trajectories are generated: the structures of tests/data with their
elements exchanged, strained, as supercells, turned, with their atoms in another order; in the second half of them
copies of the first's. Both have so many random polymorphs of one formula besides. Each measurement runs in a process of
its own. What all pairs of a formula would take, as they were compared before, is reckoned from 10,000 pairs of
polymorphs and as many as there are.

Recall: of pymatgen's prototypes and random structures copies are made ever less exact; of those that StructureMatcher
takes for the same, how many are compared. And of unrelated structures of one formula that it takes for the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

import measuring
import trajmill
from trajmill import matching
from trajmill.codec import encode
from trajmill.dataset import Dataset
from trajmill.duplicates import find_duplicates
from trajmill.elements import NUMBERS
from trajmill.leakage import find_leakage
from trajmill.matching import Geometry, Shelf, fingerprint, to_structure
from trajmill.trajectory import Trajectory

DATA = measuring.HERE.parent / "tests" / "data"
LARGEST = 40
"""Atoms of a structure at most."""
SUPERCELLS = ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[2, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 0], [-1, 1, 0], [0, 0, 1]])
LEVELS = ((0.01, 0.003), (0.02, 0.01), (0.05, 0.02), (0.08, 0.03), (0.1, 0.03), (0.15, 0.05))
"""A that atoms move at most in each direction, and the largest component of the strain."""
ROWS = 1000
"""Of a row group."""
SAMPLE = 100
"""Polymorphs of each side of which all pairs are compared."""


def samples() -> list[Geometry]:
    """Return the last frames of what is built from the small samples of all sources."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = [
            f"mp.path='{DATA / 'mp/real'}'", f"alexandria.path='{DATA / 'alexandria'}'",
            f"oqmd.path='{DATA / 'oqmd/qmdb__v1_6__112023.sql.gz'}'", "mp.tasks_without_material='keep'",
            f"store.path='{scratch}/store'", "engine.workers=1",
        ]  # fmt: skip
        trajmill.build(trajmill.recipe.load(settings=settings))
        each = [(t.lattice[-1], t.positions[-1], t.numbers) for t in Dataset(f"{scratch}/store").trajectories()]
    return [geometry for geometry in each if len(geometry[2]) <= LARGEST]


def copied(
    rng: np.random.Generator, geometry: Geometry, moved: float, strain: float, supercell: Any = None
) -> Geometry:
    """Return it in another cell, origin and order, turned, scaled by up to 3 %, moved and strained by up to so much."""
    lattice, positions, numbers = geometry
    if supercell is None:
        supercell = SUPERCELLS[rng.integers(len(SUPERCELLS)) if len(numbers) <= LARGEST // 2 else 0]
    larger = to_structure(geometry).make_supercell(supercell, in_place=False)
    numbers, fractional = np.array(larger.atomic_numbers), larger.frac_coords + rng.random(3)
    distortion = rng.uniform(-strain, strain, (3, 3))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    lattice = larger.lattice.matrix @ (np.eye(3) + np.triu(distortion) + np.triu(distortion, 1).T) @ turn
    lattice *= rng.uniform(0.97, 1.03)
    order = rng.permutation(len(numbers))
    positions = fractional[order] @ lattice + rng.uniform(-moved, moved, (len(numbers), 3))
    return lattice, positions, numbers[order]


def exchanged(rng: np.random.Generator, geometry: Geometry) -> Geometry:
    """Return it with other elements, below bismuth."""
    kinds, which = np.unique(geometry[2], return_inverse=True)
    return geometry[0], geometry[1], rng.choice(np.arange(1, 84), len(kinds), replace=False)[which]


def polymorph(rng: np.random.Generator) -> Geometry:
    """Return SiO2 in a random cell of one to four formula units, no atoms nearer than 1.5 A."""
    n = 3 * rng.integers(1, 5)
    while True:
        lattice = np.eye(3) + rng.uniform(-0.35, 0.35, (3, 3))
        lattice *= (12.0 * n / abs(np.linalg.det(lattice))) ** (1 / 3)
        fractional = rng.random((n, 3))
        for _ in range(100):
            apart = fractional[:, None] - fractional
            distances = np.linalg.norm((apart - np.round(apart)) @ lattice, axis=2) + 9 * np.eye(n)
            if distances.min() > 1.5:
                return lattice, fractional @ lattice, np.repeat([14, 8, 8], n // 3)
            fractional[distances.min(axis=1).argmin()] = rng.random(3)


def write(file: Path, source: str, geometries: Iterator[Geometry]) -> None:
    """Write them as the last frames of trajectories."""
    schema = trajmill.schema.FRAME_SCHEMA
    one = np.zeros(1)
    with pq.ParquetWriter(file, schema) as writer:
        trajectories = (
            Trajectory(
                source=source, asset="a", task_id=f"{source}-{i}", trajectory_id=f"{source}-{i}-pbe",
                immutable_id=f"{source}-{i}", numbers=numbers, lattice=lattice[None], positions=positions[None],
                energy=one, forces=np.zeros((1, len(numbers), 3)), stress=np.zeros((1, 3, 3)),
                relaxation_number=one.astype(np.int32), relaxation_step=one.astype(np.int32), functional="pbe",
                run_type="GGA",
            )
            for i, (lattice, positions, numbers) in enumerate(geometries)
        )  # fmt: skip
        while some := list(islice(trajectories, ROWS)):
            rows = pa.table(encode(some))
            if "asset" not in rows.schema.names:
                rows = rows.append_column("asset", pa.repeat("a", len(rows)))
            writer.write_table(rows.select(schema.names).cast(schema))


def corpus(size: int, polymorphs: int) -> Path:
    """Return a folder with train.parquet and test.parquet, made unless it is there."""
    folder = measuring.CORPUS / f"leakage-{size}-{polymorphs}"
    if not (folder / "test.parquet").exists():
        print(f"generating {size:,} structures a side ...", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        rng, seeds = np.random.default_rng(0), samples()
        known = [exchanged(rng, seeds[rng.integers(len(seeds))]) for _ in range(size - polymorphs)]
        random = [polymorph(rng) for _ in range(polymorphs)]
        train = (copied(rng, geometry, 0.02, 0.01) for geometry in known)
        write(folder / "train.parquet", "mp", (g for each in (train, random) for g in each))
        test = (copied(rng, g if i % 2 else exchanged(rng, g), 0.02, 0.01) for i, g in enumerate(known))
        others = (copied(rng, random[i], 0.02, 0.01) if i % 10 == 0 else polymorph(rng) for i in range(polymorphs))
        write(folder / "test.parquet", "agm", (g for each in (test, others) for g in each))
    return folder


def measure(what: str, folder: Path) -> dict[str, Any]:
    """Find leakage of one dataset into the other, or duplicates in both."""
    train, test = Dataset(folder / "train.parquet"), Dataset(folder / "test.parquet")
    asked = Counter[str]()
    same = matching.Crystals.same

    def counting(crystals: Any, one: int, other: int) -> bool:
        asked["pairs"] += 1
        return same(crystals, one, other)

    matching.Crystals.same = counting  # type: ignore[method-assign]
    begin = time.perf_counter()
    if what == "dedup":
        marks = find_duplicates([train, test])
        groups = Counter(marks.table["group"].to_pylist())
        found = {"found": sum(marks.counts().values()), "largest_group": max(groups.values())}
    else:
        signs = find_leakage(train, test, structures=what == "leakage").found
        found = {"found": len(signs.get("structure", signs["prototype"]))}
    wall = time.perf_counter() - begin
    return {
        "what": what,
        **found,
        "pairs": asked["pairs"],
        "wall_s": round(wall, 1),
        "peak_mb": round(measuring.peak_mb()),
    }


def all_pairs(folder: Path) -> dict[str, Any]:
    """Reckon what comparing all pairs of a formula takes, from some of the polymorphs'; and which of them are near."""
    formulas: list[Counter[str]] = []
    sides: list[list[Structure]] = []
    for name in ("train", "test"):
        dataset = Dataset(folder / f"{name}.parquet")
        formulas.append(Counter(dataset.ask("SELECT chemical_formula_reduced AS f FROM wanted")["f"].to_pylist()))
        silica = dataset.filter('chemical_formula_reduced = "O2Si" AND elements LENGTH 2').structures()
        sides.append([s for s, _ in zip(silica, range(SAMPLE), strict=False)])
    matcher = StructureMatcher()
    begin = time.perf_counter()
    pairs = {(i, j) for i, one in enumerate(sides[1]) for j, other in enumerate(sides[0]) if matcher.fit(one, other)}
    per_pair = (time.perf_counter() - begin) / SAMPLE**2
    prints = [
        [fingerprint((s.lattice.matrix, s.cart_coords, np.array(s.atomic_numbers))) for s in side] for side in sides
    ]
    near = {(i, j) for i, j in pairs if rms(prints[1][i], prints[0][j]) <= matching.TOLERANCE}
    total = sum(n * formulas[1][formula] for formula, n in formulas[0].items())
    planted = {(i, i) for i in range(0, SAMPLE, 10)}
    return {"what": "all pairs", "pairs": total, "ms_per_pair": round(1e3 * per_pair, 2),
            "reckoned_s": round(total * per_pair), "same_of_sample": len(pairs), "of_them_near": len(near),
            "planted": len(planted), "planted_near": len(planted & near)}  # fmt: skip


def rms(one: Any, other: Any) -> float:
    return float(np.sqrt(np.square(one - other).mean()))


def recall() -> dict[str, Any]:
    """Say how many of the pairs that StructureMatcher takes for the same are compared."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    rng, matcher = np.random.default_rng(0), StructureMatcher()
    known = [p["snl"].structure for p in AFLOW_PROTOTYPE_LIBRARY]
    ordered = [s for s in known if s.is_ordered and len(s) <= LARGEST]
    symbols = [[site.specie.symbol for site in s] for s in ordered]
    prototypes = [
        (s.lattice.matrix, s.cart_coords, np.array([NUMBERS.get(n, 1) for n in names]))
        for s, names in zip(ordered, symbols, strict=True)
    ]
    base = [*prototypes, *samples(), *(polymorph(rng) for _ in range(100))]
    rows = []
    for moved, strain in LEVELS:
        counts: Counter[str] = Counter()
        farthest = 0.0
        for geometry in base:
            for _ in range(2):
                other = copied(rng, geometry, moved, strain)
                with matching.Crystals() as crystals:
                    shelf = Shelf(crystals, 1)
                    shelf.put(crystals.add(geometry))
                    ours = shelf.find(crystals.add(other)) is not None
                same = matcher.fit(to_structure(geometry), to_structure(other))
                apart = rms(fingerprint(geometry), fingerprint(other))
                farthest = max(farthest, apart if same else 0)
                near = same and apart <= matching.TOLERANCE
                counts.update(copies=1, same=int(same), near=int(near), found=int(ours))
        rows.append({"moved": moved, "strain": strain, **counts, "farthest": round(farthest, 3)})
    return {"copies": rows, "unrelated": [unrelated(prototypes)]}


def unrelated(prototypes: list[Geometry]) -> dict[str, Any]:
    """Compare all prototypes of a formula, when they are made of the same elements."""
    by_counts: dict[tuple[int, ...], list[Geometry]] = {}
    for lattice, positions, numbers in prototypes:
        _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        rank = np.argsort(np.argsort(counts, kind="stable"))
        reduced = tuple(int(n) for n in np.sort(counts) // np.gcd.reduce(counts))
        by_counts.setdefault(reduced, []).append(
            (lattice, positions, np.array([14, 8, 20, 22, 26, 30, 40, 50])[rank][which])
        )
    found: Counter[str] = Counter()
    matcher = StructureMatcher()
    for same_formula in by_counts.values():
        each = [(to_structure(g), fingerprint(g)) for g in same_formula]
        for (one, mine), (other, theirs) in combinations(each, 2):
            same, near = matcher.fit(one, other), rms(mine, theirs) <= matching.TOLERANCE
            found.update(pairs=1, same=int(same), near=int(near), same_and_near=int(same and near))
    return dict(found)


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def main() -> None:
    measuring.tidy_when_ended()
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--polymorphs", type=int, default=3000)
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, folder = arguments.measure[0], Path(arguments.measure[1])
        print(json.dumps(all_pairs(folder) if what == "all pairs" else measure(what, folder)))
        return
    results: dict[str, Any] = {"tolerance": matching.TOLERANCE, "recall": recall(), "rows": []}
    print("copies: those that are the same to StructureMatcher, of them near, and found by trajmill")
    show(results["recall"]["copies"])
    print("unrelated structures of one formula")
    show(results["recall"]["unrelated"])
    for size in sorted(arguments.sizes):
        folder = corpus(size, arguments.polymorphs)
        print(f"{size:,} structures a side, {arguments.polymorphs:,} of them of one formula")
        for what in ("prototypes", "leakage", "dedup", "all pairs"):
            row = {"size": size, **measuring.call(__file__, "--measure", what, folder)}
            show([row])
            results["rows"].append(row)
    if arguments.save:
        measuring.save("leakage", results)


if __name__ == "__main__":
    main()
