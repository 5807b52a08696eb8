"""The flow of a build: source -> read -> curate -> annotate -> encode -> store, one asset at a time."""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import islice

import numpy as np
import pyarrow as pa

from trajmill.annotation import annotate
from trajmill.codec import encode, encode_rejections
from trajmill.curation import RULES, curate
from trajmill.errors import BalanceError
from trajmill.recipe import Recipe
from trajmill.schema import DATA_MODEL_VERSION
from trajmill.sources.base import Asset, Record, Rejection, Source
from trajmill.stores.base import AssetWriter, Balance, Commit, Store
from trajmill.trajectory import Frames, Trajectory

BATCH_SIZE = 100_000
"""Atoms (of all frames) that are encoded at once: some 20 MB of arrays. See `_size`."""

BATCH_RECORDS = 4 * BATCH_SIZE
"""Atoms of records that are curated and annotated at once: the more, the more frames can be looked at together."""

BATCH_REJECTIONS = 10_000
"""Rejections that are encoded at once."""


@dataclass(frozen=True)
class Job:
    """One asset to build; all a worker needs.

    Attributes:
        source: where it comes from.
        asset: which.
        recipe: how it is built.
        store: where its rows go, as `Store.for_worker` gives it.
    """

    source: Source
    asset: Asset
    recipe: Recipe
    store: Store


@dataclass(frozen=True)
class Unchanged:
    """The asset's rows are what this recipe makes of this raw file already."""

    asset: str


RULE_NAMES = [rule.name for rule in RULES]

Report = Callable[[int, int], None]
"""Told from time to time how many frames of the asset were read and rejected so far."""


def build_asset(job: Job, report: Report = lambda *_: None) -> Commit | Unchanged:
    """Build the rows of one asset and leave them beside the table, ready to be committed.

    Raises:
        BalanceError: kept + rejected is not what the reader counted, or ids would repeat.
        StoreError: the rows cannot be written.
    """
    store, name, source = job.store, job.asset.name, job.source
    raw = source.raw_digest(job.asset)
    parts = [raw, job.recipe.content_digest(source.name), str(DATA_MODEL_VERSION), name]
    # facts are looked up for the records the asset had; the raw digest vouches that it has the same ones now
    if store.committed(name, fingerprint(*parts, source.facts_digest(store.task_ids(name)))):
        return Unchanged(name)
    writer = store.writer(name)
    mill = _Mill(job, writer)
    collecting = gc.isenabled()
    try:
        gc.disable()  # records are trees of many small objects without cycles
        for record in source.read(job.asset):
            mill.add(record)
            report(mill.frames, mill.rejected)
        mill.finish()
        report(mill.frames, mill.rejected)
        facts = source.facts_digest(mill.task_ids)
        digest = fingerprint(*parts, facts)
        files = writer.close(digest, package_versions())
    except BaseException:
        writer.abort()
        raise
    finally:
        if collecting:
            gc.enable()
    return Commit(name, digest, files, mill.balance, package_versions(), raw, job.recipe.content(source.name))


