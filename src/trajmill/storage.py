"""Object storage: folders and files at `s3://bucket/prefix`, with as much of pathlib as trajmill uses.

Server and credentials come from the environment, by the names that all tools know: `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL` (a server other than Amazon's),
`AWS_SKIP_SIGNATURE=true` (public buckets). They never stand in an address, a recipe or a message.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from trajmill.errors import TrajmillError
from trajmill.uris import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads
    from obstore import ObjectMeta
    from obstore.store import S3Store

S3 = "s3://"
"""How the address of an object starts."""

BUFFER = 8 << 20
"""Bytes that are asked for at once where a file is read from beginning to end."""

COLUMNS = 1 << 20
"""Bytes that are asked for at least where columns of a Parquet file are read: small ones come together."""

PART = 16 << 20
"""Bytes of a part of an upload; a file has 10,000 at most."""

UPLOADS = 4
"""Parts that are under way at once; with `PART` they bound the memory of an upload."""

RETRIES = 8
"""How often a request is repeated that may succeed another time (5xx, connections that break)."""

PATIENCE = 120
"""Seconds over which requests are repeated."""


MISSING = ("NoSuchBucket", "NoSuchKey")
REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
"""What servers call their refusals; obstore has types for them where objects are asked for, and none for listings."""

_ANSWER = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<]*)")


class StorageError(TrajmillError, OSError):
    """Object storage refused or did not answer. Has an `errno`, as what says nothing about the content of a file."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """There is no such object or bucket."""


@dataclass(frozen=True)
class ObjectStatus:
    """What `ObjectPath.stat` returns.

    Attributes:
        st_size: bytes.
        st_mtime_ns: ns since 1970; S3 counts whole seconds.
        etag: changes whenever the object is replaced by another one.
    """

    st_size: int
    st_mtime_ns: int
    etag: str


class ObjectPath(PurePosixPath):
    """An object, or a folder of objects, by its address `s3://bucket/key`.

    Methods mean what those of `pathlib.Path` mean. They raise StorageError, for what is not there
    ObjectNotFoundError, which is a FileNotFoundError too. A path that was listed knows the status of then.
    """

    _status: ObjectStatus | None = None

    def __str__(self) -> str:
        text = super().__str__()
        return S3 + text[4:] if text.startswith("s3:/") else text  # pathlib makes one slash of two

    @property
    def bucket(self) -> S3Store:
        """The bucket it lies in."""
        environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.upper().startswith("AWS_")))
        return _bucket(self.parts[1], environment)

    @property
    def key(self) -> str:
        """Its place in the bucket."""
        return "/".join(self.parts[2:])

    def stat(self) -> ObjectStatus:
        """Return size, time and ETag."""
        if self._status is None:
            import obstore

            with _plain_errors(self):
                return _status(obstore.head(self.bucket, self.key))
        return self._status

    def is_file(self) -> bool:
        """Tell whether there is an object of this name."""
        try:
            return bool(self.key) and self.stat() is not None
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Tell whether there are objects below it: object storage has no folders of its own."""
        return next(self._list(), None) is not None

    def exists(self) -> bool:
        """Tell whether it is a file or a folder."""
        return self.is_dir() or self.is_file()

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the files at any depth below it whose path ends in this pattern."""
        return (path for path in self._list() if path.match(pattern))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the files and folders below it whose path has this pattern, as deep as that is."""
        import obstore

        if depth := pattern.count("/"):
            yield from (p for p in self.rglob(pattern) if len(p.parts) == len(self.parts) + depth + 1)
            return

        with _plain_errors(self):
            found = obstore.list_with_delimiter(self.bucket, self.key)
        folders = (self / prefix.rpartition("/")[2] for prefix in found["common_prefixes"])
        yield from (folder for folder in folders if folder.match(pattern))
        yield from (path for path in map(self._listed, found["objects"]) if path.match(pattern))

    def _list(self) -> Iterator[ObjectPath]:
        import obstore

        try:
            with _plain_errors(self):
                for page in obstore.list(self.bucket, self.key or None, chunk_size=1000):
                    yield from map(self._listed, page)
        except FileNotFoundError:  # the bucket
            return

    def _listed(self, meta: ObjectMeta) -> ObjectPath:
        path = ObjectPath(self.parts[0], self.parts[1], meta["path"])
        path._status = _status(meta)
        return path

    def open(self, mode: str = "rb", buffering: int = BUFFER) -> BinaryIO:
        """Open it for reading, in ranges of at least `buffering` bytes.

        All that is read is of one version of the object; replaced in the meantime, it cannot be read on.
        """
        if mode != "rb":
            raise ValueError(mode)
        return io.BufferedReader(_Reader(self), buffering)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return its content."""
        with self.open() as file:
            return file.read().decode(encoding, errors)

    def upload(self, file: Path) -> None:
        """Send a file of this machine, in parts where it is large; nobody sees it before it is whole."""
        import obstore

        with _plain_errors(self):
            obstore.put(self.bucket, self.key, file, chunk_size=PART, max_concurrency=UPLOADS)

    def create(self, content: bytes) -> bool:
        """Write it unless it is there, in one step; tell whether it was written."""
        import obstore

        with _plain_errors(self):
            try:
                obstore.put(self.bucket, self.key, content, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
            return True

    def unlink(self) -> None:
        """Remove it."""
        import obstore

        with _plain_errors(self):
            obstore.delete(self.bucket, self.key)


AnyPath = Path | ObjectPath
"""A file or folder, on this machine or in object storage."""


def as_path(address: str | AnyPath) -> AnyPath:
    """Return the path that an address leads to.

    Raises:
        StorageError: an address without a bucket.
    """
    if isinstance(address, ObjectPath) or not str(address).startswith(S3):
        return address if isinstance(address, ObjectPath) else Path(address)
    path = ObjectPath(address)
    if len(path.parts) < 2 or str(address).startswith(f"{S3}/"):
        raise StorageError(errno.EINVAL, "names no bucket; write s3://bucket/prefix", str(address))
    return path


def readable(path: AnyPath, buffering: int = BUFFER) -> Path | BinaryIO:
    """Return what gzip, bz2 and pyarrow read a file from: its path, or a stream where it lies in object storage."""
    return path if isinstance(path, Path) else path.open("rb", buffering)


def parquet(files: Sequence[AnyPath], schema: pa.Schema | None = None) -> pads.Dataset:
    """Return Parquet files as a dataset of Arrow, of which columns and rows can be read by themselves.

    Args:
        files: of one kind, on this machine or in object storage; one at least.
        schema: what they are read as; None takes that of the first.
    """
    import pyarrow.dataset as pads

    objects = [file for file in files if not isinstance(file, Path)]
    if not objects:
        return pads.dataset(list(files), schema=schema)
    form = pads.ParquetFileFormat(pre_buffer=False)  # it would keep all that it has read of a file
    fragments = [form.make_fragment(file.open("rb", COLUMNS)) for file in objects]
    return pads.FileSystemDataset(fragments, schema or fragments[0].physical_schema, form)


def delta_options() -> dict[str, str]:
    """Return the options with which deltalake reads and writes what `ObjectPath` does; the rest is the environment's.

    Raises:
        StorageError: the environment asks for commits that overwrite each other.
    """
    if os.environ.get("AWS_S3_ALLOW_UNSAFE_RENAME", "").lower() in ("1", "true", "yes", "y", "on"):
        raise StorageError(
            errno.EINVAL, "lets two commits overwrite each other; unset it", "AWS_S3_ALLOW_UNSAFE_RENAME"
        )
    return {"allow_http": "true", "max_retries": str(RETRIES), "retry_timeout": f"{PATIENCE}s"}


def cache_folder() -> Path:
    """Return trajmill's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trajmill"


