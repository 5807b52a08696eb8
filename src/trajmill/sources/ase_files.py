"""Files that ASE reads: extended XYZ, `.traj`, ASE databases, output of many codes; energies and forces in them."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajmill import recipe
from trajmill.elements import SYMBOLS
from trajmill.errors import MissingExtraError, SourceError, require
from trajmill.formats.base import UNKNOWN, from_voigt
from trajmill.raw import sha256
from trajmill.sources.base import Asset, Record, Rejection, Report
from trajmill.sources.vasp_types import FUNCTIONALS, normalise_run_type
from trajmill.sources.vasp_types import functional as functional_of
from trajmill.storage import AnyPath, ObjectPath
from trajmill.trajectory import FloatArray, IntArray, Trajectory
from trajmill.units import KBAR_PER_EV_PER_A3, MAX_STRESS_ASYMMETRY_KBAR
from trajmill.uris import one_line

RUN_TYPES = {"pbesol": "PBEsol", "scan": "SCAN", "r2scan": "r2SCAN"}
"""Run type of a functional that has but one; of PBE it may be with +U or without."""


class _Image(NamedTuple):
    """A frame as it was read, in trajmill's units and signs.

    Attributes:
        number: its place in the file, from 0.
        group: the `trajectory_id` in its `info`, None where there is none.
        numbers: (n_atoms,) atomic numbers.
        lattice: (3, 3) A, zero where there is no cell.
        positions: (n_atoms, 3) A.
        energy, energy_sigma0: eV, NaN where missing.
        forces: (n_atoms, 3) eV/A, NaN where missing.
        stress: (3, 3) eV/A^3, positive under tension; NaN where missing.
        magnetic_moments: (n_atoms,) Bohr magnetons, NaN where missing.
        info: what else the file says about it.
        pbc: in which directions it is periodic.
    """

    number: int
    group: str | None
    numbers: NDArray[np.int64]
    lattice: FloatArray
    positions: FloatArray
    energy: float
    energy_sigma0: float
    forces: FloatArray
    stress: FloatArray
    magnetic_moments: FloatArray
    info: dict[str, Any]
    pbc: tuple[bool, ...]


@dataclass(frozen=True)
class AseFiles:
    """Files at any depth below a folder, or a single one; see `docs/sources/ase.md`."""

    root: AnyPath
    options: recipe.Ase = field(default_factory=recipe.Ase)
    name: str = "ase"

    def prepare(self, workspace: Path, report: Report = lambda *_: None) -> None:  # noqa: ARG002
        """Nothing is joined; without ASE nothing can be read, which is better known at once.

        Raises:
            MissingExtraError: ASE is not installed.
        """
        require("ase.io", extra="ase")

    def assets(self) -> list[Asset]:
        """List the files of the pattern, hidden ones left out; each is an asset."""
        if self.root.is_file():
            return [Asset(name=f"{self.name}/{self.root.name}", path=self.root, size=self.root.stat().st_size)]
        found = []
        for path in self.root.rglob(self.options.pattern):
            place = path.relative_to(self.root)
            if path.is_file() and not any(part.startswith(".") for part in place.parts):
                found.append(Asset(name=f"{self.name}/{place.as_posix()}", path=path, size=path.stat().st_size))
        if not found:
            raise SourceError(f"{self.root}: no files here whose names match {self.options.pattern}")
        return sorted(found, key=lambda asset: asset.name)

    def raw_digest(self, asset: Asset) -> str:
        """Digest the file, and how it is called: its ending may tell ASE what it is."""
        return hashlib.sha256(f"{sha256(asset.path)} {asset.path.name}".encode()).hexdigest()

    def facts_digest(self, task_ids: Iterable[str]) -> str:  # noqa: ARG002
        """Nothing is joined."""
        return ""

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the trajectories of a file.

        Frames one after the other with the same `trajectory_id` in `info` are a trajectory. Frames without it are one
        if the whole file has the same atoms in the same order, else one each: which it is, is known when other atoms
        come, and so long they are held.
        """
        problem: list[str] = []
        for images, is_whole_file in _grouped(self._images(asset, problem)):
            yield self._record(asset, images, is_whole_file)
        if problem:
            yield Record(n_frames=0, rejections=(self._rejection(asset, "readable", problem[0], None),))

    def _images(self, asset: Asset, problem: list[str]) -> Iterator[_Image]:
        """Read frames up to the end of the file, or to where ASE cannot go on; then the reason is left in `problem`.

        Raises:
            OSError: the file could not be read at all, which says nothing about its content.
        """
        iread = require("ase.io", extra="ase").iread
        number = 0
        try:
            with _on_this_machine(asset.path) as path:
                found = iter(iread(path, index=":", do_not_split_by_at_sign=True))
                while True:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # readers warn of what they leave out
                        atoms = next(found, None)
                    if atoms is None:
                        break
                    yield self._image(number, atoms)
                    number += 1
        except (MemoryError, MissingExtraError):
            raise
        except Exception as error:  # ASE's readers raise anything
            if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's: to be tried again
                raise
            after = f" after {number} frames" if number else ""
            problem.append(f"ASE cannot read it{after}: {one_line(error) or type(error).__name__}")
        else:
            if not number:
                problem.append("no frames in this file")

    def _image(self, number: int, atoms: Any) -> _Image:
        """Take the labels of a frame as they were computed: what constraints do to forces is not asked for.

        Labels with the prefix stand for reference values, beside a calculator's that may be a model's.
        """
        prefix, info, n = self.options.prefix, atoms.info, len(atoms)
        results = atoms.calc.results if atoms.calc is not None else {}
        energy, sigma0 = results.get("free_energy"), results.get("energy")  # for ASE `energy` is the one at sigma -> 0
        if energy is None:
            energy, sigma0 = sigma0, None
        if (reference := info.get(f"{prefix}energy")) is not None:
            energy, sigma0 = reference, None
        forces = atoms.arrays.get(f"{prefix}forces", results.get("forces"))
        stress = info.get(f"{prefix}stress", results.get("stress"))
        group = info.get("trajectory_id")
        return _Image(
            number=number,
            group=None if group is None else str(group),
            numbers=np.asarray(atoms.numbers, np.int64),
            lattice=np.array(atoms.cell[:], np.float64),
            positions=np.array(atoms.positions, np.float64),
            energy=float(_shaped(energy, ())),
            energy_sigma0=float(_shaped(sigma0, ())),
            forces=_shaped(forces, (n, 3)),
            stress=_stress(stress),
            magnetic_moments=_shaped(results.get("magmoms"), (n,)),
            info=info,
            pbc=tuple(map(bool, atoms.pbc)),
        )

    def _record(self, asset: Asset, images: Sequence[_Image], is_whole_file: bool) -> Record:
        """Make the trajectory of some frames; those that cannot be part of it are turned away."""
        first = images[0]
        place = asset.name.partition("/")[2]
        task = place if is_whole_file else f"{place}@{first.number if first.group is None else first.group}"
        lost: dict[str, int] = {}
        fit: list[_Image] = []
        for image in images:
            unknown = [n for n in set(image.numbers.tolist()) if not 0 < n < len(SYMBOLS)]
            if unknown:
                text = f"no element has the atomic number {', '.join(map(str, sorted(unknown)))}"
            elif not np.array_equal(image.numbers, (fit[0] if fit else image).numbers):
                text = f"other atoms, or in another order, than the frames of trajectory {first.group} before"
            else:
                fit.append(image)
                continue
            lost[text] = lost.get(text, 0) + 1
        return Record(
            n_frames=len(images),
            trajectories=(self._trajectory(asset, task, fit),) if fit else (),
            rejections=tuple(self._rejection(asset, "readable", text, n, task) for text, n in lost.items()),
        )

    def _trajectory(self, asset: Asset, task: str, images: Sequence[_Image]) -> Trajectory:
        first = images[0]
        functional, run_type, finding = self._surface(images)
        material = first.info.get("material_id", first.info.get("immutable_id"))
        sigma0 = np.array([image.energy_sigma0 for image in images])
        moments = np.array([image.magnetic_moments for image in images])
        pbc = sorted({"".join("FT"[p] for p in image.pbc) for image in images} - {"TTT"})
        return Trajectory(
            source=self.name,
            asset=asset.name,
            task_id=task,
            trajectory_id=f"{self.name}-{task}-{functional or run_type or 'unknown'}",
            immutable_id=f"{self.name}-{task}" if material is None else str(material),
            numbers=first.numbers,
            lattice=np.array([image.lattice for image in images]),
            positions=np.array([image.positions for image in images]),
            energy=np.array([image.energy for image in images]),
            energy_sigma0=None if np.isnan(sigma0).all() else sigma0,
            forces=np.array([image.forces for image in images]),
            stress=np.array([image.stress for image in images]),
            magnetic_moments=None if np.isnan(moments).all() else moments,
            relaxation_number=_counted(images, "relaxation_number", growing=0, default=np.zeros(len(images))),
            relaxation_step=_counted(images, "relaxation_step", growing=1, default=np.arange(len(images))),
            functional=functional,
            run_type=run_type,
            license=self.options.license,
            findings={"unsupported_functional": finding} if finding else {},
            notes=tuple(f"periodic in {flags} only, taken as periodic in all directions" for flags in pbc),
        )

    def _surface(self, images: Sequence[_Image]) -> tuple[str | None, str | None, str]:
        """Return functional and run type, from `info`, else the recipe; and why there is no functional."""
        named, types = (
            sorted({str(i.info[key]) for i in images if i.info.get(key)}) for key in ("functional", "run_type")
        )
        if len(named) > 1 or len(types) > 1:
            return None, None, f"several in one trajectory: {', '.join(named if len(named) > 1 else types)}"
        name, run_type = next(iter(named), None), next(iter(types), None)
        given = name or run_type or self.options.functional or self.options.run_type
        functional = _plain(given) if given else None
        if functional is None:
            return None, run_type, f"functional {given}" if given else "no functional, in info or as ase.functional"
        if run_type and functional_of(run_type) != functional:
            return None, run_type, f"functional {functional}, but run type {run_type}"
        choices = (run_type, name if name in FUNCTIONALS else None, RUN_TYPES.get(functional), self.options.run_type)
        fitting = (normalise_run_type(choice) for choice in choices if functional_of(choice) == functional)
        return functional, next(fitting, None), ""

    def _rejection(
        self, asset: Asset, rule: str, detail: str, n_frames: int | None, task: str | None = None
    ) -> Rejection:
        return Rejection(
            source=self.name, asset=asset.name, rejected_by=rule, detail=detail, n_frames=n_frames, task_id=task
        )


