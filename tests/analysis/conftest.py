"""Datasets that figures are drawn of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from factories import make_store, make_trajectory
from making import DATA
from trajmill.builder import build
from trajmill.recipe import load
from trajmill.releases.hugging_face import release
from trajmill.sources.base import Rejection
from trajmill.stores.delta import DeltaStore


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """A store of the samples of all three sources."""
    path = tmp_path_factory.mktemp("samples") / "store"
    settings = [
        f"mp.path='{DATA / 'mp/real'}'",
        f"alexandria.path='{DATA / 'alexandria'}'",
        f"oqmd.path='{DATA / 'oqmd/qmdb__v1_6__112023.sql.gz'}'",
        f"store.path='{path}'",
        "mp.tasks_without_material=keep",
        "engine.workers=2",
    ]
    assert not build(load(settings=settings)).failed
    return path


def varied(name, n_frames, symbols, seed, **fields):
    """A trajectory of three stages whose cell, forces and stress change."""
    rng = np.random.default_rng(seed)
    t = make_trajectory(name, n_frames=n_frames, symbols=symbols, **fields)
    size = rng.uniform(0.9, 1.1, n_frames) ** (1 / 3)
    stress = 10 ** rng.uniform(-9, 0, (n_frames, 1, 1)) * rng.normal(size=(n_frames, 3, 3))
    forces = 10 ** rng.uniform(-8, 2, (n_frames, 1, 1)) * rng.normal(size=(n_frames, len(symbols), 3))
    return replace(
        t,
        energy=t.energy + 10 ** rng.uniform(-9, 0, n_frames) * rng.choice([-1, 0, 1], n_frames),
        forces=forces,
        stress=stress + stress.transpose(0, 2, 1),
        lattice=t.lattice * size[:, None, None],
        positions=t.positions * size[:, None, None],
        relaxation_number=np.sort(rng.integers(0, 3, n_frames)).astype(np.int32),
        relaxation_step=np.sort(rng.choice(3 * n_frames, n_frames, replace=False)).astype(np.int32),
        space_group=rng.choice([1, 2, 62, 139, 166, 191, 225], n_frames).astype(np.int32),
    )


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """A store of made-up trajectories of three sources and four functionals, and rejections."""
    kinds = [("mp", "mp-{}"), ("alexandria", "agm{:09}"), ("oqmd", "oqmd-{}")]
    compounds = [("Na", "Cl"), ("Fe",), ("O", "O", "Ti"), ("Ba", "O", "O", "O", "Ti"), ("U", "H", "H", "H")]
    functionals = ("pbe", "pbesol", "scan", "r2scan")
    runs = [
        varied(kinds[i % 3][1].format(i), 1 + i % 13, compounds[(i // 2) % 5], i, functional=functionals[i // 2 % 4],
               asset=f"{kinds[i % 3][0]}/{i % 2}")
        for i in range(60)
    ]  # fmt: skip
    unknown = replace(runs[3], stress=np.full((len(runs[3]), 3, 3), np.nan))
    still = replace(runs[4], forces=np.zeros_like(runs[4].forces))
    lost = [
        Rejection(source="mp", asset="mp/0", rejected_by="license", detail="BY-NC", n_frames=40),
        Rejection(source="mp", asset="mp/0", rejected_by="targets", detail="no energy", n_frames=1),
        Rejection(source="mp", asset="mp/1", rejected_by="readable", detail="line 3", n_frames=None),
        Rejection(source="oqmd", asset="oqmd/0", rejected_by="geometry", detail="too close", n_frames=3),
    ]
    path = tmp_path_factory.mktemp("mixed") / "mixed"
    make_store(path, [*runs[:3], unknown, still, *runs[5:]], lost)
    return path


@pytest.fixture(scope="session")
def published(mixed, tmp_path_factory):
    """The same as a release with the 25 published columns, stress in kBar."""
    path = tmp_path_factory.mktemp("published") / "published"
    release(DeltaStore(mixed), path, load(settings=["release.format='lemat-traj'"]))
    return path
