"""An S3 server on loopback: moto's, with a log of its requests and faults on demand."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx2

QUIET = {"x-quiet": "1", "x-amz-acl": "public-read"}  # moto shows unsigned requests what is public, and nothing else


@dataclass(frozen=True)
class Request:
    """A request as it came, and what was answered."""

    method: str
    path: str
    start: int | None  # of the range that was asked for; negative: that many bytes from the end
    stop: int | None
    headers: dict[str, str]
    query: str
    status: int


@dataclass
class S3Server:
    """A running server.

    Attributes:
        endpoint: its address.
        requests: all requests so far, without those of `put`.
        fault: called with method and path before each request; a status it returns is answered with an S3 error.
        drop: called with method and path before each request; True breaks the connection, nothing is done.
        drop_answer: the same, but what was asked for is done before.
        damage: called with method, path and body of each answer; returns the body to send.
    """

    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[str, str], int | None] = lambda *_: None
    drop: Callable[[str, str], bool] = lambda *_: False
    drop_answer: Callable[[str, str], bool] = lambda *_: False
    damage: Callable[[str, str, bytes], bytes] = lambda _method, _path, body: body

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead all clients here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",  # what boto calls it
        }

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        httpx2.put(f"{self.endpoint}/{name}", headers=QUIET).raise_for_status()

    def put_bytes(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object."""
        httpx2.put(f"{self.endpoint}/{bucket}/{quote(key)}", content=content, headers=QUIET).raise_for_status()

    def behave(self) -> None:
        """Forget what went before."""
        self.requests.clear()
        for name in ("fault", "drop", "drop_answer", "damage"):
            setattr(self, name, type(self).__dataclass_fields__[name].default)

    def put(self, bucket: str, folder: Path, place: str = "") -> None:
        """Copy a folder into a bucket, which is made when it is not there."""
        self.make_bucket(bucket)
        with httpx2.Client() as client:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                key = quote(f"{place}/{file.relative_to(folder).as_posix()}".lstrip("/"))
                url = f"{self.endpoint}/{bucket}/{key}"
                client.put(url, content=file.read_bytes(), headers=QUIET).raise_for_status()

    def bytes_of(self, path: str) -> int:
        """Count the bytes that ranges of an object asked for."""
        return sum(r.stop - r.start for r in self.requests if r.path == path and r.method == "GET" and r.stop)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server with no buckets."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_args: object) -> None:
            pass

    one_at_a_time = threading.Lock()  # moto's writes of one object at the same time damage each other, S3's do not
    moto, server = DomainDispatcherApplication(create_backend_app), S3Server()

    def application(environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        said = {}

        def start(status, headers, exc_info=None):
            said.update(status=status, headers=headers)
            return lambda _: None

        quiet = "HTTP_X_QUIET" in environ
        manners = S3Server() if quiet else server
        _hang_up(environ, manners.drop(method, path))
        if status := manners.fault(method, path):
            code = {403: "AccessDenied", 404: "NoSuchKey"}.get(status, "SlowDown")
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
            said.update(status=f"{status} {code}", headers=[("Content-Type", "application/xml")])
        else:
            with one_at_a_time:
                body = b"".join(moto(environ, start))
            _hang_up(environ, manners.drop_answer(method, path))
            body = manners.damage(method, path, body)
        if not quiet:
            server.requests.append(_request(environ, int(said["status"].split()[0])))
        headers = [(name, value) for name, value in said["headers"] if name.lower() != "content-length"]
        length = {name.lower(): value for name, value in said["headers"]}.get("content-length", "0")
        start_response(said["status"], [*headers, ("Content-Length", length if method == "HEAD" else str(len(body)))])
        return [body]

    listener = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    server.endpoint = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
        for regions in s3_backends.values():
            for backend in regions.values():
                backend.reset()


def _hang_up(environ, really):
    """Break the connection, if it is to be broken."""
    if really:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError


def _request(environ, status) -> Request:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
    headers = {key[5:].lower(): value for key, value in environ.items() if key.startswith("HTTP_")}
    start, stop = (int(found[1]), int(found[2]) + 1) if found else (None, None)
    return Request(
        environ["REQUEST_METHOD"], environ["PATH_INFO"], start, stop, headers, environ["QUERY_STRING"], status
    )
