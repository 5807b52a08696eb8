"""Isolated-atom reference energies (E0s) by least squares, as MLIP training codes ask for them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajmill.elements import NUMBERS, SYMBOLS
from trajmill.trajectory import FloatArray

SIZE = len(SYMBOLS)


class LeastSquares:
    """Accumulates the normal equations `counts @ e0 = energy`, a batch of frames at a time.

    The same fit as MACE's `E0s="average"`: all frames weigh equally, and where compositions do not determine an
    element's energy the solution of least norm is taken.
    """

    def __init__(self) -> None:
        self._matrix: FloatArray = np.zeros((SIZE, SIZE))
        self._vector: FloatArray = np.zeros(SIZE)

    def add(self, sites: pa.ListArray, energy: pa.Array | pa.ChunkedArray) -> None:
        """Take frames: the element of each of their sites, and their energy (eV per cell)."""
        encoded = pc.dictionary_encode(sites.flatten())
        numbers = np.array([NUMBERS[s] for s in encoded.dictionary.to_pylist()], int)[encoded.indices.to_numpy()]
        frames = np.repeat(np.arange(len(sites)), pc.list_value_length(sites).to_numpy())
        counts = np.bincount(frames * SIZE + numbers, minlength=len(sites) * SIZE).reshape(-1, SIZE).astype(float)
        self._matrix += counts.T @ counts
        self._vector += counts.T @ energy.to_numpy()

    def solve(self) -> dict[str, float]:
        """Return eV per atom by element."""
        present = np.flatnonzero(np.diag(self._matrix))
        e0, *_ = np.linalg.lstsq(self._matrix[np.ix_(present, present)], self._vector[present], rcond=1e-10)
        return {SYMBOLS[n]: round(float(e), 6) for n, e in zip(present, e0, strict=True)}


class ReferenceEnergies:
    """Fits apart per functional and run type, whose energies do not compare."""

    def __init__(self) -> None:
        self._fits: defaultdict[tuple[str, str], LeastSquares] = defaultdict(LeastSquares)

    def add(self, rows: pa.Table) -> None:
        """Take frames with `functional`, `run_type`, `species_at_sites` and `energy` (eV per cell)."""
        keys = pc.binary_join_element_wise(rows["functional"], pc.fill_null(rows["run_type"], "unknown"), "|")
        for key in sorted(pc.unique(keys).to_pylist()):
            chosen = rows.filter(pc.equal(keys, key))
            functional, run_type = key.split("|")
            self._fits[functional, run_type].add(chosen["species_at_sites"].combine_chunks(), chosen["energy"])

    def solve(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return eV per atom by functional, run type and element."""
        solved: dict[str, dict[str, dict[str, float]]] = {}
        for (functional, run_type), fit in sorted(self._fits.items()):
            solved.setdefault(functional, {})[run_type] = fit.solve()
        return solved
