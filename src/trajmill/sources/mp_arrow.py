"""Nested Arrow lists of the Materials Project's trajectories table to arrays, without Python objects in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from trajmill.sources.pymatgen_json import stack
from trajmill.trajectory import FloatArray, IntArray


def frame_array(cell: Any, n_frames: int, shape: tuple[int, ...], name: str, faults: dict[int, str]) -> FloatArray:
    """Turn one cell of the table, a list with one entry per frame, into an array.

    Args:
        cell: Arrow list scalar, None where the table lacks the column.
        n_frames: number of frames of the row.
        shape: shape of one frame.
        name: what these numbers are, for the fault text.
        faults: receives a text for each frame that has no such entry or one of another shape.

    Returns:
        (n_frames, *shape); NaN for null numbers, and for the whole frame where it is missing or ragged.
    """
    missing = np.full((n_frames, *shape), np.nan)
    if cell is None or not cell.is_valid:
        return _all_faulty(missing, f"no {name}", faults)
    values = cell.values
    if len(values) != n_frames:
        return _all_faulty(missing, f"{name}: {len(values)} entries for {n_frames} frames", faults)
    flat = values
    for size in shape:
        if flat.null_count or not pc.all(pc.equal(pc.list_value_length(flat), size), min_count=0).as_py():
            nested = cell.as_py()
            array = stack(nested, shape, name, faults)
            for i, entry in enumerate(nested):
                if entry is None:
                    faults.setdefault(i, f"no {name}")
            return array
        flat = flat.flatten()
    numbers: FloatArray = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(n_frames, *shape)
    return numbers


def _all_faulty(array: FloatArray, text: str, faults: dict[int, str]) -> FloatArray:
    """Note the same fault for every frame."""
    for i in range(len(array)):
        faults.setdefault(i, text)
    return array


def electronic_ends(cell: Any, n_frames: int) -> FloatArray:
    """Return e_fr_energy and e_0_energy of the last electronic step of each frame, (n_frames, 2) eV, NaN if none."""
    ends = np.full((n_frames, 2), np.nan)
    if cell is None or not cell.is_valid or len(cell.values) != n_frames:
        return ends
    counts = pc.fill_null(pc.list_value_length(cell.values), 0).to_numpy()
    steps, last, present = cell.values.flatten(), np.cumsum(counts) - 1, counts > 0
    for k, name in enumerate(("e_fr_energy", "e_0_energy")):
        if steps.type.get_field_index(name) >= 0:
            ends[present, k] = pc.struct_field(steps, name).to_numpy(zero_copy_only=False)[last[present]]
    return ends


def electronic_steps(cells: Mapping[str, Any], n_frames: int) -> IntArray:
    """Return the number of electronic steps of each frame, -1 where it is not recorded."""
    counted = cells.get("num_electronic_steps")
    listed = cells.get("electronic_steps")
    counts = frame_array(counted, n_frames, (), "", {})
    if listed is not None and listed.is_valid and len(listed.values) == n_frames:
        lengths = pc.fill_null(pc.list_value_length(listed.values), 0).to_numpy()
        counts = np.where(np.isnan(counts), lengths, counts)
    return np.where(counts > 0, counts, -1).astype(np.int32)
