"""What a remote is: it lists the files that a source publishes, each of which knows how to get itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trajmill.remotes.transfer import Received, Session, download
from trajmill.uris import without_password


class RemoteFile(Protocol):
    """A file that upstream publishes.

    Attributes:
        path: its place in the raw folder, with `/`.
        uri: its address, without a password.
        identity: what upstream says of it; a file whose identity differs from the manifest's is fetched again.
        modified: ISO date that upstream gives it.
        n_bytes: how much is to be transferred.
        at_most: whether `n_bytes` is only a bound: parts of the file are left out.
        part_of: see `RawFile.part_of`.
    """

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def uri(self) -> str: ...  # noqa: D102
    @property
    def identity(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def modified(self) -> str | None: ...  # noqa: D102
    @property
    def n_bytes(self) -> int: ...  # noqa: D102
    @property
    def at_most(self) -> bool: ...  # noqa: D102
    @property
    def part_of(self) -> str: ...  # noqa: D102

    def get(self, session: Session, target: Path) -> Received:
        """Fetch the file to `target`, which appears complete or not at all.

        Raises:
            FetchError: it cannot be had; its subclasses say why.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PlainFile:
    """A file fetched as it is, over HTTP.

    Attributes:
        address: where to ask for it; may hold a password.
        size: exact bytes as listed, None when the listing gives none or a rounded figure.
        about: a rounded figure, for planning.
        etag: as listed; of S3, usually the MD5 of the content.
    """

    path: str
    address: str
    modified: str | None = None
    size: int | None = None
    about: int = 0
    etag: str | None = None
    part_of: str = ""
    at_most: bool = False

    @property
    def uri(self) -> str:
        """Return the address as it may be shown and stored."""
        return without_password(self.address)

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the listing says."""
        return {"size": self.size, "about": self.about, "modified": self.modified, "etag": self.etag}

    @property
    def n_bytes(self) -> int:
        """Return the size, exact or about."""
        return self.size if self.size is not None else self.about

    def get(self, session: Session, target: Path) -> Received:
        """Download it; see `RemoteFile.get`."""
        return download(session, self.address, target, size=self.size, etag=self.etag, identity=self.identity)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Files that can be fetched side by side, and the version of each part they belong to.

    Attributes:
        files: all files of this stage that upstream has, fetched already or not.
        version: by the name of a part; see `RawManifest.version`.
    """

    files: list[RemoteFile]
    version: Mapping[str, str] = field(default_factory=dict)


class Remote(Protocol):
    """A source's publisher."""

    @property
    def name(self) -> str:
        """The source."""
        ...

    @property
    def layout(self) -> str:
        """Which of its layouts is fetched; a folder holds one."""
        ...

    def stages(self, session: Session, root: Path) -> Iterator[Stage]:
        """List what is published, without fetching it.

        A stage is asked for when the files of those before it are in the folder (in a dry run they may not be), so it
        may look at them.

        Args:
            session: connections and options.
            root: the raw folder.

        Raises:
            FetchError: it cannot be listed, or nothing is there.
        """
        ...
