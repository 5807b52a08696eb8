"""A folder tree of vasprun.xml files: relaxations of one's own, or of anybody who keeps VASP's output."""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from isal import igzip

from trajmill import recipe
from trajmill.elements import NUMBERS
from trajmill.errors import SourceError
from trajmill.raw import sha256
from trajmill.sources.base import RELAXATION, Asset, Record, Rejection, Report
from trajmill.sources.files import read_ahead
from trajmill.sources.vasp_inputs import Settings, read_settings
from trajmill.sources.vasp_types import functional, merge_tags, number
from trajmill.sources.vasp_xml import VaspRun, read_vasprun
from trajmill.storage import AnyPath, readable
from trajmill.trajectory import FloatArray, IntArray, Trajectory
from trajmill.units import KBAR_PER_EV_PER_A3, stress_from_vasp

FILES = "*vasprun*.xml*"
"""Names of the files: `vasprun.xml`, `vasprun.xml.gz`, `vasprun.xml.relax1.gz`, `vasprun.relax2.xml`, ..."""

STAGE_FOLDER = re.compile(r"(?:\d{1,2}[-_. ]?)?(?:relax|relaxation|opt|stage|step|run)[-_. ]?\d{0,2}", re.IGNORECASE)
"""Folders that hold one stage of a relaxation each: `relax1`, `relax_2`, `01_opt`. Its files belong to the parent."""

SAME_GEOMETRY = 1e-4
"""A; how far cell vectors and atoms may be from where the run before left them."""

MOVING = (RELAXATION, "Deformation")
"""Task types that one run takes up where another left off; a second static run is no continuation of the first."""

CHUNK = 1 << 16
"""Bytes that are read at once: what is lost of a compressed file that is cut off, besides the end."""

