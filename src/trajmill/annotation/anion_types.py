"""What kind of oxide or sulfide a structure is: all that the Materials Project's corrections take from its geometry.

pymatgen decides; it takes milliseconds for that. Most structures are clear at a glance: oxygen atoms far apart, sulfur
among metals or among oxygen. These are recognised here, with a margin, and the rest is left to pymatgen, so that the
answers are its own.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.elements import NUMBERS, SYMBOLS
from trajmill.trajectory import FloatArray

MARGIN = 1e-6
"""A, by which a distance must be clear of a threshold of pymatgen's."""

PEROXIDE = 1.05 * 1.49
"""A, O-O distance below which the corrections (pymatgen's relative cut-off of 1.05) see no plain oxide."""

SUPEROXIDE = 1.05 * 1.35
"""A, O-O distance below which they see a superoxide, or an ozonide where an atom has two such bonds."""

HYDROXIDE = 1.05 * 0.93
"""A, O-H distance below which they see a hydroxide."""

SULFUR_SEARCH = 4.0
"""A, how far pymatgen first looks for neighbours of a sulfur atom."""

SULFUR_SHELL = 0.4
"""A, how much farther than its nearest neighbour others may be to count."""

SULFUR_SYMPREC = 0.1
"""A, the tolerance with which pymatgen looks for equivalent sulfur atoms."""

APART = 1.0
"""A, by which distances to the nearest sulfur atom differ where no operation can take one atom to the other: within
pymatgen's tolerance it changes distances by some tenths at most."""

STRENGTH = ("none", "polysulfide", "sulfide")
"""What atoms say: one that comes first here decides."""

MAX_REACH = 8
"""Images on each side of a cell beyond which pymatgen is asked."""

Numbers = NDArray[np.int64]


def oxide_type(lattice: FloatArray, positions: FloatArray, numbers: Numbers) -> str:
    """Return `oxide`, `peroxide`, `superoxide`, `ozonide`, `hydroxide` or `None`, as pymatgen's `oxide_type`.

    Args:
        lattice: (3, 3) A.
        positions: (n_atoms, 3) A, finite.
        numbers: (n_atoms,) atomic numbers.

    Raises:
        ValueError, IndexError: pymatgen has no answer.
    """
    oxygen = numbers == NUMBERS["O"]
    if not oxygen.any() or oxygen.all():
        return "None"
    distances = _distances(lattice, positions, oxygen, PEROXIDE + MARGIN)
    if distances is not None:
        nearest = distances.min(axis=2)
        bonds, to_hydrogen = nearest[:, oxygen], nearest[:, numbers == NUMBERS["H"]]
        np.fill_diagonal(bonds, np.inf)  # for pymatgen an atom has no bonds with its own images
        if _clear(bonds, PEROXIDE, SUPEROXIDE) and _clear(to_hydrogen, HYDROXIDE):
            return _oxide_type(bonds, to_hydrogen)
    from pymatgen.analysis.structure_analyzer import oxide_type as ask

    return str(ask(_structure(lattice, positions, numbers), 1.05))


def _clear(distances: FloatArray, *thresholds: float) -> bool:
    """Tell whether no distance, A, hangs on the last digits."""
    return all((np.abs(distances - threshold) > MARGIN).all() for threshold in thresholds)


def _oxide_type(bonds: FloatArray, to_hydrogen: FloatArray) -> str:
    """Return the type, as pymatgen decides it, from (n_oxygen, n_oxygen) and (n_oxygen, n_hydrogen) distances, A."""
    if (to_hydrogen < HYDROXIDE).any():
        return "hydroxide"
    close = bonds < SUPEROXIDE
    if close.any():
        return "ozonide" if (close.sum(axis=1) > 1).any() else "superoxide"
    return "peroxide" if (bonds < PEROXIDE).any() else "oxide"


