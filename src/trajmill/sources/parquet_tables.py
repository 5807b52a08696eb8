"""Files of a Parquet table, Delta Lake or a plain folder, and what their paths say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from trajmill.errors import SourceError
from trajmill.raw import current, sha256
from trajmill.sources.files import Reading
from trajmill.storage import COLUMNS, AnyPath, ObjectPath, StorageError, delta_options, readable


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of a table; `name` is its path inside the table."""

    path: AnyPath
    name: str

    @property
    def partition(self) -> dict[str, str]:
        """Values of the partition columns, which a file does not hold itself (Hive paths, `version=2026.4.13/...`)."""
        folders = self.name.split("/")[:-1]
        return {key: unquote(value) for key, equals, value in (f.partition("=") for f in folders) if equals}


def data_files(root: AnyPath, place: Path) -> tuple[list[DataFile], str]:
    """List the files of a table.

    Args:
        root: folder of raw files.
        place: of the table in it: the folder of a Delta Lake table, of which the newest version is taken, or of plain
            Parquet files. A folder that is not there is a table without files.

    Returns:
        The files by name, and a digest that changes when their content does.

    Raises:
        SourceError: a Delta table that cannot be opened, or with deleted rows that only its own reader can skip.
    """
    table = root / place
    if not (table / "_delta_log").is_dir():
        found = current(root, table.rglob("*.parquet"))
        plain = [DataFile(path, path.relative_to(table).as_posix()) for path in found]
        return plain, "".join(f"{file.name} {sha256(file.path, root)}\n" for file in plain)
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        options = delta_options() if isinstance(table, ObjectPath) else None
        delta = DeltaTable(str(table), storage_options=options)
        if pa.table(delta.deletion_vectors()).num_rows:
            raise SourceError(f"{table}: has deletion vectors; rewrite the table without them (OPTIMIZE, purge)")
        names = sorted(unquote(path) for path in pa.table(delta.get_add_actions())["path"].to_pylist())
    except DeltaError as error:
        raise SourceError(f"{table}: cannot be read as a Delta table ({str(error).splitlines()[0]})") from error
    return [DataFile(table / name, name) for name in names], f"version {delta.version()}\n" + "\n".join(names)


def rows(
    files: Sequence[DataFile], columns: list[str], reading: Reading | None = None, batch_size: int = 256
) -> Iterator[dict[str, Any]]:
    """Stream rows as dictionaries, maps as dictionaries too; columns that a file lacks are absent.

    Args:
        files: from `data_files`.
        columns: names, `a.b` for a field of a struct.
        reading: told of files that have been read.
        batch_size: rows in memory at a time.

    Raises:
        SourceError: a file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [file.path for file in files]
    for _, file in zip(reading.through(paths) if reading else paths, files, strict=True):
        try:
            with pq.ParquetFile(readable(file.path, COLUMNS)) as parquet:
                for batch in parquet.iter_batches(batch_size, columns=columns):
                    for row in batch.to_pylist(maps_as_pydicts="lossy"):
                        yield file.partition | row
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{file.path}: damaged ({error}); fetch it again") from error
