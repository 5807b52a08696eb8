"""The raw manifest: what of a folder of raw files was fetched, from where, and which of it is current.

A folder that `trajmill fetch` fills holds `trajmill-raw.json`. It names the files of one upstream version and is
replaced as a whole when all of them are there; what arrived before that stands in `trajmill-raw.journal`. Sources read
what the manifest names. A folder without one holds files that somebody else put there, and all of them are read.

A folder that was copied to object storage, manifest and all, is read as it is. Times there are those of the copy, so
the size tells whether a file is the one that was fetched, and digests are always those of the content.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from trajmill.errors import SourceError
from trajmill.storage import AnyPath, ObjectPath, cache_folder

MANIFEST, JOURNAL, LOCK = "trajmill-raw.json", "trajmill-raw.journal", "trajmill-raw.lock"
LAYOUT_NUMBER = 1
"""Of the manifest's own form; another number is refused."""


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A fetched file.

    Attributes:
        path: its place in the folder, with `/`.
        uri: where it came from.
        remote: what upstream said of it when it was fetched (size in bytes, date, ETag, what was selected): while it
            says the same, the file is not fetched again.
        modified: ISO date upstream gives it, None when it gives none.
        size: bytes on disk.
        mtime_ns: time of the file on disk; with the size it tells whether the file is still the one that was fetched.
        sha256: of the bytes on disk.
        fetched_at: ISO time, UTC.
        part_of: the set that is published as a whole (a table, a snapshot, a dump) and replaced as a whole; empty for a
            file of its own.
        vanished: whether upstream no longer has it; it is kept and read until it is pruned.
        left_out: rows whose arrays were not copied, by reason.
    """

    path: str
    uri: str
    remote: Mapping[str, Any]
    modified: str | None
    size: int
    mtime_ns: int
    sha256: str
    fetched_at: str
    part_of: str = ""
    vanished: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)

    def checked(self, root: Path) -> RawFile | None:
        """Return the entry if the file on disk is still the one that was fetched, None if it is not.

        Size and time tell. Where only the time is another one, as after copying the folder, the content is compared;
        the entry then has the new time.
        """
        path = root / self.path
        try:
            status = path.stat()
            if status.st_size != self.size:
                return None
            if status.st_mtime_ns == self.mtime_ns:
                return self
            return replace(self, mtime_ns=status.st_mtime_ns) if sha256(path) == self.sha256 else None
        except OSError:
            return None


@dataclass(frozen=True, kw_only=True)
class RawManifest:
    """The files of one upstream version.

    Attributes:
        source: `mp`, `alexandria` or `oqmd`.
        layout: which of the source's layouts the folder holds.
        version: upstream's own name of each part's version, such as `{"core/trajectories": "12"}`.
        files: current files by path.
        dropped: files that are current no more, by path: `superseded` by a newer version of their set, or `pruned`. A
            build removes their rows.
    """

    source: str
    layout: str = ""
    version: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, RawFile] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A digest of all content: of paths and SHA-256, not of when and where it was fetched."""
        lines = (f"{path} {file.sha256}\n" for path, file in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @staticmethod
    def load(root: AnyPath) -> RawManifest | None:
        """Read the manifest of a folder; None where there is none.

        Raises:
            SourceError: it is damaged or of another version of trajmill.
        """
        file = root / MANIFEST
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(f"{file}: cannot be read ({error.strerror})") from error
        return _load(file, status.st_mtime_ns, status.st_size)

    def save(self, root: Path) -> None:
        """Replace the manifest of a folder in one step, and forget its journal."""
        content = {"trajmill-raw": LAYOUT_NUMBER, **asdict(self)}
        content["files"] = [content["files"][path] for path in sorted(content["files"])]
        aside = root / f"{MANIFEST}.part"
        with aside.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(root / MANIFEST)
        (root / JOURNAL).unlink(missing_ok=True)


@lru_cache(maxsize=8)
def _load(file: AnyPath, mtime_ns: int, size: int) -> RawManifest:  # noqa: ARG001 (they make the cache's key)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("trajmill-raw") != LAYOUT_NUMBER:
            raise SourceError(f"{file}: written by another version of trajmill; fetch into another folder")
        files = {entry["path"]: RawFile(**entry) for entry in content.pop("files")}
        manifest = RawManifest(**content, files=files)
        strange = [path for path in (*manifest.files, *manifest.dropped) if not is_place(path)]
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{file}: no raw manifest ({error}); remove it and fetch again") from error
    if strange:
        raise SourceError(f"{file}: names {strange[0]!r}, which is no place in its folder; remove it and fetch again")
    return manifest


def is_place(path: str) -> bool:
    """Tell whether a path leads to a place in the folder that is not the fetch's own."""
    place = PurePosixPath(path)
    strange = place.is_absolute() or ".." in place.parts or not place.parts or not path.isprintable()
    return not strange and path not in (MANIFEST, JOURNAL, LOCK)


class Journal:
    """Files that have arrived since the manifest was written, one JSON line each; a line that was cut off is none.

    Its first line says of which source and layout they are.
    """

    def __init__(self, root: AnyPath) -> None:
        self.path = root / JOURNAL
        self._lock = Lock()

    def read(self) -> dict[str, RawFile]:
        """Return the newest entry of each path."""
        found: dict[str, RawFile] = {}
        for content in self._lines():
            try:
                entry = RawFile(**content)
            except TypeError:
                continue
            found[entry.path] = entry
        return {path: entry for path, entry in found.items() if is_place(path)}

    @property
    def begun_for(self) -> tuple[str, str] | None:
        """Source and layout, None where there is no journal."""
        return next(((c["source"], c["layout"]) for c in self._lines() if {"source", "layout"} <= c.keys()), None)

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read ({error.strerror})") from error
        for line in text.splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict):
                yield content

    def begin(self, source: str, layout: str) -> None:
        """Write the first line, unless there is one."""
        if self.begun_for is None:
            self._append({"source": source, "layout": layout})

    def add(self, entry: RawFile) -> None:
        """Append an entry, on disk when this returns; threads may do so side by side."""
        self._append(asdict(entry))

    def _append(self, content: dict[str, Any]) -> None:
        assert isinstance(self.path, Path)  # noqa: S101 (a fetch writes on this machine)
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write("\n" + json.dumps(content, sort_keys=True) + "\n")  # the first ends a line that was cut off
            stream.flush()
            os.fsync(stream.fileno())


