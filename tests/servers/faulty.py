"""A web server on loopback that serves a folder as nginx does, and misbehaves as told.

`with serve(folder) as server:` serves until the block ends, and no longer than `LIFETIME` in any case.
"""

import contextlib
import email.utils
import gzip
import hashlib
import html
import os
import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

LIFETIME = 120.0
"""Seconds after which anything that waits gives up, so that a broken test ends."""

FAULTS = (
    "busy",  # 429 with Retry-After in seconds
    "busy until",  # 429 with Retry-After as a date
    "unavailable",  # 503
    "broken",  # 500
    "reset",  # the connection is reset after half the body
    "reset at once",  # ... before any answer
    "cut off",  # the connection ends after half the body
    "short",  # half the body, announced as all of it
    "long",  # more bytes than the file has, announced so
    "page",  # a web page, status 200
    "page as data",  # ... announced as what was asked for
    "drip",  # a byte now and then
    "silent",  # no answer
)
"""What can happen to a request; all but those that say so are over when the request is."""

MORE_FAULTS = (
    "forbidden",  # 403
    "unauthorized",  # 401
    "missing",  # 404
    "teapot",  # 418
    "not allowed",  # 405
    "not implemented",  # 501
    "nothing",  # 204
    "silent midway",  # no more after half the body
    "hold",  # half the body; the rest once `server.go` is set
    "unmeasured",  # half the body without a length, then the connection ends
    "compressed",  # gzip, though nobody asked for it
    "loop",  # a redirect to itself
    "elsewhere",  # a redirect to `server.elsewhere`
)

PAGE = b"<html><head><title>Maintenance</title></head><body>Be back soon.</body></html>\n"
STATUS = {"busy": 429, "busy until": 429, "unavailable": 503, "broken": 500}
STATUS |= {"forbidden": 403, "unauthorized": 401, "missing": 404, "teapot": 418, "nothing": 204}
STATUS |= {"not allowed": 405, "not implemented": 501}


@dataclass
class FaultPlan:
    """Which requests fail and how: decided by seed, path and how often the path was asked for before.

    Args:
        seed: the same seed gives the same faults, whatever order the threads run in.
        faults: to choose from.
        rate: probability that a request fails.
        budget: faults for each path; after them it is served as it should be.
        matching: only paths that contain this.
    """

    seed: int = 0
    faults: tuple[str, ...] = FAULTS
    rate: float = 0.0
    budget: int = 3
    matching: str = ""
    arranged: dict[str, list[str | None]] = field(default_factory=dict)
    _asked: Counter = field(default_factory=Counter)
    _spent: Counter = field(default_factory=Counter)

    def arrange(self, path, *faults, times=1):
        """Let the next requests for a path that ends so meet these faults, in turn; None is none."""
        self.arranged.setdefault(path, []).extend(faults * times)

    def decide(self, path):
        """Return the fault of a request, None for none."""
        for ending, faults in self.arranged.items():
            if path.endswith(ending) and faults:
                return faults.pop(0)
        self._asked[path] += 1
        dice = random.Random(f"{self.seed} {path} {self._asked[path]}")
        if self.matching not in path or self._spent[path] >= self.budget or dice.random() >= self.rate:
            return None
        self._spent[path] += 1
        return dice.choice(self.faults)


@dataclass
class Request:
    """What was asked, and what became of it."""

    method: str
    path: str
    headers: dict
    fault: str | None = None
    status: int = 0
    sent: int = 0

    @property
    def range(self):
        return self.headers.get("range")


