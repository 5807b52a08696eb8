"""HDF5 as MACE's `mace_prepare_data` writes it: a group per frame, all in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trajmill.errors import require
from trajmill.targets.base import Target, trajectories
from trajmill.trajectory import Trajectory
from trajmill.units import to_voigt


def _write(tables: Iterator[pa.Table], out: Path, _: str) -> None:
    with require("h5py", extra="mace").File(out, "w") as file:
        file.attrs["drop_last"] = False
        batch = file.create_group("config_batch_0")  # MACE takes all batches to be as large as the first
        n = 0
        for t in trajectories(tables):
            for i in range(len(t)):
                _write_frame(batch.create_group(f"config_{n}"), t, i)
                n += 1


def _write_frame(group: Any, t: Trajectory, i: int) -> None:
    group["atomic_numbers"] = t.numbers
    group["positions"] = t.positions[i]
    group["cell"] = t.lattice[i]
    group["pbc"] = np.ones(3, bool)
    group["weight"] = 1.0
    group["config_type"] = "Default"
    labels = {"energy": float(t.energy[i]), "forces": t.forces[i], "stress": t.stress[i]}
    properties, weights = group.create_group("properties"), group.create_group("property_weights")
    for name, value in labels.items():
        known = bool(np.isfinite(value).all())
        weights[name] = float(known)
        if known:
            properties[name] = to_voigt(value) if name == "stress" else value


MACE_HDF5 = Target("mace-hdf5", (".h5", ".hdf5"), _write, "MACE: `--train_file` is the folder")
