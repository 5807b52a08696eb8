"""The symmetry of one frame as a template that other frames are checked against, many at once.

A symmetry search answers two questions: which operations hold, and that no others do. Along a relaxation, and from one
compound of a prototype to the next, the answer hardly ever changes, and both parts can be checked on a frame without
searching: that the operations hold by applying generators of the group, that no others do by one witness for each
operation that the lattice would allow, an atom which that operation takes to a place where there is no atom.

A check says yes only where a search with the same tolerance could not have come to another answer: operations hold far
better than the tolerance asks for (`HOLDS`), all others miss by far more than it allows (`FAILS`). Everything between
is left to a search, so that the numbers are those of moyopy, frame by frame.

Why that suffices. moyopy accepts an operation whose best translation takes every atom to within `symprec` of another
and whose rotation keeps the lengths of a reduced primitive basis to `symprec` and its angles likewise. (1) A product of
operations that hold holds too, up to the sum of their errors: generators are enough. (2) If an operation held besides
the group, so would its products with the group: one representative of each double coset is enough, and any atom that
has no partner excludes it. (3) Near-isometries of a Minkowski-reduced lattice have entries -1, 0, 1. (4) The same
rotations with the same permutations of atoms can belong to another space group (a screw axis for a rotation axis).
Coordinates are therefore taken in the cell nearest to the template's, and must obey the template's relations exactly
there, not up to lattice vectors. All configurations between template and frame then obey them, and the kind of group,
which is discrete, cannot have changed on the way.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.trajectory import BoolArray, FloatArray

HOLDS = 0.05
"""Times the tolerance: error up to which an operation surely holds, products of generators included."""

FAILS = 10.0
"""Times the tolerance: distance beyond which an atom surely has no partner, whatever the translation."""

LATTICE_FAILS = 40.0
"""The same for a rotation of the lattice, in any reduced basis; times the tolerance times the longest vector."""

MAX_WITNESSES = 4000
"""Distances to look at per frame beyond which a search is no dearer."""

_VECTORS = np.array([v for v in itertools.product((-1, 0, 1), repeat=3) if any(v)])


def _rows(v: NDArray[Any], w: NDArray[Any]) -> FloatArray:
    """Return v M w as rows that act on the six independent entries of a metric M (see `_metric`)."""
    outer = v[..., :, None] * w[..., None, :]
    outer = (outer + outer.swapaxes(-1, -2)) / np.where(np.eye(3, dtype=bool), 2.0, 1.0)
    rows: FloatArray = outer[..., [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return rows


def _metric(basis: FloatArray) -> FloatArray:
    """(n, 3, 3) basis vectors to (n, 6) entries 00, 11, 22, 12, 02, 01 of their metric."""
    return (basis @ basis.swapaxes(1, 2))[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


_UNIT = np.eye(3)
_SQUARES = _rows(_UNIT, _UNIT)
_LENGTHS = _rows(_VECTORS, _VECTORS)[:, None] - _SQUARES  # (26, 3, 6): how much longer than each basis vector, squared
_OTHERS = np.array([(0, 1, 0), (0, 0, 1), (1, -1, 0), (1, 1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1),
                    (1, -1, -1), (1, -1, 1), (1, 1, -1), (1, 1, 1)])  # fmt: skip
_REDUCED = _rows(_OTHERS, _OTHERS) - _SQUARES[[0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]]
"""Not negative for a Minkowski-reduced basis."""


def lattice_kinds(lattice: FloatArray, symprec: float) -> NDArray[np.uint8]:
    """Return which short lattice vectors are of equal length, to look templates up by.

    Args:
        lattice: (n_frames, 3, 3) A.
        symprec: A.

    Returns:
        (n_frames, 10) bits.
    """
    metric = _metric(lattice)
    with np.errstate(invalid="ignore", over="ignore"):  # cells may hold anything
        longest = np.sqrt(metric[:, :3].max(axis=1, initial=0))
        equal = np.abs(metric @ _LENGTHS.reshape(-1, 6).T) <= LATTICE_FAILS * symprec * longest[:, None]
    return np.packbits(equal, axis=1)


@dataclass(frozen=True, eq=False)
class SymmetryTemplate:
    """What to check on a frame to know that its space group is the template's.

    Attributes:
        number: the space group.
        force_free: whether site symmetry leaves no atom a force.
        symprec: A, the tolerance of the search whose answers are to be reproduced.
        to_reduced: (3, 3) from the frame's basis to the reduced primitive one, both as rows.
        bonds: (m, 6) rows of the metric that vanish for the isometries of the lattice; generators only.
        rows: (n, 6) rows whose smallness decides which other rotations the lattice may have.
        near: (n,) which of them are small.
        sites: (n_sites, 3) the primitive cell's atoms, fractional in the reduced basis.
        first: (n_sites,) an atom of the frame for each of them.
        site_of: (n_atoms,) the site of each atom.
        rotations: (g, 3, 3) generators of the point group, acting on columns.
        permutations: (g, n_sites) where they take the sites.
        offsets: (g, n_sites, 3) lattice vectors by which the images differ from the sites they fall on.
        excluded: (k, 3, 3) rotations, one of each double coset, that must not hold.
        witness: (k, 3) sites: source and target of a translation, and the site that has no partner then.
        partners: (k, s) sites of the witness's element, repeated to the same number.
    """

    number: int
    force_free: bool
    symprec: float
    to_reduced: FloatArray
    bonds: FloatArray
    rows: FloatArray
    near: BoolArray
    sites: FloatArray
    first: NDArray[np.int64]
    site_of: NDArray[np.int64]
    rotations: FloatArray
    permutations: NDArray[np.int64]
    offsets: FloatArray
    excluded: FloatArray
    witness: NDArray[np.int64]
    partners: NDArray[np.int64]

    @cached_property
    def from_reduced(self) -> FloatArray:
        """(3, 3) from fractional coordinates in the frame's basis to those in the reduced one, both as rows."""
        return np.asarray(np.linalg.inv(self.to_reduced), float)

    def fits(self, lattice: FloatArray, inverse: FloatArray, fractional: FloatArray) -> BoolArray:
        """Tell in which frames a search would surely find this template's group.

        Args:
            lattice: (n_frames, 3, 3) A, regular.
            inverse: (n_frames, 3, 3) of it, 1/A.
            fractional: (n_frames, n_atoms, 3) of atoms with the template's pattern of species.

        Returns:
            (n_frames,) False where it would not, or where only the search itself can tell.
        """
        basis = self.to_reduced @ lattice
        fit = self._lattice_fits(basis)
        frames = np.flatnonzero(fit)
        if len(frames):
            inverse = inverse[frames] @ self.from_reduced
            fit[frames] = self._sites_fit(basis[frames], inverse, fractional[frames] @ self.from_reduced)
        return fit

    def _lattice_fits(self, basis: FloatArray) -> BoolArray:
        metric = _metric(basis)
        shortest, longest = np.sqrt(metric[:, :1]), np.sqrt(metric[:, 2:3])
        fails = LATTICE_FAILS * self.symprec * longest
        holds = (np.abs(metric @ self.bonds.T) <= HOLDS * self.symprec * shortest).all(axis=1)
        reduced = (metric @ _REDUCED.T >= -fails).all(axis=1)
        alike: BoolArray = ((np.abs(metric @ self.rows.T) <= fails) == self.near).all(axis=1)
        return holds & reduced & alike

    def _sites_fit(self, basis: FloatArray, inverse: FloatArray, atoms: FloatArray) -> BoolArray:
        """Check the sites of frames; `atoms` (n_frames, n_atoms, 3) are fractional in the reduced basis."""
        reach = FAILS * self.symprec * np.linalg.norm(inverse, axis=1)  # (n_frames, 3): how far that is, fractional
        holds = (HOLDS * self.symprec) ** 2
        fit: BoolArray = (4 * reach < 1).all(axis=1)
        sites = atoms[:, self.first]
        if len(self.first) < len(self.site_of):  # pure translations
            fit &= (_squares(_wrapped(atoms - sites[:, self.site_of]), basis) <= holds).all(axis=1)
        sites += np.rint(self.sites - sites)
        fit &= ~self._close(sites, reach)
        if len(self.rotations):
            images = sites[:, None] @ self.rotations.swapaxes(1, 2)
            shift = images - sites[:, self.permutations] - self.offsets
            shift -= shift.mean(axis=2, keepdims=True)
            fit &= (_squares(shift, basis[:, None]) <= holds).all(axis=(1, 2))
        if len(self.excluded):
            source, target, witness = self.witness.T
            moved = (self.excluded @ (sites[:, witness] - sites[:, source])[..., None])[..., 0] + sites[:, target]
            miss = np.abs(_wrapped(moved[:, :, None] - sites[:, self.partners])) > reach[:, None, None]
            fit &= miss.any(axis=3).all(axis=(1, 2))
        return fit

    def _close(self, sites: FloatArray, reach: FloatArray) -> BoolArray:
        """Tell in which frames two sites may be so close that a partner is ambiguous."""
        a, b = _pairs(len(self.first))
        frame, pair = np.nonzero(np.abs(_wrapped(sites[:, a, 0] - sites[:, b, 0])) <= reach[:, :1])
        near = np.abs(_wrapped(sites[frame, a[pair]] - sites[frame, b[pair]])) <= reach[frame]
        close = np.zeros(len(sites), bool)
        close[frame[near.all(axis=1)]] = True
        return close


