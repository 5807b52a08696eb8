"""Relaxations by a model, from where DFT's began: do they end where DFT's do (IS2RS), and as low (IS2RE)?"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.dataset import Dataset
from trajmill.errors import ModelError
from trajmill.matching import Geometry, to_structure
from trajmill.training.batching import Model, model_of
from trajmill.training.calculators import digest_of
from trajmill.training.fire import End, relax_all
from trajmill.training.predictions import writing
from trajmill.training.recipes import difference
from trajmill.views import Geometry as Cell
from trajmill.views import Relaxation, relaxations
from trajmill.writing import StrPath, whole

FMAX, STEPS = 0.02, 500
"""eV/A that forces (and the stress, times the cell) are to fall below, and steps that are allowed."""

SYMPREC = 1e-2
"""A; how symmetric a relaxed cell must be: models and optimisers leave more noise than DFT."""

Report = Callable[[int], None]


@dataclass(frozen=True)
class Relaxed:
    """What became of a relaxation.

    Attributes:
        trajectory_id: of DFT's.
        converged: whether forces and stress fell below the limit in the steps that were allowed.
        steps: that it took.
        energy_error: the model's energy at its own end less DFT's at its own, eV/atom.
        rmsd: root mean square distance of atoms to DFT's final structure, in units of (volume per atom)^(1/3), by
            pymatgen's StructureMatcher; None where it takes the two for different structures.
        volume_change: of the model's final cell beside DFT's, as a share.
        space_group, space_group_dft: at the end, by moyopy with a tolerance of `SYMPREC`.
        failure: why there is no relaxation; None where there is.
    """

    trajectory_id: str
    converged: bool
    steps: int
    energy_error: float | None = None
    rmsd: float | None = None
    volume_change: float | None = None
    space_group: int | None = None
    space_group_dft: int | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Summary:
    """All relaxations of a model on a dataset.

    Attributes:
        relaxations: how many were tried.
        failed: of which the model could say nothing.
        converged: share of the others that converged.
        matched: share of the others that end in DFT's structure.
        rmsd: mean of those, in units of (volume per atom)^(1/3).
        energy_mae: eV/atom.
        volume_mae: of the final cell, as a share of DFT's; structures are matched whatever their volume is.
        steps: mean.
        space_group_kept: share that end in the space group of DFT's end.
    """

    relaxations: int
    failed: int
    converged: float
    matched: float
    rmsd: float
    energy_mae: float
    volume_mae: float
    steps: float
    space_group_kept: float


def relax(
    dataset: Dataset,
    model: Any,
    out: StrPath,
    *,
    inputs: Dataset | None = None,
    fmax: float = FMAX,
    steps: int = STEPS,
    name: str = "",
    report: Report = lambda _: None,
) -> Summary:
    """Relax every first geometry, cell and positions, by ASE's FIRE, and hold the end against DFT's.

    Run again after it was stopped, it goes on: until all have ended, those that have are in a hidden file beside `out`.
    Run again after that, nothing is done again.

    Args:
        dataset: whole trajectories.
        model: an ASE calculator, or another that `trajmill.training.batching.model_of` takes: what it does in batches
            is relaxed in batches.
        out: Parquet file to make, a row a relaxation.
        inputs: geometries without labels that relaxations began with; see `trajmill.views.relaxations`.
        fmax: eV/A.
        steps: at most.
        name: of the model, as `trajmill.training.calculators.calculator` takes it. Without one it may be another than
            before, and all is relaxed again.
        report: told relaxations done so far, those of before included.

    Raises:
        ModelError: the file cannot be written, is there already and of something else, or there is nothing to relax.
    """
    out = Path(out)
    journal = out.with_name(f".{out.name}.jsonl")
    head = {"model": digest_of(name) if name else uuid4().hex, "fmax": fmax, "steps": steps}
    if name and out.exists():
        found = _read(out, head | {"of": _digest(map(_key, relaxations(dataset, inputs)))})
        with writing(out):
            journal.unlink(missing_ok=True)  # it may have been killed before it came to that
        report(len(found))
        return summary(found)
    with writing(out):
        kept = _begun(journal, head)
    ended: dict[int, Relaxed] = {}
    keys: dict[int, str] = {}

    def left() -> Iterator[tuple[int, Relaxation]]:
        for place, relaxation in enumerate(relaxations(dataset, inputs)):
            keys[place] = _key(relaxation)
            if (known := kept.get(keys[place])) is None:
                yield place, relaxation
            else:
                ended[place] = known
                report(len(ended))

    for place, relaxed in _all(model_of(model), left(), fmax, steps):
        with writing(out):
            _append(journal, {"key": keys[place]} | asdict(relaxed))
        ended[place] = relaxed
        report(len(ended))
    found = [ended[place] for place in sorted(ended)]
    with writing(out):
        if found:
            _write(found, out, head | {"of": _digest(keys[place] for place in sorted(keys))})
        journal.unlink(missing_ok=True)
    if not found:
        raise ModelError("no trajectory has a first and a last geometry; there is nothing to relax")
    return summary(found)


_ABOUT = b"trajmill.relaxations"
"""Where the metadata of a file say of what by what the relaxations are."""

_SCHEMA = pa.schema(
    [
        ("trajectory_id", pa.string()), ("converged", pa.bool_()), ("steps", pa.int32()),
        ("energy_error", pa.float64()), ("rmsd", pa.float64()), ("volume_change", pa.float64()),
        ("space_group", pa.int32()), ("space_group_dft", pa.int32()), ("failure", pa.string()),
    ]
)  # fmt: skip


def summary(found: list[Relaxed]) -> Summary:
    """Sum relaxations up; shares are of those that the model could do."""
    done = [r for r in found if r.failure is None]

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else math.nan

    matched = [r.rmsd for r in done if r.rmsd is not None]
    return Summary(
        relaxations=len(found),
        failed=len(found) - len(done),
        converged=mean([float(r.converged) for r in done]),
        matched=len(matched) / len(done) if done else math.nan,
        rmsd=mean(matched),
        energy_mae=mean([abs(r.energy_error) for r in done if r.energy_error is not None]),
        volume_mae=mean([abs(r.volume_change) for r in done if r.volume_change is not None]),
        steps=mean([float(r.steps) for r in done]),
        space_group_kept=mean([float(r.space_group == r.space_group_dft) for r in done]),
    )


def _begun(journal: Path, head: dict[str, Any]) -> dict[str, Relaxed]:
    """Return relaxations that ended before, by their keys; begin a new journal where this one has another head."""
    lines = journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.is_file() else []
    if lines[:1] == [json.dumps(head)]:
        return dict(row for line in lines[1:] if (row := _row(line)))
    aside = journal.with_name(f"{journal.name}.tmp")
    aside.write_text(json.dumps(head) + "\n", encoding="utf-8")
    aside.replace(journal)
    return {}


def _append(journal: Path, row: dict[str, Any]) -> None:
    with journal.open("a", encoding="utf-8") as stream:
        stream.write("\n" + json.dumps(row) + "\n")  # the first ends a line that was cut off


def _row(line: str) -> tuple[str, Relaxed] | None:
    """Read a line of a journal; None of one that is empty or was cut off."""
    try:
        row = json.loads(line)
        return row.pop("key"), Relaxed(**row)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _key(r: Relaxation) -> str:
    """Return what tells a relaxation from others, also from one of this name that began or ended elsewhere."""
    digest = hashlib.sha256(f"{r.id} {r.energy!r}".encode())
    for array in (*r.first, *r.last):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _digest(keys: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()


def _write(found: list[Relaxed], out: Path, about: dict[str, Any]) -> None:
    schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(about)})
    with whole(out, ModelError) as aside:
        pq.write_table(pa.Table.from_pylist([asdict(r) for r in found], schema), aside)


def _read(out: Path, about: dict[str, Any]) -> list[Relaxed]:
    """Return what was written.

    Raises:
        ModelError: it was not, or is of something else.
    """
    try:
        table = pq.read_table(out)
        before = json.loads((table.schema.metadata or {})[_ABOUT])
        found = [Relaxed(**row) for row in table.to_pylist()]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise ModelError(f"{out}: is there already, and no relaxations of trajmill; choose another name") from error
    if key := difference(before, about):
        what = {"model": "by another model", "of": "of other trajectories"}.get(key, f"with another {key}")
        raise ModelError(f"{out}: holds relaxations {what}; choose another name")
    return found


def _all(
    model: Model, left: Iterable[tuple[int, Relaxation]], fmax: float, steps: int
) -> Iterator[tuple[int, Relaxed]]:
    """Yield what became of relaxations, as they end, each with its place."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher()
    begun: dict[int, tuple[int, Relaxation]] = {}

    def firsts() -> Iterator[Cell]:
        for number, (place, relaxation) in enumerate(left):
            begun[number] = place, relaxation
            yield relaxation.first

    for number, end in relax_all(model, firsts(), fmax=fmax, steps=steps):
        place, relaxation = begun.pop(number)
        yield place, _compared(relaxation, end, matcher)


