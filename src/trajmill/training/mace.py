"""Training MACE on a dataset: energies of elements, a process of its own that trains, and a card.

In a process of its own, since importing MACE changes how torch loads files for all of a process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trajmill.converting import reference_energies, write_e0s
from trajmill.dataset import Dataset
from trajmill.elements import NUMBERS
from trajmill.errors import MissingExtraError, ModelError
from trajmill.splits import Split
from trajmill.training.recipes import TrainingRecipe, difference
from trajmill.training.tasks import GRACE, LAUNCHED, METRICS, PARENT, STOP, TASK, Epoch, Steps, Task, heard
from trajmill.writing import StrPath

CARD, LOG = "card.json", "mace.log"
"""What was trained, on what, with what; and what MACE says."""

FIXED = ("recipe", "foundation", "split", "frames")
"""Of a card: what a training that goes on has in common with the one that began, but for the number of epochs."""

PACKAGES = ("trajmill", "mace-torch", "torch", "e3nn", "numpy")

SAMPLE = 1000
"""Frames whose neighbours are counted."""


Report = Callable[[Steps | Epoch], None]


def train(
    dataset: Dataset,
    split: Split,
    out: StrPath,
    recipe: TrainingRecipe,
    *,
    parts: tuple[str, str] = ("train", "val"),
    device: str = "cpu",
    processes: int = 1,
    launcher: Sequence[str] = (),
    workers: int = 1,
    report: Report = lambda _: None,
) -> Path:
    """Train a MACE model. Run again after it was stopped, it goes on from its last checkpoint, as if it had not been.

    So it does with more epochs than before. Frames come from the dataset as it lies: nothing is converted or copied.
    Those without the energy that the recipe asks for are left out.

    Args:
        dataset: one functional, unless its energies are meant to be mixed.
        split: of it, by trajectories.
        out: folder: `card.json`, `metrics.jsonl`, `e0s.json`, `mace.log`, a checkpoint, and the model.
        recipe: see `trajmill.training.recipes`.
        parts: of the split, to train and to validate with.
        device: `cpu` or `cuda`.
        processes: that train together, one for each GPU of this machine; each takes batches of the recipe's size.
        launcher: command that starts the processes instead, such as `("srun", "--nodes=2", "--gpus-per-node=4", ...)`;
            it says as torchrun or SLURM do how many there are.
        workers: processes that load frames, of each.
        report: told how far it is, and what the model says of the validation set after each epoch.

    Returns:
        The model, a file that `mace:FILE` names to `trajmill evaluate`.

    Raises:
        ModelError: the recipe and the folder do not belong together, or training ended early; `mace.log` says more.
        SplitError: the split is of other data.
        FilterError: the dataset cannot be read in pieces.
        MissingExtraError: MACE is not installed (extra `mace`).
    """
    out = Path(out)
    if launcher and processes > 1:
        raise ModelError("say how many processes there are to the launcher, not to trajmill as well")
    if not launcher:  # which may start them where there are other devices
        check_device(device)
    if find_spec("mace") is None:  # importing it here would change how torch loads files
        raise MissingExtraError("mace is not installed: pip install 'trajmill[mace]'")
    train_set, valid_set = (labelled(split.of(dataset, part), recipe.energy) for part in parts)
    found = [elements_of(its) for its in (train_set, valid_set)]
    for part, elements in zip(parts, found, strict=True):
        if not elements:
            raise ModelError(f"{part} has no frames with {recipe.energy}")
    if new := found[1] - found[0]:
        raise ModelError(f"{parts[1]} has {min(new)}, which {parts[0]} has not")
    frames = {part: its.digest(recipe.energy) for part, its in zip(parts, (train_set, valid_set), strict=True)}
    model = out / f"{recipe.name}.model"
    _begin(out, _card(recipe, frames, found[0], split, parts, device, processes), model)
    if model.is_file():  # it is written last
        return model
    task = _task(train_set, valid_set, out, recipe, device, workers)
    (out / TASK).write_bytes(pickle.dumps(task))
    (out / STOP).unlink(missing_ok=True)
    _run(out, processes, launcher, report)
    if not model.is_file():
        raise ModelError(f"{out}: {_last_words(out)}")
    return model


def metrics(out: Path) -> list[Steps | Epoch]:
    """Read what has come of a training so far."""
    if not (out / METRICS).is_file():
        return []
    lines = (out / METRICS).read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := heard(line))]


def _task(train_set: Dataset, valid_set: Dataset, out: Path, recipe: TrainingRecipe, device: str, workers: int) -> Task:
    e0s = reference_energies(train_set, recipe.energy)
    write_e0s(e0s, out / "e0s.json")
    if recipe.foundation is not None:  # the other process may have another folder to begin from
        recipe = recipe.model_copy(update={"foundation": recipe.foundation.resolve()})
    return Task(
        recipe=recipe,
        train=train_set.pieces(),
        valid=valid_set.pieces(),
        e0s={NUMBERS[symbol]: value for symbol, value in e0s.items()},
        force_rms=_force_rms(train_set),
        neighbours=_neighbours(train_set, recipe),
        device=device,
        workers=workers,
    )


def _force_rms(dataset: Dataset) -> float:
    """Return the root mean square of all components of forces, eV/A; 1 where all are 0."""
    total, n = 0.0, 0
    for frames in dataset.arrays():
        known = frames.forces[np.isfinite(frames.forces)]
        total += float(known @ known)
        n += len(known)
    return math.sqrt(total / n) if total else 1.0


def _neighbours(dataset: Dataset, recipe: TrainingRecipe) -> float:
    """Return the mean number of neighbours of an atom, of some frames; at least 1."""
    from trajmill.mace_data import ends_of, neighbours
    from trajmill.torch_data import FrameStream

    batch = next(iter(FrameStream(dataset, batch_size=SAMPLE, seed=recipe.seed)))
    edges, *_ = neighbours(batch, ends_of(batch), recipe.model.r_max)
    mean: float = edges.shape[1] / len(batch.numbers)
    return max(1.0, mean)


def check_device(device: str) -> None:
    """See that it is there.

    Raises:
        ModelError: it is not.
    """
    import torch

    if device not in ("cpu", "cuda"):
        raise ModelError(f"no device {device}; there are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no GPU here that torch can use; --device cpu does without")


def _run(out: Path, processes: int, launcher: Sequence[str], report: Report) -> None:
    """Let the other process train, or several, and pass on what they say."""
    module = ["-m", "trajmill.training.mace_process", str(out.resolve())]
    if processes > 1:
        module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]
    command = [*launcher, sys.executable, *module, *([LAUNCHED] if launcher else [])]
    # unbuffered, so that what MACE prints is in the log where it belongs, and not after what it ended by
    environment = {**os.environ, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")
    with (
        (out / LOG).open("a", buffering=1, encoding="utf-8") as log,
        subprocess.Popen(  # noqa: S603 (our interpreter)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us, who tell it to end
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                if row := heard(line):
                    report(row)
                else:
                    log.write(line)
        except BaseException:
            if launcher:  # srun would answer a signal by killing all
                (out / STOP).touch()
            else:
                process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # Ctrl-C again: at once
                process.wait(GRACE)
            process.kill()  # where it has not ended
            raise
    if process.returncode:
        raise ModelError(f"{out}: training ended with exit code {process.returncode}: {_last_words(out)}")


def labelled(dataset: Dataset, energy: str) -> Dataset:
    """Return the frames with an energy; MACE would count the others among errors of energies."""
    return dataset.filter(f"{energy} IS KNOWN")


def elements_of(dataset: Dataset) -> set[str]:
    """Return the elements of all frames."""
    table = dataset.ask("SELECT DISTINCT unnest(elements) AS e FROM wanted")
    return set(table["e"].to_pylist())


def _card(
    recipe: TrainingRecipe,
    frames: dict[str, str],
    elements: set[str],
    split: Split,
    parts: tuple[str, str],
    device: str,
    processes: int,
) -> dict[str, Any]:
    model = recipe.foundation and hashlib.sha256(recipe.foundation.read_bytes()).hexdigest()
    return {
        "recipe": recipe.model_dump(mode="json"),
        "foundation": model,
        "split": {"rule": split.rule, "digest": split.digest, "parts": parts},
        "frames": frames,
        "elements": sorted(elements),
        "packages": {name: version(name) for name in PACKAGES},
        "command": sys.argv,
        "device": device,
        "processes": processes,
    }


def _begin(out: Path, card: dict[str, Any], model: Path) -> None:
    """Make the folder, or go on in one that was begun with the same recipe, split and frames."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / CARD).is_file():
            before = json.loads((out / CARD).read_text(encoding="utf-8"))
            epochs, wanted = before["recipe"]["epochs"], card["recipe"]["epochs"]
            as_long = card | {"recipe": card["recipe"] | {"epochs": epochs}}
            if key := difference(*({name: its[name] for name in FIXED} for its in (before, as_long))):
                raise ModelError(f"{out}: holds a training with another {key}; choose a new folder")
            if wanted < epochs:
                raise ModelError(f"{out}: holds a training of {epochs} epochs; it can only be made longer")
            if wanted > epochs:
                model.unlink(missing_ok=True)
        (out / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{out}: cannot be used ({type(error).__name__}: {error})") from error


def _last_words(out: Path) -> str:
    lines = [line for line in (out / LOG).read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"
