"""What a push sends: the files of a release, checked against its manifest before anything leaves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.errors import ReleaseError
from trajmill.releases.croissant import CROISSANT
from trajmill.releases.hugging_face import CONFIGURATIONS, E0S, MANIFEST

DOCUMENTS = ("README.md", CROISSANT, E0S, MANIFEST)
"""What a release has beside its shards."""

BLOCK = 1 << 20
"""Bytes read at a time."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, bytes done of it and bytes in all."""


class Meter:
    """Counts bytes for a progress display.

    Args:
        progress: told at each step.
        what: what is being done.
        total: bytes in all.
    """

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0

    def add(self, n_bytes: int) -> None:
        """Take note of bytes that are done."""
        self._done += n_bytes
        self._progress(self._what, self._done, self._total)


@dataclass(frozen=True)
class LocalFile:
    """A file of the release.

    Attributes:
        name: its path in the release, with slashes.
        path: where it is.
        size: bytes.
        sha256: hexadecimal digest of its content.
    """

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class PushSummary:
    """What a push did.

    Attributes:
        target: the repository or address.
        url: page of the commit or pull request; None for an address, or when there was nothing to do.
        commit: its id; None likewise.
        uploaded: names of the files that were new or changed there.
        unchanged: names of those that were there already.
        deleted: names of files of an earlier release that were taken away.
        n_bytes: bytes of the files in `uploaded`.
    """

    target: str
    url: str | None
    commit: str | None
    uploaded: tuple[str, ...]
    unchanged: tuple[str, ...]
    deleted: tuple[str, ...]
    n_bytes: int


def check(release: Path, progress: Progress) -> list[LocalFile]:
    """Check that a folder holds a whole release and digest its files; what else is there is left alone.

    Raises:
        ReleaseError: no release, rows that its manifest does not state, or bytes that `croissant.json` does not.
    """
    frames = _frames(release)
    for name, expected in frames.items():
        _check_rows(release / name, expected)
    stated = _stated(release)
    shards = {p.relative_to(release).as_posix() for name in frames for p in (release / name).glob("*-of-*.parquet")}
    if unknown := sorted(shards - stated.keys()):
        raise ReleaseError(f"{release / CROISSANT} has no digest of {unknown[0]}; make the release again")
    files = _digest(release, sorted({*DOCUMENTS, *stated}), progress)
    for file in files:
        if stated.get(file.name, file.sha256) != file.sha256:
            raise ReleaseError(f"{file.path}: changed after the release was made; make the release again")
    return files


def stale(there: Iterable[str], files: Iterable[LocalFile]) -> list[str]:
    """List what an earlier release left at the target: shards and files that only trajmill writes, nothing else."""
    names = {f.name for f in files}
    return sorted(n for n in {*there} - names if is_own(n) and n != "README.md")


def is_own(name: str) -> bool:
    """Whether a path in a release is one that trajmill gives to its files."""
    shard = rf"({'|'.join(CONFIGURATIONS)})/[\w.]+-\d{{5}}-of-\d{{5}}\.parquet"
    return name in DOCUMENTS or re.fullmatch(shard, name, re.ASCII) is not None


def sha256(stream: BinaryIO, seen: Callable[[int], None] = lambda _: None) -> str:
    """Digest a stream from where it stands; `seen` is told the size of each block."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK):
        digest.update(block)
        seen(len(block))
    return digest.hexdigest()


def _read_json(path: Path) -> Any:
    """Read a file of a release; None when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path}: cannot be read ({error}); make the release again") from error


def _frames(release: Path) -> dict[str, int]:
    """Read from the manifest how many rows each configuration has."""
    manifest = _read_json(release / MANIFEST)
    if manifest is None and not (release / MANIFEST).exists():
        raise ReleaseError(f"{release}: no release here (no {MANIFEST}); make one with trajmill release")
    frames = manifest.get("frames") if isinstance(manifest, dict) else None
    if isinstance(frames, dict) and all(n in CONFIGURATIONS and type(rows) is int for n, rows in frames.items()):
        return cast("dict[str, int]", frames)
    raise ReleaseError(f"{release / MANIFEST}: does not state the frames of each configuration; make the release again")


def _stated(release: Path) -> dict[str, str]:
    """Read the digests of the shards by name; what is no digest is left out."""
    description = _read_json(release / CROISSANT)
    if description is None and not (release / CROISSANT).exists():
        raise ReleaseError(f"{release / CROISSANT} is missing; make the release again")
    parts = description.get("distribution") if isinstance(description, dict) else None
    named = [p for p in parts if isinstance(p, dict)] if isinstance(parts, list) else []
    stated = {str(part.get("contentUrl")): part["sha256"] for part in named if isinstance(part.get("sha256"), str)}
    return {name: digest for name, digest in stated.items() if is_own(name)}


def _check_rows(folder: Path, expected: int) -> None:
    shards = sorted(folder.glob("*-of-*.parquet"))
    try:
        found = sum(pq.read_metadata(shard).num_rows for shard in shards)
    except (OSError, pa.ArrowException) as error:
        raise ReleaseError(f"{folder}: a shard cannot be read ({error}); make the release again") from error
    if found != expected:
        raise ReleaseError(
            f"{folder}: {found:,} rows in {len(shards)} shards, {MANIFEST} says {expected:,}; make the release again"
        )


def _digest(release: Path, names: list[str], progress: Progress) -> list[LocalFile]:
    """Return the files of these names with their sizes and digests."""
    paths = {name: release / name for name in names}
    files = []
    try:
        if missing := [path for path in paths.values() if not path.is_file()]:
            raise ReleaseError(f"{missing[0]} is missing; make the release again")
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        meter = Meter(progress, "checking", sum(sizes.values()))
        for name, path in paths.items():
            with path.open("rb") as stream:
                files.append(LocalFile(name, path, sizes[name], sha256(stream, meter.add)))
    except OSError as error:
        raise ReleaseError(f"{error.filename or release}: cannot be read ({error.strerror})") from error
    return files
