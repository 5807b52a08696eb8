"""The default store: a Delta Lake table in a folder or in object storage, embedded, no server.

One table holds frames, inputs and rejections, partitioned by role and asset. An asset is replaced in one transaction
that also records its fingerprint (Delta's application transaction, which survives checkpoints), so that a build that
is repeated or resumed does nothing twice. Files are written aside, synced and renamed (or uploaded) before the
transaction names them: a build killed at any moment leaves at most files that no reader sees.

Any number of builds may write at once. A commit is a file of the log that only one of them can make; who comes second
looks at what the first did, and commits on top of that, or not at all when it was the same.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError

from trajmill.errors import StoreError
from trajmill.locking import Scratch
from trajmill.recipe import digest
from trajmill.schema import DATA_MODEL_VERSION, FILE_SCHEMA, STORE_SCHEMA, parquet_options
from trajmill.storage import AnyPath, ObjectPath, as_path, delta_options, parquet
from trajmill.stores import WORK, work_folder
from trajmill.stores.base import Commit, DataFile, Store, as_balance
from trajmill.stores.delta_log import LOG, DeltaLog
from trajmill.uris import one_line

PARTITION_BY = ["role", "asset"]
CONFIGURATION = {
    # history stays readable, fingerprints and balances with it: a table has a few thousand small commits at most
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
DESCRIPTION = f"trajmill data model {DATA_MODEL_VERSION}"
"""Says in the table itself what its columns mean; Delta takes no properties of our own."""

BATCH = 1 << 20
"""Rows that are read at once at most: more than a row group has, so that batches come as they were written."""

ATTEMPTS = 100
"""How often a commit is tried when others commit at the same time."""

LONGEST_PAUSE = 2.0
"""Seconds between two of them at most."""

CHECKPOINT_EVERY = 1000
"""Versions between two checkpoints: who opens the store reads at most so many small files besides the last one."""

STATISTICS = ("functional", "trajectory_id")
"""Columns whose smallest and largest value a file states, so that readers can skip it."""


class DeltaStore(Store):
    """A Delta Lake table of frames.

    Args:
        address: folder of the table, or `s3://bucket/prefix`; see `trajmill.storage` for credentials.
        create: make an empty table where there is none.
        version: table version to read; None is the newest.

    Raises:
        StoreError: no table there, or one that this version of trajmill cannot read.
    """

    def __init__(self, address: str | Path, *, create: bool = False, version: int | None = None) -> None:
        self.path = as_path(address)
        self.address = str(self.path)
        self._recorded: set[str] = set()
        self._options = delta_options() if isinstance(self.path, ObjectPath) else None
        present = self._present()
        self._log = self._open(version)
        if self._log.version < 0:
            if not create:
                raise StoreError(f"{self.path}: no trajmill store here; `trajmill build` makes one")
            if present - {WORK, LOG}:  # a log without a table is being made by another build
                raise StoreError(f"{self.path}: not empty and no trajmill store; choose an empty or new folder")
            self._create()
            self._log = self._open()
        if (found := self._log.description) != DESCRIPTION:
            raise StoreError(f"{self.path}: says {found!r}, this version of trajmill reads {DESCRIPTION!r}")

    def _open(self, version: int | None = None) -> DeltaLog:
        try:
            return DeltaLog(self.path, version)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be opened as a store ({one_line(error)})") from error

    def for_worker(self, asset: str) -> DeltaStore:
        """Return the store as a worker needs it; see `Store.for_worker`."""
        part = copy.copy(self)
        part._log = self._log.only(asset)  # noqa: SLF001 (of its own kind)
        return part

    def _present(self) -> set[str]:
        """Return what is in the folder; Delta takes a folder that may not be read for one without a table."""
        try:
            entries = self.path.glob("*") if isinstance(self.path, ObjectPath) else self.path.iterdir()
            return {entry.name for entry in entries}
        except FileNotFoundError as error:
            if isinstance(self.path, ObjectPath):  # a folder of none is empty
                raise StoreError(f"{self.path}: there is no such bucket; make it, or check the name") from error
            return set()
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _create(self) -> None:
        if isinstance(self.path, ObjectPath):
            _check_conditional_writes(self.path)
        try:
            DeltaTable.create(
                self.address,
                STORE_SCHEMA,
                partition_by=PARTITION_BY,
                name="trajmill",
                description=DESCRIPTION,
                configuration=CONFIGURATION,
                storage_options=self._options,
                # else two that create at once make two versions
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except (DeltaError, OSError) as error:
            if self._open().version < 0:  # else another build has just made it
                raise StoreError(f"{self.path}: cannot be created ({one_line(error)})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Read the newest version; commits keep themselves apart, so nobody is kept out."""
        with _plain_errors(self.path):
            self._log.update()
        yield

    @property
    def version(self) -> int:
        """The version that is read."""
        return self._log.version

    def writer(self, asset: str) -> DeltaWriter:
        """Start writing an asset's rows."""
        return DeltaWriter(self.path, asset)

    def committed(self, asset: str, fingerprint: str) -> bool:
        """Tell whether the asset's rows are those of this fingerprint."""
        return self._log.transactions.get(asset) == _as_version(fingerprint)

    def commit(self, commit: Commit) -> None:
        """Replace all rows of the asset in one transaction."""
        facts = {
            "asset": commit.asset,
            "fingerprint": commit.fingerprint,
            "raw": commit.raw,
            "recipe": (used := digest(commit.recipe)),
            "versions": commit.versions,
            "balance": vars(commit.balance),
        }
        if used not in self._recorded:  # in full once, so that thousands of commits stay small
            facts["recipe_content"] = commit.recipe
        self._replace(commit.asset, commit.files, facts, _as_version(commit.fingerprint))
        self._recorded.add(used)

    def drop(self, asset: str) -> None:
        """Remove all rows of the asset in one transaction; earlier versions keep them."""
        self._replace(asset, (), {"asset": asset, "dropped": True}, 0)

    def _replace(self, asset: str, files: Sequence[DataFile], facts: dict[str, Any], fingerprint: int) -> None:
        """Replace an asset's rows, unless its rows are those of this fingerprint: another build was first."""
        self._commit(
            lambda: facts if self._log.transactions.get(asset) != fingerprint else None, asset, files, fingerprint
        )

    def note_upstream(self, changes: Mapping[str, Any]) -> None:
        """Record which upstream versions the store is complete for; see `Store.note_upstream`."""

        def facts() -> dict[str, Any] | None:
            before = self.upstream()
            after = {source: known for source, known in {**before, **changes}.items() if known is not None}
            return {"upstream": after} if after != before else None

        self._commit(facts)

    def _commit(self, facts: Callable[[], dict[str, Any] | None], *change: Any) -> None:
        """Add a version to the log, right after the newest; look again at what is newest when another build was first.

        Args:
            facts: asked for what to record as of the version that is read now; None when there is nothing to do.
            change: what else `DeltaLog.write` is told.
        """
        with _plain_errors(self.path):
            for attempt in range(1, ATTEMPTS + 1):
                self._log.update()
                if (found := facts()) is None:
                    return
                if self._log.write(found, *change):
                    if self._log.version % CHECKPOINT_EVERY == 0:
                        self._checkpoint()
                    return
                time.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.02 * 2**attempt)))  # noqa: S311 (no secret)
        raise StoreError(
            f"{self.path}: others commit all the time, {ATTEMPTS} attempts failed; run the same command again "
            "(what was committed before is unharmed)"
        )

    def _checkpoint(self) -> None:
        """Sum up the log, so that who opens the table next need not read all of it."""
        with suppress(DeltaError, OSError):  # it only saves time; the next one comes
            DeltaTable(self.address, version=self.version, storage_options=self._options).create_checkpoint()

    def upstream(self) -> dict[str, Any]:
        """Return the upstream versions that the store was last complete for, by source; empty when none is known."""
        return next((facts["upstream"] for facts in self._history() if "upstream" in facts), {})

    def files(self, role: str, asset: str | None = None) -> list[tuple[str, AnyPath, int]]:
        """List the files of a role as (asset, path, rows), sorted by asset."""
        return sorted(
            (name, self.path / path, file.rows)
            for name, files in (self._log.files.items() if asset is None else [(asset, self._log.files.get(asset, {}))])
            for path, file in files.items()
            if file.role == role
        )

    def count(self, role: str) -> dict[str, int]:
        """Count the rows of a role by asset, sorted by asset; assets without any are left out."""
        return {asset: rows for asset, _, rows in self.files(role) if rows}

    def read(
        self,
        role: str,
        *,
        columns: Sequence[str] | None = None,
        assets: Iterable[str] | None = None,
        where: Mapping[str, str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream rows, a row group at a time; see `Store.read`."""
        schema = FILE_SCHEMA if columns is None else pa.schema([STORE_SCHEMA.field(name) for name in columns])
        stored = [name for name in schema.names if name in FILE_SCHEMA.names]
        wanted = None if assets is None else set(assets)
        condition = None
        for name, value in (where or {}).items():
            term = pc.field(name) == value
            condition = term if condition is None else condition & term
        for asset, path, _ in self.files(role):
            if wanted is not None and asset not in wanted:
                continue
            partitions = {"role": role, "asset": asset}
            with _plain_errors(self.path):
                scanner = parquet([path], FILE_SCHEMA).scanner(
                    columns=stored, filter=condition, batch_size=BATCH, batch_readahead=1, use_threads=False
                )
                for batch in scanner.to_batches():
                    if batch.num_rows:
                        there = {name: pa.repeat(value, len(batch)) for name, value in partitions.items()}
                        there |= dict(zip(stored, batch.columns, strict=True))
                        yield pa.RecordBatch.from_arrays([there[name] for name in schema.names], schema=schema)

    def commits(self) -> dict[str, Commit]:
        """Return what each asset's newest commit recorded, by asset; without its files. Not of dropped assets."""
        newest: dict[str, dict[str, Any]] = {}
        recipes: dict[str, dict[str, Any]] = {}
        for facts in self._history():
            if "asset" in facts:
                newest.setdefault(facts["asset"], facts)
            if "recipe_content" in facts:
                recipes[facts["recipe"]] = facts["recipe_content"]
        return {
            asset: Commit(
                asset,
                facts["fingerprint"],
                (),
                as_balance(facts["balance"]),
                facts["versions"],
                facts.get("raw", ""),  # nor recipe: not in stores of earlier versions
                recipes[facts["recipe"]] if "recipe" in facts else {},
            )
            for asset, facts in sorted(newest.items())
            if "dropped" not in facts
        }

    def _history(self) -> Iterator[dict[str, Any]]:
        """Yield what commits recorded, the newest first, as of the version that is read."""
        with _plain_errors(self.path):
            yield from self._log.history()


class DeltaWriter:
    """Writes the rows of one asset: a Parquet file per role, on this machine until it is whole."""

    def __init__(self, root: AnyPath, asset: str) -> None:
        self._root = root
        self._folder = f"asset={quote(asset, safe='')}"  # Hive style: Polars reads partition values from there
        self._open: dict[str, tuple[Path, pq.ParquetWriter]] = {}
        self._scratch: Scratch | None = None

    def write(self, role: str, batch: pa.RecordBatch) -> None:
        """Append rows of a role."""
        with _plain_errors(self._root):
            if self._scratch is None:
                self._scratch = Scratch(work_folder(str(self._root)) / "writing")
            if role not in self._open:
                path = self._scratch.path / f"{role}.parquet"
                self._open[role] = path, pq.ParquetWriter(path, FILE_SCHEMA, **parquet_options(FILE_SCHEMA))
            self._open[role][1].write_batch(batch)

    def close(self, fingerprint: str, versions: dict[str, str]) -> tuple[DataFile, ...]:
        """Finish the files and put them at their final place: all of them, or none when the disk is full.

        The name is decided by the content: what the asset was made of and the packages that made it. Writing the same
        content again therefore replaces a file by its equal, never by another.
        """
        content = hashlib.sha256(json.dumps([fingerprint, versions], sort_keys=True).encode()).hexdigest()[:16]
        files = []
        with _plain_errors(self._root):
            for role, (written, writer) in sorted(self._open.items()):
                writer.close()
                metadata = pq.read_metadata(written)
                path = f"role={role}/{self._folder}/{content}.parquet"
                files.append(DataFile(path, written.stat().st_size, role, metadata.num_rows, _stats(metadata)))
            self._put_in_place(files)
        self._forget()
        return tuple(files)

    def _put_in_place(self, files: list[DataFile]) -> None:
        places = [(self._open[file.role][0], self._root / file.path) for file in files]
        for written, place in places:
            if isinstance(place, Path):
                place.parent.mkdir(parents=True, exist_ok=True)
                with written.open("rb") as stream:
                    os.fsync(stream.fileno())
        for written, place in places:
            if isinstance(place, Path):
                written.replace(place)
            else:
                place.upload(written)

    def abort(self) -> None:
        """Remove what was written."""
        for _, writer in self._open.values():
            with suppress(OSError):  # a full disk: what could not be finished is removed all the same
                writer.close()
        self._forget()

    def _forget(self) -> None:
        self._open.clear()
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None


def _check_conditional_writes(root: ObjectPath) -> None:
    """Refuse a server that lets two commits overwrite each other."""
    with _plain_errors(root):
        probe = root / WORK / "conditional-writes"
        probe.create(b"")
        if probe.create(b""):
            raise StoreError(
                f"{root}: this server ignores If-None-Match, so that two builds would overwrite each other's commits; "
                "build into a folder and copy it"
            )


@contextmanager
def _plain_errors(root: AnyPath) -> Iterator[None]:
    """Turn a full disk and its kin into a StoreError of one line that says what to do."""
    try:
        yield
    except (DeltaError, OSError, pa.ArrowException) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full; make room and run the same command again" if full else one_line(error)
        raise StoreError(f"{root}: {what} (what was committed before is unharmed)") from error


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
