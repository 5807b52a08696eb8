"""Space groups by moyopy, and what symmetry says about forces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.trajectory import BoolArray, FloatArray, IntArray

SYMPREC = 1e-4
"""A, the tolerance of the published dataset."""


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
    species = numbers.tolist()
    fractional = _fractional(lattice, positions)
    groups = np.zeros(len(lattice), np.int32)
    for i, (cell, sites) in enumerate(zip(lattice.tolist(), fractional.tolist(), strict=True)):
        if dataset := _search(cell, sites, species, symprec):
            groups[i] = dataset.number
    return groups


def _fractional(lattice: FloatArray, positions: FloatArray) -> FloatArray:
    """Return fractional coordinates, NaN in a frame whose cell is missing or singular."""
    regular: BoolArray = np.all(np.isfinite(lattice), axis=(1, 2))
    regular[regular] = np.linalg.det(lattice[regular]) != 0
    inverse = np.full_like(lattice, np.nan)
    inverse[regular] = np.linalg.inv(lattice[regular])
    return positions @ inverse


def _search(cell: list[Any], sites: list[Any], species: list[int], symprec: float) -> Any | None:
    """Search the symmetry of one frame; None where moyopy fails."""
    import moyopy

    try:
        return moyopy.MoyoDataset(moyopy.Cell(cell, sites, species), symprec=symprec)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 (ValueError for a failed search; a panic of its Rust code is no Exception)
        return None


def forces_vanish_by_symmetry(
    lattice: FloatArray, positions: FloatArray, numbers: NDArray[np.int64], *, symprec: float
) -> BoolArray:
    """Tell in which frames site symmetry leaves no atom a force.

    A force on an atom is invariant under the operations that map the atom on itself; it vanishes when these leave no
    direction alone. A frame in which the operations hold that took the forces from an earlier frame is not searched
    again, so that a symmetric trajectory costs one search.

    Args:
        lattice: (n_frames, 3, 3) A.
        positions: (n_frames, n_atoms, 3) A.
        numbers: (n_atoms,) atomic numbers.
        symprec: A.

    Returns:
        (n_frames,) False also where no symmetry can be found.
    """
    vanish = np.zeros(len(lattice), bool)
    fractional = _fractional(lattice, positions)
    metric = lattice @ lattice.transpose(0, 2, 1)
    known: tuple[FloatArray, NDArray[np.int64]] | None = None  # sites and rotations of the last symmetric frame
    for i in range(len(lattice)):
        if known is not None:
            sites, rotations = known
            turned = rotations.transpose(0, 2, 1) @ metric[i] @ rotations
            if np.allclose(sites, fractional[i], rtol=0, atol=1e-7) and np.allclose(
                turned, metric[i], rtol=0, atol=symprec
            ):
                vanish[i] = True
                continue
        dataset = _search(lattice[i].tolist(), fractional[i].tolist(), numbers.tolist(), symprec)
        if dataset is None:
            continue
        rotations, translations = np.array(dataset.operations.rotations), np.array(dataset.operations.translations)
        if _no_free_direction(lattice[i], fractional[i], rotations, translations, symprec):
            vanish[i] = True
            known = fractional[i], rotations
    return vanish


def _no_free_direction(
    lattice: FloatArray, sites: FloatArray, rotations: NDArray[np.int64], translations: FloatArray, symprec: float
) -> bool:
    """Tell whether the mean of every site's own rotations (in fractional coordinates) is zero."""
    images = sites @ rotations.transpose(0, 2, 1) + translations[:, None, :]
    shift = images - sites
    shift -= np.rint(shift)
    fixed = np.linalg.norm(shift @ lattice, axis=2) < 10 * symprec  # (n_operations, n_atoms)
    projector = (
        np.einsum("oa,oij->aij", fixed.astype(float), rotations.astype(float)) / fixed.sum(axis=0)[:, None, None]
    )
    return bool((np.abs(projector) < 1e-8).all())
