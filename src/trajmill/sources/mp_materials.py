"""What the materials documents say about tasks: an index in a SQLite file, so that 1.5 M tasks need no memory."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import msgspec

from trajmill.errors import SourceError
from trajmill.raw import sha256
from trajmill.recipe import MaterialsProject
from trajmill.sources.base import Asset
from trajmill.sources.mp_dates import utc_text
from trajmill.sources.mp_documents import Material
from trajmill.sources.mp_ids import canonical_task_id
from trajmill.sources.vasp_types import stored_types
from trajmill.storage import AnyPath

FACTS_VERSION = 1
"""Raise when the content of an index changes meaning: indexes of other versions are built anew."""

UNUSED = 86_400
"""Seconds after which an index of other raw files goes: until then, another build may still be reading it."""

PRIMARY_ORIGIN = "structure"
"""The origin that names a material's primary task: its structure is the material's (emmet writes no other)."""


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What a material says about one of its tasks.

    Attributes:
        material_id: canonical id of the material.
        license: `BY-C`, `BY-NC` or None.
        deprecated: why the task or its material was withdrawn, None when it was not.
        run_type, task_type: as the material stores them for this task.
        is_origin: whether the material's structure is this task's.
        last_updated: date of the materials document.
    """

    material_id: str
    license: str | None = None
    deprecated: str | None = None
    run_type: str | None = None
    task_type: str | None = None
    is_origin: bool = False
    last_updated: str | None = None


def facts_of(material: Material) -> Iterator[tuple[str, Facts]]:
    """Yield the canonical id of each task a materials document names, and what it says about it."""
    if material.material_id is None:
        return
    material_id = canonical_task_id(str(material.material_id))
    types = [
        {canonical_task_id(task): value for task, value in (given or {}).items() if value is not None}
        for given in (material.run_types, material.task_types, material.calc_types)
    ]
    withdrawn = {canonical_task_id(str(task)) for task in material.deprecated_tasks or ()}
    origins = {
        canonical_task_id(str(origin.task_id))
        for origin in material.origins or ()
        if origin and origin.name == PRIMARY_ORIGIN
    }
    named = dict.fromkeys(canonical_task_id(str(task)) for task in material.task_ids or ())
    for task in dict.fromkeys(chain(named, *types, withdrawn)):
        deprecated = f"in deprecated_tasks of {material_id}" if task in withdrawn else None
        if material.deprecated:
            reasons = material.deprecation_reasons
            deprecated = f"material {material_id} is deprecated" + (f": {reasons}" if reasons else "")
        run_type, task_type = stored_types(*(given.get(task) for given in types))
        yield (
            task,
            Facts(
                material_id=material_id,
                license=material.builder_meta.license if material.builder_meta else None,
                deprecated=deprecated,
                run_type=run_type,
                task_type=task_type,
                is_origin=task in origins,
                last_updated=utc_text(material.last_updated),
            ),
        )


@dataclass(frozen=True)
class Index:
    """A SQLite file of JSON values by table and key; picklable, opened where it is read."""

    path: Path

    @classmethod
    def build(
        cls, workspace: Path, name: str, digest: str, tables: Mapping[str, Iterable[tuple[str, msgspec.Struct]]]
    ) -> Index:
        """Build the index unless it is there for the same input; a build that was cut off starts anew.

        Args:
            workspace: folder of the index.
            name: distinguishes indexes in one workspace.
            digest: of everything the tables are made from.
            tables: streams of key and value, read only when there is something to do.
        """
        path = workspace / f"{name}-{hashlib.sha256(f'{FACTS_VERSION} {digest}'.encode()).hexdigest()[:16]}.sqlite"
        if path.exists():
            _note_use(path)
            return cls(path)
        workspace.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.unlink(missing_ok=True)
        with closing(sqlite3.connect(aside)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            for table, rows in tables.items():
                connection.execute(f"CREATE TABLE {table} (key TEXT NOT NULL, value BLOB NOT NULL)")
                encoded = ((key, msgspec.json.encode(value)) for key, value in rows)
                connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", encoded)
                connection.execute(f"CREATE INDEX {table}_by_key ON {table} (key)")
            connection.commit()
        for other in workspace.glob(f"{name}-*.sqlite"):
            if time.time() - other.stat().st_atime > UNUSED:
                other.unlink()
        aside.replace(path)
        return cls(path)

    def open(self) -> Reader:
        """Open the index for reading, as a context manager."""
        _note_use(self.path)
        return Reader(self.path)


def _note_use(index: Path) -> None:
    """Set the time of access, not that of the content, which is as it was."""
    with suppress(PermissionError):  # somebody else's
        os.utime(index, ns=(time.time_ns(), index.stat().st_mtime_ns))


class Reader:
    """An open index."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def values(self, table: str, key: str) -> list[bytes]:
        """Return the JSON values of a key, sorted."""
        return sorted(row[0] for row in self._connection.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)))

    def facts(self, task: str) -> Facts | None:
        """Return what the materials say about a task, by its canonical id.

        Where several materials name it, one that is not deprecated and then the newest decides.
        """
        found = [_FACTS.decode(value) for value in self.values("facts", task)]
        return max(found, key=lambda f: (f.deprecated is None, f.last_updated or "", f.material_id), default=None)

    def digest(self, task_ids: Iterable[str], tables: Iterable[str]) -> str:
        """Digest the facts of these tasks and their values in further tables.

        The date of a material only chooses among several and is left out: a new database version changes all dates.
        """
        result = hashlib.sha256()
        for task in sorted({canonical_task_id(task) for task in task_ids}):
            facts = self.facts(task)
            values = [(table, value) for table in tables for value in self.values(table, task)]
            if facts:
                values.append(("facts", msgspec.json.encode(msgspec.structs.replace(facts, last_updated=None))))
            for table, value in values:
                result.update(b"%s %s %s\n" % (task.encode(), table.encode(), value))
        return result.hexdigest()


_FACTS = msgspec.json.Decoder(Facts)


@dataclass(frozen=True, kw_only=True)
class MaterialsProjectFolder:
    """What both layouts of the Materials Project share: a folder, options, and facts joined by task.

    Attributes:
        root: the folder.
        options: the recipe's section.
        index: what is joined, set by `prepare`.
    """

    root: AnyPath
    options: MaterialsProject
    index: Index | None = None

    lookups: ClassVar[tuple[str, ...]] = ()
    """Tables of the index that decide rows besides `facts`."""

    @property
    def name(self) -> str:
        """The value of the column `source`."""
        return "mp"

    def raw_digest(self, asset: Asset) -> str:
        """Return the SHA-256 of the file."""
        return sha256(asset.path, self.root)

    def facts_digest(self, task_ids: Iterable[str]) -> str:
        """Digest what was joined to these tasks; see `Source.facts_digest`."""
        with self._facts() as facts:
            return facts.digest(task_ids, self.lookups)

    def _facts(self) -> Reader:
        if self.index is None:
            raise SourceError(f"{self.root}: not prepared; call prepare() first")
        return self.index.open()

    def _join(
        self, workspace: Path, name: str, digest: str, tables: Mapping[str, Iterable[tuple[str, msgspec.Struct]]]
    ) -> None:
        """Build the index; the source is frozen for everyone else, workers get it as it is now."""
        object.__setattr__(self, "index", Index.build(workspace, name, digest, tables))
