"""Alexandria's listing pages: sets of path files in the old layout and in the new, dated one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from trajmill import recipe
from trajmill.errors import RemoteNotFoundError
from trajmill.remotes.base import PlainFile, Stage
from trajmill.remotes.pages import Link, links
from trajmill.remotes.transfer import Session

_DATE = re.compile(r"\d{4}\.\d{2}\.\d{2}/")


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
        folders = self._dated(session, url) if self.options.layout == "new" else self._undated(url)
        files = [file for part, folder in folders.items() for file in _files(session, url, folder, part)]
        version = {part: folder.removeprefix(url).strip("/") for part, folder in folders.items()}
        yield Stage(files=list(files), version=version if self.options.layout == "new" else {})

    def _undated(self, url: str) -> dict[str, str]:
        return {name: urljoin(url, f"{name}/geo_opt_paths/") for name in self.options.sets}

    def _dated(self, session: Session, url: str) -> dict[str, str]:
        """Find the newest date of each set: not every date has all of them."""
        top = urljoin(url, "geo_opt_paths/")
        dates = sorted((n for n in _listing(session, top) if _DATE.fullmatch(n.name)), key=lambda link: link.name)
        found: dict[str, str] = {}
        for date in reversed(dates):
            for link in _listing(session, date.url):
                if link.name.rstrip("/") in self.options.sets:
                    found.setdefault(link.name.rstrip("/"), link.url.rstrip("/") + "/")
            if len(found) == len(self.options.sets):
                break
        if missing := [name for name in self.options.sets if name not in found]:
            raise RemoteNotFoundError(
                f"{top}: no folder {', '.join(missing)} below any date; see fetch.alexandria in the recipe"
            )
        return {name: found[name] for name in self.options.sets}


def _listing(session: Session, url: str) -> list[Link]:
    return links(*session.page(url))


def _files(session: Session, url: str, folder: str, part: str) -> list[PlainFile]:
    """List the path files of a folder; a dated folder is replaced by the next date's as a whole."""
    dated = "geo_opt_paths" in folder.removeprefix(url).partition("/")[0]
    found = [
        PlainFile(
            path=unquote(urlsplit(urljoin(folder, link.name)).path.removeprefix(urlsplit(url).path)),
            uri=link.url,
            modified=link.modified,
            size=link.size,
            about=link.about,
            part_of=part if dated else "",
        )
        for link in _listing(session, folder)
        if link.name.endswith(".json.bz2")
    ]
    if not found:
        raise RemoteNotFoundError(f"{folder}: lists no *.json.bz2 files; see fetch.alexandria in the recipe")
    return found
