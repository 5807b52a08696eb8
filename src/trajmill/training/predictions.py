"""What a model says of the frames of a dataset, beside what DFT says: a row a frame, in Parquet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.dataset import Dataset
from trajmill.errors import ModelError
from trajmill.locking import Lock
from trajmill.schema import FLOATS, MATRIX, parquet_options
from trajmill.training.batching import Answer, Model, model_of
from trajmill.training.calculators import digest_of
from trajmill.trajectory import Trajectory
from trajmill.units import to_voigt
from trajmill.views import Geometry
from trajmill.writing import StrPath

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("trajectory_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("functional", pa.string()),
        pa.field("relaxation_step", pa.int32()),
        pa.field("numbers", pa.list_(pa.int32()), metadata={"description": "Atomic numbers."}),
        pa.field("energy", pa.float64(), metadata={"unit": "eV"}),
        pa.field("energy_predicted", pa.float64(), metadata={"unit": "eV"}),
        pa.field("forces", MATRIX, metadata={"unit": "eV/A"}),
        pa.field("forces_predicted", MATRIX, metadata={"unit": "eV/A"}),
        pa.field("stress", FLOATS, metadata={"unit": "eV/A^3", "description": "xx yy zz yz xz xy, ASE's sign."}),
        pa.field(
            "stress_predicted", FLOATS, metadata={"unit": "eV/A^3", "description": "xx yy zz yz xz xy, ASE's sign."}
        ),
        pa.field("failure", pa.string(), metadata={"description": "Why the model says nothing; null where it does."}),
    ]
)

AT_ONCE = 500
"""Frames that are written together."""

KEEP = 10.0
"""Seconds after which what a model said is kept, where `AT_ONCE` frames take it longer."""

OF = "trajmill.of"
"""Where the metadata of a part say of which model it is."""

Frame = tuple[Trajectory, int]
"""A trajectory, and which of its frames."""

Report = Callable[[int], None]


def predict(
    dataset: Dataset,
    model: Any,
    out: StrPath,
    *,
    energy: str = "energy",
    name: str = "",
    report: Report = lambda _: None,
) -> Path:
    """Ask a model about every frame, many at once where it can. Run again after it was stopped, it goes on.

    A frame that the model cannot do (an element it does not know) is a row with the reason, and is counted. Until all
    are done, rows are kept in parts, in a hidden folder beside the file.

    Args:
        dataset: frames with energies.
        model: an ASE calculator, or another that `trajmill.training.batching.model_of` takes.
        out: Parquet file to make.
        energy: what it is held against, `energy` or `energy_corrected`; frames without it are left out.
        name: of the model, as `trajmill.training.calculators.calculator` takes it; kept in the file. Without one it may
            be another than before, and is asked about all frames again.
        report: told frames done so far, those of before included.

    Raises:
        ModelError: the file cannot be written, or another process is making it.
    """
    out = Path(out)
    of = digest_of(name, energy) if name else uuid4().hex
    folder = out.with_name(f".{out.name}.parts")
    with writing(out):
        folder.mkdir(exist_ok=True)
        lock = Lock(folder / "lock")
    with lock:
        if lock.holder is not None:
            raise ModelError(f"{out}: process {lock.holder} is making it; wait for it, or end it")
        done, frames = _begun(dataset, energy, folder, of)
        if done:
            report(done)
        for rows in _together(_asked(model_of(model), frames, energy)):
            part = pa.Table.from_pylist(rows, SCHEMA.with_metadata({OF: of}))
            with writing(out):
                _write([part], folder / f"{done}.parquet", folder, part.schema)
            done += len(rows)
            report(done)
        with writing(out):
            schema = SCHEMA.with_metadata({"trajmill.model": name, "trajmill.energy": energy})
            _write(_joined(_parts(folder, of), done), out, folder, schema)
    shutil.rmtree(folder, ignore_errors=True)  # without the lock: network disks do not remove what is open
    return out


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say of which file it is that nothing can be written.

    Raises:
        ModelError: nothing can.
    """
    try:
        yield
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror or error})") from error


# --- parts: each is named after how many rows come before it


def _begun(dataset: Dataset, energy: str, folder: Path, of: str) -> tuple[int, Iterator[Frame]]:
    """Return how many rows are kept, and the frames that are left; rows of other frames are removed."""
    frames, done = _frames(dataset, energy), 0
    for part in _parts(folder, of):
        kept = list(zip(part["id"].to_pylist(), part["energy"].to_pylist(), strict=True))
        if kept != [(_id(t, i), _energy(t, i, energy)) for t, i in islice(frames, len(part))]:
            for file in folder.glob("*.parquet"):
                file.unlink()
            return 0, _frames(dataset, energy)
        done += len(part)
    return done, frames


