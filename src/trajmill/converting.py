"""Datasets into the files that other programs train from; `trajmill.targets` has one module for each kind.

Energies and forces are in eV and eV/A, stress in eV/A^3 with ASE's sign, which is what these programs expect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajmill.dataset import Dataset
from trajmill.elements import NUMBERS
from trajmill.engines.base import Done, Failed, Progress, Task
from trajmill.errors import ConvertError, TrajmillError
from trajmill.pieces import Pieces
from trajmill.releases.reference_energies import LeastSquares
from trajmill.targets import TARGETS
from trajmill.targets.base import Target
from trajmill.writing import StrPath, whole

ENERGIES = ("energy", "energy_corrected")
"""What may be written as the energy: as computed, or with the Materials Project's corrections."""

PER_FILE = 20_000
"""Frames of a file in a folder, about."""

NOTES = ".convert.json"
"""In a folder: what its files are made of. Programs that read every file of a folder do not see it."""

Report = Callable[[int], None]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        written: frames.
        left_out: frames without the energy that was asked for.
    """

    written: int
    left_out: int


def convert(
    dataset: Dataset,
    out: StrPath,
    to: str,
    *,
    energy: str = "energy",
    prefix: str | None = None,
    workers: int = 1,
    per_file: int = PER_FILE,
    report: Report = lambda _: None,
) -> Converted:
    """Write a dataset for another program.

    Args:
        dataset: what to write.
        out: what to make: a file where its name ends in one of the target's suffixes, else a folder of files, which
            several processes write. Run again, a folder that was not finished is; a file begins anew.
        to: one of `trajmill.targets.TARGETS`.
        energy: which energy, one of `ENERGIES`. Frames without it are left out and counted.
        prefix: what stands before the names of labels, such as `REF_`; None takes what the target's readers expect.
        workers: processes, for a folder; 0 takes one for each core. What they write does not depend on it.
        per_file: frames of a file in a folder, about: whole row groups of the dataset's files.
        report: told frames written so far.

    Raises:
        ConvertError: no such target or energy, the place is taken, or cannot be written.
        FilterError: a folder was asked for, and the dataset cannot be read in pieces.
        MissingExtraError: what the target needs is not installed.
        KeyboardInterrupt: stopped by Ctrl-C; what is finished of a folder stays.
    """
    out = Path(out)
    if to not in TARGETS:
        raise ConvertError(f"nothing is called {to}; there are {', '.join(TARGETS)}")
    if energy not in ENERGIES:
        raise ConvertError(f"no energy {energy}; there are {', '.join(ENERGIES)}")
    target = TARGETS[to]
    if prefix is not None and target.prefix is None:
        raise ConvertError(f"labels of {to} have names of their own; leave the prefix out")
    how = _How(to, energy, (target.prefix if prefix is None else prefix) or "")
    if out.name.endswith(target.suffixes):
        if workers != 1:
            raise ConvertError(f"{out}: a file is written by one process; for more name a folder, without suffix")
        if out.exists():
            raise ConvertError(f"{out}: is there already; remove it, or choose another name")
        return _write((pa.Table.from_batches([b]) for b in dataset.batches()), out, how, report)
    return _write_folder(dataset.pieces(), out, how, workers, per_file, report)


def reference_energies(dataset: Dataset, energy: str = "energy") -> dict[str, float]:
    """Fit an energy to each element, by least squares over all frames with a value, in one pass.

    The fit of MACE's `E0s="average"`, over frames of all functionals alike: filter first where they are not to be
    mixed. Where compositions do not determine an element's energy, the solution of least norm is taken.

    Args:
        dataset: what is to be trained on, the test set left out.
        energy: which energy, one of `ENERGIES`.

    Returns:
        eV per atom by symbol.
    """
    fit = LeastSquares()
    for batch in dataset.batches(columns=["species_at_sites", energy]):
        rows = batch.filter(pc.is_valid(batch[energy]))
        fit.add(rows["species_at_sites"], rows[energy])
    return fit.solve()


def write_e0s(e0s: dict[str, float], out: StrPath) -> None:
    """Write energies of elements as MACE's `--E0s` reads them: JSON by atomic number.

    Raises:
        ConvertError: the file cannot be written.
    """
    with whole(out, ConvertError) as aside:
        aside.write_text(json.dumps({NUMBERS[symbol]: e0 for symbol, e0 in e0s.items()}) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _How:
    """What is asked for, of every file."""

    to: str
    energy: str
    prefix: str

    @property
    def target(self) -> Target:
        return TARGETS[self.to]


def _write(tables: Iterable[pa.Table], out: Path, how: _How, report: Report) -> Converted:
    """Write a file, which appears when it is complete."""
    counts = [0, 0]
    target = how.target
    aside = out.with_name(f"tmp-{out.name}")  # its ending tells some libraries what to write
    aside.unlink(missing_ok=True)
    try:
        target.write(_with_energy(tables, how.energy, counts, report), aside, how.prefix)
        aside.rename(out)
    except OSError as error:
        raise ConvertError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)
        if target.leftover:
            aside.with_name(aside.name + target.leftover).unlink(missing_ok=True)
    return Converted(*counts)


def _with_energy(tables: Iterable[pa.Table], energy: str, counts: list[int], report: Report) -> Iterator[pa.Table]:
    """Yield rows that have the energy that is wanted, as their `energy`."""
    for table in tables:
        rows = table.filter(pc.is_valid(table[energy]))
        if energy != "energy":
            rows = rows.set_column(rows.schema.names.index("energy"), rows.schema.field("energy"), rows[energy])
        counts[0] += len(rows)
        counts[1] += len(table) - len(rows)
        if len(rows):
            yield rows
        report(counts[0])


# --- a folder of files, each of some pieces, each written by some process


@dataclass(frozen=True)
class _Share:
    """What one file is made of."""

    pieces: Pieces
    numbers: tuple[int, ...]
    out: Path
    how: _How


def _write_share(share: _Share, report: Callable[..., None]) -> Converted:
    """Write one file, in some process."""
    names = share.pieces.schema.names
    return _write((share.pieces.read(i, names) for i in share.numbers), share.out, share.how, report)


def _write_folder(pieces: Pieces, out: Path, how: _How, workers: int, per_file: int, report: Report) -> Converted:
    from trajmill.engines.local import LocalEngine

    shares = [
        _Share(pieces, numbers, out / f"{k:05d}{how.target.suffixes[0]}", how)
        for k, numbers in enumerate(_grouped(pieces, per_file))
    ]
    about = {"to": how.to, "energy": how.energy, "prefix": how.prefix, "from": _digest(pieces, per_file)}
    done = _begin(out, about)
    engine = LocalEngine(workers)
    running: dict[str, int] = {}
    tasks = [Task(s.out.name, _write_share, s) for s in shares if s.out.name not in done]
    with closing(engine.run(tasks)) as events:
        for event in events:
            if isinstance(event, Done):
                done[event.name] = event.value
                _note(out, about, done)
                running.pop(event.name, None)
            elif isinstance(event, Progress):
                running[event.name] = event.numbers[0]
            elif isinstance(event, Failed):
                if isinstance(event.error, TrajmillError):
                    raise event.error
                raise ConvertError(f"{out / event.name}: cannot be written ({event.reason}); run again to go on")
            report(sum(c.written for c in done.values()) + sum(running.values()))
    if len(done) < len(shares):
        raise KeyboardInterrupt
    return Converted(sum(c.written for c in done.values()), sum(c.left_out for c in done.values()))


def _grouped(pieces: Pieces, per_file: int) -> Iterator[tuple[int, ...]]:
    """Deal consecutive pieces out to files."""
    held: list[int] = []
    n = 0
    for i, piece in enumerate(pieces.pieces):
        if held and n + piece.n_rows > per_file:
            yield tuple(held)
            held, n = [], 0
        held.append(i)
        n += piece.n_rows
    if held:
        yield tuple(held)


def _digest(pieces: Pieces, per_file: int) -> str:
    """Return what tells what files are made of from anything else."""
    status = {str(file): file.stat() for file in dict.fromkeys(p.file for p in pieces.pieces)}
    files = [(name, s.st_size, s.st_mtime_ns) for name, s in status.items()]
    ids = None if pieces.wanted.ids is None else pieces.wanted.ids.to_pylist()
    said = json.dumps([sorted(files), pieces.wanted.conditions, ids, per_file])
    return hashlib.sha256(said.encode()).hexdigest()


def _begin(out: Path, about: dict[str, Any]) -> dict[str, Converted]:
    """Make the folder, or go on with one that was begun; return what is finished."""
    try:
        out.mkdir(exist_ok=True)
        there = sorted(out.iterdir())
        notes = json.loads((out / NOTES).read_text(encoding="utf-8")) if out / NOTES in there else {}
    except (OSError, ValueError) as error:
        raise ConvertError(f"{out}: cannot be used ({error}); choose another folder") from error
    if there and notes.get("about") != about:
        raise ConvertError(f"{out}: holds files of something else; choose a new folder")
    for path in there:
        if path.name.startswith("tmp-"):  # of a process that was killed
            path.unlink()
    return {name: Converted(**counts) for name, counts in notes.get("files", {}).items() if out / name in there}


def _note(out: Path, about: dict[str, Any], done: dict[str, Converted]) -> None:
    text = json.dumps({"about": about, "files": {name: asdict(c) for name, c in sorted(done.items())}}, indent=1)
    aside = out / f"{NOTES}.tmp"
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(out / NOTES)
