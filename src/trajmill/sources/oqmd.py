"""OQMD, read from its SQL dump without a server, or from a MySQL or MariaDB server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trajmill import recipe
from trajmill.errors import SourceError
from trajmill.raw import current
from trajmill.sources.base import Asset, Record, Report
from trajmill.sources.mysqldump import MySQLDump
from trajmill.sources.oqmd_entries import Entry, EntryReader, Geometries, calculations_by_entry
from trajmill.sources.oqmd_import import COLUMNS, import_tables, lost_rows, read_lost
from trajmill.sources.oqmd_runs import BLOCK, SCHEMAS, RunReader
from trajmill.sources.oqmd_server import MySQLServer
from trajmill.storage import AnyPath

PARTITION = 40 * BLOCK
"""Entry ids in a partition, 20,000; part of the assets' names, so never to be changed."""

_LAYOUT = 2  # of the imported files; a new number makes old imports be made anew
_UNREADABLE = "unreadable"
_NAME = re.compile(r"qmdb__v(\d+)_(\d+)__(\d\d)(\d{4})\.sql(\.gz)?")
_RELEASED = re.compile(r"__(0[1-9]|1[0-2])(20\d\d)\b")


def dump_version(name: str) -> tuple[int, int, int, int] | None:
    """Return major and minor version, year and month in the name of a published dump: 1.10 is newer than 1.9."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2]), int(found[4]), int(found[3])) if found else None


def open_oqmd(path: AnyPath | recipe.DatabaseAddress, options: recipe.Oqmd) -> Oqmd:
    """Open a database, a dump, or the newest of the dumps in a folder.

    Raises:
        SourceError: the folder holds no published dump.
    """
    if isinstance(path, recipe.DatabaseAddress) or not path.is_dir():
        return Oqmd(path, options)
    dumps = [(version, dump) for dump in current(path, path.glob("*.sql*")) if (version := dump_version(dump.name))]
    if not dumps:
        raise SourceError(f"{path}: no dump `qmdb__v1_8__022026.sql.gz` here")
    return Oqmd(max(dumps)[1], options)


@dataclass(frozen=True)
class Oqmd:
    """OQMD's tables, imported once into the workspace and read from there by ranges of entry ids.

    Args:
        dump: the SQL dump, plain or gzipped, or the address of a database that one was loaded into.
        options: the recipe's section.

    Attributes:
        imported: folder with the imported rows, named after the content of what they are from; set by `prepare`.
    """

    dump: AnyPath | recipe.DatabaseAddress
    options: recipe.Oqmd = field(default_factory=recipe.Oqmd)
    name: str = "oqmd"
    imported: Path | None = field(default=None, compare=False)

    def prepare(self, workspace: Path, report: Report = lambda *_: None) -> None:
        """Import the database, unless what is in it has been.

        Args:
            workspace: folder for the import.
            report: told from time to time how much of the dump's bytes (of the server's rows) are done, and of how
                many in all.

        Raises:
            SourceError: there is no such dump or server, or it is not OQMD's; says what is wrong with it.
        """
        unreadable: list[str] = []
        if isinstance(self.dump, recipe.DatabaseAddress):
            with MySQLServer(self.dump, COLUMNS, report=unreadable.append, progress=report) as server:
                self._import(server, workspace, unreadable)
        elif self.dump.is_file():
            done, total = 0, 2 * self.dump.stat().st_size  # it is read twice

            def progress(n_bytes: int) -> None:
                nonlocal done
                done += n_bytes
                report(done, total)

            dump = MySQLDump(self.dump, COLUMNS, report=unreadable.append, progress=progress)
            self._import(dump, workspace, unreadable)
        else:
            raise SourceError(
                f"{self.dump}: no such file; point oqmd.path at the SQL dump, `qmdb__v1_8__022026.sql.gz`"
            )

    def _import(self, tables: MySQLDump | MySQLServer, workspace: Path, unreadable: list[str]) -> None:
        folder = workspace / f"oqmd-{_LAYOUT}-{tables.digest()}"
        if not folder.exists():
            import_tables(tables, folder, unreadable)
        object.__setattr__(self, "imported", folder)  # frozen for everyone else: this is what workers need

    def assets(self) -> list[Asset]:
        """List the partitions; one more when rows could not be read."""
        folder = self._folder()
        index = RunReader(folder).index
        parts = pc.divide(index["block"], PARTITION // BLOCK)
        sizes = pa.table({"part": parts, "bytes": index["bytes"]}).group_by("part").aggregate([("bytes", "sum")])
        assets = [
            self._asset(f"entries-{part * PARTITION:09d}", f"{part * PARTITION:09d}", size)
            for part, size in zip(sizes["part"].to_pylist(), sizes["bytes_sum"].to_pylist(), strict=True)
        ]
        if lost := lost_rows(folder):
            assets.append(self._asset(_UNREADABLE, _UNREADABLE, lost))
        return sorted(assets, key=lambda asset: asset.name)

    def raw_digest(self, asset: Asset) -> str:
        """Digest the asset's raw content.

        A new dump is a new digest of every partition. A database that others write to is digested by its rows, so
        that only the partitions with changes are built again.
        """
        folder = self._folder()
        if not isinstance(self.dump, recipe.DatabaseAddress):
            return hashlib.sha256(f"{folder.name}/{asset.part}".encode()).hexdigest()
        digest = hashlib.sha256(asset.part.encode())
        if asset.part == _UNREADABLE:
            for name in ("unreadable", "strays"):
                digest.update((folder / f"{name}.arrow").read_bytes())
            return digest.hexdigest()
        with RunReader(folder) as runs:
            for block in runs.blocks(int(asset.part), int(asset.part) + PARTITION):
                for table in SCHEMAS:
                    for batch in runs.read(table, block).to_batches():
                        digest.update(batch.serialize())
        return digest.hexdigest()

    def facts_digest(self, task_ids: Iterable[str]) -> str:  # noqa: ARG002  # part of the protocol
        """Nothing is joined."""
        return ""

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the entries of a partition in the order of their ids."""
        folder, reader = self._folder(), EntryReader(asset, self.options)
        if asset.part == _UNREADABLE:
            yield from _unreadable(folder, reader)
            return
        with RunReader(folder) as runs:
            for block in runs.blocks(int(asset.part), int(asset.part) + PARTITION):
                yield from _entries(runs, block, reader)

    def _asset(self, name: str, part: str, size: int) -> Asset:
        if isinstance(self.dump, recipe.DatabaseAddress):
            return Asset(name=f"{self.name}/{self.dump.database}/{name}", path=self._folder(), size=size, part=part)
        released = _RELEASED.search(self.dump.name)
        return Asset(
            name=f"{self.name}/{self.dump.name}/{name}",
            path=self.dump,
            size=size,
            part=part,
            modified=f"{released[2]}-{released[1]}" if released else None,
        )

    def _folder(self) -> Path:
        if self.imported is None:
            raise SourceError(f"{self.dump}: not imported yet; call prepare(workspace) first")
        return self.imported


