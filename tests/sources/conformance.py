"""The kit every source must pass: `check_source(source, workspace)`, called from the source's own tests."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from trajmill.curation import RULES
from trajmill.sources.base import Asset, Record, Source
from trajmill.trajectory import FRAME_FIELDS, Trajectory

FRAME_SHAPES = {
    "lattice": (3, 3),
    "positions": ("n_atoms", 3),
    "forces": ("n_atoms", 3),
    "stress": (3, 3),
    "magnetic_moments": ("n_atoms",),
}
"""Shape of one frame where it is no single number."""

DTYPES = dict.fromkeys(("relaxation_number", "relaxation_step", "electronic_steps", "nelm", "ispin"), np.int32) | {
    "is_input": np.bool_
}
"""Types of the fields of a frame that are no float64."""

ANNOTATIONS = {"space_group", "energy_corrected", "cross_compatibility"}
FUNCTIONALS = {"pbe", "pbesol", "scan", "r2scan", None}
READER_RULES = {rule.name for rule in RULES} | {"readable"}


def check_source(source: Source, workspace: Path) -> dict[str, list[Record]]:
    """Check all that the flow relies on, and return the records by asset for further checks."""
    assert isinstance(source, Source)
    workspace.mkdir(exist_ok=True)
    told: list[tuple[int, int]] = []
    source.prepare(workspace, lambda *numbers: told.append(numbers))
    assert told == sorted(told), "progress never falls back"
    assert all(done == total for done, total in told[-1:]), "it ends at all of it"
    assert len({total for _, total in told}) <= 1
    before = _snapshot(workspace)
    source.prepare(workspace)
    assert _snapshot(workspace) == before, "preparing twice must do nothing the second time"

    assets = source.assets()
    _check_assets(source, assets)
    traveller = pickle.loads(pickle.dumps(source))  # as a worker gets it
    assert traveller.assets() == assets
    found = {asset.name: list(source.read(asset)) for asset in assets}
    for asset in reversed(assets):
        assert traveller.raw_digest(asset) == source.raw_digest(asset)
        assert_equal(list(traveller.read(asset)), found[asset.name])
        for record in found[asset.name]:
            check_record(source, asset, record)
        _check_ids(found[asset.name])
        _check_facts(source, found[asset.name])
    assert _snapshot(workspace) == before, "reading must leave the workspace as it is"
    return found


def _snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def _check_assets(source: Source, assets: list[Asset]) -> None:
    names = [asset.name for asset in assets]
    assert names, "no asset"
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    for asset in assets:
        assert asset.name.startswith(f"{source.name}/")
        assert str(asset.path.parent) not in asset.name, "a name must not depend on where the files lie"
        assert asset.path.exists()
        assert asset.size >= 0
        if asset.path.is_file() and not asset.part:
            assert asset.size == asset.path.stat().st_size


def check_record(source: Source, asset: Asset, record: Record) -> None:
    """Check one record: its count, its identity, its arrays."""
    assert record.trajectories or record.rejections
    counted = sum(len(t) for t in record.trajectories) + sum(r.n_frames or 0 for r in record.rejections)
    assert record.n_frames == counted
    for rejection in record.rejections:
        assert (rejection.source, rejection.asset) == (source.name, asset.name)
        assert rejection.rejected_by in READER_RULES
        assert rejection.detail
    for trajectory in record.trajectories:
        assert (trajectory.source, trajectory.asset) == (source.name, asset.name)
        check_trajectory(trajectory)


def check_trajectory(t: Trajectory) -> None:
    """Check the contract of `Trajectory` as a source fills it."""
    assert len(t) > 0
    assert t.numbers.shape == (t.n_atoms,)
    assert t.numbers.dtype.kind == "i"
    for name in FRAME_FIELDS:
        value = getattr(t, name)
        if name in ANNOTATIONS:
            assert value is None, f"{name} is not for the reader to set"
        elif value is not None:
            shape = tuple(t.n_atoms if n == "n_atoms" else n for n in FRAME_SHAPES.get(name, ()))
            assert value.shape == (len(t), *shape), name
            assert value.dtype == DTYPES.get(name, np.float64), name
    assert (np.diff(t.relaxation_step) > 0).all(), "a step has one number"
    assert (np.diff(t.relaxation_number) >= 0).all(), "calculations are in the order computed"
    assert (t.relaxation_number >= 0).all()
    assert (t.relaxation_step >= 0).all()
    assert t.task_id
    assert t.trajectory_id
    assert t.functional in FUNCTIONALS
    assert (
        t.functional is None or t.trajectory_id.endswith(f"-{t.functional}") or t.task_type != "Structure Optimization"
    )
    assert set(t.findings) <= READER_RULES
    assert all(0 <= i < len(t) and text for i, text in t.faults.items())
    complete = np.isnan(t.stress).all(axis=(1, 2)) | np.isfinite(t.stress).all(axis=(1, 2))
    assert complete.all(), "a stress is whole or missing"
    assert np.isnan(t.energy[~t.labelled]).all(), "an input has no labels"


def _check_ids(records: list[Record]) -> None:
    ids = [f"{t.trajectory_id}-{step}" for r in records for t in r.trajectories for step in t.relaxation_step]
    assert len(set(ids)) == len(ids)


def _check_facts(source: Source, records: list[Record]) -> None:
    ids = sorted({x.task_id for r in records for x in (*r.trajectories, *r.rejections) if x.task_id})
    digest = source.facts_digest(ids)
    assert digest == source.facts_digest(reversed(ids)), "facts do not depend on the order of records"
    assert digest == source.facts_digest(iter([*ids, *ids])), "nor on how often an id comes"


def assert_equal(a: Any, b: Any) -> None:
    """Compare records, arrays and NaN included."""
    if dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for field in dataclasses.fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    else:
        assert a == b
