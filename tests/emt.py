"""Frames with the labels of ASE's effective medium theory: a surface that small models learn in a minute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from factories import make_trajectory

SMALL = {"r_max": 4.0, "num_channels": 4, "max_L": 0, "max_ell": 2, "correlation": 2, "num_radial_basis": 6}
"""A model that a CPU trains in seconds."""


def run_of_emt(name, rng, metals=("Cu", "Au"), zero=0.0, **changes):
    """Two metals, shaken and strained: frames of no relaxation, but of one surface; `zero` eV/atom is its zero."""
    frames = []
    base = bulk(metals[0], cubic=True)
    base.symbols[0] = metals[1]
    for _ in range(6):
        atoms = base.copy()
        atoms.set_cell(atoms.cell * rng.uniform(0.98, 1.08), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = EMT()
        energy = atoms.get_potential_energy() + zero * len(atoms)
        frames.append((atoms.cell[:], atoms.positions, energy, atoms.get_forces(), atoms.get_stress(voigt=False)))
    lattice, positions, energy, forces, stress = (np.array(column) for column in zip(*frames, strict=True))
    changes = {"immutable_id": name} | changes
    t = make_trajectory(name, n_frames=6, symbols=tuple(base.get_chemical_symbols()), energy_corrected=None, **changes)
    return replace(t, lattice=lattice, positions=positions, energy=energy, forces=forces, stress=stress)
