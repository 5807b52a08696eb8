"""What a push sends: the files of a release, checked against its manifest before anything leaves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.errors import ReleaseError
from trajmill.releases.croissant import CROISSANT
from trajmill.releases.hugging_face import CONFIGURATIONS, E0S, MANIFEST

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
    """Check that a folder holds a whole release and digest its files; hidden ones are left alone.

    Raises:
        ReleaseError: no release, rows that its manifest does not state, or bytes that `croissant.json` does not.
    """
    manifest = _read_json(release / MANIFEST)
    if manifest is None:
        raise ReleaseError(f"{release}: no release here (no {MANIFEST}); make one with trajmill release")
    if not (release / "README.md").is_file():
        raise ReleaseError(f"{release}: its card README.md is missing; make the release again")
    for name, expected in manifest["frames"].items():
        _check_rows(release / name, expected)
    files = _digest(release, progress)
    parts = (_read_json(release / CROISSANT) or {}).get("distribution", ())
    stated = {part["contentUrl"]: part["sha256"] for part in parts if "sha256" in part}
    for file in files:
        if stated.get(file.name, file.sha256) != file.sha256:
            raise ReleaseError(f"{file.path}: changed after the release was made; make the release again")
    return files


def stale(there: Iterable[str], files: Iterable[LocalFile]) -> list[str]:
    """List what an earlier release left at the target: shards and files that only trajmill writes, nothing else."""
    names = {f.name for f in files}
    shard = re.compile(rf"({'|'.join(CONFIGURATIONS)})/train-\d{{5}}-of-\d{{5}}\.parquet")
    return sorted(n for n in {*there} - names if shard.fullmatch(n) or n in (MANIFEST, E0S, CROISSANT))


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


def _check_rows(folder: Path, expected: int) -> None:
    shards = sorted(folder.glob("train-*.parquet"))
    try:
        found = sum(pq.read_metadata(shard).num_rows for shard in shards)
    except (OSError, pa.ArrowException) as error:
        raise ReleaseError(f"{folder}: a shard cannot be read ({error}); make the release again") from error
    if found != expected:
        raise ReleaseError(
            f"{folder}: {found:,} rows in {len(shards)} shards, {MANIFEST} says {expected:,}; make the release again"
        )


def _digest(release: Path, progress: Progress) -> list[LocalFile]:
    """List the files with their sizes and digests, in the order of their names."""
    paths = {p.relative_to(release).as_posix(): p for p in release.rglob("*") if p.is_file()}
    sizes = {n: p.stat().st_size for n, p in sorted(paths.items()) if not any(x[0] == "." for x in n.split("/"))}
    meter = Meter(progress, "checking", sum(sizes.values()))
    files = []
    for name, size in sizes.items():
        with paths[name].open("rb") as stream:
            files.append(LocalFile(name, paths[name], size, sha256(stream, meter.add)))
    return files
