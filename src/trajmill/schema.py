"""The columns: one definition each, from which the Arrow schema, the Parquet encodings, the docs and the card come."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

DATA_MODEL_VERSION = 1
"""Raised when the meaning of a column changes; part of every fingerprint and of the metadata of every file."""

STRING, BOOL, INT8, INT32, FLOAT = pa.string(), pa.bool_(), pa.int8(), pa.int32(), pa.float64()
STRINGS, FLOATS, MATRIX = pa.list_(STRING), pa.list_(FLOAT), pa.list_(pa.list_(FLOAT))


@dataclass(frozen=True)
class Column:
    """A column of the dataset: its type, unit and meaning."""

    name: str
    type: pa.DataType
    unit: str
    description: str

    @property
    def field(self) -> pa.Field:
        """The Arrow field, unit and meaning in its metadata."""
        return pa.field(self.name, self.type, metadata={"unit": self.unit, "description": self.description})


PUBLISHED = (
    Column("elements", STRINGS, "", "Elements of the cell, alphabetical."),
    Column("nsites", INT32, "", "Number of atoms in the cell."),
    Column("chemical_formula_anonymous", STRING, "", "OPTIMADE anonymous formula, such as A2B."),
    Column("chemical_formula_reduced", STRING, "", "OPTIMADE reduced formula, elements alphabetical, ones left out."),
    Column("chemical_formula_descriptive", STRING, "", "Content of the whole cell, elements alphabetical, counts always written: Ca1 O3 Ti1."),
    Column("nelements", INT8, "", "Number of elements."),
    Column("dimension_types", pa.list_(INT8), "", "Periodicity along each lattice vector; always 1 1 1."),
    Column("nperiodic_dimensions", INT8, "", "Number of periodic directions; always 3."),
    Column("lattice_vectors", MATRIX, "A", "Lattice vectors as rows."),
    Column("immutable_id", STRING, "", "Identifier of the material: MP material id, Alexandria agm id, oqmd-{final structure id}; that of the run for vasp and ase, unless a file names one."),
    Column("cartesian_site_positions", MATRIX, "A", "Cartesian positions, one row per site."),
    Column("species", STRING, "", "OPTIMADE species as JSON text."),
    Column("species_at_sites", STRINGS, "", "Element of each site."),
    Column("last_modified", STRING, "", "Date or time of the source's record, ISO 8601."),
    Column("elements_ratios", FLOATS, "", "Share of each element, in the order of elements."),
    Column("stress_tensor", MATRIX, "eV/A^3", "Stress, positive under tension (ASE sign): -(VASP kBar)/1602.1766208; null where unknown or asymmetric by over 1 kBar."),
    Column("energy", FLOAT, "eV", "Energy of the cell whose gradient the forces are (VASP free energy e_fr_energy where the source has it); null in initial structures."),
    Column("energy_corrected", FLOAT, "eV", "Energy plus the MaterialsProject2020Compatibility correction of its calculation's final frame; PBE only, null where the scheme refuses."),
    Column("forces", MATRIX, "eV/A", "Forces as computed, one row per site, no drift removed."),
    Column("functional", STRING, "", "pbe, pbesol, scan or r2scan."),
    Column("cross_compatibility", BOOL, "", "Whether settings and pseudopotentials agree with the other sources'."),
    Column("space_group_it_number", INT32, "", "Space group of this frame by moyopy, symprec 1e-4 A; null where it fails."),
    Column("id", STRING, "", "Unique: {trajectory_id}-{relaxation_step}."),
    Column("relaxation_step", INT32, "", "Number of the frame in the whole run, from 0; rejected frames leave gaps."),
    Column("relaxation_number", INT32, "", "Index of the calculation in the run, from 0, in the order computed."),
)  # fmt: skip
"""The 25 columns of the published LeMat-Traj, same names and types, in its order."""

ADDED = (
    Column("source", STRING, "", "mp, alexandria, oqmd; vasp and ase for files of one's own."),
    Column("trajectory_id", STRING, "", "One relaxation run with one functional; stable and unique."),
    Column("task_id", STRING, "", "Identifier of the run exactly as in the raw record."),
    Column("run_type", STRING, "", "GGA, GGA+U, PBEsol, SCAN or r2SCAN; null when unknown. Energies of GGA and GGA+U do not compare."),
    Column("license", STRING, "", "Licence of the record: MP's builder licence (BY-C), CC-BY-4.0 for Alexandria and OQMD, what the recipe says for vasp and ase."),
    Column("is_final", BOOL, "", "Last kept frame of its trajectory."),
    Column("relaxation_converged", BOOL, "", "Whether the last calculation met its force criterion; null when unknown."),
    Column("max_force", FLOAT, "eV/A", "Largest norm of a force on an atom."),
    Column("energy_above_final", FLOAT, "eV/atom", "Energy per atom above the final frame of the trajectory."),
    Column("energy_sigma0", FLOAT, "eV", "Energy of the cell extrapolated to zero smearing."),
    Column("magnetic_moments", FLOATS, "mu_B", "Magnetic moment of each site, where the source has it for this frame."),
    Column("encut", FLOAT, "eV", "Plane-wave cut-off."),
    Column("hubbard_u", STRING, "eV", "U - J by element as JSON text; {} where none is applied, null when unknown."),
    Column("potentials", STRINGS, "", "Names of the pseudopotentials, such as Fe_pv; null when unknown."),
    Column("material_origin", BOOL, "", "Whether the source names this run as its material's primary one; null when unknown."),
    Column("notes", STRINGS, "", "What was inferred or found odd, in words; null when nothing."),
)  # fmt: skip
"""What trajmill adds to each frame."""

LEDGER = (
    Column("rejected_by", STRING, "", "Rule that turned the row away; null for kept frames."),
    Column("rejection_detail", STRING, "", "The reason in words, with the offending value."),
    Column("n_frames", INT32, "", "Frames this rejection stands for; null when the record was unreadable."),
)
"""What a rejection has, null for frames."""

PARTITIONS = (
    Column("role", STRING, "", "frame, input (unlabelled first geometry) or rejection."),
    Column("asset", STRING, "", "Raw file, or part of one, that the row was read from."),
)
"""Partition columns of the store: readers of frames never touch rejections, an asset's rows are replaced at once."""

