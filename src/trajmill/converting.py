"""Datasets into the files that other programs train from.

`TARGETS` is the table of them. Frames are written as they come, a trajectory at a time in memory. Energies and forces
are in eV and eV/A, stress in eV/A^3 with ASE's sign, which is what all of these programs expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmill.dataset import Dataset
from trajmill.errors import ConvertError, require

if TYPE_CHECKING:
    from ase import Atoms

ENERGIES = ("energy", "energy_corrected")
"""What may be written as the energy: as computed, or with the Materials Project's corrections."""

AT_ONCE = 1000
"""Frames that are handed on at once."""

Report = Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """A way of writing a dataset.

    Attributes:
        write: takes frames, the place and the prefix of labels.
        prefix: what stands before names of labels where nothing else is asked for.
    """

    write: Callable[[Iterator[list[Atoms]], Path, str], None]
    prefix: str


def convert(
    dataset: Dataset,
    out: Path,
    to: str,
    *,
    energy: str = "energy",
    prefix: str | None = None,
    report: Report = lambda _: None,
) -> tuple[int, int]:
    """Write a dataset for another program.

    Args:
        dataset: what to write.
        out: file to make; it must not be there.
        to: one of `TARGETS`.
        energy: which energy, one of `ENERGIES`. Frames without it are left out and counted.
        prefix: what stands before the names of labels, such as `REF_`; None takes what the target's readers expect.
        report: told frames written so far.

    Returns:
        How many frames were written, and how many were left out.

    Raises:
        ConvertError: no such target or energy, or the file cannot be written.
        MissingExtraError: what the target needs is not installed.
    """
    if to not in TARGETS:
        raise ConvertError(f"nothing is called {to}; there are {', '.join(TARGETS)}")
    if energy not in ENERGIES:
        raise ConvertError(f"no energy {energy}; there are {', '.join(ENERGIES)}")
    if out.exists():
        raise ConvertError(f"{out}: is there already; remove it, or choose another name")
    counts = [0, 0]
    target = TARGETS[to]
    aside = out.with_name(f"tmp-{out.name}")  # its ending tells some libraries what to write
    aside.unlink(missing_ok=True)
    try:
        target.write(_frames(dataset, energy, counts, report), aside, target.prefix if prefix is None else prefix)
        aside.rename(out)
    except OSError as error:
        raise ConvertError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)
    return counts[0], counts[1]


def _frames(dataset: Dataset, energy: str, counts: list[int], report: Report) -> Iterator[list[Atoms]]:
    """Yield frames with the energy that is wanted, some at once."""
    held: list[Atoms] = []
    for atoms in dataset.atoms(energy=energy):
        if "energy" not in atoms.calc.results:
            counts[1] += 1
            continue
        held.append(atoms)
        counts[0] += 1
        if len(held) == AT_ONCE:
            yield held
            report(counts[0])
            held = []
    if held:
        yield held
        report(counts[0])


def _labelled(atoms: Atoms, prefix: str) -> Atoms:
    """Give a frame its labels under names with a prefix: then ASE does not take them for results of its own."""
    if not prefix:
        return atoms
    results, atoms.calc = atoms.calc.results, None
    for name, value in results.items():
        (atoms.arrays if name == "forces" else atoms.info)[f"{prefix}{name}"] = value
    return atoms


def _write_extxyz(frames: Iterator[list[Atoms]], out: Path, prefix: str) -> None:
    write = require("ase.io.extxyz", extra="ase").write_extxyz
    with out.open("w", encoding="utf-8") as file:
        for some in frames:
            write(file, [_labelled(_plain(atoms), prefix) for atoms in some])


def _plain(atoms: Atoms) -> Atoms:
    """Leave out what has no value: extended XYZ would read it back as a text."""
    atoms.info = {name: value for name, value in atoms.info.items() if value is not None}
    return atoms


def _write_aselmdb(frames: Iterator[list[Atoms]], out: Path, prefix: str) -> None:
    if prefix:
        raise ConvertError("labels of an ASE database have names of their own; leave the prefix out")
    require("ase_db_backends", extra="formats")
    connect: Any = require("ase.db", extra="formats").connect
    try:
        with connect(str(out), type="aselmdb", append=False) as database:
            for some in frames:
                for atoms in some:
                    data = {**_plain(atoms).info, "sid": atoms.info["trajectory_id"]}
                    database.write(atoms, data=data)
    finally:
        out.with_name(f"{out.name}-lock").unlink(missing_ok=True)  # LMDB leaves it behind


TARGETS = {"extxyz": Target(_write_extxyz, "REF_"), "aselmdb": Target(_write_aselmdb, "")}
"""What can be written. `REF_` is what MACE asks for: plain names are those of results that ASE computes."""
