"""What a store is: where committed frames live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from trajmill.errors import StoreError
from trajmill.recipe import digest
from trajmill.schema import STORE_SCHEMA

ROLES = ("frame", "input", "rejection")
"""What rows are: kept frames, unlabelled first geometries, what was turned away."""


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
    """What a writer made of one asset and role, not yet part of the store.

    Attributes:
        path: where the store finds it: a file, or a table.
        size: bytes of a file; 0 for a table.
        role: of its rows.
        rows: how many.
        stats: Delta's statistics of a file as JSON text; empty for a table.
    """

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


class Store(ABC):
    """Where committed frames live.

    All methods raise StoreError, in one line that says what to do, when the store cannot be read or written.
    """

    address: str

    @property
    @abstractmethod
    def version(self) -> int:
        """The version that is read: 0 when the store is made, one more with each commit."""

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Hold while a build or a copy writes: what must not run at the same time is kept apart."""

    @abstractmethod
    def for_worker(self, asset: str) -> Store:
        """Return the store as a worker needs it that builds one asset: it can be pickled, and knows of no other asset.

        What the worker then asks (`committed`, `task_ids`) may be answered as of now.
        """

    @abstractmethod
    def writer(self, asset: str) -> AssetWriter:
        """Start writing an asset's rows (in a worker)."""

    @abstractmethod
    def commit(self, commit: Commit) -> None:
        """Replace all rows of the asset in one transaction (from any process)."""

    @abstractmethod
    def drop(self, asset: str) -> None:
        """Remove all rows of the asset in one transaction."""

    @abstractmethod
    def committed(self, asset: str, fingerprint: str) -> bool:
        """Tell whether the asset's rows are those of this fingerprint."""

    @abstractmethod
    def count(self, role: str) -> dict[str, int]:
        """Count the rows of a role by asset, sorted by asset; assets without any are left out."""

    @abstractmethod
    def read(
        self,
        role: str,
        *,
        columns: Sequence[str] | None = None,
        assets: Iterable[str] | None = None,
        where: Mapping[str, str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream rows in bounded memory: asset by asset in the order of their names, in the order they were written.

        Batches are cut where they were when they were written, so that what is computed batch by batch, and a copy,
        depend on the content alone.

        Args:
            role: frame, input or rejection.
            columns: names of `STORE_SCHEMA` in the order wanted; None takes those of `FILE_SCHEMA`.
            assets: only these; None takes all.
            where: only rows with these values, by column (`functional`, `trajectory_id`, ...).
        """

    @abstractmethod
    def commits(self) -> dict[str, Commit]:
        """Return what each asset's newest commit recorded, by asset; without its files. Not of dropped assets."""

    @abstractmethod
    def upstream(self) -> dict[str, Any]:
        """Return the upstream versions that the store was last complete for, by source; empty when none is known."""

    @abstractmethod
    def note_upstream(self, changes: Mapping[str, Any]) -> None:
        """Record which upstream versions the store is complete for; nothing when it says so already.

        Args:
            changes: by source; None forgets what was recorded. Other sources keep what they have.
        """

    def assets(self) -> list[str]:
        """List the assets that have rows, sorted."""
        return sorted({asset for role in ROLES for asset in self.count(role)})

    def task_ids(self, asset: str) -> Iterator[str]:
        """Iterate the distinct `task_id` of an asset's committed rows, rejections included."""
        seen: set[str] = set()
        for role in ROLES:
            for batch in self.read(role, columns=["task_id"], assets=[asset]):
                new = set(batch["task_id"].unique().to_pylist()) - seen - {None}
                seen |= new
                yield from new

    def balances(self) -> dict[str, Balance]:
        """Return what each asset's newest commit counted, by asset."""
        return {asset: commit.balance for asset, commit in self.commits().items()}

    def raw_digests(self) -> dict[str, str]:
        """Return the digest of the raw content that each asset's rows were made of."""
        return {asset: commit.raw for asset, commit in self.commits().items() if commit.raw}

    def versions(self) -> dict[str, list[str]]:
        """Return the versions of the packages that wrote the rows, by package."""
        found: dict[str, set[str]] = {}
        for commit in self.commits().values():
            for package, version in commit.versions.items():
                found.setdefault(package, set()).add(version)
        return {package: sorted(v) for package, v in sorted(found.items())}

    def built_with(self) -> dict[str, list[dict[str, Any]]]:
        """Return what of recipes decided the rows there are, by source; more than one where a build is not complete."""
        used: dict[str, dict[str, dict[str, Any]]] = {}
        for asset, commit in self.commits().items():
            if commit.recipe:  # not in stores of earlier versions
                used.setdefault(asset.partition("/")[0], {})[digest(commit.recipe)] = commit.recipe
        return {source: [recipes[key] for key in sorted(recipes)] for source, recipes in sorted(used.items())}


def as_balance(counts: Mapping[str, Any]) -> Balance:
    """Return a balance from what `vars` of it was, after a journey as JSON."""
    fields: dict[str, Any] = {n: Counter(value) if isinstance(value, dict) else value for n, value in counts.items()}
    return Balance(**fields)


@contextmanager
def stream(
    store: Store, role: str, columns: Sequence[str], *, assets: Iterable[str] | None = None
) -> Iterator[pa.RecordBatchReader]:
    """Give rows of a role as a stream that DuckDB can query, once, in bounded memory; arguments as `Store.read`.

    Raises:
        StoreError: the store's own, of which DuckDB would make one of its.
    """
    faults: list[StoreError] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from store.read(role, columns=columns, assets=assets)
        except StoreError as error:
            faults.append(error)
            raise

    try:
        yield pa.RecordBatchReader.from_batches(pa.schema([STORE_SCHEMA.field(name) for name in columns]), batches())
    except Exception:
        if faults:
            raise faults[0] from None
        raise
