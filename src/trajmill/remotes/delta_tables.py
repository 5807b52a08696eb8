"""Delta Lake tables on S3: opened at the newest version, with their active files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from trajmill import recipe
from trajmill.errors import RemoteContentError, RemoteNotFoundError, RemoteUnavailableError
from trajmill.remotes.s3 import Bucket
from trajmill.remotes.transfer import USER_AGENT, Session
from trajmill.sources.parquet_tables import DataFile
from trajmill.uris import one_line

if TYPE_CHECKING:
    from deltalake import DeltaTable


def open_table(options: recipe.FetchMaterialsProject, session: Session, place: str, bucket: Bucket) -> DeltaTable:
    """Open a table.

    Raises:
        FetchError: it cannot be opened; its subclasses say why.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    seconds = session.options.timeout
    settings = {
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": options.region,
        "AWS_ENDPOINT_URL": options.endpoint.rstrip("/"),
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "user_agent": USER_AGENT,
        "timeout": f"{10 * seconds:.0f}s",
        "max_retries": str(session.options.retries),
        "retry_timeout": f"{60 + seconds * (1 + session.options.retries):.0f}s",
    }
    address = bucket.url(place)
    try:
        return DeltaTable(f"s3://{bucket.name}/{place}", storage_options=settings)
    except TableNotFoundError as error:
        raise RemoteNotFoundError(f"{address}: no Delta table here; see fetch.mp in the recipe") from error
    except DeltaError as error:
        raise RemoteContentError(f"{address}: cannot be read as a Delta table ({one_line(error)})") from error
    except OSError as error:  # one class for all that can go wrong on the way
        _say_why(f"{place}/_delta_log/", bucket)
        raise RemoteUnavailableError(f"{address}: {one_line(error)}; run again to go on") from error


def _say_why(log: str, bucket: Bucket) -> None:
    """Ask for what could not be had over plain HTTP, whose statuses tell what is wrong.

    Raises:
        FetchError: what is wrong.
    """
    import obstore

    if files := list(bucket.files(log)):
        newest = files[-1].path
        bucket.ask(newest, lambda: obstore.head(bucket.store, newest))


def actions(opened: DeltaTable, address: str) -> dict[str, dict[str, Any]]:
    """Return what the log says of each active data file, by its path in the table.

    Raises:
        FetchError: there is none, or one that must not be read as plain Parquet.
    """
    import pyarrow as pa
    from deltalake.exceptions import DeltaError

    try:
        vectors, actions = pa.table(opened.deletion_vectors()), pa.table(opened.get_add_actions(flatten=True))
    except DeltaError as error:
        raise RemoteContentError(f"{address}: cannot be read as a Delta table ({one_line(error)})") from error
    if vectors.num_rows:
        raise RemoteContentError(f"{address}: has deletion vectors: deleted rows that only a Delta reader can skip")
    partitions = [name.removeprefix("partition.") for name in actions.column_names if name.startswith("partition.")]
    found = {
        unquote(row["path"]): row for row in actions.select(["path", "size_bytes", "modification_time"]).to_pylist()
    }
    if not found:
        raise RemoteNotFoundError(f"{address}: the table has no data files")
    for name in found:
        if missing := set(partitions) - DataFile(Path(name), name).partition.keys():
            raise RemoteContentError(f"{address}: the path {name} does not say {', '.join(sorted(missing))}")
    return found


def utc(milliseconds: Any) -> str:
    """Write a time of the log, which deltalake gives as a number or a date."""
    if isinstance(milliseconds, datetime):
        return milliseconds.astimezone(UTC).isoformat()
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
