"""The default store: a Delta Lake table in a folder, embedded, no server.

One table holds frames, inputs and rejections, partitioned by role and asset. An asset is replaced in one transaction
that also records its fingerprint (Delta's application transaction, which survives checkpoints), so that a build that
is repeated or resumed does nothing twice. Files are written aside, synced and renamed before the transaction names
them: a build killed at any moment leaves at most files that no reader sees.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from trajmill.errors import StoreError
from trajmill.locking import Lock
from trajmill.recipe import digest
from trajmill.schema import DATA_MODEL_VERSION, FILE_SCHEMA, STORE_SCHEMA, parquet_options
from trajmill.stores.base import Balance, Commit, DataFile

if TYPE_CHECKING:
    from deltalake.transaction import RemoveAction

WORK = "_work"
"""Folder in the store for what sources prepare and for the lock; Delta and its readers pass over it."""

PARTITION_BY = ["role", "asset"]
CONFIGURATION = {
    # history stays readable, fingerprints and balances with it: a table has a few thousand small commits at most
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
DESCRIPTION = f"trajmill data model {DATA_MODEL_VERSION}"
"""Says in the table itself what its columns mean; Delta takes no properties of our own."""

STATISTICS = ("functional", "trajectory_id")
"""Columns whose smallest and largest value a file states, so that readers can skip it."""


class DeltaStore:
    """A Delta Lake table of frames.

    Args:
        path: folder of the table.
        create: make an empty table where there is none.
        version: table version to read; None is the newest.

    Raises:
        StoreError: no table there, or one that this version of trajmill cannot read.
    """

    def __init__(self, path: str | Path, *, create: bool = False, version: int | None = None) -> None:
        self.path = Path(path)
        self._recipes: dict[str, dict[str, Any]] | None = None
        present = self._present()
        try:
            self._table = DeltaTable(self.path, version=version)
        except TableNotFoundError as error:
            if not create:
                raise StoreError(f"{self.path}: no trajmill store here; `trajmill build` makes one") from error
            if present - {WORK}:
                raise StoreError(
                    f"{self.path}: not empty and no trajmill store; choose an empty or new folder"
                ) from error
            self._table = self._create()
        except (DeltaError, OSError) as error:
            raise StoreError(f"{self.path}: cannot be opened as a store ({_one_line(error)})") from error
        if (found := self._table.metadata().description) != DESCRIPTION:
            raise StoreError(f"{self.path}: says {found!r}, this version of trajmill reads {DESCRIPTION!r}")

    def _present(self) -> set[str]:
        """Return what is in the folder; Delta takes a folder that may not be read for one without a table."""
        try:
            return {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _create(self) -> DeltaTable:
        try:
            return DeltaTable.create(
                self.path,
                STORE_SCHEMA,
                partition_by=PARTITION_BY,
                name="trajmill",
                description=DESCRIPTION,
                configuration=CONFIGURATION,
            )
        except (DeltaError, OSError) as error:
            raise StoreError(f"{self.path}: cannot be created ({_one_line(error)})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out. The lock is the process's: however it ends, it is gone.

        Without file locks (some network disks) builds are not kept apart; commits stay atomic, only work is lost.

        Raises:
            StoreError: another build holds it.
        """
        with _plain_errors(self.path):
            (self.path / WORK).mkdir(exist_ok=True)
            lock = Lock(self.path / WORK / "lock")
        with lock:
            if lock.holder is not None:
                raise StoreError(
                    f"{self.path}: another build (process {lock.holder}) is writing here; wait for it or stop it"
                )
            with _plain_errors(self.path):
                self._table.update_incremental()
            yield

    @property
    def version(self) -> int:
        """The version that is read."""
        return self._table.version()

    def writer(self, asset: str) -> DeltaWriter:
        """Start writing an asset's rows."""
        return DeltaWriter(self.path, asset)

    def committed(self, asset: str, fingerprint: str) -> bool:
        """Tell whether the asset's rows are those of this fingerprint."""
        return self._table.transaction_version(asset) == _as_version(fingerprint)

    def commit(self, commit: Commit) -> None:
        """Replace all rows of the asset in one transaction."""
        adds: list[AddAction | RemoveAction] = [  # list is invariant: deltalake takes either kind
            AddAction(f.path, f.size, {"role": f.role, "asset": commit.asset}, 0, data_change=True, stats=f.stats)
            for f in commit.files
        ]
        facts = {
            "asset": commit.asset,
            "fingerprint": commit.fingerprint,
            "raw": commit.raw,
            "recipe": (used := digest(commit.recipe)),
            "versions": commit.versions,
            "balance": vars(commit.balance),
        }
        if used not in self.recipes():  # in full once, so that thousands of commits stay small
            facts["recipe_content"] = self.recipes()[used] = commit.recipe
        self._replace(commit.asset, adds, facts, _as_version(commit.fingerprint))

    def drop(self, asset: str) -> None:
        """Remove all rows of the asset in one transaction; earlier versions keep them."""
        self._replace(asset, [], {"asset": asset, "dropped": True}, 0)

    def _replace(
        self, asset: str, adds: list[AddAction | RemoveAction], facts: dict[str, Any], fingerprint: int
    ) -> None:
        with _plain_errors(self.path):
            self._table.update_incremental()
            self._table.create_write_transaction(
                adds,
                mode="overwrite",
                schema=STORE_SCHEMA,
                partition_by=PARTITION_BY,
                partition_filters=[("asset", "=", asset)],
                commit_properties=CommitProperties(
                    custom_metadata={"trajmill": json.dumps(facts, sort_keys=True)},
                    app_transactions=[Transaction(asset, fingerprint)],
                ),
            )
            self._table.update_incremental()

    def note_upstream(self, upstream: Mapping[str, Any]) -> None:
        """Record which upstream versions the store is complete for, by source; nothing when it says so already."""
        if dict(upstream) == self.upstream():
            return
        with _plain_errors(self.path):
            self._table.update_incremental()
            self._table.create_write_transaction(
                [],
                mode="append",
                schema=STORE_SCHEMA,
                partition_by=PARTITION_BY,
                commit_properties=CommitProperties(
                    custom_metadata={"trajmill": json.dumps({"upstream": upstream}, sort_keys=True)}
                ),
            )
            self._table.update_incremental()

    def upstream(self) -> dict[str, Any]:
        """Return the upstream versions that the store was last complete for, by source; empty when none is known."""
        return next((facts["upstream"] for facts in self._history() if "upstream" in facts), {})

    def files(self, role: str, asset: str | None = None) -> list[tuple[str, Path, int]]:
        """List the files of a role as (asset, path, rows), sorted by asset."""
        actions = pa.table(self._table.get_add_actions(flatten=True)).to_pylist()
        found = [
            (a["partition.asset"], self.path / unquote(a["path"]), a["num_records"])
            for a in actions
            if a["partition.role"] == role and asset in (None, a["partition.asset"])
        ]
        return sorted(found)

    def assets(self) -> list[str]:
        """List the assets that have rows, sorted."""
        actions = pa.table(self._table.get_add_actions(flatten=True))
        return sorted(set(actions["partition.asset"].to_pylist()))

    def balances(self) -> dict[str, Balance]:
        """Return what each asset's newest commit counted, by asset."""
        return {facts["asset"]: Balance(**_counters(facts["balance"])) for facts in self._facts()}

    def versions(self) -> dict[str, list[str]]:
        """Return the versions of the packages that wrote the rows, by package."""
        found: dict[str, set[str]] = {}
        for facts in self._facts():
            for package, version in facts["versions"].items():
                found.setdefault(package, set()).add(version)
        return {package: sorted(v) for package, v in sorted(found.items())}

    def recipes(self) -> dict[str, dict[str, Any]]:
        """Return what of recipes decided rows of this store, by digest."""
        if self._recipes is None:
            self._recipes = {f["recipe"]: f["recipe_content"] for f in self._history() if "recipe_content" in f}
        return self._recipes

    def built_with(self) -> dict[str, list[dict[str, Any]]]:
        """Return what of recipes decided the rows there are, by source; more than one where a build is not complete."""
        used: dict[str, dict[str, dict[str, Any]]] = {}
        for facts in self._facts():
            source = facts["asset"].partition("/")[0]
            if "recipe" in facts:  # not in stores of earlier versions
                used.setdefault(source, {})[facts["recipe"]] = self.recipes()[facts["recipe"]]
        return {source: [recipes[key] for key in sorted(recipes)] for source, recipes in sorted(used.items())}

    def raw_digests(self) -> dict[str, str]:
        """Return the digest of the raw content that each asset's rows were made of."""
        return {facts["asset"]: facts["raw"] for facts in self._facts() if "raw" in facts}

    def _facts(self) -> list[dict[str, Any]]:
        """Return what `commit` recorded for each asset that has not been dropped."""
        newest: dict[str, dict[str, Any]] = {}
        for facts in self._history():
            if "asset" in facts:
                newest.setdefault(facts["asset"], facts)
        return [newest[asset] for asset in sorted(newest) if "dropped" not in newest[asset]]

    def _history(self) -> Iterator[dict[str, Any]]:
        """Yield what commits recorded, the newest first, as of the version that is read."""
        entries = self._table.history()  # newest first back to 0, and newer ones than the version that is read
        for entry in entries[len(entries) - 1 - self.version :]:
            if text := entry.get("trajmill"):
                yield json.loads(text)

    def task_ids(self, asset: str) -> Iterator[str]:
        """Iterate the distinct `task_id` of an asset's committed rows, rejections included."""
        seen: set[str] = set()
        for role in ("frame", "input", "rejection"):
            for _, path, _ in self.files(role, asset):
                for batch in pq.ParquetFile(path).iter_batches(columns=["task_id"]):
                    new = set(batch["task_id"].unique().to_pylist()) - seen - {None}
                    seen |= new
                    yield from new