def _distances(lattice: FloatArray, positions: FloatArray, of: NDArray[np.bool_], radius: float) -> FloatArray | None:
    """Return (n_of, n_atoms, n_images) distances to all that can be within the radius, A; inf to an atom itself.

    None in a cell so thin that there are too many images, or that is not finite.
    """
    inverse = np.linalg.inv(lattice)
    reach = np.floor(radius * np.linalg.norm(inverse, axis=0) + 0.5)
    if not (reach <= MAX_REACH).all():
        return None
    fractional = positions @ inverse
    delta = fractional - fractional[of][:, None]
    delta -= np.rint(delta)
    shifts = np.array(list(itertools.product(*(np.arange(-n, n + 1) for n in reach))))
    squares = (((delta[:, :, None] + shifts) @ lattice) ** 2).sum(axis=3)
    squares[np.arange(of.sum()), np.flatnonzero(of), len(shifts) // 2] = np.inf
    distances: FloatArray = np.sqrt(squares)
    return distances


def sulfide_type(lattice: FloatArray, positions: FloatArray, numbers: Numbers) -> str:
    """Return `sulfide`, `polysulfide` or `none` (a sulfate, or sulfur itself), as pymatgen's `sulfide_type`.

    Args:
        lattice: (3, 3) A.
        positions: (n_atoms, 3) A, finite.
        numbers: (n_atoms,) atomic numbers.

    Raises:
        ValueError, IndexError: pymatgen has no answer.
    """
    sulfur = numbers == NUMBERS["S"]
    if not sulfur.any() or sulfur.all():
        return "none"
    said, nearest = _said_of(lattice, positions, numbers, sulfur)
    if None not in said:
        strongest = min(said, key=STRENGTH.index)
        # it matters which atoms pymatgen asks: the first of each orbit, of which the very first atom is one
        its = said == strongest
        if its[0] or (np.abs(nearest[its][:, None] - nearest[~its]) > APART).all(axis=1).any():
            return str(strongest)
        return str(min(said[_first_of_orbits(lattice, positions, numbers)[sulfur]], key=STRENGTH.index))
    from pymatgen.analysis.structure_analyzer import sulfide_type as ask

    return ask(_structure(lattice, positions, numbers)) or "none"


def _said_of(
    lattice: FloatArray, positions: FloatArray, numbers: Numbers, sulfur: NDArray[np.bool_]
) -> tuple[NDArray[np.object_], FloatArray]:
    """Return what the surroundings of each sulfur atom say, and the distance to the nearest other one.

    What they say is None where that is in doubt; the distance, in A, is `SULFUR_SEARCH` where it is larger.
    """
    distances = _distances(lattice, positions, sulfur, SULFUR_SEARCH)
    if distances is None:
        return np.array([None]), np.zeros(1)
    elements = np.repeat(numbers, distances.shape[2])
    said = [_says(around, elements) for around in distances.reshape(len(distances), -1)]
    return np.array(said, object), np.minimum(distances[:, sulfur].min(axis=(1, 2)), SULFUR_SEARCH)


def _first_of_orbits(lattice: FloatArray, positions: FloatArray, numbers: Numbers) -> NDArray[np.bool_]:
    """Tell which atoms stand for all that symmetry takes them to; all do where pymatgen finds none."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    first = np.ones(len(numbers), bool)
    try:
        finder = SpacegroupAnalyzer(_structure(lattice, positions, numbers), symprec=SULFUR_SYMPREC)
        orbits = finder.get_symmetry_dataset().equivalent_atoms
    except Exception:  # noqa: BLE001 (whatever spglib raises, pymatgen goes on without symmetry)
        return first
    first[:] = False
    first[np.unique(orbits, return_index=True)[1]] = True
    return first


def _says(distances: FloatArray, elements: Numbers) -> str | None:
    """Return what the neighbours of a sulfur atom make of it; None where that hangs on the last digits.

    pymatgen compares the mean electronegativity of up to four neighbours, those nearly as near as the nearest, with
    sulfur's.
    """
    nearest = distances.min()
    if nearest < MARGIN:  # on top of one another
        return None
    shell = np.flatnonzero(distances < nearest + SULFUR_SHELL + MARGIN)
    if nearest + SULFUR_SHELL + MARGIN > SULFUR_SEARCH or distances[shell].max() > nearest + SULFUR_SHELL - MARGIN:
        return None
    shell = shell[np.argsort(distances[shell])]
    kinds = elements[shell]
    tied = np.abs(distances[shell] - distances[shell[min(3, len(shell) - 1)]]) < MARGIN
    if len(shell) > 4 and tied[4] and len(set(kinds[tied])) > 1:
        return None
    values = _electronegativities()[kinds[:4]]
    own = _electronegativities()[NUMBERS["S"]]
    mean = float(np.mean(values.tolist()))
    if set(kinds[:4]) == {NUMBERS["S"]}:
        return "none" if mean > own else "polysulfide" if mean == own else "sulfide"
    if not abs(mean - own) > MARGIN:
        return None
    return "none" if mean > own else "sulfide"


@cache
def _electronegativities() -> FloatArray:
    """Return pymatgen's electronegativities by atomic number; NaN where an element has none."""
    import warnings

    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about those without one
        return np.array([np.nan, *(Element(symbol).X for symbol in SYMBOLS[1:])])


def _structure(lattice: FloatArray, positions: FloatArray, numbers: Numbers) -> Any:
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(lattice), [SYMBOLS[n] for n in numbers], positions, coords_are_cartesian=True)
