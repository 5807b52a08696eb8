"""Schemas of a PostgreSQL server for tests: each test has one of its own, dropped when it ends."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SERVER = os.environ.get("TRAJMILL_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")


def sql(statement: str, *values: object, autocommit: bool = False) -> list[tuple]:
    """Run a statement in a session of its own and return its rows."""
    from adbc_driver_postgresql import dbapi

    uri = f"{SERVER}?connect_timeout=5"
    with dbapi.connect(uri, autocommit=autocommit) as session, session.cursor() as cursor:
        cursor.execute(statement, values or None)
        rows = cursor.fetchall() if cursor.description else []
        session.commit()
        return rows


@contextmanager
def schema() -> Iterator[str]:
    """Give the address of a schema that is not there yet; skip the test where no server answers, fail on CI."""
    dbapi = pytest.importorskip("adbc_driver_postgresql.dbapi")
    name = f"trajmill_{uuid.uuid4().hex[:12]}"
    try:
        sql("SELECT 1")
    except dbapi.OperationalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL at {SERVER}: {error}")
    try:
        yield f"{SERVER}?schema={name}&application_name={name}"
    finally:  # a store that is still open holds its tables
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", name)
        sql(f"DROP SCHEMA IF EXISTS {name} CASCADE")