class DeltaWriter:
    """Writes the rows of one asset: a Parquet file per role."""

    def __init__(self, root: Path, asset: str) -> None:
        self._root = root
        self._folder = f"asset={quote(asset, safe='')}"  # Hive style: Polars reads partition values from there
        self._open: dict[str, tuple[Path, pq.ParquetWriter]] = {}

    def write(self, role: str, batch: pa.RecordBatch) -> None:
        """Append rows of a role."""
        with _plain_errors(self._root):
            if role not in self._open:
                self._open[role] = self._start(role)
            self._open[role][1].write_batch(batch)

    def _start(self, role: str) -> tuple[Path, pq.ParquetWriter]:
        folder = self._root / f"role={role}" / self._folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):  # of a worker that was killed
            leftover.unlink(missing_ok=True)
        path = folder / f".{os.getpid()}.tmp"
        try:
            return path, pq.ParquetWriter(path, FILE_SCHEMA, **parquet_options(FILE_SCHEMA))
        except OSError:
            path.unlink(missing_ok=True)  # an empty file, all that a full disk took
            raise

    def close(self, fingerprint: str, versions: dict[str, str]) -> tuple[DataFile, ...]:
        """Finish the files and put them at their final place: all of them, or none when the disk is full.

        The name is decided by the content: what the asset was made of and the packages that made it. Writing the same
        content again therefore replaces a file by its equal, never by another.
        """
        content = hashlib.sha256(json.dumps([fingerprint, versions], sort_keys=True).encode()).hexdigest()[:16]
        files = []
        with _plain_errors(self._root):
            for temporary, writer in self._open.values():
                writer.close()
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            for role, (temporary, _) in sorted(self._open.items()):
                final = temporary.replace(temporary.with_name(f"{content}.parquet"))
                relative = final.relative_to(self._root).as_posix()
                metadata = pq.read_metadata(final)
                files.append(DataFile(relative, final.stat().st_size, role, metadata.num_rows, _stats(metadata)))
        self._open.clear()
        return tuple(files)

    def abort(self) -> None:
        """Remove what was written."""
        for temporary, writer in self._open.values():
            with suppress(OSError):  # a full disk: what could not be finished is removed all the same
                writer.close()
            temporary.unlink(missing_ok=True)
        self._open.clear()


