"""A model that is off by what a test says: it answers with DFT's labels of frames it was given, and something more."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

ANSWERS: dict[tuple[float, ...], tuple[float, np.ndarray, np.ndarray]] = {}
"""By place of the first atom and volume: energy, forces, stress (xx yy zz yz xz xy)."""


def key(positions, cell):
    return (*np.round(positions[0], 6), round(float(np.linalg.det(cell)), 4), len(positions))


class Offset(Calculator):
    """Adds constants per element to energies, a vector to forces, a number to stresses."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, per_element=None, force=(0.0, 0.0, 0.0), stress=0.0, refuses=()):
        super().__init__()
        self.per_element, self.force, self.off, self.refuses = per_element or {}, np.array(force), stress, set(refuses)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        symbols = atoms.get_chemical_symbols()
        if self.refuses & set(symbols):
            raise ValueError(f"unknown element {sorted(self.refuses)[0]}")
        energy, forces, stress = ANSWERS[key(atoms.positions, atoms.cell[:])]
        energy += sum(self.per_element.get(s, 0.0) for s in symbols)
        self.results = {"energy": energy, "forces": forces + self.force, "stress": stress + self.off}


def perfect():
    return Offset()


def wrong():
    return Offset(per_element={"Na": 0.02, "Cl": -0.01}, force=(0.1, 0.0, 0.0), stress=0.001)