def current(root: AnyPath, found: Iterable[AnyPath]) -> list[AnyPath]:
    """Keep those of the found files that the folder's manifest names; all of them where there is none; sorted.

    Raises:
        SourceError: the first fetch into the folder has not been completed.
    """
    manifest = RawManifest.load(root)
    if manifest is None and (root / JOURNAL).exists():
        raise SourceError(
            f"{root}: the first fetch into this folder is not complete; run it again "
            f"(or remove {JOURNAL} to build what is there)"
        )
    return sorted(p for p in found if manifest is None or p.relative_to(root).as_posix() in manifest.files)


def entry(root: AnyPath, path: AnyPath) -> RawFile | None:
    """Return what is known of a fetched file; None when nothing is, or when the file on disk is another one by now."""
    name = path.relative_to(root).as_posix()
    manifest = RawManifest.load(root)
    known = manifest.files.get(name) if manifest else None
    if known is None:
        return None
    if isinstance(root, ObjectPath):
        return known if path.stat().st_size == known.size else None
    # a fetch that has not been completed may have replaced it
    return known.checked(root) or (arrived.checked(root) if (arrived := Journal(root).read().get(name)) else None)


def is_complete(root: AnyPath, manifest: RawManifest) -> bool:
    """Tell whether the folder holds all that its manifest names, as far as sizes tell, and nothing newer yet."""
    if (root / JOURNAL).exists() or RawManifest.load(root) != manifest:
        return False
    try:
        if isinstance(root, ObjectPath):  # one listing for all
            sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*")}
            return all(sizes.get(path) == file.size for path, file in manifest.files.items())
        return all((root / path).stat().st_size == file.size for path, file in manifest.files.items())
    except OSError:
        return False


def sha256(path: AnyPath, root: AnyPath | None = None) -> str:
    """Digest a file's bytes; below a folder with a manifest that knows the file, without reading it again."""
    if isinstance(path, ObjectPath):
        return _sha256_of_object(path)
    if root is not None and (known := entry(root, path)):
        return known.sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_object(path: ObjectPath) -> str:
    """Digest an object, which is read once: the digest is noted in the user's cache under its address and ETag."""
    key = hashlib.sha256(f"{path} {path.stat().etag}".encode()).hexdigest()
    note = cache_folder() / "digests" / key
    try:
        return note.read_text(encoding="ascii")
    except FileNotFoundError:
        pass
    with path.open() as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a BufferedReader
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="ascii", dir=note.parent, delete=False) as aside:
        aside.write(digest)
    Path(aside.name).replace(note)
    return digest