class Server(ThreadingHTTPServer):
    """The server; options are attributes and can be changed while it runs.

    Attributes:
        url: ends with `/`.
        plan: of faults.
        pages: content by path, in place of the folder's.
        headers: further headers by path.
        exact_sizes: whether listings give bytes or round them to K, M, G.
        etags: `nginx` (time and size), `md5`, `weak` or `none`.
        dates: whether Last-Modified is sent.
        ranges, if_range: whether these headers are heeded.
        retry_after: s, of 429; None leaves the header out.
        log: all requests.
        most_at_once: requests in work at a time, at most.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, root, **options):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = Path(root)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.plan = FaultPlan()
        self.pages, self.headers = {}, {}
        self.exact_sizes, self.etags, self.dates, self.ranges, self.if_range = True, "nginx", True, True, True
        self.retry_after, self.elsewhere, self.pause, self.linger = 0, "", 0.0, 0.0
        for name, value in options.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.log, self.at_once, self.most_at_once = [], 0, 0
        self.lock, self.go, self.closing = threading.Lock(), threading.Event(), threading.Event()

    def handle_error(self, request, client_address):
        """Say nothing: clients are killed here on purpose."""

    def asked(self, ending, method="GET"):
        """Return the requests for paths that end so."""
        return [r for r in self.log if r.path.endswith(ending) and r.method == method]

    def sent(self, ending=""):
        """Count the bytes of bodies sent for paths that end so."""
        return sum(r.sent for r in self.log if r.path.endswith(ending))


@contextlib.contextmanager
def serve(root, **options):
    """Run a server; see `Server` for the options."""
    server = Server(root, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    last_resort = threading.Timer(LIFETIME, server.shutdown)
    last_resort.daemon = True
    last_resort.start()
    try:
        yield server
    finally:
        last_resort.cancel()
        server.closing.set()
        server.go.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = LIFETIME
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._serve()

    def do_GET(self):
        self._serve()

    def _serve(self):
        server = self.server
        path = unquote(urlsplit(self.path).path)
        with server.lock:
            request = Request(self.command, path, {k.lower(): v for k, v in self.headers.items()})
            request.fault = server.plan.decide(path)
            server.log.append(request)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.linger)
            self.request_ = request
            if request.fault in STATUS:
                self._refuse(STATUS[request.fault], request.fault)
            elif request.fault in ("loop", "elsewhere"):
                to = self.path if request.fault == "loop" else server.elsewhere
                self._answer(302, {"Location": to, "Content-Length": 0}, b"")
            elif request.fault in ("page", "page as data"):
                kind = "text/html" if request.fault == "page" else "application/octet-stream"
                self._answer(200, {"Content-Type": kind, "Content-Length": len(PAGE)}, PAGE)
            elif request.fault == "reset at once":
                self._reset()
            elif request.fault == "silent":
                self._wait(server.closing)
                self._reset()
            elif path in server.pages:
                self._page(server.pages[path])
            elif ".." in Path(path).parts:
                self._refuse(404, None)
            elif (place := server.root / path.lstrip("/")).is_dir() and path.endswith("/"):
                self._page(autoindex(place, path, exact=server.exact_sizes))
            elif place.is_file():
                self._file(place, path)
            else:
                self._refuse(404, None)
        finally:
            with server.lock:
                server.at_once -= 1

    def _refuse(self, status, fault):
        headers = {"Content-Type": "text/html", "Content-Length": 0 if status == 204 else len(PAGE)}
        if fault == "busy" and self.server.retry_after is not None:
            headers["Retry-After"] = self.server.retry_after
        if fault == "busy until":
            headers["Retry-After"] = email.utils.formatdate(time.time() + self.server.retry_after, usegmt=True)
        self._answer(status, headers, b"" if status == 204 else PAGE)

    def _page(self, page):
        self._body({"Content-Type": "text/html"}, page, 200)

    def _file(self, file, path):
        data, modified = file.read_bytes(), int(file.stat().st_mtime)
        etag, date = self._etag(data, modified), email.utils.formatdate(modified, usegmt=True)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        headers |= ({"ETag": etag} if etag else {}) | ({"Last-Modified": date} if self.server.dates else {})
        headers |= self.server.headers.get(path, {})
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.server.ranges else None
        condition = self.headers.get("If-Range")
        if asked and self.server.if_range and condition and condition not in (etag, date):
            asked = None
        if not asked:
            return self._body(headers, data, 200)
        start = int(asked[1])
        if start >= len(data):
            return self._answer(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": 0}, b"")
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._body(headers, data[start:], 206)

    def _etag(self, data, modified):
        plain = f'"{modified:x}-{len(data):x}"'
        md5 = f'"{hashlib.md5(data).hexdigest()}"'
        return {"nginx": plain, "md5": md5, "weak": f"W/{plain}", "none": None}[self.server.etags]

    def _body(self, headers, data, status):
        """Send a body, or what its fault makes of it."""
        fault, half = self.request_.fault, data[: len(data) // 2]
        headers = {**headers, "Content-Length": len(data)}
        if fault in ("reset", "cut off", "drip", "silent midway", "hold", "unmeasured"):
            return self._interrupted(headers, data, status, fault)
        if fault == "short":
            data = half
        elif fault == "long":
            data += b"surplus"
        elif fault == "compressed":
            data, headers["Content-Encoding"] = gzip.compress(data), "gzip"
        return self._answer(status, headers | {"Content-Length": len(data)}, data)

    def _interrupted(self, headers, data, status, fault):
        """Send the first half, and then perhaps the rest."""
        half = b"" if fault == "drip" else data[: len(data) // 2]
        if fault == "unmeasured":
            headers = {**headers, "Content-Length": None, "Connection": "close"}
        self._answer(status, headers, half)
        if fault == "reset":
            return self._reset()
        if fault == "drip":
            for number in range(len(data)):
                if self.server.closing.wait(0.05):
                    break
                self._write(data[number : number + 1])
        elif fault in ("silent midway", "hold"):
            self._wait(self.server.closing if fault == "silent midway" else self.server.go)
            return self._write(data[len(half) :])
        return self._end()

    def _answer(self, status, headers, data):
        self.request_.status = status
        self.send_response_only(status, HTTPStatus(status).phrase)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self._write(data)

    def _write(self, data):
        for start in range(0, len(data), 1 << 14):
            piece = data[start : start + (1 << 14)]
            try:
                self.wfile.write(piece)
            except OSError:
                self.close_connection = True
                return
            self.request_.sent += len(piece)
            if self.server.pause:
                time.sleep(self.server.pause)

    def _wait(self, event):
        """Wait, but not for a client that is gone."""
        end = time.monotonic() + LIFETIME
        while not event.wait(0.02) and time.monotonic() < end:
            if select.select([self.connection], [], [], 0)[0]:  # it asks nothing, so it has hung up
                break

    def _end(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self):
        """Close without goodbye: with a linger time of 0 the kernel sends a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


