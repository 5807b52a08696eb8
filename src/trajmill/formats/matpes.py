"""MatPES (Kaplan et al., arXiv:2503.04070): a JSON list of single frames, compressed.

Energies are totals in eV; `stress` is VASP's, kBar and positive under compression, as xx yy zz yz xz xy.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trajmill.errors import FormatError, require
from trajmill.formats.base import Format, Frame, Identity, from_voigt
from trajmill.formats.structures import site_arrays
from trajmill.units import stress_from_vasp
from trajmill.uris import one_line

RUN_TYPES = {"pbe": "GGA", "r2scan": "r2SCAN"}


def _recognises(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            head = file.read(1 << 16)
    except (OSError, EOFError):
        return False
    return head.lstrip()[:1] == b"[" and b'"matpes_id"' in head


def _frames(path: Path) -> Iterator[Frame]:
    ijson = require("ijson", extra="formats")
    with gzip.open(path) as file:
        try:
            for number, given in enumerate(ijson.items(file, "item", use_float=True)):
                yield _frame(path, number, given)
        except (ijson.JSONError, EOFError, OSError) as error:
            raise FormatError(f"{path}: damaged ({one_line(error)})") from error


def _frame(path: Path, number: int, given: dict[str, Any]) -> Frame:
    try:
        functional = str(given["functional"]).lower()
        numbers, lattice, positions = site_arrays(given["structure"])
        name, origin = str(given["matpes_id"]), given.get("provenance") or {}
        return Frame(
            trajectory=Identity(
                f"{name}-{functional}", name, origin.get("original_mp_id"), functional, RUN_TYPES.get(functional)
            ),
            numbers=numbers,
            lattice=lattice,
            positions=positions,
            energy=float(given["energy"]),
            forces=np.array(given["forces"], float).reshape(-1, 3),
            stress=stress_from_vasp(from_voigt(given["stress"])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"{path}: record {number} cannot be read ({error!r})") from error


MATPES = Format(
    "matpes", (".json.gz",), _recognises, _frames, "energy: eV; stress: kBar, VASP's sign, xx yy zz yz xz xy"
)
