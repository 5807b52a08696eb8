"""CIF, written by pymatgen: structures for other programs to look at, a block for each, named by its identifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from trajmill.targets.base import Target, trajectories


def _write(tables: Iterator[pa.Table], out: Path, _: str) -> None:
    from pymatgen.io.cif import CifWriter

    from trajmill.dataset import to_structures

    with out.open("w", encoding="utf-8") as file:
        for structure in to_structures(trajectories(tables)):
            (block,) = CifWriter(structure, write_site_properties=False).cif_file.data.values()
            block.header = structure.properties["id"]
            file.write(f"{block}\n")


CIF = Target("cif", (".cif",), _write, "VESTA, OVITO and others; no labels")
