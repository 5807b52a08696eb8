"""ASE databases in LMDB files, as OMat24 is published, written by ase-db-backends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from trajmill.errors import require
from trajmill.targets.base import Target, frames


def _write(tables: Iterator[pa.Table], out: Path, _: str) -> None:
    require("ase_db_backends", extra="formats")
    connect: Any = require("ase.db", extra="formats").connect
    with connect(str(out), type="aselmdb", append=False) as database:
        for atoms in frames(tables):
            database.write(atoms, data={**atoms.info, "sid": atoms.info["trajectory_id"]})


ASELMDB = Target("aselmdb", (".aselmdb",), _write, "fairchem", leftover="-lock")

MACE_LMDB = Target("mace-lmdb", (".aselmdb",), _write, "MACE: `--train_file` is the folder", leftover="-lock")
"""The same files: MACE reads a folder of them, and finds labels among the results."""