@lru_cache(256)
def _pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.triu_indices(n, 1)


def _wrapped(difference: FloatArray) -> FloatArray:
    return difference - np.rint(difference)


def _squares(fractional: FloatArray, basis: FloatArray) -> FloatArray:
    """Return squared Cartesian lengths, A^2."""
    cartesian = fractional @ basis
    squares: FloatArray = np.einsum("...i,...i->...", cartesian, cartesian)
    return squares


def analyse_frame(
    lattice: FloatArray, fractional: FloatArray, species: NDArray[np.int64], dataset: Any, symprec: float
) -> tuple[bool, SymmetryTemplate | None]:
    """Look at what moyopy found for a frame.

    Args:
        lattice: (3, 3) A.
        fractional: (n_atoms, 3).
        species: (n_atoms,) any integer for each element.
        dataset: the `moyopy.MoyoDataset` of the frame.
        symprec: A, the tolerance it was asked for.

    Returns:
        Whether site symmetry leaves no atom a force; and a template, None where the frame is too close to another
        answer to vouch for others.
    """
    import moyopy

    setting = moyopy.Setting.hall_number(dataset.hall_number)
    operations = moyopy.operations_from_number(dataset.number, setting=setting, primitive=True)
    standard = np.array(dataset.prim_std_linear)  # columns: the standard primitive basis in terms of the frame's
    change = _minkowski_reduced(standard.T @ lattice)
    if change is None:
        return False, None
    to_reduced = change @ standard.T
    basis, from_reduced = to_reduced @ lattice, np.linalg.inv(to_reduced)
    # standard coordinates (columns) are change.T times reduced ones
    back = np.linalg.inv(change.T)
    group = np.rint(back @ np.array(operations.rotations) @ change.T)
    origin = np.array(dataset.prim_std_origin_shift) @ from_reduced
    shifts = np.array(operations.translations) @ back.T + origin - group @ origin
    _, first, site_of = np.unique(dataset.mapping_std_prim, return_index=True, return_inverse=True)
    sites, kinds = (fractional @ from_reduced)[first], species[first]
    images = sites @ group.swapaxes(1, 2) + shifts[:, None]
    permutations = _squares(_wrapped(images[:, :, None] - sites), basis).argmin(axis=2)
    if (np.sort(permutations, axis=1) != np.arange(len(sites))).any() or (kinds[permutations] != kinds).any():
        return False, None
    fixing = (permutations == np.arange(len(sites))).astype(float)
    force_free = not np.einsum("gs,gij->sij", fixing, group).any()  # the sum of a site's own rotations
    generators, lattice_part = _generators(group), _lattice_part(basis, symprec)
    if generators is None or lattice_part is None or dataset.symprec != symprec:
        return force_free, None
    isometries, bonds, rows, near = lattice_part
    excluded = _excluded(sites, kinds, basis, group, isometries)
    if excluded is None:
        return force_free, None
    rotations, permutations = group[generators], permutations[generators]
    offsets = sites @ rotations.swapaxes(1, 2) - sites[permutations]
    offsets = np.rint(offsets - offsets[:, :1])
    template = SymmetryTemplate(
        dataset.number, force_free, symprec, to_reduced, bonds, rows, near, sites, first, site_of,
        rotations, permutations, offsets, *excluded,
    )  # fmt: skip
    inverse: FloatArray = np.linalg.inv(lattice).astype(float, copy=False)
    return force_free, template if template.fits(lattice[None], inverse[None], fractional[None])[0] else None


