"""Public S3 buckets: listed with obstore, files fetched over their plain addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from trajmill import recipe
from trajmill.errors import RemoteNotFoundError, RemoteRefusedError, RemoteUnavailableError
from trajmill.remotes.base import PlainFile
from trajmill.remotes.transfer import USER_AGENT, Session

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
            client_options={"user_agent": USER_AGENT, "allow_http": True, "timeout": timedelta(seconds=10 * seconds)},
            retry_config={
                "max_retries": session.options.retries,
                "retry_timeout": timedelta(seconds=60 + seconds * (1 + session.options.retries)),
            },
        )

    def url(self, key: str) -> str:
        """Return the address of an object."""
        return f"{self._endpoint}/{self.name}/{quote(key)}"

    def objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        """List the objects below a prefix: `path`, `size`, `last_modified`, `e_tag`."""
        for page in self.ask(prefix, lambda: self.store.list(prefix)):
            self._session.check()
            yield from page  # type: ignore[misc] (obstore types a page by its return format)

    def folders(self, prefix: str) -> list[str]:
        """List the names of the folders right below a prefix."""
        listed = self.ask(prefix, lambda: self.store.list_with_delimiter(prefix))
        return [path.rstrip("/").rpartition("/")[2] for path in listed["common_prefixes"]]

    def file(self, listed: dict[str, Any], path: str, part_of: str = "") -> PlainFile:
        """Describe a listed object."""
        return PlainFile(
            path=path,
            uri=self.url(listed["path"]),
            modified=listed["last_modified"].isoformat(),
            size=listed["size"],
            etag=listed["e_tag"],
            part_of=part_of,
        )

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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