@dataclass
class _Mill:
    """Takes an asset's records, writes their rows, keeps count."""

    job: Job
    writer: AssetWriter
    balance: Balance = field(default_factory=Balance)
    task_ids: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    frames: int = 0
    rejected: int = 0
    records: list[Record] = field(default_factory=list)
    records_size: int = 0
    pending: list[Trajectory] = field(default_factory=list)
    pending_size: int = 0
    rejections: list[Rejection] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Take a record; records are worked on many at a time, which is cheaper."""
        self.records.append(record)
        self.frames += record.n_frames
        self.records_size += 30 * (1 + len(record.rejections))
        for trajectory in record.trajectories:
            self.records_size += _size(trajectory)
        if self.records_size >= BATCH_RECORDS:
            self._work()

    def _work(self) -> None:
        """Curate and annotate the records at hand, check their balance, queue their rows."""
        records, self.records = self.records, []
        self.records_size = 0
        if not records:
            return
        recipe = self.job.recipe
        curated = iter(curate([t for record in records for t in record.trajectories], recipe.rules))
        rejections = [list(record.rejections) for record in records]
        kept: list[list[Trajectory]] = [[] for _ in records]
        for record, lost, left in zip(records, rejections, kept, strict=True):
            for rest, turned_away in islice(curated, len(record.trajectories)):
                lost += turned_away
                if rest is not None and (repeated := self._repeated(rest)):
                    lost.append(repeated)
                elif rest is not None:
                    left.append(rest)
        annotated = iter(annotate([t for left in kept for t in left], recipe.annotation))
        kept = [list(islice(annotated, len(left))) for left in kept]
        self.balance += _count(records, kept, rejections, self.job.asset)
        self.rejected = self.balance.rejected.total()
        for left, lost in zip(kept, rejections, strict=True):
            self.task_ids.update(t.task_id for t in left)
            self.task_ids.update(r.task_id for r in lost if r.task_id is not None)
            for trajectory in left:
                self._queue(trajectory)
            self.rejections += lost
            if len(self.rejections) >= BATCH_REJECTIONS:
                self._flush_rejections()

    def _repeated(self, t: Trajectory) -> Rejection | None:
        """Turn away an identifier that came before in the same asset, so that ids are unique by construction."""
        if t.trajectory_id not in self.seen:
            self.seen.add(t.trajectory_id)
            return None
        return Rejection(
            source=t.source, asset=t.asset, rejected_by="duplicate_trajectory", n_frames=len(t), task_id=t.task_id,
            detail="came before in the same file", trajectory_id=t.trajectory_id, immutable_id=t.immutable_id,
            functional=t.functional, run_type=t.run_type,
        )  # fmt: skip

    def _queue(self, trajectory: Trajectory) -> None:
        self.pending.append(trajectory)
        self.pending_size += _size(trajectory)
        if self.pending_size >= BATCH_SIZE:
            self._flush()

    def _flush(self) -> None:
        rows, labelled = encode(self.pending), Frames(self.pending).labelled
        self.pending.clear()
        self.pending_size = 0
        for role, its in (("frame", labelled), ("input", ~labelled)):
            if its.any():
                self.writer.write(role, rows if its.all() else rows.filter(pa.array(its)))

    def _flush_rejections(self) -> None:
        self.writer.write("rejection", encode_rejections(self.rejections))
        self.rejections.clear()

    def finish(self) -> None:
        """Work on what is still there and write what is still queued."""
        self._work()
        if self.pending:
            self._flush()
        if self.rejections:
            self._flush_rejections()


def _size(trajectory: Trajectory) -> int:
    """Weigh a trajectory in atoms: what a frame and a trajectory hold besides arrays counts for 10 and 30 of them."""
    return len(trajectory) * (trajectory.n_atoms + 10) + 30


def _count(
    records: Sequence[Record], kept: Sequence[list[Trajectory]], rejections: Sequence[list[Rejection]], asset: Asset
) -> Balance:
    """Count records and check that nothing of them went missing."""
    all_kept = [t for left in kept for t in left]
    rejected: Counter[str] = Counter()
    records_rejected: Counter[str] = Counter()
    for record, left, lost in zip(records, kept, rejections, strict=True):
        n_kept, n_lost = 0, 0
        for t in left:
            n_kept += len(t)
        for rejection in lost:
            n_lost += rejection.n_frames or 0
            rejected[rejection.rejected_by] += rejection.n_frames or 0
        if record.n_frames != n_kept + n_lost or not (left or lost):
            who = [*(t.task_id for t in record.trajectories), *(r.task_id for r in lost), None][0]
            raise BalanceError(
                f"{asset.name}: record {who} has {record.n_frames} frames, "
                f"but {n_kept} were kept and {n_lost} rejected; please report this"
            )
        if not left:
            records_rejected[max(lost, key=_got_to).rejected_by] += 1
    inputs = no_space_group = 0
    if all_kept:
        frames = Frames(all_kept)
        step = frames.joined("relaxation_step")
        if (falls := frames.follows & (step <= np.roll(step, 1))).any():
            who = all_kept[frames.owner[falls][0]].task_id
            raise BalanceError(f"{asset.name}: record {who} has step numbers that do not grow; please report this")
        inputs = int((~frames.labelled).sum())
        no_space_group = sum(int((t.space_group == 0).sum()) for t in all_kept if t.space_group is not None)
    return Balance(
        records=len(records),
        frames=sum(record.n_frames for record in records),
        records_kept=sum(map(bool, kept)),
        kept=sum(map(len, all_kept)),
        inputs=inputs,
        rejected=rejected,
        records_rejected=records_rejected,
        no_space_group=no_space_group,
    )


def _got_to(rejection: Rejection) -> int:
    """Return how far along the rules something came before it was rejected: a record is lost to its best part."""
    return RULE_NAMES.index(rejection.rejected_by) if rejection.rejected_by in RULE_NAMES else -1


def fingerprint(*parts: str) -> str:
    """Digest all that decides an asset's rows."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what rows contain."""
    return {name: version(name) for name in ("trajmill", "moyopy", "numpy", "pyarrow", "pymatgen")}
