"""What a store is: where committed frames live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa


@dataclass(frozen=True)
class Balance:
    """What came in and what became of it; `check` in the pipeline refuses a commit where they differ.

    Attributes:
        records: records the reader saw.
        frames: frames the reader saw, counted on the raw records.
        records_kept: records of which at least one frame was kept.
        kept: frames kept, unlabelled inputs included.
        inputs: of these, unlabelled inputs.
        rejected: frames rejected, by rule.
        records_rejected: records of which no frame was kept, by the rule that turned away what came furthest of them.
        no_space_group: frames kept for which no space group was found.
    """

    records: int = 0
    frames: int = 0
    records_kept: int = 0
    kept: int = 0
    inputs: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    records_rejected: Counter[str] = field(default_factory=Counter)
    no_space_group: int = 0

    def __add__(self, other: Balance) -> Balance:
        return Balance(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class DataFile:
    """A finished file of one asset and role, not yet part of the table."""

    path: str
    size: int
    role: str
    rows: int
    stats: str


@dataclass(frozen=True)
class Commit:
    """All that makes an asset's rows: handed from the worker that wrote the files to the process that commits them.

    Attributes:
        asset: its name.
        fingerprint: digest of all that decides its rows.
        files: where they are.
        balance: what came in and what became of it.
        versions: of the packages that made them.
        raw: digest of the raw content they were made of.
        recipe: what of the recipe decided them.
    """

    asset: str
    fingerprint: str
    files: tuple[DataFile, ...]
    balance: Balance
    versions: dict[str, str]
    raw: str
    recipe: dict[str, Any]


class AssetWriter(Protocol):
    """Writes the rows of one asset; nothing is visible before the commit."""

    def write(self, role: str, batch: pa.RecordBatch) -> None:
        """Append rows of a role."""
        ...

    def close(self, fingerprint: str, versions: dict[str, str]) -> tuple[DataFile, ...]:
        """Finish the files and put them at their final place."""
        ...

    def abort(self) -> None:
        """Remove what was written."""
        ...


class Store(Protocol):
    """Where committed frames live. Travels to workers by its path."""

    path: Path

    def writer(self, asset: str) -> AssetWriter:
        """Start writing an asset's rows (in a worker)."""
        ...

    def commit(self, commit: Commit) -> None:
        """Replace all rows of the asset in one transaction (in one process at a time)."""
        ...

    def drop(self, asset: str) -> None:
        """Remove all rows of the asset in one transaction."""
        ...

    def committed(self, asset: str, fingerprint: str) -> bool:
        """Tell whether the asset's rows are those of this fingerprint."""
        ...

    def task_ids(self, asset: str) -> Iterator[str]:
        """Iterate the distinct `task_id` of an asset's committed rows, rejections included."""
        ...
