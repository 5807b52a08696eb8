"""Trajectories to Arrow rows and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trajmill.elements import NUMBERS, anonymous_formula, descriptive_formula, reduced_formula
from trajmill.schema import BOOL, FILE_SCHEMA, FLOATS, INT8, LEDGER, STRING, STRINGS
from trajmill.sources.base import Rejection
from trajmill.trajectory import FloatArray, Frames, Trajectory
from trajmill.units import stress_from_vasp


def encode(trajectories: Sequence[Trajectory]) -> pa.RecordBatch:
    """Encode curated and annotated trajectories as rows of `FILE_SCHEMA`, in order.

    Which of them are input geometries (OQMD), `Frames(trajectories).labelled` tells.
    """
    frames = Frames(trajectories)
    atoms, last, n = frames.n_atoms, frames.last, len(frames.owner)
    of_frame = pa.array(frames.owner.astype(np.int32))

    def each(value: Callable[[Trajectory], Any], dtype: pa.DataType) -> pa.Array:
        """Evaluate once per trajectory, repeat for its frames."""
        return pa.array([value(t) for t in trajectories], type=dtype).take(of_frame)

    def joined(name: str, missing: float = np.nan) -> NDArray[Any]:
        """Concatenate a scalar field of the frames."""
        return np.concatenate(
            [np.full(len(t), missing) if (value := getattr(t, name)) is None else value for t in trajectories]
        )

    def scalar(name: str) -> pa.Array:
        return pa.array(joined(name), from_pandas=True)  # NaN becomes null

    def vectors(name: str) -> FloatArray:
        return np.concatenate([getattr(t, name).reshape(-1, 3) for t in trajectories])

    energy, forces = joined("energy"), vectors("forces")
    final = np.zeros(n, bool)
    final[last[last >= 0]] = True
    final_energy = np.where(last < 0, np.nan, energy[last])[frames.owner]
    space_group = joined("space_group", 0).astype(np.int32)
    trajectory_id = each(lambda t: t.trajectory_id, STRING)
    step = pa.array(joined("relaxation_step").astype(np.int32))
    columns: dict[str, pa.Array] = {
        "elements": each(lambda t: list(t.composition), STRINGS),
        "nsites": pa.array(atoms.astype(np.int32)),
        "chemical_formula_anonymous": each(lambda t: anonymous_formula(t.composition), STRING),
        "chemical_formula_reduced": each(lambda t: reduced_formula(t.composition), STRING),
        "chemical_formula_descriptive": each(lambda t: descriptive_formula(t.composition), STRING),
        "nelements": each(lambda t: len(t.composition), INT8),
        "dimension_types": pa.ListArray.from_arrays(pa.array(np.arange(0, 3 * n + 1, 3, dtype=np.int32)), pa.repeat(pa.scalar(1, INT8), 3 * n)),
        "nperiodic_dimensions": pa.repeat(pa.scalar(3, INT8), n),
        "lattice_vectors": _nested(vectors("lattice"), np.full(n, 3)),
        "immutable_id": each(lambda t: t.immutable_id, STRING),
        "cartesian_site_positions": _nested(vectors("positions"), atoms),
        "species": each(lambda t: _species(t.composition), STRING),
        "species_at_sites": each(lambda t: t.symbols, STRINGS),
        "last_modified": each(lambda t: t.last_modified, STRING),
        "elements_ratios": each(lambda t: [c / t.n_atoms for c in t.composition.values()], FLOATS),
        "stress_tensor": _nested(vectors("stress"), np.full(n, 3)),
        "energy": pa.array(energy, from_pandas=True),
        "energy_corrected": scalar("energy_corrected"),
        "forces": _nested(forces, atoms),
        "functional": each(lambda t: t.functional, STRING),
        "cross_compatibility": pa.array(joined("cross_compatibility", False).astype(bool)),
        "space_group_it_number": pa.array(space_group, mask=space_group == 0),
        "id": pc.binary_join_element_wise(trajectory_id, step.cast(STRING), "-"),
        "relaxation_step": step,
        "relaxation_number": pa.array(joined("relaxation_number").astype(np.int32)),
        "source": each(lambda t: t.source, STRING),
        "trajectory_id": trajectory_id,
        "task_id": each(lambda t: t.task_id, STRING),
        "run_type": each(lambda t: t.run_type, STRING),
        "license": each(lambda t: t.license, STRING),
        "is_final": pa.array(final),
        "relaxation_converged": each(lambda t: t.relaxation_converged, BOOL),
        "max_force": pa.array(np.maximum.reduceat(np.linalg.norm(forces, axis=1), np.cumsum(atoms) - atoms), from_pandas=True),
        "energy_above_final": pa.array((energy - final_energy) / atoms, from_pandas=True),
        "energy_sigma0": scalar("energy_sigma0"),
        "magnetic_moments": _moments(trajectories),
        "encut": scalar("encut"),
        "hubbard_u": each(lambda t: None if t.hubbard_u is None else json.dumps(dict(t.hubbard_u), sort_keys=True), STRING),
        "potentials": each(lambda t: t.potentials, STRINGS),
        "material_origin": each(lambda t: t.material_origin, BOOL),
        "notes": each(lambda t: t.notes or None, STRINGS),
    }  # fmt: skip
    columns |= {c.name: pa.nulls(n, c.type) for c in LEDGER}
    return pa.RecordBatch.from_arrays([columns[name] for name in FILE_SCHEMA.names], schema=FILE_SCHEMA)


def encode_rejections(rejections: Sequence[Rejection]) -> pa.RecordBatch:
    """Encode rejections as rows of `FILE_SCHEMA`: identity and reason, no arrays (a licence may forbid storing them)."""
    rows = [{name: getattr(r, name, None) for name in FILE_SCHEMA.names} for r in rejections]
    for row, rejection in zip(rows, rejections, strict=True):
        row["rejection_detail"] = rejection.detail
        for name, value in row.items():
            if isinstance(value, str):  # damaged text must not cost the ledger its row
                row[name] = value.encode("utf-8", "replace").decode()
    return pa.RecordBatch.from_pylist(rows, schema=FILE_SCHEMA)


def _nested(values: NDArray[np.float64], rows: NDArray[Any]) -> pa.ListArray:
    """Build list<list<double>> with `rows` triples per frame; a frame that is all NaN becomes null."""
    borders = np.concatenate([[0], np.cumsum(rows)])
    triples = values.reshape(-1, 3)
    missing = np.isnan(triples)
    null = np.zeros(len(rows), bool)
    if missing.any():
        null = np.logical_or.reduceat(missing.any(axis=1), borders[:-1])
        triples = triples[~np.repeat(null, rows)]  # Parquet wants null lists to be empty
        borders = np.concatenate([[0], np.cumsum(np.where(null, 0, rows))])
    inner = pa.ListArray.from_arrays(np.arange(0, triples.size + 1, 3, dtype=np.int32), triples.reshape(-1))
    return pa.ListArray.from_arrays(borders.astype(np.int32), inner, mask=pa.array(null) if null.any() else None)


def _moments(trajectories: Sequence[Trajectory]) -> pa.Array:
    """Build list<double> with one moment per site; null where the source has none for the frame."""
    rows: list[list[float] | None] = []
    for t in trajectories:
        if t.magnetic_moments is None:
            rows.extend([None] * len(t))
        else:
            rows.extend(None if np.isnan(m).any() else m.tolist() for m in t.magnetic_moments)
    return pa.array(rows, type=FLOATS)


def _species(composition: Iterable[str]) -> str:
    """Return OPTIMADE species as JSON text, with the keys of the published dataset."""
    return f"[{', '.join(map(_one_species, composition))}]"


@cache
def _one_species(element: str) -> str:
    rest = {"attached": None, "nattached": None, "concentration": [1], "original_name": None}
    return json.dumps({"mass": None, "name": element, **rest, "chemical_symbols": [element]})


def decode(rows: pa.RecordBatch | pa.Table) -> list[Trajectory]:
    """Turn rows of frames back into trajectories; consecutive rows of one trajectory become one.

    Columns that are not there (the published schema has 25) become None or are derived from `id`. The stress unit is
    read from the schema's metadata.

    Args:
        rows: frames with the columns of `FRAME_SCHEMA` or of the published schema.
    """
    if not rows.num_rows:
        return []
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    batch = table.combine_chunks().to_batches()[0]
    if "trajectory_id" in batch.schema.names:
        ids = batch["trajectory_id"].to_pylist()
    else:
        ids = [i.rpartition("-")[0] for i in batch["id"].to_pylist()]
    starts = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1]), len(ids)]
    return [_decode_one(batch.slice(a, b - a), ids[a]) for a, b in pairwise(starts)]


def _decode_one(rows: pa.RecordBatch, trajectory_id: str) -> Trajectory:
    """Decode the rows of one trajectory."""
    names = set(rows.schema.names)

    def one(name: str) -> Any:
        return rows[name][0].as_py() if name in names else None

    def scalars(name: str, missing: float) -> Any:
        return pc.fill_null(rows[name], missing).to_numpy(zero_copy_only=False) if name in names else None

    def nested(name: str, *shape: int) -> Any:
        if name not in names:
            return None
        array = np.full((len(rows), *shape), np.nan)
        values = rows[name]
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        while pa.types.is_list(values.type):
            values = values.flatten()  # leaves null lists out
        array[valid] = values.to_numpy(zero_copy_only=False).reshape(-1, *shape)
        return array

    numbers = np.array([NUMBERS[s] for s in one("species_at_sites")], dtype=np.int64)
    energy = scalars("energy", np.nan)
    stress = nested("stress_tensor", 3, 3)
    if (rows.schema.metadata or {}).get(b"trajmill.stress_unit") == b"kBar":
        stress = stress_from_vasp(stress)
    moments = nested("magnetic_moments", len(numbers))
    potentials, u, notes = one("potentials"), one("hubbard_u"), one("notes")
    return Trajectory(
        source=one("source") or "",
        asset=one("asset") or "",
        task_id=one("task_id") or trajectory_id,
        trajectory_id=trajectory_id,
        immutable_id=one("immutable_id"),
        numbers=numbers,
        lattice=nested("lattice_vectors", 3, 3),
        positions=nested("cartesian_site_positions", len(numbers), 3),
        energy=energy,
        forces=nested("forces", len(numbers), 3),
        stress=stress,
        relaxation_number=scalars("relaxation_number", -1),
        relaxation_step=scalars("relaxation_step", -1),
        functional=one("functional"),
        run_type=one("run_type"),
        energy_sigma0=scalars("energy_sigma0", np.nan),
        magnetic_moments=None if moments is None or np.isnan(moments).all() else moments,
        encut=scalars("encut", np.nan),
        is_input=np.isnan(energy),  # only inputs have no energy
        hubbard_u=None if u is None else json.loads(u),
        potentials=None if potentials is None else tuple(potentials),
        license=one("license"),
        material_origin=one("material_origin"),
        last_modified=one("last_modified"),
        relaxation_converged=one("relaxation_converged"),
        notes=tuple(notes or ()),
        space_group=scalars("space_group_it_number", 0),
        energy_corrected=scalars("energy_corrected", np.nan),
        cross_compatibility=scalars("cross_compatibility", False),
    )
