"""Crystals for tests, as frames of trajectories: known prototypes, random ones, and copies of them in other cells."""

from functools import cache

import numpy as np
from pymatgen.core import Lattice, Structure

from factories import make_trajectory

CUBIC = {
    "rocksalt": ("Fm-3m", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 5.6),
    "caesium chloride": ("Pm-3m", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.5),
    "zincblende": ("F-43m", ["Na", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25]], 6.0),
    "perovskite": ("Pm-3m", ["Ca", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]], 3.9),
    "fluorite": ("Fm-3m", ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]], 5.5),
    "spinel": ("Fd-3m", ["Mg", "Al", "O"], [[0.125] * 3, [0.5] * 3, [0.2624] * 3], 8.08),
    "pyrite": ("Pa-3", ["Fe", "S"], [[0, 0, 0], [0.385] * 3], 5.42),
    "diamond": ("Fd-3m", ["C"], [[0.125] * 3], 3.57),
    "tungsten": ("Im-3m", ["W"], [[0, 0, 0]], 3.17),
}
"""Space group, elements, positions, lattice constant (A)."""


@cache
def cubic(name):
    group, symbols, sites, edge = CUBIC[name]
    return Structure.from_spacegroup(group, Lattice.cubic(edge), symbols, sites)


def quartz():
    lattice = Lattice.hexagonal(4.91, 5.40)
    return Structure.from_spacegroup("P3_221", lattice, ["Si", "O"], [[0.47, 0, 2 / 3], [0.414, 0.267, 0.786]])


def rutile(symbols=("Ti", "O"), a=4.59, c=2.96):
    return Structure.from_spacegroup("P4_2/mnm", Lattice.tetragonal(a, c), symbols, [[0, 0, 0], [0.305, 0.305, 0]])


@cache
def everyone():
    return {**{name: cubic(name) for name in CUBIC}, "quartz": quartz(), "rutile": rutile()}


def scattered(rng, symbols=("Si", "Si", "O", "O", "O", "O"), per_atom=12.0, apart=1.5):
    """Return a cell with atoms anywhere, none nearer to another than `apart` A."""
    n = len(symbols)
    while True:
        lattice = Lattice.from_parameters(*rng.uniform(0.7, 1.4, 3), *rng.uniform(70, 110, 3)).scale(n * per_atom)
        structure = Structure(lattice, symbols, rng.random((n, 3)))
        for _ in range(50):
            distances = structure.distance_matrix + 10 * np.eye(n)
            if distances.min() > apart and min(lattice.abc) > apart:
                return structure
            structure[int(distances.min(axis=1).argmin())].frac_coords = rng.random(3)


def copied(structure, rng, *, supercell=None, noise=0.0, strain=0.0, scale=1.0):
    """Return the same crystal with atoms in another order, another origin, turned, and however it is asked for.

    Args:
        supercell: what to make of its cell.
        noise: A, standard deviation of each coordinate.
        strain: standard deviation of each component.
        scale: factor on lengths.
    """
    if supercell is not None:
        structure = structure.make_supercell(supercell, in_place=False)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    distortion = rng.normal(0, strain, (3, 3)) if strain else np.zeros((3, 3))
    lattice = scale * structure.lattice.matrix @ (np.eye(3) + (distortion + distortion.T) / 2) @ turn
    order = rng.permutation(len(structure))
    positions = (structure.frac_coords + rng.random(3))[order] @ lattice
    positions += rng.normal(0, noise, positions.shape) if noise else 0
    return Structure(lattice, [structure.species[i] for i in order], positions, coords_are_cartesian=True)


def geometry(structure):
    return structure.lattice.matrix, structure.cart_coords, np.array(structure.atomic_numbers)


def run(name, structure, *, n_frames=2, source="mp", **fields):
    """Return a trajectory that ends in a structure, and begins in one larger by 2 %."""
    lattice, positions, numbers = geometry(structure)
    factor = np.linspace(1.02, 1, n_frames)[:, None, None]
    arrays = {
        "lattice": factor * lattice,
        "positions": factor * positions,
        "forces": np.full((n_frames, len(numbers), 3), 0.1),
        "stress": np.zeros((n_frames, 3, 3)),
    }
    symbols = tuple(site.specie.symbol for site in structure)
    given = {"immutable_id": name, "asset": f"{source}/a.json"} | arrays | fields
    return make_trajectory(name, n_frames=n_frames, symbols=symbols, **given)
