"""Databases of a MariaDB or MySQL server for tests: each test has one of its own, dropped when it ends."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SERVER = os.environ.get("TRAJMILL_MARIADB", "127.0.0.1:3306")


def mariadb(sql: str, *, stdin: bytes | None = None, database: str = "") -> list[list[str]]:
    """Run statements with the server's own client and return the rows, as text."""
    host, _, port = SERVER.partition(":")
    command = ["mariadb", "-h", host, "-P", port or "3306", "-u", "root", "--batch", "--skip-column-names"]
    command += [
        "--connect-timeout=5",
        "--default-character-set=utf8mb4",
        *(["-e", sql] if sql else []),
        *([database] if database else []),
    ]
    result = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)
    if result.returncode:
        raise OSError(result.stderr.decode())
    return [line.split("\t") for line in result.stdout.decode().splitlines()]


@contextmanager
def database(dump: bytes = b"") -> Iterator[str]:
    """Give the name of a database that a dump was loaded into; skip the test where no server answers, fail on CI."""
    name = f"trajmill_{uuid.uuid4().hex[:12]}"
    try:
        if shutil.which("mariadb") is None:
            raise OSError("no mariadb client is installed")  # noqa: TRY301
        mariadb(f"CREATE DATABASE {name}")
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no MariaDB at {SERVER}: {error}")
    try:
        mariadb("", stdin=dump, database=name)
        yield name
    finally:
        mariadb(f"DROP DATABASE {name}")
