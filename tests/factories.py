"""Small trajectories and stores made by hand, for tests that need no raw files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from making import make
from trajmill.codec import encode, encode_rejections
from trajmill.sources.base import Rejection
from trajmill.stores.base import Balance, Commit
from trajmill.stores.delta import DeltaStore
from trajmill.trajectory import Trajectory


def make_trajectory(
    task_id: str = "mp-1",
    *,
    n_frames: int = 3,
    symbols: Sequence[str] = ("Na", "Cl"),
    energy: float = -6.0,
    functional: str = "pbe",
    asset: str = "mp/tasks/a.jsonl.gz",
    **fields: object,
) -> Trajectory:
    """Make a curated and annotated trajectory that ends at this energy (eV)."""
    steps = np.arange(n_frames, dtype=np.int32)
    t = make(
        n_frames,
        symbols,
        source=asset.partition("/")[0],
        asset=asset,
        task_id=task_id,
        trajectory_id=f"{task_id}-{functional}",
        immutable_id="mp-1",
        energy=energy + 0.01 * steps[::-1],
        functional=functional,
        run_type={"pbe": "GGA", "pbesol": "PBEsol", "scan": "SCAN", "r2scan": "r2SCAN"}[functional],
        encut=np.full(n_frames, 520.0),
        hubbard_u={},
        potentials=tuple(symbols),
        license="BY-C",
        last_modified="2025-01-01T00:00:00",
        space_group=np.full(n_frames, 1, np.int32),
        energy_corrected=energy + 0.01 * steps[::-1] - 0.5,
        cross_compatibility=np.ones(n_frames, bool),
    )
    return replace(t, **fields)


RECIPE = {"rules": {"elements": {"enabled": True}}}


def make_store(
    path: Path,
    trajectories: Sequence[Trajectory],
    rejections: Sequence[Rejection] = (),
    inputs: Sequence[Trajectory] = (),
) -> DeltaStore:
    """Commit trajectories, each to the asset it names."""
    store = DeltaStore(path, create=True)
    by_asset: Mapping[str, list[str]] = {x.asset: [] for x in (*trajectories, *rejections, *inputs)}
    for asset in by_asset:
        writer = store.writer(asset)
        mine = [[x for x in xs if x.asset == asset] for xs in (trajectories, inputs, rejections)]
        for role, xs, encoder in zip(
            ("frame", "input", "rejection"), mine, (encode, encode, encode_rejections), strict=True
        ):
            if xs:
                writer.write(role, encoder(xs))
        kept = sum(len(t) for t in (*mine[0], *mine[1]))
        lost = {r.rejected_by: r.n_frames or 0 for r in mine[2]}
        balance = Balance(
            records=len(mine[0]) + len(mine[2]), frames=kept + sum(lost.values()), records_kept=len(mine[0]), kept=kept
        )
        balance.rejected.update(lost)
        balance.records_rejected.update(r.rejected_by for r in mine[2])
        fingerprint = f"{abs(hash(asset)):064x}"
        store.commit(
            Commit(
                asset,
                fingerprint,
                writer.close(fingerprint, {"trajmill": "0"}),
                balance,
                {"trajmill": "0"},
                "raw",
                RECIPE,
            )
        )
    return DeltaStore(path)
