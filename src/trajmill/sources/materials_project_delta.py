"""Materials Project, Delta Lake: `core/trajectories` joined with `core/tasks` and `collections/materials`.

One row is one run type of one task: all its ionic steps, without saying which calculation a step belongs to. The
relaxation number is inferred: a calculation starts from the geometry its predecessor ended with, so a frame whose cell
and positions repeat those of the frame before starts a new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.elements import SYMBOLS
from trajmill.errors import SourceError
from trajmill.sources.base import RELAXATION, Asset, Record, Report
from trajmill.sources.files import Reading, in_parts, takes
from trajmill.sources.mp_arrow import electronic_ends, electronic_steps, frame_array
from trajmill.sources.mp_dates import utc_text
from trajmill.sources.mp_documents import Material, salvage
from trajmill.sources.mp_ids import canonical_task_id
from trajmill.sources.mp_materials import MaterialsProjectFolder, Reader, facts_of
from trajmill.sources.mp_trajectories import (
    SOURCE,
    Frames,
    Group,
    Stage,
    build,
    group_stages,
    type_note,
    unreadable,
    without_frames,
)
from trajmill.sources.parquet_tables import DataFile, data_files, rows
from trajmill.sources.vasp_inputs import CalculationInput, Settings, read_settings
from trajmill.sources.vasp_types import functional, stored_types
from trajmill.storage import COLUMNS, readable
from trajmill.trajectory import IntArray

TRAJECTORIES, TASKS, MATERIALS = Path("core", "trajectories"), Path("core", "tasks"), Path("collections", "materials")

SAME_GEOMETRY = 1e-6
"""A: frames whose cells and positions differ by less in every component are the same geometry."""

ARRAYS = ("elements", "cart_coords", "lattice", "e_fr_energy", "forces", "stress", "num_electronic_steps")
TYPES = ("identifier", "run_type", "task_type")
N_STEPS = "num_ionic_steps"
ELECTRONIC_ENERGIES = ("e_fr_energy", "e_0_energy")
"""Of the electronic steps' fields, the two that are used."""

LEFT_OUT = "trajmill_left_out"
"""Column of files that `trajmill fetch` wrote: why a row's arrays were not copied, null where they were."""

TASK_COLUMNS = (
    *("task_id", "run_type", "task_type", "calc_type", "last_updated", "completed_at"),
    *(f"input.{name}" for name in ("incar", "parameters", "potcar_spec", "potcar", "hubbards")),
    *(f"input.kpoints.{name}" for name in ("labels", "nkpoints", "kpts_weights")),
)
MATERIAL_COLUMNS = tuple(info.name for info in msgspec.structs.fields(Material))
_BATCH = 32  # rows of trajectories in memory at a time; one can have hundreds of frames


class TaskRow(msgspec.Struct, frozen=True, gc=False):
    """What `core/tasks` says about a task: its stored types, its date, and the settings in its input."""

    run_type: str | None
    task_type: str | None
    last_modified: str | None
    settings: Settings


class RowTypes(msgspec.Struct, frozen=True, gc=False):
    """Types that a row of `core/trajectories` stores."""

    run_type: str | None
    task_type: str | None


_TASK_ROW = msgspec.json.Decoder(TaskRow)
_ROW_TYPES = msgspec.json.Decoder(RowTypes)


