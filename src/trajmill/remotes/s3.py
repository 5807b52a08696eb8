"""Public S3 buckets: listed and fetched over plain HTTP, which tells apart what goes wrong; ranges with obstore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlencode
from xml.etree.ElementTree import Element, ParseError, fromstring

from trajmill import recipe
from trajmill.errors import RemoteContentError, RemoteNotFoundError, RemoteRefusedError, RemoteUnavailableError
from trajmill.remotes.base import PlainFile
from trajmill.remotes.transfer import USER_AGENT, Again, Session

if TYPE_CHECKING:
    from obstore.store import S3Store

T = TypeVar("T")


class Bucket:
    """A bucket that anybody may read.

    Args:
        name: of the bucket.
        options: endpoint and region.
        session: how patient to be.
    """

    def __init__(self, name: str, options: recipe.FetchMaterialsProject, session: Session) -> None:
        from obstore.store import S3Store

        self.name, self._endpoint, self._session = name, options.endpoint.rstrip("/"), session
        seconds = session.options.timeout
        self.store: S3Store = S3Store(
            name,
            endpoint=self._endpoint,
            region=options.region,
            skip_signature=True,
            virtual_hosted_style_request=False,
            client_options={
                "user_agent": USER_AGENT,
                "allow_http": True,
                "timeout": timedelta(seconds=10 * seconds),
                "read_timeout": timedelta(seconds=seconds),
            },
            retry_config={
                "max_retries": session.options.retries,
                "retry_timeout": timedelta(seconds=60 + seconds * (1 + session.options.retries)),
            },
        )

    def url(self, key: str) -> str:
        """Return the address of an object."""
        return f"{self._endpoint}/{self.name}/{quote(key)}"

    def files(self, prefix: str, part_of: str = "") -> Iterator[PlainFile]:
        """List the objects below a prefix, each with its key as its place; see `RawFile.part_of`.

        Raises:
            FetchError: they cannot be listed.
        """
        for page in self._pages(prefix):
            for listed in page.iterfind("{*}Contents"):
                key = _text(listed, "Key")
                yield PlainFile(
                    path=key,
                    uri=self.url(key),
                    modified=datetime.fromisoformat(_text(listed, "LastModified")).isoformat(),
                    size=int(_text(listed, "Size")),
                    etag=_text(listed, "ETag"),
                    part_of=part_of,
                )

    def folders(self, prefix: str) -> list[str]:
        """List the names of the folders right below a prefix.

        Raises:
            FetchError: they cannot be listed.
        """
        found = [entry for page in self._pages(prefix, delimiter="/") for entry in page.iterfind("{*}CommonPrefixes")]
        return [_text(entry, "Prefix").rstrip("/").rpartition("/")[2] for entry in found]

    def _pages(self, prefix: str, **options: str) -> Iterator[Element]:
        """Ask for a listing page by page (ListObjectsV2)."""
        query: dict[str, str] = {"list-type": "2", "prefix": prefix, **options}
        while True:
            url = f"{self._endpoint}/{self.name}?{urlencode(query)}"
            page = self._session.persist(url, partial(self._page, url))
            yield page
            if not (token := page.findtext("{*}NextContinuationToken")):
                return
            query["continuation-token"] = token

    def _page(self, url: str) -> Element:
        """Read a page of a listing.

        Raises:
            Again: it is none, or not whole; taken for an empty one it would make all files look vanished.
        """
        try:
            page = fromstring(self._session.page(url)[0])  # noqa: S314 (expat limits entities since 2.4.1)
        except ParseError as error:
            raise Again(f"the listing cannot be read ({error})", final=RemoteContentError) from error
        cut = page.findtext("{*}IsTruncated") == "true" and not page.findtext("{*}NextContinuationToken")
        if not page.tag.endswith("ListBucketResult") or cut:
            raise Again("something else came in place of a listing", final=RemoteContentError)
        return page

    def ask(self, what: str, request: Callable[[], T]) -> T:
        """Make a request; obstore repeats what may succeed another time.

        Raises:
            FetchError: as its errors say.
        """
        from obstore import exceptions

        address = f"{self.url(what)}"
        try:
            return request()
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise RemoteNotFoundError(f"{address}: not there; see fetch.mp in the recipe") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise RemoteRefusedError(f"{address}: the server will not show it ({_line(error)})") from error
        except exceptions.BaseError as error:
            raise RemoteUnavailableError(f"{address}: {_line(error)}; run again to go on") from error


def _text(entry: Element, name: str) -> str:
    return entry.findtext(f"{{*}}{name}", "")


def _line(error: Exception) -> str:
    """Return what obstore says, without the pages of debugging that follow."""
    return " ".join(str(error).partition("Debug source")[0].split())[:300]
