"""Alexandria's listing pages: sets of path files in the old layout and in the new, dated one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from trajmill import recipe
from trajmill.errors import RemoteNotFoundError
from trajmill.remotes.base import PlainFile, Stage
from trajmill.remotes.pages import Link, links
from trajmill.remotes.transfer import Session
from trajmill.uris import without_password

_DATE = re.compile(r"[0-9]{4}\.[0-9]{2}\.[0-9]{2}/")


@dataclass(frozen=True)
class AlexandriaRemote:
    """Alexandria's data pages."""

    options: recipe.FetchAlexandria
    name: str = "alexandria"

    @property
    def layout(self) -> str:
        """Return the layout: of the pages; both can be read."""
        return self.options.layout

    def stages(self, session: Session, root: Path) -> Iterator[Stage]:  # noqa: ARG002 (nothing is joined)
        """List all path files of the sets; see `Remote.stages`."""
        url = self.options.url.rstrip("/") + "/"
        if self.options.layout == "old":
            places: list[tuple[str, str]] = [(f"{name}/geo_opt_paths/", name) for name in self.options.sets]
            version = {}  # without one, a file that is gone has vanished and was not replaced
        else:
            version = self._dated(session, url)
            # a dated folder is replaced by that of the next date as a whole
            places = [(f"geo_opt_paths/{date}/{name}/", name) for name, date in version.items()]
        files = [file for place, part_of in places for file in _files(session, url, place, part_of)]
        yield Stage(files=[*files], version=version)

    def _dated(self, session: Session, url: str) -> dict[str, str]:
        """Find the newest date of each set: not every date has all of them."""
        top = urljoin(url, "geo_opt_paths/")
        dates = sorted((link.name for link in _listing(session, top) if _DATE.fullmatch(link.name)), reverse=True)
        found: dict[str, str] = {}
        for date in dates:
            here = {link.name for link in _listing(session, urljoin(top, date))}
            for name in self.options.sets:
                if f"{name}/" in here:
                    found.setdefault(name, date.rstrip("/"))
            if found.keys() == set(self.options.sets):
                return found
        missing = ", ".join(name for name in self.options.sets if name not in found)
        raise RemoteNotFoundError(
            f"{without_password(top)}: no folder {missing} below any date; see fetch.alexandria in the recipe"
        )


def _files(session: Session, url: str, place: str, part_of: str) -> list[PlainFile]:
    """List the path files of a folder."""
    folder = urljoin(url, place)
    found = [
        PlainFile(
            path=place + link.name,
            address=link.url,
            modified=link.modified,
            size=link.size,
            about=link.about,
            part_of=part_of,
        )
        for link in _listing(session, folder)
        if link.name.endswith(".json.bz2")
    ]
    if not found:
        raise RemoteNotFoundError(
            f"{without_password(folder)}: lists no *.json.bz2 files; see fetch.alexandria in the recipe"
        )
    return found


def _listing(session: Session, url: str) -> list[Link]:
    """Read a page's links to what is right in its folder, and nowhere else."""
    page, address = session.page(url)
    inside = address.rpartition("/")[0]
    return [
        link
        for link in links(page, address)
        if link.url.rstrip("/").rpartition("/")[0] == inside and "/" not in link.name.rstrip("/")
    ]