def _minkowski_reduced(basis: FloatArray) -> FloatArray | None:
    """Return the unimodular matrix that makes a reduced basis of row vectors; None should that not end."""
    change = np.eye(3)
    for _ in range(100):
        lengths = np.linalg.norm(change @ basis, axis=1)
        change = change[np.argsort(lengths, kind="stable")]
        reduced = change @ basis
        squares = (reduced**2).sum(axis=1)
        candidates = np.concatenate([reduced[2] + (_PLANE @ reduced[:2]), reduced[1] + _LINE * reduced[0]])
        shorter = (candidates**2).sum(axis=1) - np.repeat(squares[[2, 1]], [len(_PLANE), len(_LINE)])
        best = int(np.argmin(shorter))
        if shorter[best] > -1e-9 * squares[2]:
            return change
        if best < len(_PLANE):
            change[2] += _PLANE[best] @ change[:2]
        else:
            change[1] += _LINE[best - len(_PLANE)] * change[0]
    return None


_PLANE = np.array([p for p in itertools.product((-1, 0, 1), repeat=2) if any(p)], float)
_LINE = np.array([[-1.0], [1.0]])


def _lattice_part(basis: FloatArray, symprec: float) -> tuple[FloatArray, FloatArray, FloatArray, BoolArray] | None:
    """Find the lattice's isometries, and what to check on a frame's metric.

    Returns:
        isometries (q, 3, 3), bonds, rows and near; None where something may be an isometry or not.
    """
    metric = _metric(basis[None])[0]
    fails = LATTICE_FAILS * symprec * np.sqrt(metric[2])
    lengths = np.abs(_LENGTHS @ metric) <= fails
    images = [_VECTORS[lengths[:, k]] for k in range(3)]
    rows = _lattice_rows(lengths.tobytes())
    near = np.abs(rows @ metric) <= fails
    small, start = [], lengths.size
    for i, j in _ANGLES:
        shape = len(images[i]), len(images[j])
        small.append(near[start : start + shape[0] * shape[1]].reshape(shape))
        start += shape[0] * shape[1]
    a, b, c = np.nonzero(small[0][:, :, None] & small[1][None] & small[2][:, None])
    isometries = np.stack([images[0][a], images[1][b], images[2][c]], axis=2).astype(float)
    isometries = isometries[np.abs(np.abs(np.linalg.det(isometries)) - 1) < 0.5]
    generators = _generators(isometries)
    if generators is None:
        return None
    columns = isometries[generators].swapaxes(1, 2)
    bonds = [_rows(columns[:, i], columns[:, j]) - _rows(_UNIT[i], _UNIT[j]) for i in range(3) for j in range(i + 1)]
    return isometries, np.concatenate(bonds), rows, near


