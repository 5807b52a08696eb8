"""Training MACE on a dataset: files, energies of elements, MACE's own program in its own process, and a card.

In a process of its own, since importing MACE changes how torch loads files for all of a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from trajmill.converting import convert, reference_energies, write_e0s
from trajmill.dataset import Dataset
from trajmill.elements import NUMBERS
from trajmill.errors import MissingExtraError, ModelError
from trajmill.splits import Split
from trajmill.training.recipes import TrainingRecipe

CARD = "card.json"
"""What was trained, on what, with what."""

PACKAGES = ("trajmill", "mace-torch", "torch", "e3nn", "numpy", "ase")


@dataclass(frozen=True)
class Epoch:
    """What MACE said of the validation set after an epoch.

    Attributes:
        number: from 0; None before the first.
        loss: of the stage that it is in.
        energy_rmse: eV/atom.
        force_rmse: eV/A.
        stress_rmse: eV/A^3; None where no frame has a stress.
    """

    number: int | None
    loss: float
    energy_rmse: float
    force_rmse: float
    stress_rmse: float | None


Report = Callable[[Epoch], None]


def train(
    dataset: Dataset,
    split: Split,
    out: Path,
    recipe: TrainingRecipe,
    *,
    parts: tuple[str, str] = ("train", "val"),
    device: str = "cpu",
    workers: int = 1,
    report: Report = lambda _: None,
) -> Path:
    """Train a MACE model. Run again after it was stopped, it goes on from its last checkpoint.

    Args:
        dataset: one functional, unless its energies are meant to be mixed.
        split: of it, by trajectories.
        out: folder: `data/`, `e0s.json`, MACE's logs, checkpoints and results, `card.json`, and the model.
        recipe: see `trajmill.training.recipes`.
        parts: of the split, to train and to validate with.
        device: `cpu` or `cuda`.
        workers: processes that write the files and that load them.
        report: told what MACE says after each epoch.

    Returns:
        The model, a file that `mace:FILE` names to `trajmill evaluate`.

    Raises:
        ModelError: the recipe and the folder do not belong together, or MACE failed; its log says more.
        SplitError: the split is of other data.
        MissingExtraError: MACE is not installed (extra `mace`).
    """
    if find_spec("mace") is None:  # importing it here would change how torch loads files
        raise MissingExtraError("mace is not installed: pip install 'trajmill[mace]'")
    train_set, valid_set = (split.of(dataset, part) for part in parts)
    elements = _elements(train_set)
    if new := _elements(valid_set) - elements:
        raise ModelError(f"{parts[1]} has {min(new)}, which {parts[0]} has not")
    card = _card(recipe, split, parts, elements, device)
    _begin(out, card)
    for name, its in (("train", train_set), ("valid", valid_set)):
        convert(its, out / "data" / name, "mace-lmdb", energy=recipe.energy, workers=workers)
    write_e0s(reference_energies(train_set, recipe.energy), out / "e0s.json")
    command = [sys.executable, "-m", "mace.cli.run_train", *arguments(recipe, out, elements, device, workers)]
    seen = len(list(epochs(out, recipe)))
    with (
        (out / "mace.log").open("a", encoding="utf-8") as log,
        subprocess.Popen(  # noqa: S603 (our interpreter)
            command, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            while process.poll() is None:
                seen = _tell(out, recipe, seen, report)
                _wait(process)
        except BaseException:
            process.terminate()
            raise
    _tell(out, recipe, seen, report)
    model = out / f"{recipe.name}{'_stagetwo' if recipe.stage_two else ''}.model"
    if process.returncode or not model.is_file():
        raise ModelError(f"{out}: MACE failed (exit code {process.returncode}): {_last_words(out)}")
    return model


def arguments(recipe: TrainingRecipe, out: Path, elements: set[str], device: str, workers: int = 0) -> list[str]:
    """Return what MACE's `run_train` is called with.

    Stage two states all of its weights, whose defaults are others. The loss is the one that has stress; the usual one
    leaves it out without a word. The learning rate stays as it is.
    """
    values: dict[str, Any] = {
        "name": recipe.name,
        "work_dir": out,
        "train_file": out / "data" / "train",
        "valid_file": out / "data" / "valid",
        "E0s": out / "e0s.json",
        "atomic_numbers": sorted(NUMBERS[e] for e in elements),
        "loss": "stress",
        "compute_stress": True,
        "error_table": "PerAtomRMSEstressvirials",
        "energy_weight": recipe.weights.energy,
        "forces_weight": recipe.weights.forces,
        "stress_weight": recipe.weights.stress,
        "lr": recipe.lr,
        "scheduler": "ExponentialLR",
        "lr_scheduler_gamma": 1.0,
        "batch_size": recipe.batch_size,
        "valid_batch_size": recipe.batch_size,
        "max_num_epochs": recipe.epochs,
        "num_workers": workers if workers > 1 else 0,
        "pin_memory": device != "cpu",
        "seed": recipe.seed,
        "device": device,
        "default_dtype": recipe.dtype,
        "plot": False,
        **recipe.model.model_dump(),
    }
    flags = ["--restart_latest"]
    if two := recipe.stage_two:
        flags.append("--stage_two")
        values |= {"start_stage_two": two.start, "stage_two_lr": two.lr}
        values |= {f"stage_two_{name}_weight": weight for name, weight in two.weights._asdict().items()}
    if recipe.foundation is not None:
        values |= {"foundation_model": recipe.foundation.resolve(), "multiheads_finetuning": False}
    return [*(f"--{name}={value}" for name, value in values.items()), *flags]


def epochs(out: Path, recipe: TrainingRecipe) -> Iterator[Epoch]:
    """Read what MACE has said so far of the validation set, epoch by epoch."""
    for file in sorted((out / "results").glob(f"{recipe.name}_run-{recipe.seed}_train.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                said = json.loads(line)
            except ValueError:  # being written
                return
            if said.get("mode") == "eval":
                yield Epoch(
                    said["epoch"], said["loss"], said["rmse_e_per_atom"], said["rmse_f"], said.get("rmse_stress")
                )


def _tell(out: Path, recipe: TrainingRecipe, seen: int, report: Report) -> int:
    found = list(epochs(out, recipe))
    for epoch in found[seen:]:
        report(epoch)
    return len(found)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return


def _elements(dataset: Dataset) -> set[str]:
    table = dataset.ask("SELECT DISTINCT unnest(elements) AS e FROM wanted")
    return set(pc.unique(table["e"]).to_pylist())


def _card(
    recipe: TrainingRecipe, split: Split, parts: tuple[str, str], elements: set[str], device: str
) -> dict[str, Any]:
    return {
        "recipe": recipe.model_dump(mode="json"),
        "split": {"rule": split.rule, "digest": split.digest, "parts": parts},
        "elements": sorted(elements),
        "packages": {name: version(name) for name in PACKAGES},
        "device": device,
    }


def _begin(out: Path, card: dict[str, Any]) -> None:
    """Make the folder, or go on in one that was begun with the same recipe and split."""
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
        if (out / CARD).is_file():
            before = json.loads((out / CARD).read_text(encoding="utf-8"))
            if any(before.get(name) != json.loads(json.dumps(card[name])) for name in ("recipe", "split")):
                raise ModelError(f"{out}: holds a training by another recipe or split; choose a new folder")
        (out / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{out}: cannot be used ({error})") from error


def _last_words(out: Path) -> str:
    lines = [line for line in (out / "mace.log").read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"
