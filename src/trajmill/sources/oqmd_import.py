"""OQMD's dump into a DuckDB file: the rows that relaxations need, sorted by entry."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import duckdb
import pyarrow as pa

from trajmill.errors import SourceError
from trajmill.sources.mysqldump import MySQLDump

DuckDBConfig = dict[str, str | bool | int | float | list[str]]

PARTITION = 20_000
"""Entry ids in a partition; part of the assets' names, so never to be changed."""

RELAXATIONS = ("coarse_relax", "fine_relax", "relaxation")
"""Labels of calculations that relax, in the order they are run."""

COLUMNS: dict[str, dict[str, str]] = {
    "atoms": {
        **dict.fromkeys(("id", "structure_id"), "BIGINT"),
        "element_id": "VARCHAR",
        **dict.fromkeys(("x", "y", "z", "fx", "fy", "fz", "magmom", "occupancy"), "DOUBLE"),
    },
    "calculations": {
        "label": "VARCHAR",
        "settings": "VARCHAR",
        **dict.fromkeys(("id", "entry_id", "natoms", "input_id", "output_id", "nsteps", "converged"), "BIGINT"),
        **dict.fromkeys(("energy", "energy_pa"), "DOUBLE"),
    },
    "entries": dict.fromkeys(("id", "duplicate_of_id"), "BIGINT"),
    "structures": {
        **dict.fromkeys(("id", "natoms"), "BIGINT"),
        **dict.fromkeys(("x1", "x2", "x3", "y1", "y2", "y3", "z1", "z2", "z3"), "DOUBLE"),
        **dict.fromkeys(("sxx", "syy", "szz", "sxy", "syz", "szx"), "DOUBLE"),
    },
}
"""What is read of the dump, and as what."""

_MEMORY = "128MB"  # of DuckDB; with Python, Arrow and one statement of the dump the process stays below 400 MB
_BATCH = 8 << 20  # bytes per insert

_TABLES = f"""
CREATE TABLE entries (id BIGINT, duplicate_of_id BIGINT, known BOOLEAN);
CREATE TABLE calculations AS SELECT * FROM raw.calculations LIMIT 0;
CREATE TABLE structures AS SELECT id AS entry_id, * FROM raw.structures LIMIT 0;
CREATE TABLE atoms AS SELECT id AS entry_id, * FROM raw.atoms LIMIT 0;
CREATE TABLE strays AS SELECT id, label FROM raw.calculations WHERE entry_id IS NULL ORDER BY id;
CREATE TABLE unreadable AS SELECT detail FROM raw.unreadable;
CREATE TABLE partitions AS
  SELECT entry // {PARTITION} AS part, 0::BIGINT AS n_atoms
  FROM (SELECT id AS entry FROM raw.entries UNION ALL SELECT entry_id FROM raw.calculations)
  WHERE entry IS NOT NULL GROUP BY part ORDER BY part;
"""

_PARTITION = f"""
INSERT INTO calculations
  SELECT * FROM raw.calculations WHERE entry_id >= {{first}} AND entry_id < {{end}} ORDER BY entry_id, id;
INSERT INTO entries
  SELECT coalesce(e.id, c.id), e.duplicate_of_id, e.id IS NOT NULL
  FROM (SELECT id, any_value(duplicate_of_id) AS duplicate_of_id FROM raw.entries
        WHERE id >= {{first}} AND id < {{end}} GROUP BY id) e
  FULL JOIN (SELECT DISTINCT entry_id AS id FROM calculations WHERE entry_id >= {{first}}) c ON c.id = e.id
  ORDER BY 1;
CREATE OR REPLACE TEMP TABLE used AS
  SELECT entry_id, unnest([input_id, output_id]) AS structure_id FROM calculations
  WHERE entry_id >= {{first}} AND label IN {RELAXATIONS};
CREATE OR REPLACE TEMP TABLE used AS SELECT DISTINCT * FROM used WHERE structure_id IS NOT NULL;
INSERT INTO structures
  SELECT DISTINCT ON (u.entry_id, s.id) u.entry_id, s.*
  FROM used u JOIN raw.structures s ON s.id = u.structure_id ORDER BY u.entry_id, s.id;
INSERT INTO atoms
  SELECT s.entry_id, a.* FROM structures s JOIN raw.atoms a ON a.structure_id = s.id WHERE s.entry_id >= {{first}}
  ORDER BY s.entry_id, a.structure_id, a.id;
UPDATE partitions SET n_atoms = (SELECT count(*) FROM atoms WHERE entry_id >= {{first}}) WHERE part = {{part}};
"""


