"""Experiments: subsets of several datasets, models trained on them, and each held against the tests of all.

What an experiment is stands in a table, `EXPERIMENTS`; where the data are and how large it is stands in a TOML file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from trajmill.dataset import Dataset
from trajmill.errors import ModelError, require
from trajmill.splits import Split
from trajmill.subsets import LEMAT_TRAJ, draw
from trajmill.training.curves import curves
from trajmill.training.evaluation import evaluate
from trajmill.training.mace import check_device, elements_of, labelled, metrics, train
from trajmill.training.recipes import BUILT_IN, Section, TrainingRecipe, checked, difference
from trajmill.training.seen import find_seen
from trajmill.training.tables import markdown
from trajmill.training.tasks import Epoch, Steps
from trajmill.writing import StrPath

SETTINGS = "experiment.json"

OF_TRAININGS = """Errors are mean absolute ones on the validation set after the epoch with the lowest loss.
`models/*/card.json` says what exactly was done, `models/*/metrics.jsonl` how it went."""

OF_SEEN = """Trajectories of each test set that have a run, a material or a structure in common with what a model, or
one it begins from, was trained on: `data/*.seen-of-*.parquet` says which. Errors below are of all others,
with the constants of all."""

OF_SHIFT = {
    "none": "Energies are as models give them, though those of other codes and settings have other zeros.",
    "composition": """Energies of datasets have zeros of their own: a constant per element, fitted by least squares to
each model's differences on each test set, is taken off.""",
}


class Frames(Section):
    """How many frames are drawn of each dataset, by whole trajectories."""

    train: int = Field(ge=1)
    val: int = Field(10_000, ge=1)
    test: int = Field(10_000, ge=1)


class Data(Section):
    """A dataset."""

    address: str = Field(description="whatever trajmill.open opens")
    test: str | None = Field(None, description="of its own test set; else test frames are drawn from the dataset")
    balanced: bool = Field(False, description="sources in the shares of the LeMat-Traj paper")


class Trained(Section):
    """A training."""

    on: str
    after: str | None = Field(None, description="training whose model it begins from")
    recipe: dict[str, Any] = Field(default_factory=dict)


class Experiment(Section):
    """Datasets, trainings on them, and on whose test sets all models are tried."""

    frames: Frames
    data: dict[str, Data]
    trainings: dict[str, Trained]
    tests: list[str]
    recipe: dict[str, Any] = Field(default_factory=dict, description="of trainings that begin from nothing")
    tuning: dict[str, Any] = Field(default_factory=dict, description="of trainings that begin from another's model")
    energy: Literal["energy", "energy_corrected"] = "energy"
    shift: Literal["none", "composition"] = "composition"
    seed: int = 0


EXPERIMENTS: dict[str, dict[str, Any]] = {
    "lemat-appendix-d": {
        "data": {"omat24": {}, "mptrj": {}, "matpes": {}, "lemat": {"balanced": True}},
        "trainings": {
            "omat24": {"on": "omat24"},
            "mptrj": {"on": "mptrj"},
            "matpes": {"on": "matpes"},
            "lemat": {"on": "lemat"},
            "omat24-lemat": {"on": "lemat", "after": "omat24"},
        },
        "tests": ["matpes", "omat24", "mptrj", "lemat"],
        "recipe": {"epochs": 100, "stage_two": {"start": 75}},
    }
}
"""That of the LeMat-Traj paper's appendix D (Ramlaoui et al., arXiv:2508.20875)."""


@dataclass(frozen=True)
class Stage:
    """What an experiment is doing.

    Attributes:
        what: `draw`, `compare` (what is trained on with all test sets), `train` or `evaluate`.
        name: of the dataset or the training; empty where it is all of them.
    """

    what: str
    name: str


Seen = dict[tuple[str, str], set[str]]
"""By model and test set: trajectories that the model has seen."""

HowFar = Steps | Epoch | tuple[int, int] | None

Report = Callable[[Stage, HowFar], None]
"""Told what an experiment is doing, and how far that is."""


