"""Who may ask what: the explorer reads, for those who know its token, under its own name, and for no other page."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""What every answer says: scripts and all else come from here, and no other page may hold, frame or read it."""


_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]+)?", re.ASCII)


def is_loopback(host: str) -> bool:
    """Tell whether a server that is bound to this host can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Lets requests through that may pass, before anything of the explorer sees them.

    A page of another site can make a browser ask, but under that site's name (`Host`), or without the cookie, and can
    read no answer.

    Args:
        app: what is guarded.
        host: that the server is bound to.
        token: that a request must show, in its address once and in a cookie from then on; None asks for none.
    """

    def __init__(self, app: App, host: str, token: str | None = None) -> None:
        self._app, self._token = app, token
        self._everywhere = host in ("0.0.0.0", "::")  # noqa: S104 (asked about, not bound to)
        self._names = {*LOOPBACK, host.lower()}
        if self._everywhere:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] != "GET":
            await _say(send, 405, "only GET", ("allow", "GET"))
        elif not self._is_ours(headers.get("host", "")):
            await _say(send, 421, "this server has another name; open the address that trajmill printed")
        elif self._token is None or self._shown(headers.get("cookie", ""), scope["server"][1]):
            await self._app(scope, receive, _with_headers(send))
        else:
            await self._ask_for_token(scope, send)

    def _is_ours(self, host: str) -> bool:
        """Tell whether a request is for us by name: a name that somebody made lead here is not."""
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = match["name"].strip("[]")
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._everywhere  # no name server can make an address of digits lead elsewhere

    def _shown(self, cookie: str, port: int) -> bool:
        """Tell whether a cookie holds the token."""
        pairs = (pair.strip().partition("=") for pair in cookie.split(";"))
        return any(name == _cookie(port) and self._is_token(value) for name, _, value in pairs)

    def _is_token(self, text: str) -> bool:
        return self._token is not None and secrets.compare_digest(_digest(text), _digest(self._token))

    async def _ask_for_token(self, scope: Scope, send: Send) -> None:
        """Take the token from the address, put it into a cookie, and lead to the address without it."""
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        if not any(name == "token" and self._is_token(value) for name, value in query):
            await _say(send, 401, "open the address with the token, as trajmill printed it where it was started")
            return
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        location = ("/trajectory" if scope["path"] == "/trajectory" else "/") + (f"?{rest}" if rest else "")
        cookie = f"{_cookie(scope['server'][1])}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        await _say(send, 303, "", ("location", location), ("set-cookie", cookie))


def _cookie(port: int) -> str:
    """Return the name of the cookie; browsers do not keep cookies of different ports apart."""
    return f"trajmill-{port}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_encoded(HEADERS.items())]
        await send(message)

    return sending


async def _say(send: Send, status: int, text: str, *more: tuple[str, str]) -> None:
    content = text.encode()
    headers = [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", str(len(content))),
        ("cache-control", "no-store"),
    ]
    start = {"type": "http.response.start", "status": status, "headers": list(_encoded([*headers, *more]))}
    await _with_headers(send)(start)
    await send({"type": "http.response.body", "body": content})


def _encoded(headers: Any) -> Any:
    return ((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)