_ANGLES = ((0, 1), (1, 2), (0, 2))


@lru_cache(1024)
def _lattice_rows(near: bytes) -> FloatArray:
    """Return the rows of all lengths, and those of all angles between vectors that may be images of the basis.

    Args:
        near: (26, 3) bools, which short vectors are as long as which basis vector.
    """
    images = [_VECTORS[np.frombuffer(near, bool).reshape(-1, 3)[:, k]] for k in range(3)]
    angles = [(_rows(images[i][:, None], images[j]) - _rows(_UNIT[i], _UNIT[j])).reshape(-1, 6) for i, j in _ANGLES]
    return np.concatenate([_LENGTHS.reshape(-1, 6), *angles])


def _table(group: FloatArray) -> NDArray[np.int64] | None:
    """Return the multiplication table (n, n) of matrices with entries -1 to 1; None if they are no group."""
    digits = 7.0 ** np.arange(9)  # entries of a product are -3 to 3: no two matrices have the same code
    codes = (group.reshape(-1, 9) @ digits).astype(np.int64)
    products = ((group[:, None] @ group).reshape(len(group), -1, 9) @ digits).astype(np.int64)
    order = np.argsort(codes)
    place = np.searchsorted(codes[order], products).clip(max=len(group) - 1)
    table: NDArray[np.int64] = order[place]
    return table if (codes[table] == products).all() else None


