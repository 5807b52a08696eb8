"""Downloads over HTTP: continued where they stopped, repeated when they fail, verified before they count."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from trajmill import recipe
from trajmill.errors import (
    DiskError,
    FetchError,
    RemoteContentError,
    RemoteNotFoundError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from trajmill.uris import without_password

if TYPE_CHECKING:
    import httpx2

USER_AGENT = f"trajmill/{version('trajmill')} (dataset builder; python)"

BACKOFF, BACKOFF_MAX = 0.5, 60.0
"""s before the first repetition, doubled each time, and at most; a random half of it is left out."""

FRUITFUL = 1 << 20
"""Bytes: an attempt that got so far does not count as one that gets nowhere."""

MAGIC = {".bz2": b"BZh", ".gz": b"\x1f\x8b", ".parquet": b"PAR1"}
"""How files begin, by suffix."""

TRANSIENT = {408, 425, 429}
"""Statuses that another attempt may not meet, besides all from 500 on."""

MD5 = re.compile(r"[0-9a-f]{32}")

T = TypeVar("T")


@dataclass(frozen=True)
class Received:
    """What arrived: SHA-256 of the file, and rows whose arrays were left out, by reason (tables only)."""

    sha256: str
    left_out: Mapping[str, int]


class Stopped(Exception):  # noqa: N818 (no error: the user wants it)
    """The fetch was told to stop."""


class Again(Exception):  # noqa: N818 (no error yet)
    """An attempt failed in a way that another may not.

    Attributes:
        wait: s the server asks to wait.
        final: the error to raise when no attempt does better.
    """

    def __init__(self, reason: str, *, wait: float = 0.0, final: type[FetchError] = RemoteUnavailableError) -> None:
        super().__init__(reason)
        self.wait, self.final = wait, final


class Session:
    """Connections, options and progress of one fetch; threads share it.

    Args:
        options: the recipe's section.
        advance: told how many bytes arrived; negative when they turned out useless.
        note: told in words why something is tried again.
    """

    def __init__(
        self,
        options: recipe.Fetch,
        advance: Callable[[int], None] = lambda _: None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        import httpx2

        self.options, self.advance, self.note = options, advance, note
        self.stop = threading.Event()
        self.client = httpx2.Client(
            # sizes and digests are of the bytes sent
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            timeout=options.timeout,
            follow_redirects=True,
            limits=httpx2.Limits(max_connections=options.connections),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def check(self) -> None:
        """Raise `Stopped` when the fetch was told to stop."""
        if self.stop.is_set():
            raise Stopped

    def persist(self, what: str, attempt: Callable[[], T], got: Callable[[], int] = lambda: 0) -> T:
        """Repeat an attempt until it succeeds or too many in a row got nowhere.

        Args:
            what: the address, for messages.
            attempt: raises `Again`, or what httpx2 raises for a connection that failed.
            got: bytes that arrived so far.

        Raises:
            FetchError: as the last `Again` says.
        """
        import httpx2

        what = without_password(what)
        fruitless, most = 0, got()
        while True:
            self.check()
            try:
                return attempt()
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):  # may quote a part of a password
                raise RemoteNotFoundError(f"{what}: no web address; see the recipe's section fetch") from None
            except (Again, httpx2.RequestError) as problem:
                again = problem if isinstance(problem, Again) else Again(_in_words(problem))
            fruitless = 1 if got() - most >= FRUITFUL else fruitless + 1
            most = max(most, got())
            if fruitless > self.options.retries:
                raise again.final(
                    f"{what}: {again} (tried {fruitless} times); what arrived is kept, run again to go on"
                )
            if again.wait > self.options.max_wait:
                raise RemoteUnavailableError(f"{what}: {again}, and to wait {again.wait:.0f} s; run again then")
            pause = min(BACKOFF_MAX, BACKOFF * 2 ** (fruitless - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
            self.note(f"{what}: {again}; trying again")
            self.stop.wait(max(pause, again.wait))

    def page(self, url: str) -> tuple[str, str]:
        """Return a page's text and its address, which a redirect may have changed."""

        def attempt() -> tuple[str, str]:
            with self.client.stream("GET", url) as response:
                check_status(response)
                content = b"".join(_steadily(self, response.iter_bytes()))
                text = content.decode(response.encoding or "utf-8", errors="replace")
            if re.search("<html", text, re.IGNORECASE) and not re.search("</html>", text, re.IGNORECASE):
                raise Again("the page is cut off", final=RemoteContentError)
            return text, str(response.url)

        return self.persist(url, attempt)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def check_status(response: httpx2.Response) -> None:
    """Tell by its status what became of a request.

    Raises:
        Again: another attempt may succeed.
        RemoteNotFoundError, RemoteRefusedError: none will.
    """
    status, url = response.status_code, without_password(str(response.url))
    said = f"the server answers {status} {response.reason_phrase}".rstrip()
    if status in TRANSIENT or status >= 500:
        raise Again(said, wait=_retry_after(response.headers.get("Retry-After")))
    if status in (404, 410):
        raise RemoteNotFoundError(f"{url}: {said}; it may have moved: see the recipe's section fetch")
    if status >= 400:
        raise RemoteRefusedError(f"{url}: {said}")
    if status not in (200, 206):
        raise Again(said, final=RemoteContentError)


