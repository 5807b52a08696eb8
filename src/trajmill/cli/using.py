"""Take of a dataset what is wanted: query, split, convert; check it, and find what is there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trajmill.cli.common import DatasetAddress, Where, Without, app, named_numbers, wanted_of


@app.command(rich_help_panel="Use")
def query(
    dataset: DatasetAddress,
    where: Where = "",
    columns: Annotated[str | None, typer.Option(help="Names of columns, with commas between; default a few.")] = None,
    limit: Annotated[int, typer.Option(help="Rows to show; 0 shows all.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file to write all of it to, which trajmill.open opens.")
    ] = None,
    part: Annotated[
        tuple[Path, str] | None, typer.Option(metavar="SPLIT PART", help="Only what is in this part of a split.")
    ] = None,
    without: Without = None,
    sample: Annotated[int | None, typer.Option(help="Draw so many whole trajectories at random.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    every: Annotated[
        int | None, typer.Option(help="Of each trajectory every k-th frame, counted from its end.")
    ] = None,
    energy_steps: Annotated[
        float | None, typer.Option(help="Of each trajectory frames more than this apart in energy, eV/atom.")
    ] = None,
    farthest: Annotated[
        int | None, typer.Option(help="Of each trajectory so many frames, farthest apart in energy.")
    ] = None,
) -> None:
    """Show the frames of a dataset that a filter matches, or write them to a file."""
    from trajmill import thinning
    from trajmill.dataset import Dataset
    from trajmill.report import print_rows

    wanted = wanted_of(dataset, where, part, without)
    if sample is not None:
        wanted = wanted.sample(sample, seed=seed)
    ways = {"every": every, "energy_steps": energy_steps, "farthest": farthest}
    chosen = {name: value for name, value in ways.items() if value is not None}
    if len(chosen) > 1:
        raise typer.BadParameter(f"one way of thinning at a time, not {' and '.join(chosen)}")
    for name, value in chosen.items():
        wanted = wanted.thin(getattr(thinning, name)(value))
    if out is not None:
        wanted.save(out)
    print_rows(wanted if out is None else Dataset(out), columns.split(",") if columns else None, limit)


@app.command(rich_help_panel="Use")
def split(
    dataset: DatasetAddress,
    out: Annotated[Path, typer.Argument(help="Parquet file to make, with the part of each trajectory.")],
    parts: Annotated[
        list[str] | None, typer.Option("--part", metavar="NAME=FRACTION", help="Default train=0.8 val=0.1 test=0.1.")
    ] = None,
    frames: Annotated[
        list[str] | None,
        typer.Option("--frames", metavar="NAME=N", help="Instead: draw parts with so many frames of each functional."),
    ] = None,
    balance: Annotated[
        list[str] | None,
        typer.Option("--balance", metavar="SOURCE=SHARE", help="With --frames: shares of frames by source."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Instead: lemat-traj, the paper's subsets; --frames train=N test=N changes sizes."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="What is never on two sides: trajectory, material, formula, chemical_system, prototype.")
    ] = "trajectory",
    where: Annotated[str, typer.Option(metavar="FILTER", help="Split only what this filter matches.")] = "",
    without: Without = None,
    stratify: Annotated[bool, typer.Option(help="Give each part its share of each element.")] = True,
    seed: Annotated[int, typer.Option(help="Another seed gives another split.")] = 0,
) -> None:
    """Split a dataset by trajectories into parts to train, validate and test with."""
    from trajmill.report import print_split
    from trajmill.splits import split as make
    from trajmill.subsets import PRESETS, draw

    sizes = {name: round(n) for name, n in named_numbers("--frames", frames, "train=100000").items()}
    shares = named_numbers("--balance", balance, "mp=0.1")
    if (sizes or preset) and (parts or by != "trajectory" or not stratify):
        raise typer.BadParameter("--frames and --preset draw trajectories, stratified; leave --part and --by out")
    if shares and (preset or not sizes):
        raise typer.BadParameter("--balance goes with --frames")
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"no preset {preset}; there are {', '.join(PRESETS)}")
    if preset and (unknown := sizes.keys() - {"train", "test"}):
        raise typer.BadParameter(f"--preset has the parts train and test, not {min(unknown)}")
    wanted = wanted_of(dataset, where, None, without)
    if preset:
        made = PRESETS[preset](wanted, seed=seed, **sizes)
    elif sizes:
        made = draw(wanted, sizes, balance=shares or None, seed=seed)
    else:
        fractions = named_numbers("--part", parts or ["train=0.8", "val=0.1", "test=0.1"], "train=0.8")
        made = make(wanted, fractions, by=by, stratify=stratify, seed=seed)
    made.save(out)
    print_split(made, out)


@app.command(rich_help_panel="Use")
def convert(
    dataset: DatasetAddress,
    out: Annotated[
        Path, typer.Argument(help="File to make, with a suffix such as .extxyz; or a folder of files, without.")
    ],
    to: Annotated[
        str, typer.Option(help="extxyz, aselmdb, mace-lmdb, mace-hdf5, atompack, lemat-traj or cif.")
    ] = "extxyz",
    where: Annotated[str, typer.Option(metavar="FILTER", help="Only what this filter matches.")] = "",
    part: Annotated[
        tuple[Path, str] | None, typer.Option(metavar="SPLIT PART", help="Only what is in this part of a split.")
    ] = None,
    without: Without = None,
    energy: Annotated[str, typer.Option(help="energy or energy_corrected.")] = "energy",
    prefix: Annotated[
        str | None, typer.Option(help="extxyz: what stands before names of labels; default REF_.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that write a folder; 0 takes one per core.")] = 1,
    per_file: Annotated[int, typer.Option(help="Frames of a file in a folder, about.")] = 20_000,
    e0s: Annotated[
        Path | None, typer.Option(help="JSON file to write an energy per element to, fitted to all frames; for MACE.")
    ] = None,
) -> None:
    """Write a dataset into files that other programs train from. A folder can be stopped and gone on with."""
    from trajmill.converting import convert as run
    from trajmill.converting import reference_energies, write_e0s
    from trajmill.report import RowProgress, print_converted

    wanted = wanted_of(dataset, where, part, without)
    total = len(wanted)
    with RowProgress("convert") as progress:
        written = run(
            wanted, out, to, energy=energy, prefix=prefix, workers=workers, per_file=per_file,
            report=lambda done: progress.update(done, total),
        )  # fmt: skip
    if e0s is not None:
        write_e0s(reference_energies(wanted, energy), e0s)
    print_converted(out, written, energy, e0s)


@app.command(rich_help_panel="Use")
def check(
    dataset: DatasetAddress,
    where: Where = "",
    stress: Annotated[
        str | None, typer.Option(help="Unit of stress in files that do not say it: kBar (VASP's sign) or eV/A^3.")
    ] = None,
    trajectories: Annotated[int, typer.Option(help="So many are drawn at random.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
) -> None:
    """Check units and signs: energies must change by the work of forces and stress. Exit code 1 when they do not."""
    from trajmill.dataset import Dataset
    from trajmill.physics import check as run
    from trajmill.report import print_verdicts

    found = run(Dataset(dataset, stress=stress).filter(where), trajectories=trajectories, seed=seed)
    if not print_verdicts(found):
        raise typer.Exit(1)


@app.command(rich_help_panel="Use")
def leakage(
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="Dataset that is trained on.")],
    test: Annotated[
        str, typer.Argument(metavar="TEST", help="Dataset that is to be unseen, or a .txt of ids of materials or runs.")
    ],
    structures: Annotated[bool, typer.Option(help="Compare structures too, which takes longest.")] = True,
    limit: Annotated[int, typer.Option(help="Pairs to show of each kind; 0 shows all.")] = 10,
) -> None:
    """Say what of a test set a training set has seen already. Exit code 1 when there is anything."""
    from trajmill.dataset import Dataset
    from trajmill.leakage import find_leakage, held_out
    from trajmill.report import RowProgress, print_held_out, print_leakage

    if test.endswith(".txt"):
        try:
            listed = Path(test).read_text(encoding="utf-8").split()
        except OSError as error:
            raise typer.BadParameter(f"{test}: {error.strerror}") from error
        if print_held_out(held_out(Dataset(train), listed), len(listed), limit):
            raise typer.Exit(1)
        return
    with RowProgress("leakage") as progress:
        found = find_leakage(Dataset(train), Dataset(test), structures=structures, report=progress.update)
    if print_leakage(found, limit):
        raise typer.Exit(1)


@app.command(rich_help_panel="Use")
def dedup(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Within and across which to look.")],
    out: Annotated[Path, typer.Option(help="Parquet file to make, with a row for each trajectory of a group.")],
    across_functionals: Annotated[
        bool, typer.Option("--across-functionals", help="Compare trajectories of different functionals too.")
    ] = False,
) -> None:
    """Mark trajectories that end in the same structure, within a dataset and across several. Deletes nothing."""
    from trajmill.dataset import Dataset
    from trajmill.duplicates import find_duplicates
    from trajmill.report import RowProgress, print_duplicates

    with RowProgress("dedup") as progress:
        marks = find_duplicates(
            [Dataset(address) for address in datasets], across_functionals=across_functionals, report=progress.update
        )
    marks.save(out)
    print_duplicates(marks, out)
