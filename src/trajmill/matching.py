"""Which structures are the same, in whatever cell they are written: quickly said of many.

pymatgen's StructureMatcher has the last word on two structures, and takes milliseconds for it. It is asked only where
fingerprints are near: numbers that stay the same in any cell of a crystal, turned, moved, scaled, or with its atoms in
another order, and that change little where atoms move little. They are mean distances to nearest neighbours, as the
average minimum distances of Widdowson et al. (MATCH 87, 529, 2022), here for each pair of elements.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trajmill.dataset import Dataset
from trajmill.elements import SYMBOLS
from trajmill.rows import trajectory_id
from trajmill.trajectory import FloatArray

if TYPE_CHECKING:
    from pymatgen.core import Structure

TOLERANCE = 0.06
"""How far fingerprints of the same structure may be apart (root mean square), in units of (volume per atom)^(1/3).

Of copies that StructureMatcher takes for the same all are within it, as long as atoms moved by no more than 0.08 A in
each direction and no component of the strain is above 3 % (of 1285 half were within 0.025, all within 0.059);
`benchmarks/leakage.py` measures it.
"""

SUPERCELL_STOL = 0.1
"""How far atoms may be apart, in units of (volume per atom)^(1/3), in a structure and a supercell of another.

StructureMatcher's 0.3 would make a perovskite the same as one with tilted octahedra.
"""

NEIGHBOURS = 6
"""Nearest neighbours of each element that a fingerprint looks at."""

HELD = 5000
"""Structures that are held ready for comparison; others are read again."""

BLOCK = 2_000_000
"""Distances that are calculated at once."""

Geometry = tuple[FloatArray, FloatArray, NDArray[np.int64]]
"""Lattice (3, 3) A with vectors as rows, positions (n_atoms, 3) A, atomic numbers (n_atoms,)."""

Report = Callable[[int, int], None]
"""Told how much is done of how much there is."""


class Work:
    """Counts what is done, and reports it."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._done, self._total = report, 0, total

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        if self._report:
            self._report(self._done, self._total)


def last_frames(dataset: Dataset) -> pa.Table:
    """Say of each trajectory what it is of and which frame is its last, by identifier."""
    identity = trajectory_id(dataset.schema)
    columns = {name: f"any_value({name})" for name in ("functional", "source") if name in dataset.schema.names}
    more = "".join(f", {columns.get(name, 'NULL::VARCHAR')} AS {name}" for name in ("functional", "source"))
    return dataset.ask(
        f"SELECT {identity} AS trajectory, any_value(immutable_id) AS material, "
        "any_value(chemical_formula_reduced) AS formula, max_by(id, relaxation_step) AS last, count(*) AS frames"
        f"{more} FROM wanted GROUP BY 1 ORDER BY 1"
    )


def geometries(dataset: Dataset, rows: pa.Table) -> Iterator[tuple[int, Geometry]]:
    """Stream the last frames of trajectories, each with the index of its row in a table of `last_frames`."""
    missing = {last: i for i, last in enumerate(rows["last"].to_pylist())}
    if not missing:
        return
    for frames in dataset.only(rows["trajectory"].to_pylist()).arrays():
        for i, name in enumerate(frames.ids.to_pylist()):
            row = missing.pop(name, None)
            if row is not None:
                atoms = slice(frames.offsets[i], frames.offsets[i + 1])
                yield row, (frames.lattice[i], frames.positions[atoms], frames.numbers[atoms])


def to_structure(geometry: Geometry) -> Structure:
    """Return it as pymatgen's Structure."""
    from pymatgen.core import Lattice, Structure

    lattice, positions, numbers = geometry
    symbols = [SYMBOLS[n] for n in numbers.tolist()]
    return Structure(Lattice(lattice), symbols, positions, coords_are_cartesian=True)