def _generators(group: FloatArray) -> NDArray[np.int64] | None:
    """Choose few elements that generate the group; None if it is none."""
    table = _table(group)
    if table is None:
        return None
    chosen: list[int] = []
    reached = (group == np.eye(3)).all(axis=(1, 2))
    while not reached.all():
        chosen.append(int(np.flatnonzero(~reached)[0]))
        reached[chosen[-1]] = True
        size = 0
        while size < (size := int(reached.sum())):
            members = np.flatnonzero(reached)
            reached[table[np.ix_(members, members)]] = True
    return np.array(chosen, int)


def _excluded(
    sites: FloatArray, kinds: NDArray[np.int64], basis: FloatArray, group: FloatArray, isometries: FloatArray
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]] | None:
    """Find what proves that no isometry of the lattice holds besides the group: `excluded`, `witness` and `partners`.

    Returns:
        None where an isometry has no witness, or the lattice lacks an operation of the group.
    """
    table = _table(isometries)
    known = (isometries[:, None] == group).all(axis=(2, 3))
    if table is None or not known.any(axis=0).all():
        return None
    members = np.flatnonzero(known.any(axis=1))
    identity = int(np.flatnonzero((isometries == np.eye(3)).all(axis=(1, 2)))[0])
    chosen, open_ = [identity], ~known.any(axis=1)
    while open_.any():
        chosen.append(int(np.flatnonzero(open_)[0]))
        open_[table[table[members, chosen[-1]]][:, members]] = False
    counts = np.bincount(kinds)[kinds]
    pivots = np.flatnonzero(kinds == kinds[counts.argmin()])
    source = pivots[0]
    rotation, target = (a.ravel() for a in np.meshgrid(chosen, pivots, indexing="ij"))
    keep = (rotation != identity) | (target != source)
    rotation, target = rotation[keep], target[keep]
    if len(rotation) * len(sites) > MAX_WITNESSES:
        return None
    excluded = isometries[rotation]
    moved = (sites - sites[source]) @ excluded.swapaxes(1, 2) + sites[target][:, None]
    distance = _squares(_wrapped(moved[:, :, None] - sites), basis)
    distance[:, kinds[:, None] != kinds] = np.inf
    witness = distance.min(axis=2).argmax(axis=1) if len(rotation) else rotation
    same = [np.flatnonzero(kinds == kind) for kind in kinds[witness]]
    partners = np.array([np.resize(s, max(map(len, same))) for s in same]) if same else np.zeros((0, 0), int)
    return excluded, np.column_stack([np.full_like(target, source), target, witness]), partners
