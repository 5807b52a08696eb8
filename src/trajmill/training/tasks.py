"""What the two processes of a training tell each other: what is to be done, and what has come of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from trajmill.pieces import Pieces
from trajmill.training.recipes import TrainingRecipe

TASK, METRICS, STOP = "task.pickle", "metrics.jsonl", "stop"
"""Files in the folder of a training; when the last appears, it ends."""

GRACE = 120
"""s that a training has to end in: the step that it is in, or a validation, and a checkpoint."""

PARENT = "TRAJMILL_PARENT"
"""Environment variable with the process that listens; without it nobody would go on from what is trained."""

LAUNCHED = "--launched"
"""Says that somebody else's launcher started the process, which is to ask it how many there are."""


@dataclass(frozen=True)
class Task:
    """What is to be trained, on what.

    Attributes:
        recipe: how.
        train: frames to train on.
        valid: frames to validate with.
        e0s: eV per atom by atomic number, of the elements to train on.
        force_rms: eV/A, of the frames to train on; a new model's outputs are scaled by it.
        neighbours: of an atom, on average; a new model's messages are scaled by it.
        device: `cpu` or `cuda`.
        workers: processes of each process that load; 1 loads in the process itself.
    """

    recipe: TrainingRecipe
    train: Pieces
    valid: Pieces
    e0s: dict[int, float]
    force_rms: float
    neighbours: float
    device: str
    workers: int


@dataclass(frozen=True)
class Steps:
    """How far an epoch is.

    Attributes:
        epoch: from 0.
        step, steps: done, and in all.
        loss: mean since this was said last.
        frames_per_s: of one process.
        waited: share of the time that training waited for frames.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    frames_per_s: float
    waited: float


@dataclass(frozen=True)
class Epoch:
    """What the model says of the validation set.

    Attributes:
        epoch: after which, from 0; None before the first.
        stage: 1 or 2.
        loss: of that stage.
        energy_mae, energy_rmse: eV/atom.
        force_mae, force_rmse: eV/A, of components.
        stress_mae, stress_rmse: eV/A^3, of the nine components; None where no frame has a stress.
        lr: learning rate in the epoch.
        frames_per_s: of one process, in the epoch.
        waited: share of the time that training waited for frames.
    """

    epoch: int | None
    stage: int
    loss: float
    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float
    stress_mae: float | None
    stress_rmse: float | None
    lr: float | None = None
    frames_per_s: float | None = None
    waited: float | None = None


MODES: dict[str, type[Steps | Epoch]] = {"train": Steps, "valid": Epoch}
"""How lines of the metrics begin."""


def said(row: Steps | Epoch) -> str:
    """Write a line of the metrics."""
    mode = "train" if isinstance(row, Steps) else "valid"
    return json.dumps({"mode": mode, **row.__dict__}) + "\n"


def heard(line: str) -> Steps | Epoch | None:
    """Read a line of the metrics; None where it is not one."""
    try:
        row = json.loads(line)
        return MODES[row.pop("mode")](**row)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
