"""Materials Project samples for the tests: reads them, and writes the Delta Lake layout from the documents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from trajmill.recipe import MaterialsProject
from trajmill.sources.base import Record, Source
from trajmill.sources.materials_project import open_materials_project
from trajmill.trajectory import Trajectory

DATA = Path(__file__).parent / "data" / "mp"
REAL = DATA / "real"
KEEP = MaterialsProject(tasks_without_material="keep")
TEXT, TIME = pa.string(), pa.timestamp("us", "UTC")
TEXT_MAP = pa.map_(TEXT, TEXT)

INPUT = pa.struct(
    {
        "incar": TEXT,
        "parameters": TEXT,
        "potcar_spec": pa.list_(pa.struct({"titel": TEXT})),
        "potcar": pa.list_(TEXT),
        "hubbards": pa.map_(TEXT, pa.float64()),
        "kpoints": pa.struct(
            {"labels": pa.list_(TEXT), "nkpoints": pa.int64(), "kpts_weights": pa.list_(pa.float64())}
        ),
    }
)
TASKS = pa.schema({"task_id": TEXT, "run_type": TEXT, "task_type": TEXT, "last_updated": TIME, "input": INPUT})
MATERIALS = pa.schema(
    {
        "material_id": TEXT,
        "task_ids": pa.list_(TEXT),
        "deprecated": pa.bool_(),
        "deprecated_tasks": pa.list_(TEXT),
        "calc_types": TEXT_MAP,
        "run_types": TEXT_MAP,
        "task_types": TEXT_MAP,
        "origins": pa.list_(pa.struct({"name": TEXT, "task_id": TEXT})),
        "builder_meta": pa.struct({"license": TEXT}),
        "last_updated": TIME,
        "version": TEXT,
    }
)


def opened(root: Path, workspace: Path, options: MaterialsProject | None = None) -> Source:
    """Open and prepare a Materials Project folder."""
    source = open_materials_project(root, options or MaterialsProject())
    source.prepare(workspace)
    return source


def records(source: Source) -> list[Record]:
    """Read everything."""
    return [record for asset in source.assets() for record in source.read(asset)]


def by_id(found: Iterable[Record]) -> dict[str, Trajectory]:
    """Return all trajectories by id, which must be unique."""
    trajectories = [t for record in found for t in record.trajectories]
    assert len({t.trajectory_id for t in trajectories}) == len(trajectories)
    return {t.trajectory_id: t for t in trajectories}


def documents(*paths: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of JSON Lines files."""
    for path in paths:
        with gzip.open(path) as file:
            yield from map(json.loads, file)


def plain(value: Any) -> Any:
    """Unwrap a stored enum."""
    return value["value"] if isinstance(value, dict) else value


def utc(text: str) -> datetime:
    """Read an ISO date, UTC where it says nothing."""
    date = datetime.fromisoformat(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def task_row(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task document as a row of `core/tasks` (CoreTaskDoc: the input is that of the first calculation)."""
    given = task["calcs_reversed"][-1]["input"]
    updated = task["last_updated"]
    return {
        "task_id": task["task_id"],
        "run_type": plain(task.get("run_type")),
        "task_type": plain(task.get("task_type")),
        "last_updated": utc(updated["string"] if isinstance(updated, dict) else updated),
        "input": {
            "incar": json.dumps(given["incar"]),
            "parameters": json.dumps(given["parameters"]),
            "potcar_spec": [{"titel": spec["titel"]} for spec in given["potcar_spec"]],
            "potcar": given["potcar"],
            "hubbards": list((given.get("hubbards") or {}).items()),
            "kpoints": None,
        },
    }


def material_row(material: dict[str, Any], version: str) -> dict[str, Any]:
    """Return a materials document as a row of `collections/materials`."""
    row = {name: material.get(name) for name in MATERIALS.names}
    for name in ("calc_types", "run_types", "task_types"):
        row[name] = list(material[name].items())
    row["last_updated"] = utc(material["last_updated"]["$date"])
    return row | {"version": version}


def write_tables(
    root: Path,
    *,
    trajectories: pa.Table | None = None,
    tasks: Iterable[dict[str, Any]] | None = None,
    materials: Iterable[dict[str, Any]] | None = None,
) -> Path:
    """Write the three tables below `root`; what is not given comes from the samples."""
    if trajectories is None:
        trajectories = pq.read_table(DATA / "core_trajectories_sample.parquet")
    if tasks is None:
        names = ("As2SO6", "SiC_elastic", "mp-1201400", "es_task_docs")
        files = [REAL / "tasks" / f"emmet_{name}.jsonl.gz" for name in names]
        tasks = map(task_row, documents(*files, REAL / "tasks" / "atomate2_VO_phase_diagram.jsonl.gz"))
    if materials is None:
        path = REAL / "materials" / "materials_from_emmet_builder.jsonl.gz"
        materials = [material_row(material, "2025.9.25") for material in documents(path)]
    write_deltalake(root / "core" / "trajectories", trajectories, mode="overwrite")
    write_deltalake(root / "core" / "tasks", pa.Table.from_pylist(list(tasks), TASKS), mode="overwrite")
    table = pa.Table.from_pylist(list(materials), MATERIALS)
    write_deltalake(root / "collections" / "materials", table, partition_by=["version"], mode="overwrite")
    return root
