"""Atompack, an append-only file for random access, written a trajectory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trajmill.errors import require
from trajmill.targets.base import Target, trajectories
from trajmill.trajectory import BoolArray, Trajectory


def _write(tables: Iterator[pa.Table], out: Path, _: str) -> None:
    database = require("atompack", extra="atompack").Database(str(out), compression="zstd", overwrite=True)
    for t in trajectories(tables):
        unknown: BoolArray = np.isnan(t.stress[:, 0, 0])
        for which in (~unknown, unknown):  # what is added at once has the same labels
            if which.any():
                _add(database, t, which)
    database.flush()


def _add(database: Any, t: Trajectory, which: BoolArray) -> None:
    n = int(which.sum())
    stress = t.stress[which]
    steps = t.relaxation_step[which].astype(np.int64)
    database.add_arrays_batch(
        t.positions[which],
        np.tile(t.numbers.astype(np.uint8), (n, 1)),
        energy=t.energy[which],
        forces=t.forces[which],
        cell=t.lattice[which],
        stress=None if np.isnan(stress).any() else stress,
        pbc=np.ones((n, 3), bool),
        properties={
            "id": [f"{t.trajectory_id}-{step}" for step in steps],
            "trajectory_id": [t.trajectory_id] * n,
            "relaxation_step": steps,
        },
    )


ATOMPACK = Target("atompack", (".atp",), _write, "atompack-db: random access in training")
