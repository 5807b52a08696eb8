"""OQMD, read from its SQL dump without a server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from trajmill import recipe
from trajmill.errors import SourceError
from trajmill.raw import current, sha256
from trajmill.sources.base import Asset, Record
from trajmill.sources.oqmd_entries import Entry, EntryReader, Geometries, calculations_by_entry
from trajmill.sources.oqmd_import import PARTITION, DuckDBConfig, import_dump

_LAYOUT = 1  # of the DuckDB file; a new number makes old files be imported anew
_ENTRIES = 500  # looked up at a time: some 30,000 atoms, so that memory depends on neither partition nor dump
_ATOM_BYTES = 128  # of the dump's text, to compare assets by size
_NAME = re.compile(r"qmdb__v(\d+)_(\d+)__(\d\d)(\d{4})\.sql(\.gz)?")
_RELEASED = re.compile(r"__(0[1-9]|1[0-2])(20\d\d)\b")
_UNREADABLE = "unreadable"


def dump_version(name: str) -> tuple[int, int, int, int] | None:
    """Return major and minor version, year and month in the name of a published dump: 1.10 is newer than 1.9."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2]), int(found[4]), int(found[3])) if found else None


def open_oqmd(path: Path, options: recipe.Oqmd) -> Oqmd:
    """Open a dump, or the newest of the dumps in a folder.

    Raises:
        SourceError: the folder holds no published dump.
    """
    if not path.is_dir():
        return Oqmd(path, options)
    dumps = [(version, dump) for dump in current(path, path.glob("*.sql*")) if (version := dump_version(dump.name))]
    if not dumps:
        raise SourceError(f"{path}: no dump `qmdb__v1_8__022026.sql.gz` here")
    return Oqmd(max(dumps)[1], options)


@dataclass(frozen=True)
class Oqmd:
    """OQMD's dump, imported once into a DuckDB file in the workspace and read from there by ranges of entry ids.

    Args:
        dump: the SQL dump, plain or gzipped.
        options: the recipe's section.

    Attributes:
        database: the imported file, named after the dump's sha256; set by `prepare`.
    """

    dump: Path
    options: recipe.Oqmd = field(default_factory=recipe.Oqmd)
    name: str = "oqmd"
    database: Path | None = field(default=None, compare=False)

    def prepare(self, workspace: Path) -> None:
        """Import the dump, unless this very dump has been.

        Raises:
            SourceError: there is no such file or it is no mysqldump of OQMD; says what is wrong with it.
        """
        if not self.dump.is_file():
            raise SourceError(
                f"{self.dump}: no such file; point oqmd.path at the SQL dump, `qmdb__v1_8__022026.sql.gz`"
            )
        workspace.mkdir(parents=True, exist_ok=True)
        database = workspace / f"oqmd-{_LAYOUT}-{sha256(self.dump, self.dump.parent)}.duckdb"
        if not database.exists():
            import_dump(self.dump, database)
        object.__setattr__(self, "database", database)  # frozen for everyone else: this is what workers need

    def assets(self) -> list[Asset]:
        """List the partitions; one more when rows of the dump could not be read."""
        with self._connect() as connection:
            parts = connection.execute("SELECT part, n_atoms FROM partitions").fetchall()
            [(lost,)] = connection.execute(
                "SELECT (SELECT count(*) FROM unreadable) + (SELECT count(*) FROM strays)"
            ).fetchall()
        sizes = {f"{part * PARTITION:09d}": n_atoms * _ATOM_BYTES for part, n_atoms in parts}
        assets = [self._asset(f"entries-{first}", first, size) for first, size in sizes.items()]
        if lost:
            assets.append(self._asset(_UNREADABLE, _UNREADABLE, lost))
        return sorted(assets, key=lambda asset: asset.name)

    def raw_digest(self, asset: Asset) -> str:
        """Digest the dump and the partition's name; a new dump is a new digest of every partition."""
        return hashlib.sha256(f"{self._database().stem}/{asset.part}".encode()).hexdigest()

    def facts_digest(self, task_ids: Iterable[str]) -> str:  # noqa: ARG002  # part of the protocol
        """Nothing is joined."""
        return ""

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the entries of a partition in the order of their ids."""
        reader = EntryReader(asset, self.options)
        with self._connect() as connection:
            if asset.part == _UNREADABLE:
                yield from _unreadable(connection, reader)
                return
            first = int(asset.part)
            ids = connection.execute(
                "SELECT id FROM entries WHERE id >= ? AND id < ? ORDER BY id", [first, first + PARTITION]
            ).fetchall()
            for start in range(0, len(ids), _ENTRIES):
                chunk = ids[start : start + _ENTRIES]
                yield from _entries(connection, reader, chunk[0][0], chunk[-1][0])

    def _asset(self, name: str, part: str, size: int) -> Asset:
        released = _RELEASED.search(self.dump.name)
        return Asset(
            name=f"{self.name}/{self.dump.name}/{name}",
            path=self.dump,
            size=size,
            part=part,
            modified=f"{released[2]}-{released[1]}" if released else None,
        )

    def _database(self) -> Path:
        if self.database is None:
            raise SourceError(f"{self.dump}: not imported yet; call prepare(workspace) first")
        return self.database

    def _connect(self) -> duckdb.DuckDBPyConnection:
        """Open the imported file; many workers may do so at once."""
        config: DuckDBConfig = {"memory_limit": "100MB", "threads": 1, "temp_directory": ""}
        return duckdb.connect(str(self._database()), read_only=True, config=config)


def _entries(connection: duckdb.DuckDBPyConnection, reader: EntryReader, first: int, last: int) -> Iterator[Record]:
    """Read the entries with ids from `first` to `last`, all that belongs to them in four queries."""
    entries = connection.execute(
        "SELECT id, duplicate_of_id, known FROM entries WHERE id BETWEEN ? AND ? ORDER BY id", [first, last]
    ).fetchall()
    calculations, structures, atoms = (
        connection.sql(
            f"SELECT * FROM {table} WHERE entry_id BETWEEN ? AND ? ORDER BY {order}", params=[first, last]
        ).to_arrow_table()
        for table, order in (
            ("calculations", "entry_id, id"),
            ("structures", "entry_id, id"),
            ("atoms", "entry_id, structure_id, id"),
        )
    )
    runs = calculations_by_entry(calculations)
    geometries = Geometries(structures, atoms)
    for row in entries:
        entry = Entry(*row)
        yield reader.record(entry, runs.get(entry.id, ()), geometries)


def _unreadable(connection: duckdb.DuckDBPyConnection, reader: EntryReader) -> Iterator[Record]:
    """Turn away rows of the dump that could not be read, and calculations that belong to no entry."""
    cursor = connection.execute("SELECT detail FROM unreadable")
    while row := cursor.fetchone():
        yield Record(n_frames=0, rejections=(reader.rejection(None, "readable", row[0], None),))
    cursor = connection.execute("SELECT id, label FROM strays")
    while row := cursor.fetchone():
        detail = f"entry_id of calculation {row[0]} ({row[1]}) is NULL"
        yield Record(n_frames=1, rejections=(reader.rejection(None, "relaxation_record", detail, 1),))
