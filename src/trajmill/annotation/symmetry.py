"""Space groups by moyopy, and what symmetry says about forces."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.annotation.symmetry_template import SymmetryTemplate, analyse_frame, lattice_kinds
from trajmill.trajectory import BoolArray, FloatArray, IntArray

SYMPREC = 1e-4
"""A, the tolerance of the published dataset."""

MAX_KINDS = 2048
"""Kinds of frame (pattern of species and kind of lattice) of which templates are remembered."""

MAX_TEMPLATES = 4
"""Templates that are remembered of each; one takes some 5 kB."""

FUTILE = 2
"""Searches in a row that helped no other frame of a trajectory, after which its other frames are just searched."""


Frames = tuple[FloatArray, FloatArray, NDArray[np.int64]]
"""Lattice (n_frames, 3, 3) A, positions (n_frames, n_atoms, 3) A, and atomic numbers (n_atoms,)."""


def space_groups(
    lattice: FloatArray, positions: FloatArray, numbers: NDArray[np.int64], *, symprec: float = SYMPREC
) -> IntArray:
    """Return the space group of every frame.

    Args:
        lattice: (n_frames, 3, 3) A.
        positions: (n_frames, n_atoms, 3) A.
        numbers: (n_atoms,) atomic numbers.
        symprec: A.

    Returns:
        (n_frames,) International Tables numbers, 0 where moyopy finds none.
    """
    return analyse([(lattice, positions, numbers)], symprec=symprec)[0][0]


def analyse(trajectories: Sequence[Frames], *, symprec: float = SYMPREC) -> list[tuple[IntArray, BoolArray]]:
    """Analyse the symmetry of all frames of many trajectories, which costs less than one by one.

    Few frames are searched: most are recognised by what was found for others (see `symmetry_template`), with the
    answers that searching each of them would give.

    Returns:
        For each trajectory: (n_frames,) space groups, 0 where moyopy finds none; and (n_frames,) whether site symmetry
        leaves no atom a force. A force is invariant under the operations that map its atom on itself; it vanishes when
        these leave no direction alone.
    """
    starts = np.cumsum([0, *(len(lattice) for lattice, *_ in trajectories)])
    lattices = np.concatenate([np.zeros((0, 3, 3)), *(lattice for lattice, *_ in trajectories)])
    inverse = _inverses(lattices)
    kinds = lattice_kinds(lattices, symprec)
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for i, (start, (lattice, _, numbers)) in enumerate(zip(starts, trajectories, strict=False)):
        if len(lattice) and len(numbers):
            alike.setdefault((_pattern(numbers).tobytes(), kinds[start].tobytes()), []).append(i)
    found = [(np.zeros(len(lattice), np.int32), np.zeros(len(lattice), bool)) for lattice, *_ in trajectories]
    for key, members in alike.items():
        ranges = [slice(starts[i], starts[i + 1]) for i in members]
        fractional = np.concatenate([trajectories[i][1] @ inverse[r] for i, r in zip(members, ranges, strict=True)])
        numbers = trajectories[members[0]][2]
        frames = [np.concatenate([of[r] for r in ranges]) for of in (lattices, inverse)]
        groups, force_free = _analyse(frames[0], frames[1], fractional, numbers, _known(symprec, *key), symprec)
        borders = np.cumsum([r.stop - r.start for r in ranges])[:-1]
        answers = zip(np.split(groups, borders), np.split(force_free, borders), strict=True)
        for i, answer in zip(members, answers, strict=True):
            found[i] = answer
    return found


def _pattern(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each atom the first of its element: the same for all compounds of a prototype."""
    first: NDArray[np.int64] = (numbers[:, None] == numbers).argmax(axis=1)
    return first


def _analyse(
    lattice: FloatArray,
    inverse: FloatArray,
    fractional: FloatArray,
    numbers: NDArray[np.int64],
    known: list[SymmetryTemplate],
    symprec: float,
) -> tuple[IntArray, BoolArray]:
    """Analyse frames of the same pattern of species by known templates and by searching what these do not fit."""
    groups, force_free = np.zeros(len(lattice), np.int32), np.zeros(len(lattice), bool)
    rest = np.flatnonzero(np.isfinite(fractional).all(axis=(1, 2)))

    def settle(template: SymmetryTemplate) -> bool:
        """Take the template's answer for the frames it fits; tell whether there were any."""
        nonlocal rest
        fits = template.fits(lattice[rest], inverse[rest], fractional[rest])
        groups[rest[fits]], force_free[rest[fits]] = template.number, template.force_free
        rest = rest[~fits]
        return bool(fits.any())

    for template in known.copy():
        if len(rest) and settle(template):
            known.remove(template)
            known.insert(0, template)
    futile = 0
    while len(rest):
        i, rest = rest[0], rest[1:]
        dataset = _search(lattice[i].tolist(), fractional[i].tolist(), numbers.tolist(), symprec)
        if dataset is None:
            continue
        groups[i] = dataset.number
        force_free[i], found = analyse_frame(lattice[i], fractional[i], _pattern(numbers), dataset, symprec)
        if found and futile < FUTILE:
            known.insert(0, found)
            del known[MAX_TEMPLATES:]
            futile = 0 if settle(found) else futile + 1
    return groups, force_free


_KNOWN: OrderedDict[tuple[float, bytes, bytes], list[SymmetryTemplate]] = OrderedDict()


def _known(symprec: float, pattern: bytes, kind: bytes) -> list[SymmetryTemplate]:
    """Return the list of templates of frames like these, the last useful first; the least used are forgotten."""
    key = (symprec, pattern, kind)
    found = _KNOWN.setdefault(key, [])
    _KNOWN.move_to_end(key)
    if len(_KNOWN) > MAX_KINDS:
        _KNOWN.popitem(last=False)
    return found


def _inverses(lattice: FloatArray) -> FloatArray:
    """Return inverse cells, NaN for a cell that is missing or singular."""
    regular: BoolArray = np.all(np.isfinite(lattice), axis=(1, 2))
    regular[regular] = np.linalg.det(lattice[regular]) != 0
    inverse = np.full_like(lattice, np.nan)
    inverse[regular] = np.linalg.inv(lattice[regular])
    return inverse


def _search(cell: list[Any], sites: list[Any], species: list[int], symprec: float) -> Any | None:
    """Search the symmetry of one frame; None where moyopy fails."""
    moyopy = _moyopy()
    try:
        return moyopy.MoyoDataset(moyopy.Cell(cell, sites, species), symprec=symprec)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 (ValueError for a failed search; a panic of its Rust code is no Exception)
        return None


@cache
def _moyopy() -> Any:
    import moyopy

    logging.getLogger("moyo").setLevel(logging.ERROR)  # it warns of what `operations` leaves out, which is not used
    return moyopy
