"""Isolated-atom reference energies (E0s) by least squares, as MLIP training codes ask for them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajmill.elements import NUMBERS, SYMBOLS
from trajmill.trajectory import FloatArray

SIZE = len(SYMBOLS)


class ReferenceEnergies:
    """Accumulates the normal equations `counts @ e0 = energy` batch by batch, per functional and run type.

    The same fit as MACE's `E0s="average"`: all frames weigh equally, and where compositions do not determine an
    element's energy the solution of least norm is taken.
    """

    def __init__(self) -> None:
        self._matrix: defaultdict[tuple[str, str], FloatArray] = defaultdict(lambda: np.zeros((SIZE, SIZE)))
        self._vector: defaultdict[tuple[str, str], FloatArray] = defaultdict(lambda: np.zeros(SIZE))

    def add(self, rows: pa.Table) -> None:
        """Take frames with `functional`, `run_type`, `species_at_sites` and `energy` (eV per cell)."""
        keys = pc.binary_join_element_wise(rows["functional"], pc.fill_null(rows["run_type"], "unknown"), "|")
        for key in sorted(pc.unique(keys).to_pylist()):
            chosen = rows.filter(pc.equal(keys, key))
            sites = chosen["species_at_sites"].combine_chunks()
            encoded = pc.dictionary_encode(sites.flatten())
            numbers = np.array([NUMBERS[s] for s in encoded.dictionary.to_pylist()])[encoded.indices.to_numpy()]
            frames = np.repeat(np.arange(len(chosen)), pc.list_value_length(sites).to_numpy())
            counts = np.bincount(frames * SIZE + numbers, minlength=len(chosen) * SIZE).reshape(-1, SIZE).astype(float)
            functional, run_type = key.split("|")
            self._matrix[functional, run_type] += counts.T @ counts
            self._vector[functional, run_type] += counts.T @ chosen["energy"].to_numpy()

    def solve(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return eV per atom by functional, run type and element."""
        solved: dict[str, dict[str, dict[str, float]]] = {}
        for (functional, run_type), matrix in sorted(self._matrix.items()):
            present = np.flatnonzero(np.diag(matrix))
            e0, *_ = np.linalg.lstsq(
                matrix[np.ix_(present, present)], self._vector[functional, run_type][present], rcond=1e-10
            )
            by_element = {SYMBOLS[n]: round(float(e), 6) for n, e in zip(present, e0, strict=True)}
            solved.setdefault(functional, {})[run_type] = by_element
        return solved
