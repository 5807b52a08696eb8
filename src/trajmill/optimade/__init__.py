"""A dataset as an OPTIMADE endpoint: `serve` answers any OPTIMADE client. Extra `optimade`.

Models, grammar of filters, query parameters, errors and middleware are those of optimade-python-tools; entries come
from an index of our own (`index.py`) in place of its MongoDB.
"""

from __future__ import annotations

import logging
import re
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from trajmill.errors import TrajmillError, require

HOST, PORT, PREFIX = "127.0.0.1", 5000, "trajmill"


class ServeError(TrajmillError):
    """A dataset cannot be served as asked."""


def serve(
    address: str,
    *,
    host: str = HOST,
    port: int = PORT,
    prefix: str = PREFIX,
    ready: Callable[[str, int, int], None] = lambda *_: None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Answer OPTIMADE queries until Ctrl-C or SIGTERM. Nothing can be changed through it.

    Args:
        address: of the dataset, as `trajmill.open` takes it.
        host: to listen on; the default answers this machine alone.
        port: to listen on; 0 takes a free one.
        prefix: of the names of properties that OPTIMADE does not define: `_{prefix}_energy`.
        ready: is told the base URL and how many trajectories and frames there are, once queries are answered.
        report: is told how many frames were indexed so far, and how many there are.

    Raises:
        ServeError: the address cannot be listened on, the prefix is none, or there are no frames.
        MissingExtraError: optimade-python-tools is not installed (extra `optimade`).
        TrajmillError: the dataset cannot be read.
    """
    if not re.fullmatch("[a-z][a-z0-9]*", prefix):
        raise ServeError(f"prefix {prefix!r}: write small letters and digits, a letter first, such as {PREFIX}")
    logging.getLogger("optimade").addHandler(logging.NullHandler())  # else it makes itself a log in /var/log
    uvicorn = require("uvicorn", extra="optimade")
    require("optimade.server.middleware", extra="optimade")
    from trajmill.optimade.app import make_app
    from trajmill.optimade.index import build

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder goes then too
    with _listening(host, port) as listener, TemporaryDirectory(prefix="trajmill-serve-") as folder:
        index = build(address, Path(folder), report)
        server = uvicorn.Server(uvicorn.Config(make_app(index, prefix), log_level="warning", access_log=False))
        logging.getLogger("uvicorn.error").addFilter(_is_no_refusal)
        port = listener.getsockname()[1]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", index.n_trajectories, index.n_frames)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        index.db.close()


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Tell errors from what a client was told of its query: their middleware hands such on after it was answered."""
    return not (record.exc_info and hasattr(record.exc_info[1], "status_code"))


def _listening(host: str, port: int) -> socket.socket:
    """Take a port before anything is read, so that one in use is said at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"{host}:{port}: cannot listen there ({reason}); say another --host or --port") from error
