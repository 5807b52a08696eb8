"""Public S3 buckets: listed and fetched over plain HTTP, which tells apart what goes wrong; ranges with obstore."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from xml.etree.ElementTree import Element, ParseError, fromstring

from trajmill import recipe
from trajmill.errors import RemoteContentError, RemoteNotFoundError, RemoteRefusedError, RemoteUnavailableError
from trajmill.remotes.base import PlainFile
from trajmill.remotes.transfer import USER_AGENT, Again, Session
from trajmill.uris import one_line, without_password

if TYPE_CHECKING:
    from obstore.store import S3Store

T = TypeVar("T")


class Bucket:
    """A bucket that anybody may read.

    Args:
        name: of the bucket.
        options: endpoint and region.
        session: how patient to be.

    Raises:
        RemoteNotFoundError: endpoint and name make no web address.
    """

    def __init__(self, name: str, options: recipe.FetchMaterialsProject, session: Session) -> None:
        from obstore.store import S3Store

        self.name, self._endpoint, self._session = name, options.endpoint.rstrip("/"), session
        _check_address(f"{self._endpoint}/{name}")
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
        """Return the address of an object as it may be shown and stored: without a password."""
        return without_password(self._address(key))

    def _address(self, key: str) -> str:
        return f"{self._endpoint}/{self.name}/{quote(key)}"

    def files(self, prefix: str, part_of: str = "") -> Iterator[PlainFile]:
        """List the objects below a prefix, each with its key as its place; see `RawFile.part_of`.

        Raises:
            FetchError: they cannot be listed.
        """
        for page in self._pages(prefix):
            for listed in page.iterfind("{*}Contents"):
                key, modified, size = _object(listed)
                yield PlainFile(
                    path=key,
                    address=self._address(key),
                    modified=modified,
                    size=size,
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
            for listed in page.iterfind("{*}Contents"):
                _object(listed)  # while it can be asked for again
        except (ParseError, ValueError) as error:
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

        address = self.url(what)
        try:
            return request()
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise RemoteNotFoundError(f"{address}: not there; see fetch.mp in the recipe") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise RemoteRefusedError(f"{address}: the server will not show it ({one_line(error)})") from error
        except exceptions.BaseError as error:
            raise RemoteUnavailableError(f"{address}: {one_line(error)}; run again to go on") from error


def _check_address(address: str) -> None:
    """Refuse what is no web address; obstore and deltalake would panic.

    Raises:
        RemoteNotFoundError: it is none.
    """
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"[!-~]+", address):
        raise RemoteNotFoundError(f"{without_password(address)}: no web address; see fetch.mp in the recipe")


def _object(listed: Element) -> tuple[str, str, int]:
    """Read an object's key, ISO date and bytes.

    Raises:
        ValueError: the date or the bytes are not there, or none.
    """
    modified = datetime.fromisoformat(_text(listed, "LastModified")).isoformat()
    return _text(listed, "Key"), modified, int(_text(listed, "Size"))


def _text(entry: Element, name: str) -> str:
    return entry.findtext(f"{{*}}{name}", "")
