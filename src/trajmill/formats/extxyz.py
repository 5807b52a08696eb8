"""Extended XYZ, read by ASE: energies in eV, forces in eV/A, stress in eV/A^3 with ASE's sign.

Labels stand under ASE's own names or with `REF_` before them, as MACE has them. Frames one after the other with the
same `trajectory_id` (or `task_id`, as in MPtrj's files) are a trajectory; other frames are one each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trajmill.errors import FormatError, require
from trajmill.formats.base import UNKNOWN, Format, Frame, Identity, from_voigt
from trajmill.trajectory import FloatArray
from trajmill.uris import one_line

CORRECTED = ("energy_corrected", "mp2020_corrected_energy")


def _frames(path: Path) -> Iterator[Frame]:
    iread = require("ase.io", extra="ase").iread
    try:
        for number, atoms in enumerate(iread(path, format="extxyz")):
            yield _frame(path, number, atoms)
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise FormatError(f"{path}: cannot be read as extended XYZ ({one_line(error)})") from error


def _frame(path: Path, number: int, atoms: Any) -> Frame:
    results = atoms.calc.results if atoms.calc is not None else {}
    info = atoms.info
    energies = ((info, "REF_energy"), (results, "energy"), (results, "free_energy"), (info, "energy"))
    energy = next((float(given[name]) for given, name in energies if name in given), np.nan)
    forces = atoms.arrays.get("REF_forces", results.get("forces", atoms.arrays.get("forces")))
    stress = info.get("REF_stress", results.get("stress", info.get("stress")))
    return Frame(
        trajectory=_identity(path, number, info),
        numbers=atoms.numbers.astype(np.int64),
        lattice=np.array(atoms.cell[:], float),
        positions=atoms.positions,
        energy=energy,
        forces=np.full((len(atoms), 3), np.nan) if forces is None else np.array(forces, float),
        stress=_matrix(stress),
        stage=int(info.get("relaxation_number", info.get("calc_id", 0))),
        step=int(info.get("relaxation_step", info.get("ionic_step", 0))),
        energy_corrected=next((float(info[name]) for name in CORRECTED if name in info), np.nan),
    )


def _identity(path: Path, number: int, info: dict[str, Any]) -> Identity:
    task = info.get("trajectory_id", info.get("task_id"))
    functional = info.get("functional", "pbe" if "mp2020_corrected_energy" in info else None)
    material = info.get("material_id", info.get("immutable_id"))
    name = f"{path.stem}-{number}" if task is None else str(task)
    return Identity(name, name, None if material is None else str(material), functional, info.get("run_type"))


def _matrix(stress: Any) -> FloatArray:
    if stress is None:
        return UNKNOWN
    given = np.array(stress, float)
    return from_voigt(given) if given.size == 6 else given.reshape(3, 3)


EXTXYZ = Format(
    "extxyz", (".extxyz", ".xyz"), lambda _: True, _frames, "ASE's: eV, eV/A, eV/A^3 positive under tension"
)
