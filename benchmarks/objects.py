"""The same work with an object per frame: what `compare.py` holds trajmill against.

Written here from a description of how the published LeMat-Traj was made, with the libraries its pipeline uses: a
pymatgen Structure for each frame, moyopy's space group, pymatgen's energy correction from a ComputedStructureEntry, a
pydantic model with the dataset's fields, one INSERT into PostgreSQL, a commit for each record; all in one process.
OQMD's dump is loaded into MariaDB first and read entry by entry.

Of the rules it has those that decide most: finite targets, electronic convergence, duplicate frames, the energy
window. It has no rejections to write, and neither checks distances nor whether zero forces are meant.
"""

from __future__ import annotations

import ast
import bz2
import gzip
import json
import math
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import moyopy
import numpy as np
import psycopg
import pyarrow as pa
import pymysql
from moyopy.interface import MoyoAdapter
from pydantic import BaseModel, create_model
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import CompatibilityError, MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

import measuring
from trajmill.schema import PUBLISHED
from trajmill.sources import mp_settings
from trajmill.sources.mp_ids import canonical_task_id

MARIADB = os.environ.get("TRAJMILL_MARIADB", "127.0.0.1:3306")
KBAR = 1602.1766208
ABOVE, BELOW = 1.0, 0.5  # eV/atom
FUNCTIONALS = {"GGA": "pbe", "GGA+U": "pbe", "PBEsol": "pbesol", "SCAN": "scan", "r2SCAN": "r2scan"}
PYTHON_TYPES = {"string": str, "double": float, "int32": int, "int8": int, "bool": bool}
SQL_TYPES = {"string": "text", "double": "double precision", "int32": "integer", "int8": "smallint", "bool": "boolean"}


@dataclass
class Frame:
    structure: Structure
    energy: float | None
    forces: list[list[float]] | None
    stress: list[list[float]] | None
    number: int
    step: int


@dataclass
class Run:
    """What all frames of a trajectory share."""

    id: str
    material: str
    functional: str
    frames: list[Frame]
    last_modified: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


def _python_type(dtype: pa.DataType) -> Any:
    return list[_python_type(dtype.value_type)] if pa.types.is_list(dtype) else PYTHON_TYPES[str(dtype)]  # type: ignore[misc]


def _sql_type(dtype: pa.DataType) -> str:
    while pa.types.is_list(dtype):
        return f"{_sql_type(dtype.value_type).removesuffix('[]')}[]"
    return SQL_TYPES[str(dtype)]


Row: type[BaseModel] = create_model("Row", **{c.name: (_python_type(c.type) | None, None) for c in PUBLISHED})  # type: ignore[call-overload]


def alexandria(folder: Path, _: str) -> Iterator[tuple[int, list[Run]]]:
    """Yield (frames read, runs) of each record."""
    for file in sorted(folder.rglob("*.json.bz2")):
        for material, calculations in json.loads(bz2.decompress(file.read_bytes())).items():
            frames: list[Frame] = []
            for number, calculation in enumerate(calculations):
                for step in calculation["steps"]:
                    structure = Structure.from_dict(step["structure"])
                    frames.append(Frame(structure, step["energy"], step["forces"], step["stress"], number, len(frames)))
            elements = sorted({str(e) for e in frames[0].structure.elements})
            u = mp_settings.hubbard_u(elements)
            parameters = _parameters("GGA+U" if u else "GGA", u, mp_settings.potentials(elements) or ())
            yield len(frames), [Run(material, material, "pbe", frames, parameters=parameters)]


def _parameters(run_type: str, hubbards: Mapping[str, float], potentials: Any) -> dict[str, Any]:
    symbols = [f"PBE {name}" for name in potentials]
    return {"run_type": run_type, "hubbards": dict(hubbards), "potcar_symbols": symbols, "software": "vasp"}


