"""What a source is: it lists raw assets and reads one of them, record by record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from trajmill.storage import AnyPath
from trajmill.trajectory import Trajectory

Report = Callable[[int, int], None]
"""Told from time to time how much is done, and of how much in all."""

RELAXATION = "Structure Optimization"
"""`Trajectory.task_type` of every relaxation, in all sources."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One raw file of a source, or one partition of a large one: the unit of work and of commit.

    Attributes:
        name: stable and unique in a store, such as `alexandria/data/pbe/geo_opt_paths/alex_go_aaa_000.json.bz2`;
            never depends on where the files lie or how many workers there are.
        path: the file.
        size: bytes, to start large assets first.
        part: which partition of the file this is, empty when it is the whole file.
        modified: ISO date the source gives the file, None when it gives none (never the file's own time).
    """

    name: str
    path: AnyPath
    size: int
    part: str = ""
    modified: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A frame, trajectory or record that was turned away, with the rule that owns it and the reason.

    Attributes:
        rejected_by: name of the rule.
        detail: the reason in words, with the offending value.
        n_frames: how many frames went; None when the record was unreadable and nobody can know.
        relaxation_step: the frame's number in the run when a single frame was rejected.
        source, asset, task_id, trajectory_id, immutable_id, functional, run_type, relaxation_number: identity as far
            as it is known.
    """

    source: str
    asset: str
    rejected_by: str
    detail: str
    n_frames: int | None
    task_id: str | None = None
    trajectory_id: str | None = None
    immutable_id: str | None = None
    functional: str | None = None
    run_type: str | None = None
    relaxation_number: int | None = None
    relaxation_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One raw record: an MP task, an Alexandria id, an OQMD entry.

    Attributes:
        n_frames: frames in the raw record, counted on the raw record and not on what was made of it; the balance at
            commit compares with it. 0 for an unreadable record.
        trajectories: what was read, before any rule. A calculation that is no relaxation is here too, so that a rule
            can turn it away and it is counted.
        rejections: what could not be read.
    """

    n_frames: int
    trajectories: tuple[Trajectory, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@runtime_checkable
class Source(Protocol):
    """A database trajmill reads.

    An implementation is a small frozen, picklable dataclass of paths and options: it travels to the workers. See
    `CONTRIBUTING.md` for how to add one, and `tests/sources/conformance.py` for the kit it must pass.
    """

    @property
    def name(self) -> str:
        """The value of the column `source`."""
        ...

    def prepare(self, workspace: Path, report: Report = lambda *_: None) -> None:
        """Build what `assets` and `read` look up (joined documents, partitions of a large file), once and restartably.

        Runs in the parent process before anything else. Called again on an unchanged source it does nothing.

        Args:
            workspace: folder for spilled data; owned by this source, kept between runs.
            report: told how far it is.
        """
        ...

    def assets(self) -> list[Asset]:
        """List what there is, sorted by name, without parsing it.

        Raises:
            SourceError: nothing of this source is at the given place.
        """
        ...

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the records of an asset. Bad input becomes a `readable` rejection, never an exception."""
        ...

    def raw_digest(self, asset: Asset) -> str:
        """Return a digest of the asset's raw content: the same bytes, the same digest."""
        ...

    def facts_digest(self, task_ids: Iterable[str]) -> str:
        """Digest the facts joined from elsewhere (licence, deprecation, types) for these records of an asset.

        Args:
            task_ids: `task_id` of every record of the asset, as in the raw data.

        Returns:
            A digest that changes when any of these facts does; empty for a source that joins nothing.
        """
        ...