@contextmanager
def _plain_errors(root: Path) -> Iterator[None]:
    """Turn a full disk and its kin into a StoreError of one line that says what to do."""
    try:
        yield
    except (DeltaError, OSError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full; make room and run the same command again" if full else _one_line(error)
        raise StoreError(f"{root}: {what} (what was committed before is unharmed)") from error


def _one_line(error: Exception) -> str:
    """Return an error's text without the colours and line breaks Delta puts there."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())


def _stats(metadata: pq.FileMetaData) -> str:
    """Return Delta's statistics of a file as JSON text."""
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for column in STATISTICS:
        leaf = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
        for group in range(metadata.num_row_groups):
            s = metadata.row_group(group).column(leaf).statistics
            nulls[column] = nulls.get(column, 0) + s.null_count
            if s.has_min_max:
                low[column] = min(low.get(column, s.min), s.min)
                high[column] = max(high.get(column, s.max), s.max)
    return json.dumps({"numRecords": metadata.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls})


def _as_version(fingerprint: str) -> int:
    """Return the fingerprint as the 60-bit number a Delta transaction can hold."""
    return int(fingerprint[:15], 16)


def _counters(balance: dict[str, Any]) -> dict[str, Any]:
    return {k: Counter(v) if isinstance(v, dict) else v for k, v in balance.items()}
