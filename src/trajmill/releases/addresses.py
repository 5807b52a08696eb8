"""Push a release to any address that fsspec knows: a folder, `s3://bucket/path`, and others."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from trajmill.errors import PublishError, TrajmillError, require
from trajmill.releases.hugging_face import MANIFEST
from trajmill.releases.shipment import LocalFile, Meter, Progress, PushSummary, is_own, sha256, stale
from trajmill.uris import without_password

SUMS = "SHA256SUMS"
"""At the target: digest and name of each file that was read back and found right, as `sha256sum` writes it."""

LAST = ("README.md", MANIFEST)
"""Sent after the data, in this order."""

PERMANENT = (FileNotFoundError, NotADirectoryError, NotImplementedError, PermissionError, TypeError, ValueError)
"""Failures that would come again: no such bucket, not allowed, a protocol that is unknown or only reads."""


def push_to_address(files: list[LocalFile], address: str, progress: Progress) -> PushSummary:
    """Copy a release to an address.

    The manifest is taken away first and comes back last: what has one is whole. Each file is read back after it was
    sent, and what is known to be there is not sent again. A place that holds something else is left alone.

    Args:
        files: the whole release.
        address: a folder, or a URL of a kind that fsspec knows.
        progress: told bytes done and bytes in all.

    Raises:
        MissingExtraError: fsspec or s3fs is not installed.
        PublishError: the target refused, holds no release but other files, or other bytes than it was sent.
    """
    with _explained(address):
        target = _open(address)
        target.sweep()
        new = [f for f in files if not target.has(f)]
        gone = stale(target.sizes, files)
        if new or gone:
            new = [f for f in files if f in new or f.name == MANIFEST]
            _replace(target, new, gone, Meter(progress, "uploading", sum(f.size for f in new)))
        else:
            target.write_sums()
    return PushSummary(
        target=without_password(address),
        url=None,
        commit=None,
        uploaded=tuple(f.name for f in new),
        unchanged=tuple(f.name for f in files if f not in new),
        deleted=tuple(gone),
        n_bytes=sum(f.size for f in new),
    )


def check_address(address: str) -> None:
    """Check that a release can be pushed to an address, as far as that is known without writing.

    Raises:
        MissingExtraError: fsspec or s3fs is not installed.
        PublishError: it cannot be reached, or holds no release but other files.
    """
    with _explained(address):
        _open(address)


def _open(address: str) -> _Target:
    target = _Target(address)
    if target.sizes and not target.sizes.keys() & {MANIFEST, SUMS}:
        raise PublishError(f"{without_password(address)}: holds files, and no release; choose an empty or new folder")
    return target


def _replace(target: _Target, new: list[LocalFile], gone: list[str], meter: Meter) -> None:
    """Bring the target up to date in an order that never lets it look whole when it is not."""
    target.write_sums()  # says from the start whose place this is, so that a first push that stops here can go on
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
        sizes: bytes by name of what is there, without what a killed push left half written.
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
            raise PublishError(f"{without_password(address)}: is a file; give the folder to fill")
        found = self._fs.find(self._root, detail=True)
        sizes = {posixpath.relpath(path, self._root): entry["size"] for path, entry in found.items()}
        sizes.pop(".", None)  # an object that stands for the folder, as consoles make one
        self._leftovers = [name for name in sizes if self._is_local and _is_leftover(name)]
        self.sizes = {name: size for name, size in sizes.items() if name not in self._leftovers}
        self._written = self._fs.cat_file(self._path(SUMS)) if SUMS in self.sizes else None
        lines = (line.partition("  ") for line in (self._written or b"").decode(errors="replace").splitlines())
        self._sums = {name: digest for digest, _, name in lines if name in self.sizes}

    def sweep(self) -> None:
        """Take away what a killed push left half written."""
        for name in self._leftovers:
            self._fs.rm_file(self._path(name))

    def has(self, file: LocalFile) -> bool:
        """Whether the same bytes are there: read on this machine, elsewhere by the digest noted when they were sent.

        What was read is noted too, for the next `write_sums`.
        """
        if self.sizes.get(file.name) != file.size:
            return False
        if self._is_local and self._digest(file.name) == file.sha256:
            self._sums[file.name] = file.sha256
        elif self._is_local:
            self._sums.pop(file.name, None)
        return self._sums.get(file.name) == file.sha256

    def send(self, file: LocalFile) -> None:
        """Copy a file, read it back and note its digest; a folder never shows half a file."""
        self._note(file.name, None)
        path = self._path(file.name)
        self._place(path, lambda part: self._fs.put_file(str(file.path), part))
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

    def write_sums(self) -> None:
        """Write the notes down, unless that is what the target has."""
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._sums.items())).encode()
        if text != self._written:
            self._place(self._path(SUMS), lambda part: self._fs.pipe_file(part, text))
            self._written = text

    def _place(self, path: str, write: Callable[[str], object]) -> None:
        """Write a file aside and rename it; object stores have no folders, and never show half a file."""
        if not self._is_local:
            write(path)
            return
        folder, name = posixpath.split(path)
        self._fs.makedirs(folder, exist_ok=True)
        part = posixpath.join(folder, f".{name}.partial")
        write(part)
        self._fs.mv(part, path)

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
        self.write_sums()


def _is_leftover(name: str) -> bool:
    """Whether a name is that of a file of a release that was being written."""
    folder, last = posixpath.split(name)
    part = re.fullmatch(r"\.(.+)\.partial", last)
    whole = posixpath.join(folder, part[1]) if part else ""
    return whole == SUMS or is_own(whole)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn every failure of a back end into one line; again is advised only where that can help."""
    shown = without_password(address)
    if shown != address and not _is_url(address):  # what back ends say of it shows a part of the password
        raise PublishError(f"{shown}: not a URL; write @ and / of a password as %40 and %2F")
    try:
        yield
    except TrajmillError:
        raise
    except ImportError as error:
        raise PublishError(f"{shown}: needs a package that is missing ({_one_line(error)}); install it") from error
    except Exception as error:  # each back end has its own, without a common root
        what = ": ".join(filter(None, (type(error).__name__, _one_line(error))))
        again = "" if isinstance(error, PERMANENT) else "; run the same command again to go on"
        raise PublishError(f"{shown}: cannot be written ({what}){again}") from error


def _is_url(address: str) -> bool:
    """Whether an address has a number where a URL has its port."""
    try:
        _ = urlsplit(address).port
    except ValueError:
        return False
    return True


def _one_line(error: Exception) -> str:
    return without_password(" ".join(str(error).split()))
