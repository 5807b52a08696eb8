"""Models and datasets."""

from __future__ import annotations

import shlex
import shutil
import sys
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

from trajmill.cli.common import app, wanted_of
from trajmill.errors import ModelError

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Processes = Annotated[int, typer.Option(min=1, help="That train together, one for each GPU of this machine.")]
Launcher = Annotated[
    str, typer.Option(metavar="COMMAND", help="That starts the processes instead: 'srun --nodes=2 ...'.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes that load frames, of each of those.")]


def words_of(command: str) -> list[str]:
    """Part a command into words, as a shell does."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ModelError(f"--launcher {command}: {error}") from error
    if words and shutil.which(words[0]) is None:
        raise ModelError(f"--launcher: there is no {words[0]} here")
    return words


@app.command(rich_help_panel="Models")
def train(
    recipe: Annotated[str, typer.Argument(help="TOML file, or lemat-stage1, lemat-stage2, lemat-finetune.")],
    on: Annotated[str, typer.Option("--on", metavar="DATASET", help="What is trained on.")],
    part: Annotated[
        tuple[Path, str, str], typer.Option("--split", metavar="SPLIT TRAIN VAL", help="A split and two of its parts.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for metrics, checkpoints and the model. Run again to go on.")],
    where: Annotated[str, typer.Option(metavar="FILTER", help="Only what this filter matches.")] = "",
    foundation: Annotated[Path | None, typer.Option(help="Model whose weights training starts from.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    device: Device = "cpu",
    processes: Processes = 1,
    launcher: Launcher = "",
    workers: Workers = 1,
) -> None:
    """Train a MACE model on a part of a dataset, validated on another."""
    from trajmill.report import TrainingProgress, print_paths
    from trajmill.splits import Split
    from trajmill.training.mace import train as run
    from trajmill.training.recipes import load

    chosen = load(recipe, foundation=foundation, epochs=epochs)
    file, *parts = part
    with TrainingProgress() as progress:
        model = run(
            wanted_of(on, where, None), Split.load(file), out, chosen, parts=(parts[0], parts[1]), device=device,
            processes=processes, launcher=words_of(launcher), workers=workers, report=progress.tell,
        )  # fmt: skip
    print_paths([model])


@app.command(rich_help_panel="Models")
def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="chgnet, sevennet, mace:FILE, or MODULE:CALLABLE (ASE).")
    ],
    on: Annotated[list[str], typer.Option("--on", metavar="DATASET", help="Test set; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions, a row a frame, and tables.")],
    where: Annotated[str, typer.Option(metavar="FILTER", help="Only what this filter matches.")] = "",
    sample: Annotated[int | None, typer.Option(help="Draw so many whole trajectories of each test set.")] = None,
    energy: Annotated[str, typer.Option(help="What models are held against: energy or energy_corrected.")] = "energy",
    shift: Annotated[
        str, typer.Option(help="none, or composition: a constant per element, fitted, is taken off the energies.")
    ] = "none",
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", help="Also a table by source, functional, element, 'force range' or step; may be repeated."
        ),
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="That models were trained on: also a table of what is new to them."),
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Also figures of parity and errors, PNG and SVG (extra figures).")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Hold models against DFT: energies, forces, stresses. What was predicted before is not predicted again."""
    from trajmill.dataset import Dataset
    from trajmill.leakage import find_leakage
    from trajmill.report import RowProgress, print_paths
    from trajmill.training.evaluation import evaluate as run

    datasets = {address: wanted_of(address, where, None, None) for address in on}
    if sample is not None:
        datasets = {address: dataset.sample(sample) for address, dataset in datasets.items()}
    if empty := [address for address, dataset in datasets.items() if not len(dataset)]:
        raise ModelError(f"{empty[0]}: no frames to evaluate on")
    train_set = None if trained_on is None else Dataset(trained_on)
    with RowProgress("evaluate") as progress:

        @cache
        def seen(test: str) -> list[str]:
            assert train_set is not None  # noqa: S101 (else it is not asked)
            return find_leakage(train_set, datasets[test], report=partial(progress.update, what="leakage")).trajectories

        made = run(
            models, datasets, out, energy=energy, shift=shift, by=by or [], plots=plots, device=device,
            seen=None if train_set is None else lambda _, test: seen(test), report=progress.update,
        )  # fmt: skip
    print_paths(made)
    sys.stdout.write(made[0].read_text(encoding="utf-8"))


@app.command(rich_help_panel="Models")
def relax(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for evaluate.")],
    on: Annotated[
        str, typer.Option("--on", metavar="DATASET", help="Trajectories whose first geometries are relaxed.")
    ],
    out: Annotated[Path, typer.Option(help="Parquet file to make, a row a relaxation. Run again to go on.")],
    where: Annotated[str, typer.Option(metavar="FILTER", help="Only what this filter matches.")] = "",
    sample: Annotated[int | None, typer.Option(help="Draw so many whole trajectories.")] = None,
    inputs: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Where geometries are that OQMD's relaxations began with.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="ATOMS", min=1, help="Ask about so many atoms at once; needs torch-sim.")
    ] = None,
    fmax: Annotated[float, typer.Option(help="eV/A that forces are to fall below.")] = 0.02,
    steps: Annotated[int, typer.Option(help="At most.")] = 500,
    device: Device = "cpu",
) -> None:
    """Relax by a model from where DFT's relaxations began, and hold the end against DFT's (IS2RS, IS2RE)."""
    from trajmill.dataset import Dataset
    from trajmill.report import RowProgress, print_relaxations
    from trajmill.training.batching import Batched
    from trajmill.training.calculators import calculator
    from trajmill.training.relaxing import relax as run

    wanted = wanted_of(on, where, None)
    if sample is not None:
        wanted = wanted.sample(sample)
    ids = wanted.trajectory_ids()
    began = None if inputs is None else Dataset(inputs, inputs=True).only(ids)
    loaded = calculator(model, device=device)
    with RowProgress("relax") as progress:
        found = run(
            wanted, loaded if batch is None else Batched(loaded, atoms=batch), out, inputs=began, fmax=fmax,
            steps=steps, name=model, report=lambda done: progress.update(done, len(ids)),
        )  # fmt: skip
    print_relaxations(found, out)


@app.command(rich_help_panel="Models")
def experiment(
    name: Annotated[str, typer.Argument(help="lemat-appendix-d: the five trainings of the LeMat-Traj paper.")],
    settings: Annotated[Path, typer.Argument(help="TOML file: where the data are, how many frames, what is changed.")],
    out: Annotated[Path, typer.Option(help="Folder for data, models, tables and the report. Run again to go on.")],
    device: Device = "cpu",
    processes: Processes = 1,
    launcher: Launcher = "",
    workers: Workers = 1,
) -> None:
    """Draw subsets of several datasets, train on each, and hold all models against the test sets of all."""
    from trajmill.report import ExperimentProgress, print_paths
    from trajmill.training.experiment import load, run

    chosen = load(name, settings)
    with ExperimentProgress() as progress:
        made = run(
            chosen, out, device=device, processes=processes, launcher=words_of(launcher), workers=workers,
            report=progress.tell_of,
        )  # fmt: skip
    print_paths([made])
