"""Push a release to any address that fsspec knows: a folder, `s3://bucket/path`, and others."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trajmill.errors import PublishError, TrajmillError, require
from trajmill.releases.hugging_face import MANIFEST
from trajmill.releases.shipment import LocalFile, Meter, Progress, PushSummary, sha256, stale

SUMS = "SHA256SUMS"
"""At the target: digest and name of each file that was read back and found right, as `sha256sum` writes it."""

LAST = ("README.md", MANIFEST)
"""Sent after the data, in this order."""


def push_to_address(files: list[LocalFile], address: str, progress: Progress) -> PushSummary:
    """Copy a release to an address.

    The manifest is taken away first and comes back last: what has one is whole. Each file is read back after it was
    sent, and what is known to be there is not sent again.

    Args:
        files: the whole release.
        address: a folder, or a URL of a kind that fsspec knows.
        progress: told bytes done and bytes in all.

    Raises:
        MissingExtraError: fsspec or s3fs is not installed.
        PublishError: the target refused, or holds other bytes than it was sent.
    """
    with _explained(address):
        target = _Target(address)
        new = [f for f in files if not target.has(f)]
        gone = stale(target.sizes, files)
        if new or gone:
            new = [f for f in files if f in new or f.name == MANIFEST]
            _replace(target, new, gone, Meter(progress, "uploading", sum(f.size for f in new)))
    return PushSummary(
        target=_without_password(address),
        url=None,
        commit=None,
        uploaded=tuple(f.name for f in new),
        unchanged=tuple(f.name for f in files if f not in new),
        deleted=tuple(gone),
        n_bytes=sum(f.size for f in new),
    )


def _replace(target: _Target, new: list[LocalFile], gone: list[str], meter: Meter) -> None:
    """Bring the target up to date in an order that never lets it look whole when it is not."""
    target.remove(MANIFEST)
    for file in sorted(new, key=lambda f: LAST.index(f.name) if f.name in LAST else -1):
        if file.name == MANIFEST:
            for name in gone:
                target.remove(name)
        target.send(file)
        meter.add(file.size)


class _Target:
    """The far end: its files, and the digests that earlier pushes noted there.

    Args:
        address: where; the folder need not exist.

    Attributes:
        sizes: bytes by name of what is there.
    """

    def __init__(self, address: str) -> None:
        if address.startswith(("s3://", "s3a://")):
            require("s3fs", extra="s3")
        local = "://" not in address
        place = Path(address).expanduser().absolute().as_posix() if local else address
        self._fs, self._root = require("fsspec.core", extra="hub").url_to_fs(place)
        self._is_local = "file" in self._fs.protocol
        self._fs.invalidate_cache()
        if self._fs.isfile(self._root):
            raise PublishError(f"{address}: is a file; give the folder to fill")
        found = self._fs.find(self._root, detail=True)
        self.sizes = {posixpath.relpath(path, self._root): entry["size"] for path, entry in found.items()}
        lines = self._fs.cat_file(self._path(SUMS)).decode().splitlines() if SUMS in self.sizes else []
        self._sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def has(self, file: LocalFile) -> bool:
        """Whether the same bytes are there: read on this machine, elsewhere by the digest noted when they were sent."""
        if self.sizes.get(file.name) != file.size:
            return False
        return (self._digest(file.name) if self._is_local else self._sums.get(file.name)) == file.sha256

    def send(self, file: LocalFile) -> None:
        """Copy a file, read it back and note its digest; a folder never shows half a file."""
        self._note(file.name, None)
        path = self._path(file.name)
        if self._is_local:  # object stores have no folders, and never show half a file
            folder, name = posixpath.split(path)
            self._fs.makedirs(folder, exist_ok=True)
            part = posixpath.join(folder, f".{name}.partial")
            self._fs.put_file(str(file.path), part)
            self._fs.mv(part, path)
        else:
            self._fs.put_file(str(file.path), path)
        if self._digest(file.name) != file.sha256:
            raise PublishError(f"{path}: holds other bytes than were sent; push again")
        self.sizes[file.name] = file.size
        self._note(file.name, file.sha256)

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        self._note(name, None)
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))
        self.sizes.pop(name, None)

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _digest(self, name: str) -> str:
        with self._fs.open(self._path(name), "rb") as stream:
            return sha256(stream)

    def _note(self, name: str, digest: str | None) -> None:
        """Write down that a file is right, or that it may not be; before it changes, and after."""
        if self._sums.get(name) == digest:
            return
        self._sums.pop(name, None)
        if digest:
            self._sums[name] = digest
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._sums.items()))
        self._fs.pipe_file(self._path(SUMS), text.encode())


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn every failure of a back end into one line."""
    try:
        yield
    except TrajmillError:
        raise
    except Exception as error:  # each back end has its own, without a common root
        text = f"{address}: cannot be written ({type(error).__name__}: {error}); run the same command again to go on"
        raise PublishError(_without_password(" ".join(text.split()))) from error


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)