@dataclass(frozen=True, kw_only=True)
class MaterialsProjectDelta(MaterialsProjectFolder):
    """The Delta Lake layout: `core/trajectories`, `core/tasks` and `collections/materials`; plain Parquet files too."""

    lookups = ("tasks", "rows")

    def prepare(self, workspace: Path, report: Report = lambda *_: None) -> None:
        """Index tasks, materials and the types of all rows; see `Source.prepare`.

        Raises:
            SourceError: one of the tables is damaged.
        """
        listed = [data_files(self.root, table) for table in (TRAJECTORIES, TASKS, MATERIALS)]
        (trajectories, tasks, materials), digests = zip(*listed, strict=True)
        materials = newest_version(materials)
        reading = Reading((file.path for file in (*trajectories, *tasks, *materials)), report)
        tables: dict[str, Iterable[tuple[str, msgspec.Struct]]] = {
            "facts": chain.from_iterable(facts_of(material) for material in read_materials(materials, reading)),
            "tasks": (_task(row) for row in rows(tasks, list(TASK_COLUMNS), reading) if row.get("task_id")),
            "rows": (
                _row_types(row) for row in rows(trajectories, list(TYPES), reading, 4096) if row.get("identifier")
            ),
        }
        self._join(workspace, "mp-delta", "\n".join(digests), tables)

    def assets(self) -> list[Asset]:
        """List the data files of the trajectories table; see `Source.assets`."""
        files, _ = data_files(self.root, TRAJECTORIES)
        if not files:
            raise SourceError(f"{self.root}: no Parquet files in {TRAJECTORIES.as_posix()}/")
        prefix = f"{SOURCE}/{TRAJECTORIES.as_posix()}"
        whole = [Asset(name=f"{prefix}/{f.name}", path=f.path, size=f.path.stat().st_size) for f in files]
        return in_parts(whole, self.options.split)

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the rows of a file; see `Source.read`."""
        number = 0
        partition = DataFile(asset.path, asset.path.relative_to(self.root / TRAJECTORIES).as_posix()).partition
        with self._facts() as facts:
            try:
                with pq.ParquetFile(readable(asset.path, COLUMNS)) as parquet:
                    for batch in parquet.iter_batches(_BATCH, columns=_columns(parquet)):
                        for i in range(len(batch)):
                            number += 1
                            cells = {name: batch.column(name)[i] for name in batch.schema.names}
                            identifier = _text("identifier", cells, partition)
                            if takes(asset, canonical_task_id(identifier or "")):
                                yield self._record(asset, number, cells, partition, facts)
            except (OSError, pa.ArrowException) as error:
                if getattr(error, "errno", None):  # the disk's fault, not the file's: to be tried again
                    raise
                if takes(asset, ""):
                    detail = f"damaged after row {number}: {error}"
                    yield Record(n_frames=0, rejections=(unreadable(asset.name, detail),))

    def _record(
        self, asset: Asset, number: int, cells: dict[str, Any], partition: dict[str, str], facts: Reader
    ) -> Record:
        """Turn one row into one record."""
        identifier, run_type, task_type = (_text(name, cells, partition) for name in TYPES)
        n_frames = _count(cells)
        atoms = cells["elements"].as_py() if "elements" in cells else None
        if identifier is None or not atoms or not all(n and 0 < n < len(SYMBOLS) for n in atoms):
            missing = "no identifier" if identifier is None else "elements are missing or no atomic numbers"
            detail = f"row {number}: {missing}"
            rejection = unreadable(asset.name, detail, n_frames=n_frames, task_id=identifier)
            return Record(n_frames=n_frames, rejections=(rejection,))
        if not n_frames:
            return Record(n_frames=0, rejections=(without_frames(asset.name, identifier),))
        group, last_modified = _group(identifier, RowTypes(*stored_types(run_type, task_type)), n_frames, facts)
        frames = _frames(cells, np.array(atoms, np.int64), n_frames)
        stages = infer_stages(frames) if group.stages[0].task_type == RELAXATION else np.zeros(n_frames, np.int32)
        trajectory = build(
            group,
            frames,
            asset=asset.name,
            task_id=identifier,
            facts=facts.facts(canonical_task_id(identifier)),
            keep_orphans=self.options.tasks_without_material == "keep",
            relaxation_number=stages,
            notes=["relaxation_number inferred from repeated geometries"] if stages[-1] else [],
            last_modified=last_modified,
        )
        return Record(n_frames=n_frames, trajectories=(trajectory,))


def newest_version(files: Iterable[DataFile]) -> list[DataFile]:
    """Keep the files of the newest `version` partition: the table holds every database version ever published."""
    by_version: dict[tuple[int, ...], list[DataFile]] = {}
    for file in files:
        parts = re.findall(r"\d+", file.partition.get("version", ""))
        by_version.setdefault(tuple(int(part) for part in parts), []).append(file)
    return by_version[max(by_version)] if by_version else []


def infer_stages(frames: Frames) -> IntArray:
    """Return the number of the calculation of each frame, from 0: a repeated geometry starts the next one."""
    cell = np.abs(np.diff(frames.lattice, axis=0)).max(axis=(1, 2)) < SAME_GEOMETRY
    atoms = np.abs(np.diff(frames.positions, axis=0)).max(axis=(1, 2)) < SAME_GEOMETRY
    return np.concatenate([[0], np.cumsum(cell & atoms)]).astype(np.int32)


def read_materials(files: Sequence[DataFile], reading: Reading | None = None) -> Iterator[Material]:
    """Stream the rows of `collections/materials`.

    Raises:
        SourceError: a file is damaged.
    """
    for row in rows(files, list(MATERIAL_COLUMNS), reading):
        yield salvage(row, Material)


def _task(row: dict[str, Any]) -> tuple[str, TaskRow]:
    """Read a row of `core/tasks`; INCAR and parameters are JSON text in it."""
    given = dict(row["input"]) if isinstance(row.get("input"), dict) else {}
    for name in ("incar", "parameters"):
        try:
            given[name] = json.loads(given.get(name) or "null")
        except (ValueError, RecursionError):
            given[name] = None
    run_type, task_type = stored_types(row.get("run_type"), row.get("task_type"), row.get("calc_type"))
    return canonical_task_id(str(row["task_id"])), TaskRow(
        run_type=run_type,
        task_type=task_type,
        last_modified=utc_text(row.get("last_updated")) or utc_text(row.get("completed_at")),
        settings=read_settings(salvage(given, CalculationInput)),
    )


def _row_types(row: dict[str, Any]) -> tuple[str, RowTypes]:
    return canonical_task_id(str(row["identifier"])), RowTypes(*stored_types(row.get("run_type"), row.get("task_type")))


def _columns(parquet: pq.ParquetFile) -> list[str]:
    """Choose the columns to read: of the electronic steps only the two energies that are used."""
    leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    energies = tuple(f".{name}" for name in ELECTRONIC_ENERGIES)
    nested = [leaf for leaf in leaves if leaf.startswith("electronic_steps.") and leaf.endswith(energies)]
    return [*ARRAYS, *TYPES, N_STEPS, LEFT_OUT, *nested]


def _text(name: str, cells: dict[str, Any], partition: dict[str, str]) -> str | None:
    """Return a column of a row as text, from the path where the file does not hold it."""
    value = cells[name].as_py() if name in cells else partition.get(name)
    return None if value is None else str(value)


def _count(cells: dict[str, Any]) -> int:
    """Count the ionic steps of a raw row."""
    listed = (cells[name] for name in ("cart_coords", "e_fr_energy", "forces") if name in cells)
    lengths = [len(cell.values) for cell in listed if cell.is_valid]
    stated = cells[N_STEPS].as_py() if N_STEPS in cells else None
    return lengths[0] if lengths else stated or 0


def _group(identifier: str, row: RowTypes, n_frames: int, facts: Reader) -> tuple[Group, str | None]:
    """Describe a row by its task's settings, where these are the row's; return the task's date with it."""
    key = canonical_task_id(identifier)
    tasks = [_TASK_ROW.decode(value) for value in facts.values("tasks", key)]
    task = next((t for t in tasks if t.run_type in (row.run_type, None)), tasks[0] if tasks else None)
    siblings = {_ROW_TYPES.decode(value) for value in facts.values("rows", key)}
    run_type, task_type, settings, notes, conflict = row.run_type, row.task_type, Settings(), [], None
    if task and task.run_type in (row.run_type, None):
        recomputed = (task.settings.run_type, task.settings.task_type)
        note = type_note((row.run_type, row.task_type), recomputed, "")
        if note is None or len(siblings) == 1:  # of several rows, the input may belong to another one
            run_type, task_type, settings = recomputed[0] or run_type, recomputed[1] or task_type, task.settings
            notes = [note] if note else []
        elif recomputed[0] != row.run_type:
            conflict = f"{note}, and the task has rows of several types"
    stage = Stage(
        number=0,
        first_step=0,
        n_frames=n_frames,
        settings=settings,
        run_type=run_type,
        task_type=task_type,
        notes=tuple(notes),
    )
    group = group_stages([stage, *_decisive(stage, siblings, task)])[0]
    if conflict:
        group.findings["unsupported_functional"] = conflict
    return group, task.last_modified if task else None


