"""OQMD's download page: the dump of the newest version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trajmill import recipe
from trajmill.errors import RemoteNotFoundError
from trajmill.remotes.base import PlainFile, Stage
from trajmill.remotes.pages import links
from trajmill.remotes.transfer import MD5, Session, check_status
from trajmill.sources.oqmd import dump_version
from trajmill.uris import without_password

if TYPE_CHECKING:
    import httpx2

NO_HEAD = {403, 405, 501}
"""Statuses of servers that refuse HEAD, of which some hand the file out all the same."""


@dataclass(frozen=True)
class OqmdRemote:
    """OQMD's download page. It gives no sizes, so the dump's own address is asked."""

    options: recipe.FetchOqmd
    name: str = "oqmd"
    layout: str = "dump"

    def stages(self, session: Session, root: Path) -> Iterator[Stage]:  # noqa: ARG002 (nothing is joined)
        """List the newest dump; see `Remote.stages`. Versions compare as integers: 1.10 is newer than 1.9."""
        dumps = [(dump_version(link.name), link) for link in links(*session.page(self.options.url))]
        newest = max(((v, link) for v, link in dumps if v), key=lambda found: found[0] or (), default=None)
        if newest is None:
            page = without_password(self.options.url)
            raise RemoteNotFoundError(
                f"{page}: links to no dump `qmdb__v1_8__022026.sql.gz`; see fetch.oqmd in the recipe"
            )
        version, link = newest
        size, etag, modified = session.persist(link.url, lambda: _ask(session, link.url))
        file = PlainFile(path=link.name, address=link.url, size=size, etag=etag, modified=modified, part_of="dump")
        major, minor, year, month = version or (0, 0, 0, 0)
        yield Stage(files=[file], version={"dump": f"{major}.{minor} of {year}-{month:02}"})


def _ask(session: Session, url: str) -> tuple[int | None, str | None, str | None]:
    """Ask for a file's length, ETag and date."""
    response = session.client.head(url)
    if response.status_code not in NO_HEAD:
        return _said(response)
    with session.client.stream("GET", url) as response:  # closed before anything is read of the file
        return _said(response)


def _said(response: httpx2.Response) -> tuple[int | None, str | None, str | None]:
    """Read length, ETag and date."""
    check_status(response)
    length = response.headers.get("Content-Length", "")
    etag = response.headers.get("ETag")
    if etag and MD5.fullmatch(etag.strip('"')):
        etag = None  # who but S3 has one of this form may mean something else by it
    return int(length) if length.isdigit() else None, etag, _iso(response.headers.get("Last-Modified", ""))


def _iso(date: str) -> str | None:
    """Read an HTTP date."""
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(date).isoformat()
    return None
