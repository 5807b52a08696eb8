"""Materials Project, JSON Lines: `tasks*/**.jsonl.gz` joined with `materials/**.jsonl.gz`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import BadGzipFile
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from isal import igzip, isal_zlib

from trajmill.errors import SourceError
from trajmill.raw import current, sha256
from trajmill.recipe import MaterialsProject
from trajmill.sources.base import Asset, Record, Report
from trajmill.sources.files import Reading, in_parts, takes
from trajmill.sources.mp_dates import utc_text
from trajmill.sources.mp_documents import (
    Calculation,
    Identifier,
    IonicStep,
    Material,
    Outcar,
    Task,
    decode_leniently,
)
from trajmill.sources.mp_ids import canonical_task_id
from trajmill.sources.mp_materials import Facts, MaterialsProjectFolder, Reader, facts_of
from trajmill.sources.mp_trajectories import (
    SOURCE,
    Frames,
    Stage,
    build,
    group_stages,
    type_note,
    unreadable,
    without_frames,
)
from trajmill.sources.pymatgen_json import FractionalSite, Site, decode, stack, structure_arrays
from trajmill.sources.vasp_inputs import read_settings
from trajmill.sources.vasp_types import stored_types
from trajmill.storage import AnyPath, readable
from trajmill.trajectory import FloatArray, Trajectory

if TYPE_CHECKING:
    from trajmill.sources.materials_project_delta import MaterialsProjectDelta

logger = logging.getLogger(__name__)

DAMAGED: tuple[type[Exception], ...] = (BadGzipFile, EOFError, isal_zlib.error)  # type: ignore[assignment]
"""What reading a file that is cut off, or no gzip at all, raises (isal's stub calls its class an instance)."""

_TASKS = msgspec.json.Decoder(Task[FractionalSite])
_MATERIALS = msgspec.json.Decoder(Material)
_IDENTIFIERS = msgspec.json.Decoder(Identifier)
_TASK_ID = re.compile(rb'"task_id"\s*:\s*"([^"]+)"')


def open_materials_project(root: AnyPath, options: MaterialsProject) -> MaterialsProjectJsonl | MaterialsProjectDelta:
    """Open a folder of Materials Project data in the layout it has.

    Raises:
        SourceError: it has neither layout, or not the one the options name.
    """
    from trajmill.sources.materials_project_delta import MaterialsProjectDelta  # it needs pyarrow

    delta, jsonl = (root / "core" / "trajectories").is_dir(), bool(_json_lines(root, "tasks"))
    if delta and options.layout in ("auto", "delta"):
        return MaterialsProjectDelta(root=root, options=options)
    if jsonl and options.layout in ("auto", "jsonl"):
        return MaterialsProjectJsonl(root=root, options=options)
    wanted = {"delta": "core/trajectories/", "jsonl": "tasks*/**/*.jsonl.gz"}
    looked_for = wanted.get(options.layout, " or ".join(wanted.values()))
    raise SourceError(f"{root}: no Materials Project data here; looked for {looked_for}")


@dataclass(frozen=True, kw_only=True)
class MaterialsProjectJsonl(MaterialsProjectFolder):
    """The JSON Lines layout: folders whose names begin with `tasks` and `materials`, files at any depth below."""

    def prepare(self, workspace: Path, report: Report = lambda *_: None) -> None:
        """Index the materials documents; see `Source.prepare`.

        Raises:
            SourceError: a materials file is damaged.
        """
        files = _json_lines(self.root, "materials")
        digest = "".join(f"{path.relative_to(self.root)} {sha256(path, self.root)}\n" for path in files)
        reading = Reading(files, report).through(files)
        rows = chain.from_iterable(facts_of(material) for path in reading for material in _materials(path))
        self._join(workspace, "mp-jsonl", digest, {"facts": rows})

    def assets(self) -> list[Asset]:
        """List the task files; see `Source.assets`."""
        files = _json_lines(self.root, "tasks")
        if not files:
            raise SourceError(f"{self.root}: no task files; looked for tasks*/**/*.jsonl.gz")
        names = (f"{SOURCE}/{path.relative_to(self.root).as_posix()}" for path in files)
        whole = [Asset(name=name, path=path, size=path.stat().st_size) for name, path in zip(names, files, strict=True)]
        return in_parts(whole, self.options.split)

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the tasks of a file; see `Source.read`."""
        number = 0
        with self._facts() as facts:
            if not asset.size:
                yield Record(n_frames=0, rejections=(unreadable(asset.name, "the file is empty"),))
            try:
                for number, line in lines(asset.path):
                    if not asset.part or takes(asset, _identifier(line)):
                        yield self._record(asset, number, line, facts)
            except DAMAGED as error:
                if takes(asset, ""):
                    detail = f"damaged after line {number}: {error or type(error).__name__}"
                    yield Record(n_frames=0, rejections=(unreadable(asset.name, detail),))

    def _record(self, asset: Asset, number: int, line: bytes, facts: Reader) -> Record:
        """Turn one line into one record."""
        try:
            task = decode_leniently(_TASKS, line, Task[Site])
        except ValueError as error:
            found = _TASK_ID.search(line)
            task_id = found[1].decode(errors="replace") if found else None
            rejection = unreadable(asset.name, f"line {number}: {error}", task_id=task_id)
            return Record(n_frames=0, rejections=(rejection,))
        calculations = [calculation or Calculation() for calculation in reversed(task.calcs_reversed or ())]
        n_frames = sum(len(_steps(calculation)) for calculation in calculations)
        if task.task_id is None:
            rejection = unreadable(asset.name, f"line {number}: no task_id", n_frames=n_frames)
            return Record(n_frames=n_frames, rejections=(rejection,))
        task_id = str(task.task_id)
        if not n_frames:
            return Record(n_frames=0, rejections=(without_frames(asset.name, task_id),))
        trajectories = self._trajectories(asset, task, task_id, calculations, facts.facts(canonical_task_id(task_id)))
        return Record(n_frames=n_frames, trajectories=tuple(trajectories))

    def _trajectories(
        self, asset: Asset, task: Task[Any], task_id: str, calculations: list[Calculation[Any]], facts: Facts | None
    ) -> Iterator[Trajectory]:
        """Build the trajectories of a task from its calculations in chronological order."""
        for group in group_stages(list(_stages(task, calculations, facts))):
            members = [calculations[stage.number] for stage in group.stages]
            yield build(
                group,
                _frames(members),
                asset=asset.name,
                task_id=task_id,
                facts=facts,
                keep_orphans=self.options.tasks_without_material == "keep",
                last_modified=utc_text(task.last_updated),
            )


def lines(path: AnyPath) -> Iterator[tuple[int, bytes]]:
    """Stream the lines of a JSON Lines file that are not blank, with their numbers from 1.

    Raises:
        BadGzipFile, EOFError, isal_zlib.error: the file is damaged from here on (`DAMAGED`).
    """
    with igzip.open(readable(path), "rb") as file:  # a larger buffer of our own would lose what precedes the damage
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, line


def _identifier(line: bytes) -> str:
    """Return the canonical id of the task on a line without reading what else is there, nothing where it has none."""
    try:
        task_id = decode(_IDENTIFIERS, line).task_id
    except (ValueError, RecursionError):
        return ""
    return "" if task_id is None else canonical_task_id(str(task_id))


def _json_lines(root: AnyPath, folder: str) -> list[AnyPath]:
    """List the JSON Lines files at any depth below folders whose name starts so, without manifests, by name."""
    found = (
        path
        for path in root.rglob("*.jsonl.gz")
        if "manifest" not in path.name
        and any(part.startswith(folder) for part in path.relative_to(root).parts[:-1])
        and path.is_file()
    )
    return current(root, found)


def _materials(path: AnyPath) -> Iterator[Material]:
    """Stream the documents of a materials file; a bad line is logged, and its tasks are left without a material."""
    number = 0
    try:
        for number, line in lines(path):
            try:
                yield decode_leniently(_MATERIALS, line, Material)
            except ValueError as error:
                logger.warning("%s line %d: no materials document (%s)", path, number, error)
    except DAMAGED as error:
        raise SourceError(f"{path}: damaged after line {number} ({error}); fetch it again") from error


def _steps(calculation: Calculation[Any]) -> Sequence[IonicStep[Any] | None]:
    return (calculation.output.ionic_steps if calculation.output else None) or ()


def _stages(task: Task[Any], calculations: Sequence[Calculation[Any]], facts: Facts | None) -> Iterator[Stage]:
    """Describe the calculations of a task, with types recomputed for each."""
    of_task = stored_types(task.run_type, task.task_type, task.calc_type)
    of_material = (facts.run_type, facts.task_type) if facts else (None, None)
    first_step = 0
    for number, calculation in enumerate(calculations):
        steps = _steps(calculation)
        settings = read_settings(calculation.input, _species(steps))
        stored = stored_types(calculation.run_type, calculation.task_type, calculation.calc_type)
        recomputed = (settings.run_type, settings.task_type)
        known = [
            next(filter(None, types), None) for types in zip(recomputed, stored, of_material, of_task, strict=True)
        ]
        notes = [type_note(stored, recomputed, "")]
        if number == len(calculations) - 1:  # the material's type is that of the task's last calculation
            notes.append(type_note(of_material, recomputed, " in the material"))
        yield Stage(
            number=number,
            first_step=first_step,
            n_frames=len(steps),
            settings=settings,
            run_type=known[0],
            task_type=known[1],
            last_modified=utc_text(calculation.completed_at),
            notes=tuple(filter(None, notes)),
        )
        first_step += len(steps)


def _species(steps: Sequence[IonicStep[Any] | None]) -> list[str]:
    """Return the element of each run of equal sites, POSCAR's order."""
    structure = next((step.structure for step in steps if step and step.structure), None)
    elements = (site.species[0].element for site in structure.sites if site.species) if structure else ()
    return [element for element, _ in groupby(elements)]


def _frames(calculations: Sequence[Calculation[Any]]) -> Frames:
    """Stack the ionic steps of calculations that make one trajectory."""
    steps = [step or IonicStep() for calculation in calculations for step in _steps(calculation)]
    faults: dict[int, str] = {}
    numbers, lattice, positions = structure_arrays([step.structure for step in steps], faults)
    for i, step in enumerate(steps):
        if step.forces is None:
            faults.setdefault(i, "no forces")
    last = [step.electronic_steps[-1] if step.electronic_steps else None for step in steps]
    end = np.array([(e.e_fr_energy, e.e_0_energy) if e else (None, None) for e in last], np.float64).reshape(-1, 2)
    given = np.array([step.e_fr_energy for step in steps], np.float64)
    energy = np.where(np.isnan(given), end[:, 0], given)
    counts = [len(step.electronic_steps or ()) or step.num_electronic_steps or -1 for step in steps]
    return Frames(
        numbers=numbers,
        lattice=lattice,
        positions=positions,
        energy=energy,
        energy_sigma0=energy + (end[:, 1] - end[:, 0]),
        forces=stack([step.forces for step in steps], (len(numbers), 3), "forces", faults),
        stress=stack([step.stress for step in steps], (3, 3), "stress", {}),  # a bad stress costs the label only
        electronic_steps=np.array(counts, np.int32),
        magnetic_moments=_magnetic_moments(calculations, len(steps), len(numbers)),
        faults=faults,
    )


def _magnetic_moments(calculations: Sequence[Calculation[Any]], n_frames: int, n_atoms: int) -> FloatArray | None:
    """Return (n_frames, n_atoms) moments: documents have them for the last frame of a calculation, NaN elsewhere."""
    moments = np.full((n_frames, n_atoms), np.nan)
    end = 0
    for calculation in calculations:
        end += len(_steps(calculation))
        output = calculation.output
        if output is None or not _steps(calculation):
            continue
        sites = (output.structure.sites if output.structure else None) or ()
        of_sites = [site.properties.get("magmom") if site and site.properties else None for site in sites]
        of_outcar = [
            m.get("tot") if isinstance(m, dict) else None for m in (output.outcar or Outcar()).magnetization or ()
        ]
        for values in (of_sites, of_outcar):
            if len(values) == n_atoms and all(isinstance(value, int | float) for value in values):
                moments[end - 1] = values
                break
    return None if np.isnan(moments).all() else moments
