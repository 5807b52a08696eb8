"""Extended XYZ, written by ASE: eV, eV/A and eV/A^3 with ASE's sign.

Labels stand under names with a prefix: plain names are those of results that ASE computes, and it hides them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from trajmill.errors import require
from trajmill.targets.base import Target, frames


def _write(tables: Iterator[pa.Table], out: Path, prefix: str) -> None:
    write = require("ase.io.extxyz", extra="ase").write_extxyz
    with out.open("w", encoding="utf-8") as file:
        for atoms in frames(tables):
            if prefix:
                results, atoms.calc = atoms.calc.results, None
                for name, value in results.items():
                    (atoms.arrays if name == "forces" else atoms.info)[f"{prefix}{name}"] = value
            write(file, [atoms])


EXTXYZ = Target("extxyz", (".extxyz", ".xyz"), _write, "MACE and most others", prefix="REF_")
"""`REF_` is what MACE asks for."""