def load(name: str, settings: StrPath) -> Experiment:
    """Read where the data of an experiment are, and whatever is to be other than it says itself.

    Raises:
        ModelError: there is no such experiment, or the settings make no sense.
    """
    if name not in EXPERIMENTS:
        raise ModelError(f"no experiment {name}; there are {', '.join(EXPERIMENTS)}")
    try:
        given = tomllib.loads(Path(settings).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{settings}: cannot be read ({error})") from error
    experiment = checked(Experiment, _merged(EXPERIMENTS[name], given), str(settings))
    named = [*(training.on for training in experiment.trainings.values()), *experiment.tests]
    if unknown := [n for n in named if n not in experiment.data]:
        raise ModelError(f"{settings}: no dataset {unknown[0]}; there are {', '.join(experiment.data)}")
    for training in experiment.trainings:
        _recipe(experiment, training, None)
    return experiment


def run(
    experiment: Experiment,
    out: StrPath,
    *,
    device: str = "cpu",
    processes: int = 1,
    launcher: Sequence[str] = (),
    workers: int = 1,
    report: Report = lambda *_: None,
) -> Path:
    """Do all of an experiment that is not done yet.

    Args:
        experiment: see `load`.
        out: folder: `data/` with what was drawn and what it has in common, `models/` with a folder for each training,
            `evaluation/` with predictions, tables and figures, and `report.md`.
        device: `cpu` or `cuda`.
        processes: that train together, one for each GPU.
        launcher: command that starts them instead.
        workers: processes that load frames, of each of those.
        report: told how far it is.

    Returns:
        The report.

    Raises:
        ModelError: the folder is of another experiment, or a training failed.
        TrajmillError: a dataset cannot be read, or has too few frames.
        MissingExtraError: MACE or matplotlib is not installed (extras `mace` and `figures`).
    """
    out = Path(out)
    require("matplotlib", extra="figures")  # before models are trained for days
    if not launcher:
        check_device(device)
    _begin(experiment, out)
    for name, data in experiment.data.items():
        if not _is_drawn(out / "data", name):
            for address in filter(None, (data.address, data.test)):
                Dataset(address)  # before the first of them is read for hours
    for name in experiment.data:
        report(Stage("draw", name), None)
        _drawn(experiment, name, out / "data")
    _check_elements(experiment, out / "data")
    seen = _compared(experiment, out / "data", report)
    models: dict[str, str] = {}
    for name, training in experiment.trainings.items():
        stage = Stage("train", name)
        report(stage, None)
        begun = out / "models" / training.after / f"{training.after}.model" if training.after else None
        file = out / "data" / f"{training.on}.parquet"
        model = train(
            Dataset(file), Split.load(_split(file)), out / "models" / name, _recipe(experiment, name, begun),
            device=device, processes=processes, launcher=launcher, workers=workers, report=partial(report, stage),
        )  # fmt: skip
        models[name] = f"mace:{model}"
    stage = Stage("evaluate", "")
    report(stage, None)
    evaluate(
        models, {name: Dataset(out / "data" / f"{name}.test.parquet") for name in experiment.tests},
        out / "evaluation", energy=experiment.energy, shift=experiment.shift, by=("force range", "element"), plots=True,
        seen=lambda *key: seen[key], device=device, report=lambda done, total: report(stage, (done, total)),
    )  # fmt: skip
    return _written(experiment, out, seen)


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found = deepcopy(dict(base))
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def _recipe(experiment: Experiment, name: str, begun: Path | None) -> TrainingRecipe:
    """Return how a training goes: by the paper's recipe, changed by what the settings say of all and of this one."""
    training, names = experiment.trainings[name], list(experiment.trainings)
    if training.after is not None and training.after not in names[: names.index(name)]:
        raise ModelError(f"trainings.{name}: no training {training.after} before it, to begin from")
    base = BUILT_IN["lemat-finetune" if training.after else "lemat-stage1"]
    of_all = experiment.tuning if training.after else experiment.recipe
    own = {"name": name, "foundation": begun, "energy": experiment.energy, "seed": experiment.seed}
    changed = _merged(_merged(base | own, of_all), training.recipe)
    return checked(TrainingRecipe, changed, f"trainings.{name}.recipe")


def _begin(experiment: Experiment, out: Path) -> None:
    content = experiment.model_dump(mode="json", exclude={"tests", "shift"})
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
        file = out / SETTINGS
        if file.is_file() and (key := difference(json.loads(file.read_text(encoding="utf-8")), content)):
            raise ModelError(f"{out}: holds an experiment with another {key}; choose a new folder")
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{out}: cannot be used ({error})") from error


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    """Return where what was drawn of a dataset is: to train on and validate with, and to test with."""
    return folder / f"{name}.parquet", folder / f"{name}.test.parquet"


def _is_drawn(folder: Path, name: str) -> bool:
    return all(file.is_file() for file in _files(folder, name))


def _split(file: Path) -> Path:
    return file.with_name(f"{file.stem}.split.parquet")


def _drawn(experiment: Experiment, name: str, folder: Path) -> None:
    """Draw what is trained on, validated with and tested with, and keep it; what is there already is left."""
    data, frames = experiment.data[name], experiment.frames
    file, test = _files(folder, name)
    if not _is_drawn(folder, name):
        dataset = Dataset(data.address)
        wanted = frames.model_dump(exclude=set() if data.test is None else {"test"})
        parts = draw(dataset, wanted, balance=LEMAT_TRAJ if data.balanced else None, seed=experiment.seed)
        if empty := [part for part in wanted if not len(parts[part])]:
            raise ModelError(f"data.{name}: {empty[0]} has no frames; draw more ({'; '.join(parts.notes)})")
        parts.save(_split(file))
        (_of_its_own(data.test, frames.test, experiment.seed) if data.test else parts.of(dataset, "test")).save(test)
        dataset.only(pa.concat_arrays([parts["train"], parts["val"]])).save(file)


def _check_elements(experiment: Experiment, folder: Path) -> None:
    """See that models know the elements that they are to be tuned to, before anything is trained for days."""
    known: dict[str, set[str]] = {}
    for name, training in experiment.trainings.items():
        file = folder / f"{training.on}.parquet"
        parts = Split.load(_split(file))
        its = [labelled(parts.of(Dataset(file), part), experiment.energy) for part in ("train", "val")]
        elements, others = map(elements_of, its)
        if new := others - elements:
            raise ModelError(f"data.{training.on}: val has {min(new)}, which train has not; draw more frames")
        known[name] = known[training.after] if training.after else elements
        if new := elements - known[name]:
            raise ModelError(
                f"trainings.{name}: {training.on} has {min(new)}, which {training.after} is not trained on; "
                "draw more frames, or leave out what has it"
            )


def _compared(experiment: Experiment, folder: Path, report: Report) -> Seen:
    """Find which trajectories of each test set each model, or those that it begins from, have seen."""
    found: Seen = {}
    for name in dict.fromkeys(training.on for training in experiment.trainings.values()):
        stage = Stage("compare", name)
        report(stage, None)
        file, _ = _files(folder, name)
        train = Split.load(_split(file)).of(Dataset(file), "train")

        def told(done: int, total: int, stage: Stage = stage) -> None:
            report(stage, (done, total))

        for test in experiment.tests:
            tested, kept = Dataset(_files(folder, test)[1]), folder / f"{name}.seen-of-{test}.parquet"
            found[name, test] = find_seen(train, tested, kept, told)
    return {
        (name, test): set().union(*(found[on, test] for on in _trained_on(experiment, name)))
        for name in experiment.trainings
        for test in experiment.tests
    }


def _of_its_own(address: str, frames: int, seed: int) -> Dataset:
    dataset = Dataset(address)
    return dataset if len(dataset) <= frames else draw(dataset, {"test": frames}, seed=seed).of(dataset, "test")


def _written(experiment: Experiment, out: Path, seen: Seen) -> Path:
    """Write the report: what was trained on what, how it went, and how far the models are from DFT."""
    told = {name: metrics(out / "models" / name) for name in experiment.trainings}
    figure, _ = curves({name: [row for row in rows if isinstance(row, Epoch)] for name, rows in told.items()}, out)
    parts = [
        "# Models by test sets",
        "## Data",
        markdown(("dataset", "address", "part", "frames", "trajectories"), _of_data(experiment, out / "data")),
        "\n".join(f"- {note}" for note in _notes(experiment, out / "data")),
        "## Trainings",
        markdown(
            ("model", "trained on", "begun from", "epochs", "loss", "energy, meV/atom", "forces, meV/A",
             "stress, meV/A^3", "frames/s"),
            [_of_training(experiment, name, rows) for name, rows in told.items()],
        ),
        OF_TRAININGS,
        f"![Errors on the validation set, epoch by epoch]({figure.name})",
        "## Test sets",
        OF_SHIFT[experiment.shift],
        (out / "evaluation" / "matrix.md").read_text(encoding="utf-8").replace("## ", "### "),
        "## What models have seen",
        OF_SEEN,
        markdown(("model", *experiment.tests), _of_seen(experiment, out / "data", seen)),
        (out / "evaluation" / "unseen.md").read_text(encoding="utf-8").replace("## ", "### "),
        "## Frames",
        (out / "evaluation" / "frames.md").read_text(encoding="utf-8"),
        "Tables for LaTeX, by element and range of forces, and figures are in `evaluation/`.",
        ", ".join(f"{name} {version(name)}" for name in ("trajmill", "mace-torch", "torch")),
    ]  # fmt: skip
    file = out / "report.md"
    file.write_text("\n\n".join(part.strip() for part in parts if part) + "\n", encoding="utf-8")
    return file


def _of_data(experiment: Experiment, folder: Path) -> list[list[str]]:
    rows = []
    for name, data in experiment.data.items():
        parts = Split.load(_split(folder / f"{name}.parquet"))
        dataset = Dataset(folder / f"{name}.parquet")
        test = Dataset(folder / f"{name}.test.parquet")
        for part, its in {"train": parts.of(dataset, "train"), "val": parts.of(dataset, "val"), "test": test}.items():
            address = data.test if part == "test" and data.test else data.address
            rows.append([name, address, part, f"{len(its):,}", f"{len(its.trajectory_ids()):,}"])
    return rows


def _notes(experiment: Experiment, folder: Path) -> list[str]:
    """Return where what was drawn is not what was asked for."""
    splits = {name: Split.load(_split(folder / f"{name}.parquet")) for name in experiment.data}
    return [f"{name}: {note}" for name, its in splits.items() for note in its.notes]


def _of_seen(experiment: Experiment, folder: Path, seen: Seen) -> list[list[str]]:
    """Count trajectories of test sets that models have seen."""
    tested = {test: len(Dataset(_files(folder, test)[1]).trajectory_ids()) for test in experiment.tests}
    counts = {key: len(its) for key, its in seen.items()}
    return [
        [name, *(f"{counts[name, test]:,} of {n:,} ({counts[name, test] / n:.0%})" for test, n in tested.items())]
        for name in experiment.trainings
    ]


def _trained_on(experiment: Experiment, name: str) -> list[str]:
    """Return the datasets that a model, and those that it begins from, are trained on."""
    its = experiment.trainings[name]
    return [its.on, *(_trained_on(experiment, its.after) if its.after else [])]


def _of_training(experiment: Experiment, name: str, rows: list[Steps | Epoch]) -> list[str]:
    training = experiment.trainings[name]
    epochs = [row for row in rows if isinstance(row, Epoch) and row.epoch is not None]
    last = [row for row in epochs if row.stage == epochs[-1].stage]
    best = min(last, key=lambda row: row.loss)
    stress = "-" if best.stress_mae is None else f"{1000 * best.stress_mae:.2f}"
    speeds = [row.frames_per_s for row in epochs if row.frames_per_s is not None]  # none where it was only validated
    speed = f"{sum(speeds) / len(speeds):,.0f}" if speeds else "-"
    return [
        name, training.on, training.after or "-", str(len(epochs)), f"{best.loss:.4g}",
        f"{1000 * best.energy_mae:.1f}", f"{1000 * best.force_mae:.1f}", stress, speed,
    ]  # fmt: skip