def prototype(geometry: Geometry) -> str | None:
    """Return pymatgen's protostructure label, such as `AB_cF8_225_a_b:Cl-Na`; None where moyopy finds no symmetry.

    It says formula, space group, and how often each element is on which Wyckoff positions, whatever the origin. As in
    pymatgen symmetry is moyopy's with a tolerance of 0.1 A; pymatgen's own way to it needs ASE.
    """
    lattice, positions, numbers = geometry
    moyopy, canonical = _labelling()
    try:
        sites = np.linalg.solve(lattice.T, positions.T).T
        cell = moyopy.Cell(lattice.tolist(), sites.tolist(), numbers.tolist())
        found = moyopy.MoyoDataset(cell, symprec=0.1)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 (ValueError for a failed search; a panic of moyopy's Rust code is no Exception)
        return None
    symbols = [SYMBOLS[n] for n in numbers.tolist()]
    counts = sorted(Counter(symbols).items())
    share = math.gcd(*(n for _, n in counts))
    formula = "".join(
        f"{a}{n // share if n > share else ''}" for a, (_, n) in zip(ascii_uppercase, counts, strict=False)
    )
    orbits = sorted(Counter((symbols[i], found.wyckoffs[i]) for i in set(found.orbits)).items())
    letters = ("".join(f"{n}{letter}" for (of, letter), n in orbits if of == symbol) for symbol, _ in counts)
    wyckoffs = canonical("_".join(letters), found.number)
    return f"{formula}_{found.pearson_symbol}_{found.number}_{wyckoffs}:{'-'.join(symbol for symbol, _ in counts)}"


@cache
def _labelling() -> tuple[Any, Any]:
    import moyopy
    from pymatgen.analysis.prototypes import canonicalize_element_wyckoffs

    logging.getLogger("moyo").setLevel(logging.ERROR)  # it warns of what `operations` leaves out, which is not used
    return moyopy, canonicalize_element_wyckoffs


def fingerprint(geometry: Geometry) -> NDArray[np.float32] | None:
    """Return what tells a crystal from most others of its formula, in any cell.

    Returns:
        (n_elements * n_elements * NEIGHBOURS,) distances to the nearest, second nearest, ... neighbour of an element
        in the unit of (volume per atom)^(1/3), each the mean over all atoms of an element; elements by atomic number.
        None where the cell has no volume or a number is not finite.
    """
    lattice, positions, numbers = geometry
    n = len(numbers)
    if not n or not np.isfinite(lattice).all() or not np.isfinite(positions).all() or not np.linalg.det(lattice):
        return None
    length = (abs(np.linalg.det(lattice)) / n) ** (1 / 3)
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    inverse = np.linalg.inv(lattice)
    sites = (positions[order] @ inverse % 1) @ lattice / length
    heights = 1 / np.linalg.norm(inverse, axis=0) / length
    fewest = np.diff(np.append(starts, n)).min()
    radius = 1.3 * (3 * (NEIGHBOURS + 1) / (4 * np.pi) * n / fewest) ** (1 / 3)
    while (nearest := _nearest(sites, starts, lattice / length, heights, radius)) is None:
        radius *= 1.3
    means: NDArray[np.float64] = np.add.reduceat(nearest, starts) / np.diff(np.append(starts, n))[:, None]
    return means.ravel().astype(np.float32)


def _nearest(
    sites: FloatArray, starts: NDArray[np.int64], lattice: FloatArray, heights: FloatArray, radius: float
) -> FloatArray | None:
    """Return (n_atoms, n_elements * NEIGHBOURS) distances; None where a neighbour is not within the radius."""
    axes = [np.arange(-reach, reach + 1) for reach in np.ceil(radius / heights).astype(int)]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3) @ lattice
    found = []
    for there in np.split(sites, starts[1:]):
        images = (there[:, None] + shifts).reshape(-1, 3)
        squares = np.einsum("ij,ij->i", images, images)
        blocks = []
        for here in np.array_split(sites, -(-len(sites) * len(images) // BLOCK)):
            d2 = squares - 2 * here @ images.T + np.einsum("ij,ij->i", here, here)[:, None]
            d2[d2 < 1e-6] = np.inf  # an atom is no neighbour of itself
            if d2.shape[1] <= NEIGHBOURS:
                return None
            d2.partition(NEIGHBOURS - 1, axis=1)
            blocks.append(np.sort(d2[:, :NEIGHBOURS], axis=1))
        found.append(np.concatenate(blocks))
        if found[-1][:, -1].max() > radius**2:
            return None
    distances: FloatArray = np.sqrt(np.concatenate(found, axis=1))
    return distances


class Crystals:
    """Structures that are compared: fingerprints in memory, atoms in a temporary file. Use it as a context manager.

    Args:
        angle: degrees, tolerance of StructureMatcher; its others are pymatgen's defaults.

    Attributes:
        fingerprints: of each; see `fingerprint`.
        asked: how often StructureMatcher was.
    """

    def __init__(self, angle: float = 5.0) -> None:
        from pymatgen.analysis.structure_matcher import StructureMatcher

        self.fingerprints: list[NDArray[np.float32] | None] = []
        self.asked = 0
        self._matcher = StructureMatcher(angle_tol=angle)
        self._of_supercells = StructureMatcher(angle_tol=angle, stol=SUPERCELL_STOL, attempt_supercell=True)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this)
        self._places: list[tuple[int, int]] = []
        self._reduced = lru_cache(HELD)(self._read_reduced)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._reduced.cache_clear()

    def add(self, geometry: Geometry) -> int:
        """Take a structure in and return its number."""
        lattice, positions, numbers = geometry
        self._places.append((self._file.tell(), len(numbers)))
        self._file.write(np.concatenate([lattice, positions]).tobytes() + numbers.astype(np.int64).tobytes())
        self.fingerprints.append(fingerprint(geometry))
        return len(self._places) - 1

    def same(self, one: int, other: int) -> bool:
        """Ask StructureMatcher; also where atoms moved so much that it found but one structure's primitive cell."""
        mine, theirs = self._reduced(one), self._reduced(other)
        fewer, more = sorted((len(mine), len(theirs)))
        if more % fewer:
            return False
        self.asked += 1
        matcher = self._matcher if more == fewer else self._of_supercells
        return bool(matcher.fit(mine, theirs, skip_structure_reduction=True))

    def _read_reduced(self, number: int) -> Structure:
        """Return the cell that StructureMatcher would reduce it to, which takes it longer than to compare two."""
        place, n = self._places[number]
        here = self._file.tell()
        self._file.seek(place)
        numbers = self._file.read(8 * (3 * (n + 3) + n))
        self._file.seek(here)
        vectors = np.frombuffer(numbers, np.float64, 3 * (n + 3)).reshape(-1, 3)
        structure = to_structure((vectors[:3], vectors[3:], np.frombuffer(numbers, np.int64, n, vectors.nbytes)))
        return structure.get_reduced_structure().get_primitive_structure()


class Shelf:
    """Structures of one formula that others are compared with.

    Args:
        crystals: where they are.
        room: how many there may be.
    """

    def __init__(self, crystals: Crystals, room: int) -> None:
        self._crystals, self._room = crystals, room
        self._numbers: list[int] = []
        self._fingerprints = np.empty((0, 0), np.float32)
        self._means = np.empty(room, np.float32)

    def put(self, crystal: int) -> None:
        """Add one; without a fingerprint it is like no other."""
        mine = self._crystals.fingerprints[crystal]
        if mine is None:
            return
        n = len(self._numbers)
        if not n:
            self._fingerprints = np.empty((self._room, len(mine)), np.float32)
        self._fingerprints[n], self._means[n] = mine, mine.mean()
        self._numbers.append(crystal)

    def find(self, crystal: int) -> int | None:
        """Return the one that a structure is the same as, of several that with the nearest fingerprint."""
        return next((other for other in self.near(crystal) if self._crystals.same(crystal, other)), None)

    def near(self, crystal: int) -> list[int]:
        """Return those whose fingerprints are within TOLERANCE, the nearest first."""
        mine, n = self._crystals.fingerprints[crystal], len(self._numbers)
        if mine is None or not n:
            return []
        # no difference of means is larger than the root mean square difference
        near = np.flatnonzero(np.abs(self._means[:n] - mine.mean()) <= TOLERANCE * 1.001)
        apart = np.sqrt(np.square(self._fingerprints[near] - mine).mean(axis=1))
        near, apart = near[apart <= TOLERANCE], apart[apart <= TOLERANCE]
        return [self._numbers[i] for i in near[np.argsort(apart, kind="stable")]]