def mp(folder: Path, _: str) -> Iterator[tuple[int, list[Run]]]:
    """Yield (frames read, runs) of each task whose material's licence allows it."""
    material_of: dict[str, str] = {}
    for file in sorted((folder / "materials").glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            material = json.loads(line)
            if material["builder_meta"]["license"] == "BY-C" and not material["deprecated"]:
                material_of |= dict.fromkeys(material["task_ids"], material["material_id"])
    for file in sorted((folder / "tasks").glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            yield _task(json.loads(line), material_of)


def _task(task: dict[str, Any], material_of: dict[str, str]) -> tuple[int, list[Run]]:
    """Read a task, calculations in the order they ran."""
    frames: list[Frame] = []
    step = 0
    calculations = task["calcs_reversed"][::-1]
    for number, calculation in enumerate(calculations):
        nelm = calculation["input"]["parameters"]["NELM"]
        for ionic in calculation["output"]["ionic_steps"]:
            if len(ionic["electronic_steps"]) < nelm:
                structure = Structure.from_dict(ionic["structure"])
                frames.append(Frame(structure, ionic["e_fr_energy"], ionic["forces"], ionic["stress"], number, step))
            step += 1
    material = material_of.get(task["task_id"])
    if material is None or not frames:
        return step, []
    titles = [spec["titel"].split()[1] for spec in calculations[-1]["input"]["potcar_spec"]]
    parameters = _parameters(task["run_type"], calculations[-1]["input"].get("hubbards") or {}, titles)
    modified = task["last_updated"]["$date"]
    return step, [
        Run(canonical_task_id(task["task_id"]), material, FUNCTIONALS[task["run_type"]], frames, modified, parameters)
    ]


def oqmd(dump: Path, database: str) -> Iterator[tuple[int, list[Run]]]:
    """Yield (frames read, runs) of each entry of the dump, from a MariaDB database that it is loaded into."""
    host, _, port = MARIADB.partition(":")
    client = shutil.which("mariadb") or "mysql"
    load = f"gzip -dc '{dump}' | {client} -h {host} -P {port or 3306} -u root {database}"
    subprocess.run(["sh", "-c", load], check=True)
    with mariadb(database) as connection, connection.cursor() as cursor:
        for table, column in (("calculations", "entry_id"), ("atoms", "structure_id")):
            cursor.execute(f"CREATE INDEX by_owner ON {table} ({column})")  # the real dump has them
        cursor.execute("SELECT id FROM entries ORDER BY id")
        rows = connection.cursor(pymysql.cursors.DictCursor)
        for (entry,) in cursor.fetchall():
            rows.execute("SELECT * FROM calculations WHERE entry_id = %s AND converged = 1 ORDER BY id", [entry])
            yield _entry(rows, rows.fetchall())


def mariadb(database: str | None = None) -> Any:
    host, _, port = MARIADB.partition(":")
    return pymysql.connect(host=host, port=int(port or 3306), user="root", database=database)


def _entry(rows: Any, calculations: Any) -> tuple[int, list[Run]]:
    """Read the first geometry of an entry and what each of its relaxations ended with."""
    frames: list[Frame] = []
    step = total = 0
    for number, calculation in enumerate(calculations):
        if not frames:
            frames.append(Frame(_geometry(rows, calculation["input_id"])[0], None, None, None, number, 0))
        structure, forces = _geometry(rows, calculation["output_id"])
        total += calculation["nsteps"] or 1
        step = max(step + 1, total)
        frames.append(Frame(structure, calculation["energy"], forces, None, number, step))
    settings = ast.literal_eval(calculations[-1]["settings"])
    parameters = _parameters("GGA", {}, [potential["name"] for potential in settings["potentials"]])
    name = f"oqmd-{calculations[-1]['output_id']}"
    return len(frames), [Run(name, name, "pbe", frames, parameters=parameters)]


def _geometry(rows: Any, structure_id: int) -> tuple[Structure, list[list[float]]]:
    rows.execute("SELECT * FROM structures WHERE id = %s", [structure_id])
    cell = rows.fetchone()
    rows.execute("SELECT * FROM atoms WHERE structure_id = %s ORDER BY id", [structure_id])
    atoms = rows.fetchall()
    lattice = Lattice([[cell[f"{axis}{i}"] for i in (1, 2, 3)] for axis in "xyz"])
    sites = [[a["x"], a["y"], a["z"]] for a in atoms]
    structure = Structure(lattice, [a["element_id"] for a in atoms], sites)
    return structure, [[a["fx"], a["fy"], a["fz"]] for a in atoms]


def kept(run: Run) -> list[Frame]:
    """Apply the rules; unlabelled inputs stay, the energy window needs no more of them."""
    frames = [f for f in run.frames if f.energy is None or _finite(f)]
    distinct: list[Frame] = []
    for f in frames:  # of equal ones the first stays, but the last of all in any case
        if distinct and _equal(distinct[-1], f):
            if f is frames[-1]:
                distinct[-1] = f
        else:
            distinct.append(f)
    if not distinct or distinct[-1].energy is None:
        return distinct
    n_atoms, final = len(distinct[-1].structure), distinct[-1].energy
    inside = [f for f in distinct if f.energy is None or -BELOW <= (f.energy - final) / n_atoms <= ABOVE]
    return [] if 2 * (len(distinct) - len(inside)) > len(distinct) else inside


def _finite(frame: Frame) -> bool:
    return math.isfinite(frame.energy or 0.0) and all(math.isfinite(x) for row in frame.forces or [] for x in row)


def _equal(a: Frame, b: Frame) -> bool:
    return (
        (a.energy, a.forces, a.stress) == (b.energy, b.forces, b.stress)
        and np.array_equal(a.structure.lattice.matrix, b.structure.lattice.matrix)
        and np.array_equal(a.structure.frac_coords, b.structure.frac_coords)
    )


class Table:
    """The table of frames in PostgreSQL, a row an INSERT."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.scheme = MaterialsProject2020Compatibility()
        names = ", ".join(c.name for c in PUBLISHED)
        self.insert = f"INSERT INTO frames ({names}) VALUES ({', '.join(['%s'] * len(PUBLISHED))})"
        columns = ", ".join(
            f"{c.name} {_sql_type(c.type)}{' PRIMARY KEY' if c.name == 'id' else ''}" for c in PUBLISHED
        )
        connection.execute(f"CREATE TABLE frames ({columns})")
        connection.commit()

    def add(self, run: Run) -> int:
        """Write the frames that the rules leave; return how many."""
        frames = kept(run)
        with self.connection.cursor() as cursor:
            for frame in frames:
                row = self._row(run, frame)
                cursor.execute(self.insert, list(row.model_dump().values()))
        self.connection.commit()
        return len(frames)

    def _corrected(self, run: Run, frame: Frame) -> float | None:
        if run.functional != "pbe" or frame.energy is None:
            return None
        entry = ComputedStructureEntry(frame.structure, frame.energy, parameters=dict(run.parameters))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                done = self.scheme.process_entry(entry, on_error="raise")
            except (CompatibilityError, KeyError):
                return None
        return None if done is None else done.energy

    def _row(self, run: Run, frame: Frame) -> BaseModel:
        structure = frame.structure
        composition = structure.composition
        elements = sorted(str(e) for e in composition.elements)
        species = [{"name": e, "chemical_symbols": [e], "concentration": [1], "mass": None} for e in elements]
        try:
            group = moyopy.MoyoDataset(MoyoAdapter.from_structure(structure), symprec=1e-4).number
        except (ValueError, RuntimeError):
            group = None
        stress = frame.stress and [[-x / KBAR for x in row] for row in frame.stress]
        return Row(
            elements=elements,
            nsites=len(structure),
            chemical_formula_anonymous=composition.anonymized_formula,
            chemical_formula_reduced=composition.reduced_formula,
            chemical_formula_descriptive=composition.formula,
            nelements=len(elements),
            dimension_types=[1, 1, 1],
            nperiodic_dimensions=3,
            lattice_vectors=structure.lattice.matrix.tolist(),
            immutable_id=run.material,
            cartesian_site_positions=structure.cart_coords.tolist(),
            species=json.dumps(species),
            species_at_sites=[str(site.specie) for site in structure],
            last_modified=run.last_modified,
            elements_ratios=[composition.get_atomic_fraction(e) for e in elements],
            stress_tensor=stress,
            energy=frame.energy,
            energy_corrected=self._corrected(run, frame),
            forces=frame.forces if frame.energy is not None else None,
            functional=run.functional,
            cross_compatibility=not {"V", "Cs", "Yb"} & set(elements),
            space_group_it_number=group,
            id=f"{run.id}-{run.functional}-{frame.step}",
            relaxation_step=frame.step,
            relaxation_number=frame.number,
        )


READERS = {"alexandria": alexandria, "mp": mp, "oqmd": oqmd}


def build(source: str, path: Path, address: str) -> dict[str, Any]:
    """Do all of it into an empty database; return counts and the CPU seconds of the server's process.

    OQMD passes through a MariaDB database of the same name.
    """
    with psycopg.connect(address) as connection:
        table = Table(connection)
        frames = rows = 0
        for n, runs in READERS[source](path, connection.info.dbname):
            frames += n
            rows += sum(table.add(run) for run in runs)
        (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        local = urlsplit(address).hostname in ("127.0.0.1", "localhost")
        server = measuring.cpu_s(pid) if local else None
        (size,) = connection.execute("SELECT pg_total_relation_size('frames')").fetchone() or (0,)
    return {"frames": frames, "kept": rows, "server_cpu_s": server, "bytes": size}