METADATA = {"trajmill.data_model": str(DATA_MODEL_VERSION), "trajmill.stress_unit": "eV/A^3"}

FRAME_SCHEMA = pa.schema([c.field for c in (*PUBLISHED, *ADDED, PARTITIONS[1])], metadata=METADATA)
"""What a release holds."""

FILE_SCHEMA = pa.schema([c.field for c in (*PUBLISHED, *ADDED, *LEDGER)], metadata=METADATA)
"""What a file of the store holds."""

STORE_SCHEMA = pa.schema([c.field for c in (*PUBLISHED, *ADDED, *LEDGER, *PARTITIONS)], metadata=METADATA)
"""What the store's table shows."""


def leaves(schema: pa.Schema, kind: Callable[[pa.DataType], bool]) -> list[str]:
    """Return the Parquet column paths whose innermost type is of this kind."""
    paths = []
    for field in schema:
        path, dtype = field.name, field.type
        while pa.types.is_list(dtype):
            path, dtype = f"{path}.list.element", dtype.value_type
        if kind(dtype):
            paths.append(path)
    return paths


IDENTIFIERS = ("immutable_id", "id", "trajectory_id", "task_id")
"""Strings that seldom repeat, but begin like the one before."""


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return how pyarrow is to write this schema: zstd, and for each column what makes it smallest.

    Triples are written as they are: equivalent atoms, and the same atom frame after frame, share whole numbers, which
    zstd finds and byte by byte could not. Other numbers differ, but begin alike: those go byte by byte.
    `benchmarks/columns.py` measures both.
    """
    numbers = leaves(schema, pa.types.is_floating)
    encodings = {path: "BYTE_STREAM_SPLIT" for path in numbers if path.count(".list.") < 2}
    encodings |= {name: "DELTA_BYTE_ARRAY" for name in IDENTIFIERS if name in schema.names}
    words = leaves(schema, lambda t: pa.types.is_string(t) or pa.types.is_integer(t))
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [path for path in words if path not in encodings],
        "column_encoding": encodings,
        "write_statistics": [f.name for f in schema if not pa.types.is_list(f.type)],
    }


def type_name(dtype: pa.DataType) -> str:
    """Return the name of a type as the dataset cards write it, such as `list<double>`."""
    return f"list<{type_name(dtype.value_type)}>" if pa.types.is_list(dtype) else str(dtype)


def main() -> None:
    """Print the columns as JSON; `docs/schema.json` is its committed output, so that drift shows."""
    groups = {"published": PUBLISHED, "added": ADDED, "ledger": LEDGER, "partition": PARTITIONS}
    columns = [
        {"name": c.name, "type": type_name(c.type), "unit": c.unit, "description": c.description, "group": group}
        for group, members in groups.items()
        for c in members
    ]
    json.dump(columns, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
