"""Listing pages: what a directory index of nginx or Apache, or any page with links, says of the files it links to."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from html import unescape
from urllib.parse import unquote, urljoin, urlsplit

_LINK = re.compile(
    r'<a\s[^>]*?href\s*=\s*["\']([^"\']+)["\'][^>]*>(?:(?!</a>).)*</a>([^\n<]*)', re.IGNORECASE | re.DOTALL
)
_DATED = re.compile(
    r"\s*(\d{1,2}-[A-Z]{3}-\d{4} \d{2}:\d{2}|\d{4}-\d{2}-\d{2} \d{2}:\d{2})"
    r"\s+(?:-|(\d{1,18})|(\d{1,9}(?:\.\d{1,9})?)([KMGT]))(?!\S)",
    re.IGNORECASE | re.ASCII,
)
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link of a page.

    Attributes:
        url: absolute.
        name: last part of its path, unquoted; ends with `/` for a folder.
        modified: ISO date beside it, in the server's time; None when there is none.
        size: bytes, None when none is given or only a rounded one.
        about: bytes, rounded or not; 0 when none is given.
    """

    url: str
    name: str
    modified: str | None = None
    size: int | None = None
    about: int = 0


def links(page: str, url: str) -> list[Link]:
    """Read the links of a page in their order, each address once.

    The name is taken from `href`: nginx cuts long names in the text. Links to the page's folder and those above it,
    those that only sort the listing, and those that are no addresses are left out.

    Args:
        page: HTML.
        url: the page's own address, which relative links are joined to.
    """
    found: dict[str, Link] = {}
    for href, beside in _LINK.findall(page):
        try:
            target = urljoin(url, unescape(href))
            path = urlsplit(target).path
        except ValueError:
            continue
        if href.startswith(("?", "#")) or urlsplit(url).path.startswith(path):
            continue
        name = unquote(path.rstrip("/").rpartition("/")[2]) + ("/" if path.endswith("/") else "")
        date, exact, rounded, unit = match.groups(default="") if (match := _DATED.match(beside)) else ("", "", "", "")
        size = int(exact) if exact else None
        about = size or round(float(rounded or 0) * _UNITS.get(unit.upper(), 1))
        found.setdefault(target, Link(url=target, name=name, modified=_iso(date), size=size, about=about))
    return list(found.values())


def _iso(date: str) -> str | None:
    form = "%d-%b-%Y %H:%M" if "-" in date[:3] else "%Y-%m-%d %H:%M"
    with suppress(ValueError):
        return datetime.strptime(date, form).isoformat()
    return None