def _compared(r: Relaxation, end: End, matcher: Any) -> Relaxed:
    """Hold the model's end against DFT's."""
    if end.failure is not None:
        return Relaxed(r.id, converged=False, steps=end.steps, failure=end.failure)
    mine, theirs = _geometry(end.geometry), _geometry(r.last)
    distances = matcher.get_rms_dist(to_structure(mine), to_structure(theirs))
    volume, volume_dft = (abs(float(np.linalg.det(lattice))) for lattice, *_ in (mine, theirs))
    return Relaxed(
        r.id,
        converged=end.converged,
        steps=end.steps,
        energy_error=(end.energy - r.energy) / len(r.last.numbers),
        rmsd=None if distances is None else float(distances[0]),
        volume_change=volume / volume_dft - 1,
        space_group=_space_group(mine),
        space_group_dft=_space_group(theirs),
    )


def _geometry(cell: Cell) -> Geometry:
    return cell.lattice, cell.positions, cell.numbers


def _space_group(geometry: Geometry) -> int | None:
    import moyopy

    lattice, positions, numbers = geometry
    cell = moyopy.Cell(lattice.tolist(), np.linalg.solve(lattice.T, positions.T).T.tolist(), numbers.tolist())
    try:
        return int(moyopy.MoyoDataset(cell, symprec=SYMPREC).number)
    except ValueError:
        return None
