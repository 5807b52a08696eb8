"""Addresses, and errors that quote them, as they may be shown and stored: without names of users and passwords."""

from __future__ import annotations

import re

_SCHEME = r"[a-zA-Z][a-zA-Z0-9+.-]*://"
_URL = re.compile(rf"({_SCHEME})((?:(?!{_SCHEME})\S)+)")
_HOST = re.compile(r"(\[[^\]@]*\]|[^:@\[\]]*)(:\d*)?")
"""A host and its port, nothing before them."""


def without_password(text: str) -> str:
    """Remove user name and password of every URL in a text.

    A password may hold characters that belong percent-encoded (`@`, `/`, `?`, `#`). Where they could be part of either,
    too much goes rather than too little: of `x://u:p@host/a@b` stays `x://b`.

    Args:
        text: a URL, or prose with URLs in it.
    """
    return _URL.sub(lambda url: url[1] + _without_user(url[2]), text)


def _without_user(rest: str) -> str:
    """Strip what is before the host; `rest` is a URL without its scheme."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if _HOST.fullmatch(authority):  # an @ in the path names a version or a revision
        return rest
    if "@" not in authority:  # `u:p`, cut at a character of the password
        return rest.rpartition("@")[2]
    if ":" not in authority.rpartition("@")[0]:
        return authority.rpartition("@")[2] + rest[len(authority) :]
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return path.rpartition("@")[2] + rest[len(path) :]


def one_line(error: BaseException) -> str:
    """Return what an error of obstore or deltalake says: they fill pages, in colour, and quote addresses."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("Debug source")[0]
    return without_password(" ".join(said.split()))[:300]