def _parts(folder: Path, of: str) -> Iterator[pa.Table]:
    """Yield what is kept of a model, from the first row on, as far as there are no gaps."""
    done = 0
    while (part := _part(folder / f"{done}.parquet", of)) is not None:
        yield part
        done += len(part)


def _part(file: Path, of: str) -> pa.Table | None:
    try:
        with pq.ParquetFile(file) as parquet:
            part = parquet.read()
    except (OSError, pa.ArrowException):  # none, or what a machine that lost its power left of one
        return None
    known = part.schema.equals(SCHEMA) and part.schema.metadata == {OF.encode(): of.encode()}
    return part if known and len(part) else None


def _write(tables: Iterable[pa.Table], file: Path, folder: Path, schema: pa.Schema) -> None:
    """Write a file in the folder of parts, and put it where it belongs when it is whole and on the disk."""
    aside = folder / "tmp"
    with aside.open("wb") as stream:
        with pq.ParquetWriter(stream, schema, **parquet_options(schema)) as writer:
            for table in tables:
                writer.write_table(table)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)


def _joined(parts: Iterable[pa.Table], n: int) -> Iterator[pa.Table]:
    """Yield the n rows of parts, so many at once that nobody sees where the parts were."""
    held = SCHEMA.empty_table()
    for part in parts:
        n -= len(part)
        held = pa.concat_tables([held, part.replace_schema_metadata()])
        while len(held) >= AT_ONCE:
            yield held.slice(0, AT_ONCE).combine_chunks()
            held = held.slice(AT_ONCE)
    if n:
        raise ModelError("rows that were kept cannot be read any more; run again to go on")
    if len(held):
        yield held.combine_chunks()


def _together(answered: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Put rows together that are kept together. What was asked together stays so: then the rest is asked as before."""
    held, since = [], monotonic()
    for rows in answered:
        held += rows
        if len(held) >= AT_ONCE or monotonic() - since >= KEEP:
            yield held
            held, since = [], monotonic()
    if held:
        yield held


# --- rows


def _frames(dataset: Dataset, energy: str) -> Iterator[Frame]:
    """Yield the frames with an energy."""
    for t in dataset.trajectories():
        if getattr(t, energy) is not None:
            yield from ((t, int(i)) for i in np.flatnonzero(np.isfinite(getattr(t, energy))))


def _asked(model: Model, frames: Iterable[Frame], energy: str) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of frames that the model is asked about at once."""
    held: list[Frame] = []
    n_atoms = 0
    for t, i in frames:
        held.append((t, i))
        n_atoms += t.n_atoms
        if n_atoms >= model.atoms_at_once:
            yield _rows(model, held, energy)
            held, n_atoms = [], 0
    if held:
        yield _rows(model, held, energy)


def _rows(model: Model, frames: list[Frame], energy: str) -> list[dict[str, Any]]:
    answers = model.predict([Geometry(t.numbers, t.lattice[i], t.positions[i]) for t, i in frames])
    return [_facts(t, i, energy) | _predicted(said) for (t, i), said in zip(frames, answers, strict=True)]


def _facts(t: Trajectory, frame: int, energy: str) -> dict[str, Any]:
    stress = to_voigt(t.stress[frame])
    return {
        "id": _id(t, frame),
        "trajectory_id": t.trajectory_id,
        "source": t.source or None,
        "functional": t.functional,
        "relaxation_step": int(t.relaxation_step[frame]),
        "numbers": t.numbers.tolist(),
        "energy": _energy(t, frame, energy),
        "forces": t.forces[frame].tolist(),
        "stress": stress.tolist() if np.isfinite(stress).all() else None,
    }


def _id(t: Trajectory, frame: int) -> str:
    return f"{t.trajectory_id}-{t.relaxation_step[frame]}"


def _energy(t: Trajectory, frame: int, energy: str) -> float:
    return float(getattr(t, energy)[frame])


def _predicted(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"failure": answer}
    return {
        "energy_predicted": answer.energy,
        "forces_predicted": answer.forces.tolist(),
        "stress_predicted": None if answer.stress is None else to_voigt(answer.stress).tolist(),
    }
