"""What a model says of the frames of a dataset, beside what DFT says: a row a frame, in Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.dataset import Dataset
from trajmill.errors import ModelError, require
from trajmill.schema import FLOATS, MATRIX, parquet_options
from trajmill.trajectory import FloatArray, Trajectory
from trajmill.units import to_voigt

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("trajectory_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("functional", pa.string()),
        pa.field("relaxation_step", pa.int32()),
        pa.field("numbers", pa.list_(pa.int32()), metadata={"description": "Atomic numbers."}),
        pa.field("energy", pa.float64(), metadata={"unit": "eV"}),
        pa.field("energy_predicted", pa.float64(), metadata={"unit": "eV"}),
        pa.field("forces", MATRIX, metadata={"unit": "eV/A"}),
        pa.field("forces_predicted", MATRIX, metadata={"unit": "eV/A"}),
        pa.field("stress", FLOATS, metadata={"unit": "eV/A^3", "description": "xx yy zz yz xz xy, ASE's sign."}),
        pa.field(
            "stress_predicted", FLOATS, metadata={"unit": "eV/A^3", "description": "xx yy zz yz xz xy, ASE's sign."}
        ),
        pa.field("failure", pa.string(), metadata={"description": "Why the model says nothing; null where it does."}),
    ]
)

AT_ONCE = 500
"""Frames that are written together."""

Report = Callable[[int], None]


def predict(
    dataset: Dataset, model: Any, out: Path, *, energy: str = "energy", name: str = "", report: Report = lambda _: None
) -> Path:
    """Ask a model about every frame.

    A frame that the model cannot do (an element it does not know) is a row with the reason, and is counted.

    Args:
        dataset: frames with energies.
        model: an ASE calculator.
        out: Parquet file to make.
        energy: what it is held against, `energy` or `energy_corrected`; frames without it are left out.
        name: of the model, kept in the file.
        report: told frames done so far.

    Raises:
        ModelError: the file cannot be written.
    """
    aside = out.with_name(f".{out.name}.tmp")
    schema = SCHEMA.with_metadata({"trajmill.model": name, "trajmill.energy": energy})
    done = 0
    try:
        with pq.ParquetWriter(aside, schema, **parquet_options(schema)) as writer:
            for rows in _batched(_rows(dataset, model, energy)):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                done += len(rows)
                report(done)
        aside.replace(out)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)
    return out


def _rows(dataset: Dataset, model: Any, energy: str) -> Iterator[dict[str, Any]]:
    ase = require("ase", extra="ase")
    for t in dataset.trajectories():
        energies = getattr(t, energy)
        for i in range(len(t)):
            if energies is None or not np.isfinite(energies[i]):
                continue
            atoms = ase.Atoms(numbers=t.numbers, positions=t.positions[i], cell=t.lattice[i], pbc=True)
            found, failure = _asked(model, atoms)
            stress = to_voigt(t.stress[i])
            yield _facts(t, i) | {
                "energy": float(energies[i]),
                "forces": t.forces[i].tolist(),
                "stress": stress.tolist() if np.isfinite(stress).all() else None,
                "failure": failure,
                **found,
            }


def _facts(t: Trajectory, frame: int) -> dict[str, Any]:
    step = int(t.relaxation_step[frame])
    return {
        "id": f"{t.trajectory_id}-{step}",
        "trajectory_id": t.trajectory_id,
        "source": t.source or None,
        "functional": t.functional,
        "relaxation_step": step,
        "numbers": t.numbers.tolist(),
    }


def _asked(model: Any, atoms: Any) -> tuple[dict[str, Any], str | None]:
    """Return what the model says, or why it says nothing."""
    atoms.calc = model
    try:
        forces: FloatArray = np.asarray(atoms.get_forces(), float)
        energy = float(atoms.get_potential_energy())
        # the one that the forces are the gradient of, where the model tells it from another
        energy = float(model.results.get("free_energy", energy))
        stress = np.asarray(atoms.get_stress(voigt=True), float) if "stress" in model.implemented_properties else None
    except Exception as error:  # noqa: BLE001 (models raise anything)
        return {}, f"{type(error).__name__}: {error}"[:300]
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return {}, "energy or forces that are not finite"
    known = stress is not None and np.isfinite(stress).all()
    return {
        "energy_predicted": energy,
        "forces_predicted": forces.tolist(),
        "stress_predicted": stress.tolist() if known and stress is not None else None,
    }, None


def _batched(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    held = []
    for row in rows:
        held.append(row)
        if len(held) == AT_ONCE:
            yield held
            held = []
    if held:
        yield held
