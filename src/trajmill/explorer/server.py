"""The server, from start to Ctrl-C."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from trajmill.dataset import Dataset
from trajmill.errors import TrajmillError, require
from trajmill.explorer import ExploreError
from trajmill.explorer.app import make_app
from trajmill.explorer.guard import Guard, is_loopback
from trajmill.explorer.index import Index, Span
from trajmill.explorer.indexing import Report, prepare
from trajmill.explorer.query import read
from trajmill.explorer.reading import Reader
from trajmill.stores import shown

PORT = 8765
GRACE = 2
"""Seconds that answers under way are waited for when the server is stopped."""


class Explorer:
    """A server of one dataset, on a port that it holds from the beginning.

    Args:
        address: of the dataset.
        host: to bind to.
        port: 0 takes a free one.
        token: ask for a token also where only this machine can reach the server.
        report: told how far the index is.

    Attributes:
        port: that it is at.
        url: what to open; with the token, where there is one.

    Raises:
        ExploreError: the port is taken, or the index cannot be written.
        MissingExtraError: Starlette or uvicorn is not installed (extra `explore`).
    """

    def __init__(
        self,
        address: str,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        token: bool = False,
        report: Report = lambda *_: None,
    ) -> None:
        uvicorn = require("uvicorn", extra="explore")
        require("starlette", extra="explore")
        self._socket = _bound(host, port)
        try:
            source = prepare(address, Dataset(address), report)
            self._index = Index(source.index)
        except BaseException:
            self._socket.close()
            raise
        secret = None if is_loopback(host) and not token else secrets.token_urlsafe(24)
        about = {"name": shown(address), "manifest": _made_with(source.dataset)}
        self._reader = Reader(source.dataset)
        app = Guard(make_app(self._index, self._reader, about), host, secret)
        # no log of accesses: the token is in the first of them
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", loop="asyncio", ws="none",
            timeout_graceful_shutdown=GRACE,
        )  # fmt: skip
        self._server: Any = uvicorn.Server(config)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{_name(host)}:{self.port}/" + (f"?token={secret}" if secret else "")

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until Ctrl-C, or until `stop` is called.

        Args:
            ready: called when requests are answered: they wait at the port before.
        """
        first = self._index.page(read({}))["rows"][:1]
        for trajectory_id in (row["trajectory_id"] for row in first):
            spans = tuple(self._index.spans(trajectory_id))
            threading.Thread(target=self._warm_up, args=(trajectory_id, spans), daemon=True).start()
        try:
            with _interrupted_by(self.stop):
                ready()
                self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self._index.close()

    def _warm_up(self, trajectory_id: str, spans: tuple[Span, ...]) -> None:
        """Read a trajectory that nobody asked for: the first takes longest."""
        with suppress(TrajmillError):  # whoever asks for it is told
            self._reader.rows(trajectory_id, spans)

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.should_exit = True


@contextmanager
def _interrupted_by(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C stop the server also while it starts, and after uvicorn, which passes it on when it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def open_browser(url: str) -> None:
    """Open a page where a person with a browser is in front of this machine."""
    graphical = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if graphical and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _bound(host: str, port: int) -> socket.socket:
    try:
        (family, *_, place), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.create_server(place[:2], family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ExploreError(f"{host} port {port}: cannot be served at ({reason}); --port 0 takes a free one") from error
    # connections inherit it; asyncio sets it only where a socket says that it is TCP's. Without, an answer takes 40 ms
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _name(host: str) -> str:
    """Return what a browser calls the host."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 (asked about, not bound to)
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _made_with(dataset: Dataset) -> dict[str, Any] | None:
    """Return what of a release's manifest is shown beside its trajectories."""
    manifest = dataset.manifest
    return None if manifest is None else {key: manifest.get(key) for key in ("packages", "store_version", "licences")}
