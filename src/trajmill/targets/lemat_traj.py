"""Parquet with the columns of the published LeMat-Traj, in its order and types, stress in kBar with VASP's sign."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.recipe import load
from trajmill.releases.hugging_face import as_released, release_schema
from trajmill.schema import parquet_options
from trajmill.targets.base import Target


def _write(tables: Iterator[pa.Table], out: Path, _: str) -> None:
    schema, unit = release_schema(load(settings=["release.format=lemat-traj"]))
    with pq.ParquetWriter(out, schema, **parquet_options(schema)) as writer:
        for table in tables:
            there = (table.schema.metadata or {}).get(b"trajmill.stress_unit", b"").decode()
            writer.write_table(as_released(table, schema, unit, there))


LEMAT_TRAJ = Target("lemat-traj", (".parquet",), _write, "what reads LeMaterial/LeMat-Traj")
