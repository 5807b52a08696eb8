"""MPtrj (Deng et al., Nat. Mach. Intell. 5, 1031, 2023) as the JSON file that it is published as.

Materials by id, their frames by `{task}-{calculation}-{ionic step}`. Energies are totals in eV, with and without MP's
corrections; `stress` is VASP's, kBar and positive under compression (CHGNet multiplies it with -0.1 to get GPa).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trajmill.errors import FormatError, require
from trajmill.formats.base import Format, Frame, Identity
from trajmill.formats.structures import site_arrays
from trajmill.units import stress_from_vasp
from trajmill.uris import one_line


def _recognises(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(1 << 20)
    return head.lstrip()[:1] == b"{" and b'"uncorrected_total_energy"' in head


def _frames(path: Path) -> Iterator[Frame]:
    ijson = require("ijson", extra="formats")
    with path.open("rb") as file:
        try:
            for material, members in ijson.kvitems(file, "", use_float=True):
                for key in sorted(members):  # frames of a task come together
                    yield _frame(path, material, key, members[key])
        except ijson.JSONError as error:
            raise FormatError(f"{path}: damaged ({one_line(error)})") from error


def _frame(path: Path, material: str, key: str, given: dict[str, Any]) -> Frame:
    try:
        task, calculation, step = key.rsplit("-", 2)
        numbers, lattice, positions = site_arrays(given["structure"])
        return Frame(
            trajectory=Identity(f"{task}-pbe", task, material, "pbe"),
            numbers=numbers,
            lattice=lattice,
            positions=positions,
            energy=float(given["uncorrected_total_energy"]),
            forces=np.array(given["force"], float),
            stress=stress_from_vasp(np.array(given["stress"], float)),
            stage=int(calculation),
            step=int(step),
            energy_corrected=float(given.get("corrected_total_energy", np.nan)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: frame {key} cannot be read ({error!r})") from error


MPTRJ = Format("mptrj", (".json",), _recognises, _frames, "energy: eV, uncorrected; stress: kBar, VASP's sign")
