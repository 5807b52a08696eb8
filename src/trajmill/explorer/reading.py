"""One trajectory out of the dataset's files: as JSON for the page, and as files to download."""

from __future__ import annotations

import re
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trajmill.codec import decode
from trajmill.dataset import Dataset
from trajmill.elements import descriptive_formula, reduced_formula
from trajmill.explorer import ExploreError
from trajmill.explorer.index import Span
from trajmill.pieces import Pieces
from trajmill.trajectory import Trajectory
from trajmill.units import KBAR_PER_EV_PER_A3

GPA_PER_EV_PER_A3 = KBAR_PER_EV_PER_A3 / 10

HELD = 16
"""Trajectories that are kept in memory, so that a download does not read again what is on the screen."""

UNITS = {
    "energy": "eV", "energy_corrected": "eV", "energy_sigma0": "eV", "energy_per_atom": "eV/atom",
    "max_force": "eV/A", "pressure": "GPa, -trace(stress)/3", "volume": "A^3", "lattice": "A, vectors as rows",
    "positions": "A", "forces": "eV/A", "stress": "eV/A^3, positive under tension", "magnetic_moments": "mu_B",
    "encut": "eV", "hubbard_u": "eV",
}  # fmt: skip

FORMATS = {"json": "application/json", "extxyz": "chemical/x-extxyz", "cif": "chemical/x-cif"}
"""What a trajectory can be downloaded as, with its media type."""


class Reader:
    """Reads trajectories of a dataset.

    May be asked by several threads at once.

    Args:
        dataset: in Parquet files.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.rows = lru_cache(maxsize=HELD)(self._read)

    @cached_property
    def _pieces(self) -> Pieces:
        return self._dataset.pieces()

    def _read(self, trajectory_id: str, spans: tuple[Span, ...]) -> pa.Table:
        """Read the rows of a trajectory.

        Args:
            trajectory_id: whose rows they are.
            spans: where the index says that they lie.

        Raises:
            ExploreError: they are not there any more.
        """
        names = self._pieces.schema.names
        try:
            found = [self._pieces.read(span.piece, names, self._chosen(span)) for span in spans]
        except (OSError, pa.ArrowInvalid, IndexError) as error:
            raise ExploreError("the dataset changed since this page was started; start it again") from error
        rows = pa.concat_tables(found)
        ids = (
            rows["trajectory_id"]
            if "trajectory_id" in names
            else pc.replace_substring_regex(rows["id"], "-[0-9]+$", "")
        )
        if not pc.all(pc.equal(ids, trajectory_id)).as_py():
            raise ExploreError("the dataset changed since this page was started; start it again")
        return rows

    def _chosen(self, span: Span) -> NDArray[np.int32]:
        """Return which rows of a piece are a trajectory's: those of its span that the dataset is to show."""
        wanted = self._pieces.rows(span.piece)
        if wanted is None:
            return np.arange(span.first_row, span.last_row + 1, dtype=np.int32)
        return wanted[(wanted >= span.first_row) & (wanted <= span.last_row)]


def trajectory_of(rows: pa.Table) -> Trajectory:
    """Decode the rows of one trajectory."""
    (trajectory,) = decode(rows)
    return trajectory


def document(t: Trajectory) -> dict[str, Any]:
    """Return all that is known of a trajectory, as JSON has it: what is unknown is null."""
    volume = np.abs(np.linalg.det(t.lattice))
    series = {
        "relaxation_step": t.relaxation_step, "relaxation_number": t.relaxation_number,
        "energy": t.energy, "energy_per_atom": t.energy / t.n_atoms,
        "energy_corrected": t.energy_corrected, "energy_sigma0": t.energy_sigma0,
        "max_force": np.linalg.norm(t.forces, axis=2).max(axis=1), "volume": volume,
        "pressure": -np.trace(t.stress, axis1=1, axis2=2) / 3 * GPA_PER_EV_PER_A3,
        "space_group": t.space_group,
        "lattice": t.lattice, "positions": t.positions, "forces": t.forces, "stress": t.stress,
        "magnetic_moments": t.magnetic_moments,
    }  # fmt: skip
    return {
        "trajectory_id": t.trajectory_id, "immutable_id": t.immutable_id, "task_id": t.task_id,
        "source": t.source or None,
        "asset": t.asset or None, "formula": reduced_formula(t.composition), "cell": descriptive_formula(t.composition),
        "n_atoms": t.n_atoms, "n_frames": len(t), "functional": t.functional, "run_type": t.run_type,
        "encut": None if t.encut is None else _plain(t.encut)[-1], "hubbard_u": t.hubbard_u, "potentials": t.potentials,
        "license": t.license, "last_modified": t.last_modified, "relaxation_converged": t.relaxation_converged,
        "material_origin": t.material_origin, "notes": list(t.notes),
        "cross_compatibility": None if t.cross_compatibility is None else bool(t.cross_compatibility.all()),
        "units": UNITS, "symbols": t.symbols,
        "frames": {name: None if values is None else _plain(values) for name, values in series.items()},
    }  # fmt: skip


def _plain(values: Any) -> list[Any]:
    """Return an array as lists; msgspec writes NaN as null."""
    found: list[Any] = values.tolist()
    return found


def file_of(rows: pa.Table, form: str, frame: int) -> bytes:
    """Write a trajectory as a file: all of it, but of CIF one frame.

    Args:
        rows: of the trajectory.
        form: one of `FORMATS`.
        frame: which frame, for CIF.

    Raises:
        MissingExtraError: ASE is not installed.
    """
    if form == "json":
        return msgspec.json.encode(document(trajectory_of(rows)))
    from trajmill.targets import TARGETS

    chosen = rows.slice(frame, 1) if form == "cif" else rows
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out.{form}"
        TARGETS[form].write(iter([chosen]), out, "")  # plain names: what opens it finds energies and forces
        return out.read_bytes()


def file_name(trajectory_id: str, form: str, step: int | None) -> str:
    """Return what a download is called: nothing in it but letters, digits, dots and dashes."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", trajectory_id).lstrip(".")
    return f"{name}{'' if step is None else f'-{step}'}.{form}"
