"""The log of a Delta Lake table, followed and written one commit at a time.

To replace the files of one asset takes a few lines in a new file of the log, and to know which files the asset has.
deltalake goes through all files of the table for that: over a second in a table of 10,000 assets. So a `DeltaLog` keeps
in memory what each asset has, and reads of the log what is new alone. Making tables and checkpoints is left to
deltalake, and reading to whatever reads Delta tables.

The format is that of https://github.com/delta-io/delta/blob/master/PROTOCOL.md for reader version 1 and writer
version 2.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote
from uuid import uuid4

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajmill.errors import StoreError
from trajmill.storage import AnyPath, ObjectPath, readable
from trajmill.stores.base import DataFile
from trajmill.uris import one_line

LOG = "_delta_log"
"""Folder of the log in that of the table."""

NEWEST_PROTOCOL = (1, 2)
"""Versions of reader and writer of the tables this can follow; what came later would be misread."""

READERS = 16
"""Files of the log that are asked for at once in object storage."""


class LogFile(NamedTuple):
    """A file of a table.

    Attributes:
        role: of its rows.
        size: bytes.
        stats: Delta's statistics as JSON text.
    """

    role: str
    size: int
    stats: str

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return int(msgspec.json.decode(self.stats)["numRecords"])


class DeltaLog:
    """What a version of a table holds.

    Args:
        root: folder of the table.
        version: the version to read; None is the newest.

    Attributes:
        version: which one this is; -1 while there is no table.
        description: of the table.
        transactions: the newest application transaction of each asset.
        files: of each asset, by path below the root.

    Raises:
        StoreError: no such version, a damaged log, or a table of another protocol.
        OSError: it cannot be read.
    """

    def __init__(self, root: AnyPath, version: int | None = None) -> None:
        self._root = root
        self._folder = root / LOG
        self.version = -1
        self.description: str | None = None
        self.transactions: dict[str, int] = {}
        self.files: dict[str, dict[str, LogFile]] = {}
        self._load_checkpoint(version)
        self.update(version)
        if self.version >= 0 and version not in (None, self.version):
            raise StoreError(f"{root}: has no version {version}; the newest is {self.version}")

    def only(self, asset: str) -> Self:
        """Return what it holds of one asset: little enough to be sent elsewhere."""
        part = copy.copy(self)
        part.transactions = {asset: self.transactions[asset]} if asset in self.transactions else {}
        part.files = {asset: self.files[asset]} if asset in self.files else {}
        return part

    # --- reading

    def update(self, version: int | None = None) -> None:
        """Go on to the newest version, or to this one."""
        for text in self._texts(self.version + 1):
            if self.version == version:
                return
            with self._whole(self._place(self.version + 1)):
                for line in text.splitlines():
                    if line:
                        self._apply(line)
            self.version += 1

    def history(self) -> Iterator[dict[str, Any]]:
        """Yield what `write` was given as facts, the newest first; of commits that others made, nothing."""
        numbers = range(self.version, -1, -1)
        for text in self._map(numbers):
            if text is None:
                raise StoreError(f"{self._root}: its log is not whole; a version is missing")
            for line in text.splitlines():
                if b'"trajmill"' in line and (info := msgspec.json.decode(line).get("commitInfo")):
                    yield msgspec.json.decode(info["trajmill"])

    def _texts(self, first: int) -> Iterator[bytes]:
        """Yield the content of this version's file and of all that follow it."""
        text = self._text(first)
        if text is None:
            return
        yield text
        yield from itertools.takewhile(lambda text: text is not None, self._map(itertools.count(first + 1)))

    def _map(self, versions: Iterable[int]) -> Iterator[Any]:
        """Read files of the log in this order; where each takes a request, many at once."""
        if not isinstance(self._folder, ObjectPath):
            yield from map(self._text, versions)
            return
        rest = iter(versions)
        with ThreadPoolExecutor(READERS) as pool:
            while some := list(itertools.islice(rest, READERS)):
                yield from pool.map(self._text, some)

    def _text(self, version: int) -> bytes | None:
        try:
            with self._place(version).open("rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _place(self, version: int) -> AnyPath:
        return self._folder / f"{version:020}.json"

    def _apply(self, line: bytes) -> None:
        ((kind, action),) = msgspec.json.decode(line).items()
        if kind == "add":
            values = action["partitionValues"]
            file = LogFile(values["role"], action["size"], action["stats"])
            self.files.setdefault(values["asset"], {})[unquote(action["path"])] = file
        elif kind == "remove":
            path = unquote(action["path"])
            values = action.get("partitionValues")  # not all writers say it
            asset = values["asset"] if values else next((a for a, fs in self.files.items() if path in fs), "")
            self.files[asset].pop(path)
            if not self.files[asset]:
                del self.files[asset]
        elif kind == "txn":
            self.transactions[action["appId"]] = action["version"]
        elif kind == "metaData":
            self.description = action.get("description")
        elif kind == "protocol":
            self._check(action["minReaderVersion"], action["minWriterVersion"])

    @contextmanager
    def _whole(self, file: AnyPath) -> Iterator[None]:
        """Say in one line that a file of the log is damaged."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
            raise StoreError(f"{self._root}: cannot be opened as a store ({file.name}: {one_line(error)})") from error

    def _check(self, *protocol: int) -> None:
        if any(found > known for found, known in zip(protocol, NEWEST_PROTOCOL, strict=True)):
            raise StoreError(
                f"{self._root}: another tool has brought this table to Delta protocol {protocol[0]}/{protocol[1]}; "
                f"trajmill knows {NEWEST_PROTOCOL[0]}/{NEWEST_PROTOCOL[1]}"
            )

    def _load_checkpoint(self, version: int | None) -> None:
        """Begin with the last checkpoint, unless it is newer than what is wanted: the whole log is there as well."""
        hint = self._folder / "_last_checkpoint"
        try:
            text = hint.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        with self._whole(hint):
            last = json.loads(text)
            if "parts" in last or (version is not None and last["version"] > version):
                return
            file = self._folder / f"{last['version']:020}.checkpoint.parquet"
        with self._whole(file):
            self._apply_checkpoint(pq.read_table(readable(file), columns=["add", "txn", "metaData", "protocol"]))
        self.version = last["version"]

    def _apply_checkpoint(self, table: pa.Table) -> None:
        adds, transactions, metadata, protocol = (c.combine_chunks().drop_null() for c in table.columns)
        self._check(*(protocol.field(name)[0].as_py() for name in ("minReaderVersion", "minWriterVersion")))
        self.description = metadata.field("description")[0].as_py()
        self.transactions = dict(zip(*_columns(transactions, "appId", "version"), strict=True))
        values: pa.MapArray = adds.field("partitionValues")
        assets, roles = (values.items.filter(pc.equal(values.keys, name)).to_pylist() for name in ("asset", "role"))
        for asset, role, path, *rest in zip(assets, roles, *_columns(adds, "path", "size", "stats"), strict=True):
            self.files.setdefault(asset, {})[unquote(path)] = LogFile(role, *rest)

    # --- writing

    def write(
        self, facts: dict[str, Any], asset: str | None = None, files: Sequence[DataFile] = (), transaction: int = 0
    ) -> bool:
        """Make the next version, unless another process was first.

        Args:
            facts: what `history` is to tell of it.
            asset: whose files change; None when nothing does.
            files: all that it has from now on.
            transaction: application transaction that the asset has from now on.

        Returns:
            Whether it was made. If not, `update` shows what was made instead.
        """
        now = time.time_ns() // 10**6
        info = {
            "timestamp": now,
            "operation": "WRITE",
            "operationParameters": {"mode": "Append" if asset is None else "Overwrite"},
            "engineInfo": f"trajmill:{version_of('trajmill')}",
            "trajmill": json.dumps(facts, sort_keys=True),
        }
        actions: list[dict[str, Any]] = [{"commitInfo": info}]
        if asset is not None:
            actions.append({"txn": {"appId": asset, "version": transaction, "lastUpdated": now}})
            actions += self._removals(asset, {file.path for file in files}, now)
            actions += [
                {
                    "add": {
                        "path": _quoted(file.path),
                        "partitionValues": {"role": file.role, "asset": asset},
                        "size": file.size,
                        "modificationTime": 0,  # the file's own is when it was written, which content does not tell
                        "dataChange": True,
                        "stats": file.stats,
                    }
                }
                for file in files
            ]
        lines = [msgspec.json.encode(action) for action in actions]
        if not _create(self._place(self.version + 1), b"\n".join(lines) + b"\n"):
            return False
        for line in lines:
            self._apply(line)
        self.version += 1
        return True

    def _removals(self, asset: str, kept: set[str], now: int) -> Iterator[dict[str, Any]]:
        for path, file in self.files.get(asset, {}).items():
            if path not in kept:  # the same content may come again: added anew it replaces itself
                yield {
                    "remove": {
                        "path": _quoted(path),
                        "deletionTimestamp": now,
                        "dataChange": True,
                        "extendedFileMetadata": True,
                        "partitionValues": {"role": file.role, "asset": asset},
                        "size": file.size,
                    }
                }


def _columns(rows: pa.StructArray, *names: str) -> list[list[Any]]:
    return [rows.field(name).to_pylist() for name in names]


def _quoted(path: str) -> str:
    """Return a path as the log writes it."""
    return quote(path, safe="/=")


def _create(path: AnyPath, content: bytes) -> bool:
    """Write a file whole and for good, unless there is one of that name; tell whether it was written."""
    if isinstance(path, ObjectPath):
        return path.create(content)
    aside = path.with_name(f"_commit_{uuid4().hex}.json.tmp")  # a name that readers of the log pass over
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)  # unlike a rename, never in another's place
    except FileExistsError:
        return False
    finally:
        Path.unlink(aside, missing_ok=True)
    return True