def _entries(runs: RunReader, block: int, reader: EntryReader) -> Iterator[Record]:
    """Read the entries of a block, and those that only calculations speak of."""
    rows = runs.read("entries", block)
    duplicates = dict(zip(rows["entry_id"].to_pylist(), rows["duplicate_of_id"].to_pylist(), strict=True))
    calculations = calculations_by_entry(runs.read("calculations", block))
    entries = [Entry(id_, duplicates.get(id_), id_ in duplicates) for id_ in sorted({*duplicates, *calculations})]
    kbar = reader.options.stress == "kbar"
    geometries = Geometries(runs.read("structures", block), runs.read("atoms", block), kbar=kbar)
    yield from reader.records(entries, calculations, geometries)


def _unreadable(folder: Path, reader: EntryReader) -> Iterator[Record]:
    """Turn away rows that could not be read, and calculations that belong to no entry."""
    for rows in read_lost(folder, "unreadable"):
        for detail in rows["detail"].to_pylist():
            yield Record(n_frames=0, rejections=(reader.rejection(None, "readable", detail, None),))
    for rows in read_lost(folder, "strays"):
        for number, label in zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True):
            detail = f"entry_id of calculation {number} ({label}) is NULL"
            yield Record(n_frames=1, rejections=(reader.rejection(None, "relaxation_record", detail, 1),))
