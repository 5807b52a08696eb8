"""What a target is: it writes frames into a file, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from trajmill.codec import decode
from trajmill.trajectory import Trajectory

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Target:
    """A way of writing a dataset.

    Attributes:
        name: what it is asked for by.
        suffixes: what its files may end in; the first is that of files in a folder.
        write: takes rows of frames, all with an energy, the file and the prefix of labels.
        readers: who reads it, for the documentation.
        prefix: what stands before names of labels where nothing else is asked for; None where names are fixed.
        leftover: what ends the names of other files that a library leaves beside the one it wrote.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Iterator[pa.Table], Path, str], None]
    readers: str
    prefix: str | None = None
    leftover: str | None = None


def trajectories(tables: Iterable[pa.Table]) -> Iterator[Trajectory]:
    """Decode rows; a trajectory that lies in two tables comes as two."""
    for table in tables:
        yield from decode(table)


def frames(tables: Iterable[pa.Table]) -> Iterator[Atoms]:
    """Yield frames as ASE Atoms, without those facts in `info` that have no value."""
    from trajmill.dataset import to_atoms

    for atoms in to_atoms(trajectories(tables)):
        atoms.info = {name: value for name, value in atoms.info.items() if value is not None}
        yield atoms
