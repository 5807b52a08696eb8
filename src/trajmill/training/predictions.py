"""What a model says of the frames of a dataset, beside what DFT says: a row a frame, in Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.dataset import Dataset
from trajmill.errors import ModelError
from trajmill.schema import FLOATS, MATRIX, parquet_options
from trajmill.training.batching import Answer, Model, model_of
from trajmill.trajectory import Trajectory
from trajmill.units import to_voigt
from trajmill.views import Geometry

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
    """Ask a model about every frame, many at once where it can.

    A frame that the model cannot do (an element it does not know) is a row with the reason, and is counted.

    Args:
        dataset: frames with energies.
        model: an ASE calculator, or another that `trajmill.training.batching.model_of` takes.
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
            for rows in _together(_rows(dataset, model_of(model), energy)):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                done += len(rows)
                report(done)
        aside.replace(out)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)
    return out


def _rows(dataset: Dataset, model: Model, energy: str) -> Iterator[dict[str, Any]]:
    facts: list[dict[str, Any]] = []
    geometries: list[Geometry] = []
    n_atoms = 0
    for of_frame, geometry in _frames(dataset, energy):
        facts.append(of_frame)
        geometries.append(geometry)
        n_atoms += len(geometry.numbers)
        if n_atoms >= model.atoms_at_once:
            yield from _asked(model, facts, geometries)
            facts, geometries, n_atoms = [], [], 0
    if facts:
        yield from _asked(model, facts, geometries)


def _frames(dataset: Dataset, energy: str) -> Iterator[tuple[dict[str, Any], Geometry]]:
    """Yield what is known of each frame with an energy, and its geometry."""
    for t in dataset.trajectories():
        energies = getattr(t, energy)
        for i in range(len(t)):
            if energies is None or not np.isfinite(energies[i]):
                continue
            stress = to_voigt(t.stress[i])
            facts = _facts(t, i) | {
                "energy": float(energies[i]),
                "forces": t.forces[i].tolist(),
                "stress": stress.tolist() if np.isfinite(stress).all() else None,
            }
            yield facts, Geometry(t.numbers, t.lattice[i], t.positions[i])


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


def _asked(model: Model, facts: list[dict[str, Any]], geometries: list[Geometry]) -> Iterator[dict[str, Any]]:
    """Yield facts with what the model says, or why it says nothing."""
    for of_frame, answer in zip(facts, model.predict(geometries), strict=True):
        yield of_frame | _predicted(answer)


def _predicted(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"failure": answer}
    return {
        "energy_predicted": answer.energy,
        "forces_predicted": answer.forces.tolist(),
        "stress_predicted": None if answer.stress is None else to_voigt(answer.stress).tolist(),
    }


def _together(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    held = []
    for row in rows:
        held.append(row)
        if len(held) == AT_ONCE:
            yield held
            held = []
    if held:
        yield held
