"""Trajectories made by hand for tests, and what stores hold."""

from pathlib import Path

import numpy as np

from trajmill.elements import NUMBERS
from trajmill.stores.delta import DeltaStore
from trajmill.trajectory import Trajectory

DATA = Path(__file__).parent / "data"


def make(n_frames=3, symbols=("Na", "Cl"), **changes):
    """Return a trajectory that every rule keeps: a cubic cell of 3 A per atom, relaxing downhill."""
    n = len(symbols)
    random = np.random.default_rng(0)
    edge = 3.0 * n
    sites = np.zeros((n, 3))
    sites[:, 0] = 3.0 * np.arange(n)
    stress = 0.01 * random.normal(size=(n_frames, 3, 3))
    fields = {
        "source": "alexandria",
        "asset": "alexandria/a.json.bz2",
        "task_id": "agm000000001",
        "trajectory_id": "agm000000001-pbe",
        "immutable_id": "agm000000001",
        "numbers": np.array([NUMBERS[s] for s in symbols]),
        "lattice": np.tile(edge * np.eye(3), (n_frames, 1, 1)),
        "positions": sites + 0.05 * random.normal(size=(n_frames, n, 3)),
        "energy": -3.0 * n - 0.01 * np.arange(n_frames),
        "forces": 0.1 * random.normal(size=(n_frames, n, 3)),
        "stress": stress + stress.transpose(0, 2, 1),
        "relaxation_number": np.zeros(n_frames, np.int32),
        "relaxation_step": np.arange(n_frames, dtype=np.int32),
        "functional": "pbe",
        "run_type": "GGA",
    }
    return Trajectory(**(fields | changes))


def ints(*values):
    return np.array(values, np.int32)


def floats(*values):
    return np.array(values, np.float64)


def content(store):
    """Bytes of the files a store's table names, by their place; a name follows from content."""
    table = DeltaStore(store)
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for role in ("frame", "input", "rejection")
        for _, path, _ in table.files(role)
    }
