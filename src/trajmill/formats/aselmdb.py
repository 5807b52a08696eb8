"""OMat24 (Barroso-Luque et al., arXiv:2410.12771) and other ASE databases in LMDB files: ASE's units and signs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trajmill.errors import FormatError, require
from trajmill.formats.base import UNKNOWN, Format, Frame, Identity, from_voigt
from trajmill.uris import one_line


def _frames(path: Path) -> Iterator[Frame]:
    require("ase_db_backends", extra="formats")
    connect = require("ase.db", extra="formats").connect
    try:
        with connect(str(path), type="aselmdb", readonly=True) as database:
            for row in database.select():
                yield _frame(path, row)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{path}: cannot be read as an ASE database ({one_line(error)})") from error


def _frame(path: Path, row: Any) -> Frame:
    data = row.data or {}
    name = str(data.get("sid") or f"{path.stem}-{row.id}")
    stress = row.get("stress")
    return Frame(
        trajectory=Identity(name, name, name.partition("_")[0] if "sid" in data else None, data.get("functional")),
        numbers=np.array(row.numbers, np.int64),
        lattice=np.array(row.cell, float),
        positions=np.array(row.positions, float),
        energy=float(row.get("energy", np.nan)),
        forces=np.array(row.get("forces", np.full((len(row.numbers), 3), np.nan)), float),
        stress=UNKNOWN if stress is None else from_voigt(stress),
        energy_corrected=float(data.get("energy_corrected_mp2020", np.nan)),
    )


ASELMDB = Format("aselmdb", (".aselmdb",), lambda _: True, _frames, "ASE's: eV, eV/A, eV/A^3 positive under tension")