class _Reader(io.RawIOBase):
    """Reads ranges of one version of an object."""

    def __init__(self, path: ObjectPath) -> None:
        self._path, self._status, self._at = path, path.stat(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._status.st_size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        import obstore

        end = min(self._at + len(buffer), self._status.st_size)
        if end <= self._at:
            return 0
        with _plain_errors(self._path):
            found = obstore.get(
                self._path.bucket, self._path.key, options={"range": (self._at, end), "if_match": self._status.etag}
            )
            content = memoryview(found.bytes())
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@lru_cache(maxsize=16)
def _bucket(name: str, environment: tuple[tuple[str, str], ...]) -> S3Store:  # noqa: ARG001 (it makes the cache's key)
    from obstore.store import S3Store

    with _plain_errors(ObjectPath(S3 + name)):
        return S3Store(
            name,
            client_options={"allow_http": True},
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=PATIENCE)},
        )


def _status(meta: ObjectMeta) -> ObjectStatus:
    time = meta["last_modified"]
    return ObjectStatus(meta["size"], int(time.timestamp()) * 10**9, meta["e_tag"] or time.isoformat())


@contextmanager
def _plain_errors(path: ObjectPath) -> Iterator[None]:
    """Turn errors of obstore into those of a file system, of one line."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.BaseError) as error:
        answer = _ANSWER.search(str(error))
        code, said = answer.groups() if answer else ("", one_line(error))
        if isinstance(error, FileNotFoundError) or code in MISSING:
            raise ObjectNotFoundError(errno.ENOENT, "not there", str(path)) from error
        if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)) or code in REFUSED:
            refused = f"access denied; check AWS_ACCESS_KEY_ID, AWS_REGION and the bucket's policy ({code or said})"
            raise StorageError(errno.EACCES, refused, str(path)) from error
        if isinstance(error, exceptions.PreconditionError):
            raise StorageError(errno.ESTALE, "was replaced while it was read; run again", str(path)) from error
        raise StorageError(errno.EIO, f"{said}; run again to go on", str(path)) from error
