"""Space groups by moyopy, and what symmetry says about forces."""

from __future__ import annotations

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
    import moyopy

    species = numbers.tolist()
    fractional = positions @ np.linalg.inv(lattice)
    groups = np.zeros(len(lattice), np.int32)
    for i, (cell, sites) in enumerate(zip(lattice.tolist(), fractional.tolist(), strict=True)):
        try:
            groups[i] = moyopy.MoyoDataset(moyopy.Cell(cell, sites, species), symprec=symprec).number
        except ValueError:  # moyopy's word for a search that failed
            continue
    return groups


def forces_vanish_by_symmetry(
    lattice: FloatArray, positions: FloatArray, numbers: NDArray[np.int64], *, symprec: float
) -> BoolArray:
    """Tell in which frames site symmetry leaves no atom a force.

    A force on an atom is invariant under the operations that map the atom on itself; it vanishes when these leave no
    direction alone. A frame in which the operations found for an earlier frame hold takes that frame's answer, so that
    a symmetric trajectory costs one search.

    Args:
        lattice: (n_frames, 3, 3) A.
        positions: (n_frames, n_atoms, 3) A.
        numbers: (n_atoms,) atomic numbers.
        symprec: A.

    Returns:
        (n_frames,) False also where no symmetry can be found.
    """
    import moyopy

    vanish = np.zeros(len(lattice), bool)
    fractional = positions @ np.linalg.inv(lattice)
    metric = lattice @ lattice.transpose(0, 2, 1)
    known: tuple[FloatArray, NDArray[np.int64], bool] | None = None  # fractional sites, rotations, answer
    for i in range(len(lattice)):
        if known is not None:
            sites, rotations, answer = known
            turned = rotations.transpose(0, 2, 1) @ metric[i] @ rotations
            if np.allclose(sites, fractional[i], atol=1e-7) and np.allclose(turned, metric[i], atol=symprec):
                vanish[i] = answer
                continue
        cell = moyopy.Cell(lattice[i].tolist(), fractional[i].tolist(), numbers.tolist())
        try:
            operations = moyopy.MoyoDataset(cell, symprec=symprec).operations
        except ValueError:
            continue
        rotations = np.array(operations.rotations)
        vanish[i] = _no_free_direction(lattice[i], fractional[i], rotations, np.array(operations.translations), symprec)
        known = fractional[i], rotations, bool(vanish[i])
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