def _retry_after(text: str | None) -> float:
    """Read a Retry-After header, seconds or a date; 0 when there is none (RFC 9110, 10.2.3)."""
    if text is None:
        return 0.0
    if re.fullmatch(r"\s*[0-9]+\s*", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def download(
    session: Session, url: str, target: Path, *, size: int | None, etag: str | None, identity: Mapping[str, Any]
) -> Received:
    """Download a file.

    It grows as `NAME.part` beside `target`, with what the server says of it in `NAME.part.json`, and gets its name when
    length and checksum are right. A part of the same file is continued, also one that another process left.

    Args:
        session: connections and options.
        url: address.
        target: the file.
        size: bytes as listed, None when unknown.
        etag: as listed; when it has the form of an MD5, the content must have it.
        identity: what upstream lists; a part that was begun under another identity is of no use.

    Raises:
        FetchError: it cannot be had; its subclasses say why.
        Stopped: the session was told to stop.
    """
    with plain_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Part(target, identity, size, etag, session.advance)
        session.persist(url, lambda: _attempt(session, url, part), lambda: part.n_bytes)
        return Received(part.finish(), {})


def _attempt(session: Session, url: str, part: Part) -> None:
    """Ask for what is missing and take it."""
    if part.complete:
        return part.verify()
    with session.client.stream("GET", url, headers=part.conditions()) as response:
        if response.status_code == 416:  # the part is longer than the file is by now
            part.restart({})
            raise Again("the file has changed", final=RemoteContentError)
        check_status(response)
        part.begin(response)
        for data in _steadily(session, response.iter_raw()):
            part.write(data)
    return part.verify()


def _steadily(session: Session, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass chunks on; give up on a connection that is too slow for too long, as curl's --speed-limit does."""
    window = session.options.timeout
    since, got = time.monotonic(), 0
    for data in chunks:
        session.check()
        yield data
        got += len(data)
        if (passed := time.monotonic() - since) > window:
            if got < session.options.min_rate * passed:
                raise Again(f"only {got / passed:.0f} bytes/s over {passed:.0f} s")
            since, got = time.monotonic(), 0


class Part:
    """A file while it is being downloaded."""

    def __init__(
        self,
        target: Path,
        identity: Mapping[str, Any],
        size: int | None,
        etag: str | None,
        advance: Callable[[int], None],
    ) -> None:
        self._target, self._identity, self._size, self._advance = target, dict(identity), size, advance
        self._etag = etag.strip('"').lower() if etag else ""
        self._path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        self._said: dict[str, Any] = {}
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if MD5.fullmatch(self._etag) else None
        self.n_bytes = 0
        self._resume()

    def _resume(self) -> None:
        """Take up what is there, unless it was begun when upstream listed something else."""
        try:
            said = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if not isinstance(said, dict) or said.get("identity") != self._identity or not self._path.exists():
            return
        with self._path.open("rb") as file:
            while data := file.read(1 << 20):
                self._digest(data)
        self._said = said

    def _digest(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._md5:
            self._md5.update(data)
        self.n_bytes += len(data)
        self._advance(len(data))

    @property
    def _total(self) -> int | None:
        """Bytes the file has: as the server said, else as listed."""
        total: int | None = self._said.get("total")
        return total if total is not None else self._size

    @property
    def complete(self) -> bool:
        """Whether all bytes are here already: a process was killed before it could give the file its name."""
        return bool(self._said) and self.n_bytes == self._total

    def conditions(self) -> dict[str, str]:
        """Return the headers that ask for the rest, of this very file; for all of it when it could be another one."""
        validator = self._said.get("etag") or self._said.get("last_modified")
        if not self.n_bytes or not validator:
            return {}
        weak = validator.startswith("W/")  # then it may not be used so (RFC 9110, 13.1.5); `begin` compares
        return {"Range": f"bytes={self.n_bytes}-"} | ({} if weak else {"If-Range": validator})

    def begin(self, response: httpx2.Response) -> None:
        """Check what the server announces and get ready for it.

        Raises:
            Again: it is not what was listed, or not the file this is a part of.
        """
        said = _announced(response)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise self._junk("a web page")
        # a .gz file may be labelled so, as it is; but who compresses on the way does not know the length before
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity" and (self._target.suffix != ".gz" or said["total"] is None):
            raise self._junk(f"a stream in {encoding}")
        if said["total"] is None and self._size is None and "Transfer-Encoding" not in response.headers:
            raise Again("nobody says how long the file is", final=RemoteContentError)
        if self._size is not None and said["total"] not in (None, self._size):
            raise Again(f"{said['total']} bytes are sent, {self._size} were listed", final=RemoteContentError)
        if response.status_code == 206:
            same = all(said[key] == self._said.get(key) for key in ("etag", "last_modified", "total"))
            if said["start"] != self.n_bytes or not same:
                self.restart({})
                raise Again("the file has changed while it was fetched", final=RemoteContentError)
            return
        self.restart(said | {"identity": self._identity})

    def restart(self, said: dict[str, Any]) -> None:
        """Begin anew with what the server says of the file."""
        self._advance(-self.n_bytes)
        self.n_bytes = 0
        self._said = said
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if self._md5 else None
        self._path.unlink(missing_ok=True)
        self._note.write_text(json.dumps(said), encoding="utf-8")

    def write(self, data: bytes) -> None:
        """Append what arrived.

        Raises:
            Again: the file does not begin as one of its kind.
        """
        magic = MAGIC.get(self._target.suffix, b"")
        if not self.n_bytes and not data.startswith(magic[: len(data)]):
            raise self._junk("a web page" if data.lstrip()[:1] == b"<" else f"something that begins {data[:12]!r}")
        with self._path.open("ab") as file:  # buffered: a bare write may write less than it was given
            file.write(data)
        self._digest(data)

    def _junk(self, what: str) -> Again:
        return Again(f"{what} came in place of a {self._target.suffix} file", final=RemoteContentError)

    def verify(self) -> None:
        """Check length and checksum.

        Raises:
            Again: bytes are missing or wrong.
        """
        if self._total is not None and self.n_bytes != self._total:
            if self.n_bytes > self._total:
                self.restart({})
            raise Again(f"{self.n_bytes} of {self._total} bytes arrived", final=RemoteContentError)
        if not self.n_bytes and self._size != 0:
            raise Again("nothing arrived", final=RemoteContentError)
        encrypted = self._said.get("encryption") == "aws:kms"  # then the ETag is no MD5
        if self._md5 and not encrypted and self._md5.hexdigest() != self._etag:
            self.restart({})
            raise Again(f"the checksum is wrong, it should be {self._etag} (MD5)", final=RemoteContentError)

    def finish(self) -> str:
        """Give the file its name and return its SHA-256."""
        self._path.touch()  # an empty file
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        self._path.replace(self._target)
        self._note.unlink(missing_ok=True)
        return self._sha256.hexdigest()


def _announced(response: httpx2.Response) -> dict[str, Any]:
    """Read what a response says of the file it brings."""
    headers = response.headers
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        start, total = (int(found[1]), int(found[2])) if found else (None, None)
    else:
        length = headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdigit() else None
    return {
        "start": start,
        "total": total,
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
        "encryption": headers.get("x-amz-server-side-encryption"),
    }


@contextmanager
def plain_disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk and its kin into one line that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = error.strerror or str(error)
        what = "the disk is full; make room and run again to go on" if full else f"cannot be written ({why})"
        raise DiskError(f"{target}: {what}") from error