_OPENERS = {".gz": igzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""How a file is read, by what its name ends in."""


class _Calculation(NamedTuple):
    """A run, where it was read from, and what it was run with."""

    file: str
    run: VaspRun
    settings: Settings


@dataclass(frozen=True)
class Vasp:
    """vasprun.xml files at any depth below a folder, or a single one; see `docs/sources/vasp.md`."""

    root: AnyPath
    options: recipe.Vasp = field(default_factory=recipe.Vasp)
    name: str = "vasp"

    def prepare(self, workspace: Path, report: Report = lambda *_: None) -> None:
        """Nothing is joined."""

    def assets(self) -> list[Asset]:
        """List the folders; those of stages count as part of their parent."""
        found: dict[AnyPath, int] = {}
        for path in [self.root] if self.root.is_file() else self.root.rglob(FILES):
            if path.is_file():
                place = self._place(path)
                found[place] = found.get(place, 0) + path.stat().st_size
        if not found:
            raise SourceError(f"{self.root}: no vasprun.xml files here, compressed (.gz, .bz2, .xz) or not")
        assets = [Asset(name=f"{self.name}/{self._relative(p)}", path=p, size=size) for p, size in found.items()]
        return sorted(assets, key=lambda asset: asset.name)

    def raw_digest(self, asset: Asset) -> str:
        """Digest names and content of the folder's files."""
        content = [[self._relative(path), sha256(path)] for path in self._files(asset)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def facts_digest(self, task_ids: Iterable[str]) -> str:  # noqa: ARG002
        """Nothing is joined."""
        return ""

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the relaxations of a folder, in the order of their files' names; memory holds one."""
        relaxation: list[_Calculation] = []
        for path in self._files(asset):
            file = self._task_id(path)
            run = read_vasprun(read_ahead(partial(_opened, path), CHUNK, ahead=64))
            if rejection := self._unusable(asset, file, run):
                yield Record(n_frames=rejection.n_frames or 0, rejections=(rejection,))
                continue
            calculation = _Calculation(file, run, read_settings(run.given, [e for e, _ in groupby(run.elements)]))
            if calculation.settings.task_type not in MOVING:  # a static run between two stages does not part them
                yield self._record(asset, [calculation])
            elif relaxation and continues(relaxation[-1], calculation):
                relaxation.append(calculation)
            else:
                if relaxation:
                    yield self._record(asset, relaxation)
                relaxation = [calculation]
        if relaxation:
            yield self._record(asset, relaxation)

    def _place(self, path: AnyPath) -> AnyPath:
        """Return what a file belongs to: its folder, or the one above where that holds a stage."""
        if path == self.root:
            return path
        folder = path.parent
        return folder.parent if folder != self.root and STAGE_FOLDER.fullmatch(folder.name) else folder

    def _files(self, asset: Asset) -> list[AnyPath]:
        """List an asset's files in the order computed: stages by number, a plain `vasprun.xml` after all others."""
        if asset.path.is_file():
            return [asset.path]
        folders = [asset.path, *(p for p in asset.path.glob("*") if STAGE_FOLDER.fullmatch(p.name) and p.is_dir())]
        files = (path for folder in folders for path in folder.glob(FILES) if self._place(path) == asset.path)
        return sorted((path for path in files if path.is_file()), key=self._order)

    def _order(self, path: AnyPath) -> tuple[bool, list[tuple[str, int]], str]:
        name = self._relative(path)
        is_plain = path.parent == self._place(path) and _uncompressed(path.name).lower() == "vasprun.xml"
        return is_plain, [(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", name)], name

    def _relative(self, path: AnyPath) -> str:
        """Return where something is below the root; the name of the root itself where that is a file."""
        return path.name if path == self.root and path.is_file() else path.relative_to(self.root).as_posix()

    def _task_id(self, path: AnyPath) -> str:
        """Name a run by its file, without compression; by its folder where the file has the name VASP gives it."""
        name = _uncompressed(self._relative(path))
        return name.removesuffix("/vasprun.xml")

    def _unusable(self, asset: Asset, file: str, run: VaspRun) -> Rejection | None:
        """Turn away a file of which nothing can be made; how many ionic steps it has may be known all the same."""
        unknown = sorted({e for e in run.elements if e not in NUMBERS})
        if len(run) and run.elements and not unknown:
            return None
        detail = f"unknown elements {', '.join(unknown)}" if unknown else run.problem or "no ionic steps"
        if not run.problem and not run.n_frames:  # whole and empty, as that of a calculation of another kind
            return self._rejection(asset, file, "targets", detail, 0)
        return self._rejection(asset, file, "readable", detail, run.n_frames or None)

    def _record(self, asset: Asset, calculations: Sequence[_Calculation]) -> Record:
        """Put the runs of one relaxation together."""
        lost = []
        for file, run, _ in calculations:
            if n := run.n_frames - len(run):
                detail = f"{n} of {run.n_frames} ionic steps not complete: {run.problem}"
                lost.append(self._rejection(asset, file, "readable", detail, n))
        return Record(
            n_frames=sum(c.run.n_frames for c in calculations),
            trajectories=(self._trajectory(asset, calculations),),
            rejections=tuple(lost),
        )

    def _trajectory(self, asset: Asset, calculations: Sequence[_Calculation]) -> Trajectory:
        first, last = calculations[0], calculations[-1]
        runs, settings = [c.run for c in calculations], last.settings
        counts = [len(run) for run in runs]
        steps: list[IntArray] = []
        faults: dict[int, str] = {}
        for i, run in enumerate(runs):
            begin = sum(earlier.n_frames for earlier in runs[:i])  # a step that was cut off had a number too
            steps.append(np.arange(begin, begin + len(run), dtype=np.int32))
            faults |= {sum(counts[:i]) + k: text for k, text in run.faults.items()}

        def joined(values: Iterable[Any]) -> Any:
            return np.concatenate(list(values))

        def per_frame(values: Iterable[float | None], dtype: type) -> Any:
            return np.repeat(np.array(list(values), dtype), counts)

        lattice = joined(run.lattice for run in runs)
        outer = per_frame((_outer_pressure(run) for run in runs), np.float64)
        stress = np.where((outer == 0)[:, None, None], joined(run.stress for run in runs), np.nan)
        material = f"{self.name}-{first.file}"
        with np.errstate(invalid="ignore", over="ignore"):  # absurd numbers are for a rule to reject
            positions = joined(run.fractional for run in runs) @ lattice
            work = np.where(outer == 0, 0.0, outer / KBAR_PER_EV_PER_A3 * np.abs(np.linalg.det(lattice)))
        return Trajectory(
            source=self.name,
            asset=asset.name,
            task_id=first.file,
            trajectory_id=f"{material}-{functional(settings.run_type) or settings.run_type or 'unknown'}",
            immutable_id=material,
            numbers=np.array([NUMBERS[e] for e in last.run.elements], np.int64),
            lattice=lattice,
            positions=positions,
            energy=joined(run.energy for run in runs) - work,
            energy_sigma0=joined(run.energy_sigma0 for run in runs) - work,
            forces=joined(run.forces for run in runs),
            stress=stress_from_vasp(stress),
            electronic_steps=joined(run.electronic_steps for run in runs),
            relaxation_number=per_frame(range(len(runs)), np.int32),
            relaxation_step=joined(steps),
            functional=functional(settings.run_type),
            run_type=settings.run_type,
            task_type=settings.task_type or "unknown",
            nelm=per_frame((c.settings.nelm for c in calculations), np.int32),
            ispin=per_frame((c.settings.ispin for c in calculations), np.int32),
            encut=per_frame((c.settings.encut for c in calculations), np.float64),
            hubbard_u=settings.hubbard_u,
            potentials=settings.potentials,
            license=self.options.license,
            last_modified=last.run.started,
            relaxation_converged=_converged(last),
            faults=faults,
            notes=tuple(_notes(calculations, outer)),
        )

    def _rejection(self, asset: Asset, file: str, rule: str, detail: str, n_frames: int | None) -> Rejection:
        return Rejection(
            source=self.name,
            asset=asset.name,
            rejected_by=rule,
            detail=detail,
            n_frames=n_frames,
            task_id=file,
            immutable_id=f"{self.name}-{file}",
        )


def continues(before: _Calculation, after: _Calculation) -> bool:
    """Tell whether a run took a relaxation up where another left it: same atoms, same energy surface, same geometry.

    What a trajectory has one of must be the same in both: run type, U values, potentials. Cut-off and k-points may
    differ, as between the coarse and the fine stage of a relaxation. Two files of one name, one of them compressed, are
    copies.
    """
    a, b = before.settings, after.settings
    alike = before.run.elements == after.run.elements and before.file != after.file
    same = (a.run_type, a.task_type, a.hubbard_u, a.potentials) == (b.run_type, b.task_type, b.hubbard_u, b.potentials)
    if not (alike and same):
        return False
    lattice = before.run.lattice[-1]
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
        moved = after.run.fractional[0] - before.run.fractional[-1]
        moved = (moved - np.rint(moved)) @ lattice
        far = np.abs(np.concatenate([after.run.lattice[0] - lattice, moved]))
    return bool((far < SAME_GEOMETRY).all())  # False for NaN


def _outer_pressure(run: VaspRun) -> float:
    """Return PSTRESS in kBar."""
    return number(merge_tags(run.given.parameters, run.given.incar), "PSTRESS") or 0.0


def _converged(last: _Calculation) -> bool | None:
    """Tell whether the last run stopped before its largest number of ionic steps; None when it was stopped."""
    allowed = last.settings.nsw
    return None if last.run.problem or allowed is None else last.run.n_frames < allowed


def _notes(calculations: Sequence[_Calculation], outer: FloatArray) -> Iterator[str]:
    """Say what is odd about a relaxation."""
    for c in calculations:
        if c.run.problem:
            yield f"{c.file} is kept up to ionic step {len(c.run) - 1}: {c.run.problem}"
    if outer.any():
        yield "PSTRESS: its work is taken off the energy, no stress"


def _uncompressed(name: str) -> str:
    """Return a file's name without the ending of its compression."""
    return next((name.removesuffix(ending) for ending in _OPENERS if name.endswith(ending)), name)


def _opened(path: AnyPath) -> BinaryIO:
    opener = next((opener for ending, opener in _OPENERS.items() if path.name.endswith(ending)), None)
    if opener is None:
        return path.open("rb")
    return cast("BinaryIO", opener(readable(path)))