def _grouped(images: Iterable[_Image]) -> Iterator[tuple[list[_Image], bool]]:
    """Part frames into trajectories; see `AseFiles.read`. Tell with each whether it is all of the file."""
    for name, group in itertools.groupby(images, key=lambda image: image.group):
        alike: list[_Image] = []
        alone = False
        for image in group:
            if name is None and alike and not np.array_equal(image.numbers, alike[0].numbers):
                yield from (([one], False) for one in alike)
                alike, alone = [], True
            if alone:
                yield [image], False
            else:
                alike.append(image)
        if alike:
            yield alike, name is None and alike[0].number == 0


def _plain(name: str) -> str | None:
    """Return the dataset's name of a functional: `PBE` is `pbe`, so is the run type `GGA+U`."""
    return name.lower() if name.lower() in FUNCTIONALS.values() else functional_of(name)


def _shaped(value: Any, shape: tuple[int, ...]) -> FloatArray:
    """Return numbers of this shape, NaN for all that is something else."""
    try:
        given = np.array(value, np.float64)
    except (TypeError, ValueError):
        given = np.empty(0)
    return given if given.shape == shape else np.full(shape, np.nan)


def _stress(given: Any) -> FloatArray:
    """Return the matrix of a stress in any of ASE's forms; NaN where it is none, or too asymmetric to be one."""
    size = np.size(given)
    matrix = from_voigt(_shaped(given, (6,))) if size == 6 else _shaped(np.reshape(given, -1), (9,)).reshape(3, 3)
    with np.errstate(invalid="ignore"):  # inf - inf
        asymmetry = np.abs(matrix - matrix.T).max() * KBAR_PER_EV_PER_A3
    return matrix if np.isfinite(matrix).all() and asymmetry <= MAX_STRESS_ASYMMETRY_KBAR else UNKNOWN


def _counted(images: Sequence[_Image], key: str, *, growing: int, default: NDArray[Any]) -> IntArray:
    """Return the numbers `info` gives the frames, if it gives them to all and they grow as they must."""
    given = [image.info.get(key) for image in images]
    numbers = np.array([n if isinstance(n, int | np.integer) else -1 for n in given])
    good = (numbers >= 0).all() and (numbers < 2**31).all() and (np.diff(numbers) >= growing).all()
    return (numbers if good else default).astype(np.int32)


@contextmanager
def _on_this_machine(path: AnyPath) -> Iterator[Path]:
    """Lend a file by a path that ASE can open: a copy where it lies in object storage."""
    if not isinstance(path, ObjectPath):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with path.open() as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield copy