def autoindex(folder, path, *, exact=True):
    """Return the page nginx makes of a folder: folders first, long names cut in the text, sizes exact or rounded."""
    lines = [f"<html>\r\n<head><title>Index of {path}</title></head>\r\n<body>\r\n<h1>Index of {path}</h1><hr><pre>"]
    lines[0] += '<a href="../">../</a>'
    for entry in sorted(folder.iterdir(), key=lambda e: (not e.is_dir(), e.name)):
        status, name = entry.stat(), entry.name + ("/" if entry.is_dir() else "")
        text = html.escape(name) if len(name) <= 50 else html.escape(name[:47]) + "..&gt;"
        date = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%d-%b-%Y %H:%M")
        size = "-" if entry.is_dir() else str(status.st_size) if exact else rounded(status.st_size)
        gap = " " * max(1, 51 - min(len(name), 50))
        lines.append(f'<a href="{quote(name)}">{text}</a>{gap}{date} {size:>{19 if exact else 7}}')
    return ("\r\n".join(lines) + "\r\n</pre><hr></body>\r\n</html>\r\n").encode()


def rounded(size):
    """Round a size as nginx does with `autoindex_exact_size off`."""
    for scale, least, unit in (("G", (1 << 30) - 1, 1 << 30), ("M", (1 << 20) - 1, 1 << 20), ("K", 9999, 1 << 10)):
        if size > least:
            return f"{size // unit + (size % unit > unit // 2 - 1)}{scale}"
    return str(size)