def _decisive(stage: Stage, siblings: set[RowTypes], task: TaskRow | None) -> list[Stage]:
    """Return the task's relaxation with the same functional that decides its run type, when it is another row."""
    name = functional(stage.run_type)
    rivals = {s.run_type or "" for s in siblings if s.task_type == RELAXATION and functional(s.run_type) == name}
    if name is None or len(rivals) < 2:
        return []
    decides = task.run_type if task and task.run_type in rivals else max(rivals)
    return [Stage(number=1, first_step=0, n_frames=0, settings=Settings(), run_type=decides, task_type=RELAXATION)]


def _frames(cells: dict[str, Any], numbers: np.ndarray[Any, np.dtype[np.int64]], n_frames: int) -> Frames:
    """Turn the cells of a row into arrays."""
    left_out = cells[LEFT_OUT].as_py() if LEFT_OUT in cells else None
    faults = dict.fromkeys(range(n_frames), f"arrays not fetched ({left_out})") if left_out else {}
    shape = (len(numbers), 3)
    cell = cells.get("lattice")
    if cell is not None and cell.is_valid and len(cell.values) == 1:  # one matrix is the cell of every frame
        lattice = np.repeat(frame_array(cell, 1, (3, 3), "lattice", faults), n_frames, axis=0)
    else:
        lattice = frame_array(cell, n_frames, (3, 3), "lattice", faults)
    positions = frame_array(cells.get("cart_coords"), n_frames, shape, "positions", faults)
    forces = frame_array(cells.get("forces"), n_frames, shape, "forces", faults)
    end = electronic_ends(cells.get("electronic_steps"), n_frames)
    given = frame_array(cells.get("e_fr_energy"), n_frames, (), "e_fr_energy", {})
    energy = np.where(np.isnan(given), end[:, 0], given)
    return Frames(
        numbers=numbers,
        lattice=lattice,
        positions=positions,
        energy=energy,
        energy_sigma0=energy + (end[:, 1] - end[:, 0]),
        forces=forces,
        stress=frame_array(cells.get("stress"), n_frames, (3, 3), "stress", {}),  # a bad stress costs the label only
        electronic_steps=electronic_steps(cells, n_frames),
        magnetic_moments=None,
        faults=faults,
    )
