"""pymatgen's structures as JSON has them, without building one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.elements import NUMBERS
from trajmill.trajectory import FloatArray


def site_arrays(structure: dict[str, Any]) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Return (n_atoms,) atomic numbers, the (3, 3) lattice and (n_atoms, 3) positions, A, of an ordered structure.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    lattice = np.array(structure["lattice"]["matrix"], float).reshape(3, 3)
    numbers = []
    for site in structure["sites"]:
        (species,) = site["species"]
        if species.get("occu", 1) != 1:
            raise ValueError("a site that is partly occupied")
        numbers.append(NUMBERS[species["element"]])
    fractional = np.array([site["abc"] for site in structure["sites"]], float).reshape(-1, 3)
    return np.array(numbers, np.int64), lattice, fractional @ lattice
