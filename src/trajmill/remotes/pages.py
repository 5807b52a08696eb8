"""Listing pages: what a directory index of nginx or Apache, or any page with links, says of the files it links to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from html import unescape
from urllib.parse import unquote, urljoin, urlsplit

_LINK = re.compile(
    r'<a\s[^>]*?href\s*=\s*["\']([^"\']+)["\'][^>]*>(?:(?!</a>).)*</a>([^\n<]*)', re.IGNORECASE | re.DOTALL
)
_DATED = re.compile(r"\s*(\d{1,2}-[A-Za-z]{3}-\d{4} \d{2}:\d{2}|\d{4}-\d{2}-\d{2} \d{2}:\d{2})\s+(-|[\d.]+[KMGT]?)\s*")
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

    The name is taken from `href`: nginx cuts long names in the text. Links that leave the page's folder upwards, and
    those that only sort the listing, are left out.

    Args:
        page: HTML.
        url: the page's own address, which relative links are joined to.
    """
    found: dict[str, Link] = {}
    for href, beside in _LINK.findall(page):
        target = urljoin(url, unescape(href))
        path = urlsplit(target).path
        name = unquote(path.rstrip("/").rpartition("/")[2]) + ("/" if path.endswith("/") else "")
        if href.startswith(("?", "#")) or urlsplit(url).path.startswith(path):
            continue
        date, size = match.groups() if (match := _DATED.match(beside)) else (None, "-")
        exact = int(size) if size.isdigit() else None
        about = exact if exact is not None else round(float(size[:-1]) * _UNITS.get(size[-1], 1)) if size != "-" else 0
        found.setdefault(target, Link(url=target, name=name, modified=_iso(date), size=exact, about=about))
    return list(found.values())


def _iso(date: str | None) -> str | None:
    if date is None:
        return None
    form = "%d-%b-%Y %H:%M" if "-" in date[:3] else "%Y-%m-%d %H:%M"
    return datetime.strptime(date, form).isoformat()