def import_dump(dump: Path, database: Path) -> None:
    """Import a dump.

    The tables come in alphabetical order, atoms before all that says which atoms are needed, so everything is taken
    first and then joined and sorted on disk, partition by partition. The calculations name the structures they use;
    that is taken as the owner rather than `structures.entry_id`, which other entries' calculations may disagree with.

    Args:
        dump: the SQL dump, plain or gzipped.
        database: DuckDB file to write; written beside and renamed when it is complete, left-overs of an import that
            was killed are removed.

    Raises:
        SourceError: `dump` is no mysqldump of OQMD.
    """
    aside, raw, spill = (database.with_suffix(f".part-{what}") for what in ("sorted", "raw", "spill"))
    config: DuckDBConfig = {"memory_limit": _MEMORY, "threads": 2, "temp_directory": str(spill)}
    _clear(database)
    try:
        with duckdb.connect(str(aside), config=config) as connection:
            connection.execute("ATTACH '" + str(raw).replace("'", "''") + "' AS raw")
            _load(connection, dump)
            _sort(connection)
            connection.execute("DETACH raw")
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.rename(database)
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"{dump}: cannot be imported into {database} ({reason}); check that disk's space") from error
    finally:
        _clear(database)


def _clear(database: Path) -> None:
    """Remove what an import left beside the database."""
    for leftover in database.parent.glob(f"{database.stem}.part*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _load(connection: duckdb.DuckDBPyConnection, dump: Path) -> None:
    """Copy the dump's rows as they come."""
    for table, columns in {**COLUMNS, "unreadable": {"detail": "VARCHAR"}}.items():
        names = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        connection.execute(f"CREATE TABLE raw.{table} ({names})")
    unreadable: list[str] = []
    for table, rows in _batches(MySQLDump(dump, COLUMNS, report=unreadable.append)):
        _insert(connection, table, rows)
        if len(unreadable) > 10_000:
            _insert(connection, "unreadable", pa.table({"detail": unreadable}))
            unreadable.clear()
    _insert(connection, "unreadable", pa.table({"detail": pa.array(unreadable, pa.string())}))


def _sort(connection: duckdb.DuckDBPyConnection) -> None:
    """Put each partition's rows in order, one after the other, so that memory does not grow with the dump."""
    connection.execute(_TABLES)
    for (part,) in connection.execute("SELECT part FROM partitions ORDER BY part").fetchall():
        first = part * PARTITION
        connection.execute(_PARTITION.format(part=part, first=first, end=first + PARTITION))


def _batches(dump: Iterable[tuple[str, pa.Table]]) -> Iterator[tuple[str, pa.Table]]:
    """Join the rows of small statements; a table's rows are together in a dump."""
    waiting: list[pa.Table] = []
    for table, group in groupby(dump, key=itemgetter(0)):
        for _, some in group:
            waiting.append(some)
            if sum(rows.nbytes for rows in waiting) >= _BATCH:
                yield table, pa.concat_tables(waiting)
                waiting.clear()
        if waiting:
            yield table, pa.concat_tables(waiting)
            waiting.clear()


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    columns = ", ".join(rows.column_names)
    if table == "calculations":  # the settings of other calculations are never looked at, and are most of the table
        columns = columns.replace("settings", f"CASE WHEN label IN {RELAXATIONS} THEN settings END")
    connection.register("batch", rows)
    connection.execute(f"INSERT INTO raw.{table} SELECT {columns} FROM batch")
    connection.unregister("batch")
