"""The command line: parses, calls, prints. What it does is in the modules it calls."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from trajmill.errors import RecipeError, TrajmillError
from trajmill.recipe import BUILT_IN, PUBLISHED, DatabaseAddress, Recipe, check_published, load, to_toml
from trajmill.storage import AnyPath, as_path

if TYPE_CHECKING:
    from trajmill.dataset import Dataset

app = typer.Typer(
    name="trajmill", help="Raw DFT relaxation data in, one clean dataset of trajectories out.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
recipes = typer.Typer(help="Look at the recipes that come with trajmill.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override any key of the recipe; may be repeated."),
]
Workers = Annotated[int | None, typer.Option(help="Worker processes; 0 takes one per core.")]
EngineName = Annotated[str | None, typer.Option("--engine", help="local, or dask: workers of a dask cluster.")]
Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Engine dask: a running scheduler.")]
Slurm = Annotated[str | None, typer.Option(metavar="TOML", help="Engine dask: SLURM jobs to run workers in.")]
StoreAddress = Annotated[
    str, typer.Argument(metavar="STORE", help="Folder of a store, or postgresql://user@host/database.")
]

DatasetAddress = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="Address of a store, a release (release?split=test), the Hub (hf://...), files."
    ),
]
Where = Annotated[
    str, typer.Argument(metavar="FILTER", help="As OPTIMADE's: 'elements HAS \"Fe\" AND nsites < 20'; default all.")
]
Without = Annotated[
    Path | None, typer.Option(metavar="MARKS", help="Leave out the duplicates that trajmill dedup marked in this file.")
]


@app.command()
def build(
    recipe: Annotated[str | None, typer.Argument(help="TOML file or built-in recipe; default lemat-traj.")] = None,
    mp: Annotated[
        str | None, typer.Option(help="Folder of raw Materials Project files, or s3://bucket/prefix.")
    ] = None,
    alexandria: Annotated[str | None, typer.Option(help="Folder of Alexandria path files, or s3://...")] = None,
    oqmd: Annotated[
        str | None, typer.Option(help="OQMD's SQL dump, the folder it is in, s3://... or mysql://...")
    ] = None,
    vasp: Annotated[str | None, typer.Option(help="Folder with vasprun.xml files of your own, or s3://...")] = None,
    ase: Annotated[str | None, typer.Option(help="Folder with files of your own that ASE reads, or s3://...")] = None,
    out: Annotated[str | None, typer.Option(help="Store to fill: a folder, or postgresql://user@host/db.")] = None,
    workers: Workers = None,
    engine: EngineName = None,
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    settings: Settings = None,
) -> None:
    """Build everything the recipe asks for that the store does not have yet.

    Ctrl-C once finishes the running files and stops, twice stops at once; run again to go on.
    """
    from trajmill.builder import build as run
    from trajmill.report import BuildProgress, print_summary

    flags: dict[str, Any] = {
        "mp.path": mp,
        "alexandria.path": alexandria,
        "oqmd.path": oqmd,
        "vasp.path": vasp,
        "ase.path": ase,
        "store.path": out,
        **_engine(workers, engine, scheduler, slurm),
    }
    chosen = _recipe(recipe, settings, flags)
    with BuildProgress() as progress:
        summary = run(chosen, listener=progress)
    print_summary(summary, chosen.store.path or "")
    if summary.stopped:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def fetch(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="mp, alexandria, oqmd; several may be given.")
    ],
    dest: Annotated[str | None, typer.Option(help="Folder with a folder per source; default raw.")] = None,
    recipe: Annotated[str | None, typer.Option(help="TOML file or built-in recipe: addresses, paths.")] = None,
    layout: Annotated[str | None, typer.Option(help="mp: delta (active tables) or jsonl.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what upstream no longer has.")] = False,
    settings: Settings = None,
) -> None:
    """Fetch raw files that are new or changed since the last time.

    Can be stopped at any moment: run again to go on where it was.
    """
    from trajmill.fetcher import fetch as run
    from trajmill.report import FetchProgress, print_total

    chosen = _recipe(recipe, settings, {"fetch.mp.layout": layout})
    places = _places(chosen, sources, dest, "raw")
    with FetchProgress() as progress:
        fetched = [
            run(name, root, chosen, dry_run=dry_run, prune=prune, listener=progress) for name, root in places.items()
        ]
    print_total(fetched)
    if any(summary.failed for summary in fetched):
        raise typer.Exit(1)


@app.command()
def update(
    recipe: Annotated[str | None, typer.Argument(help="TOML file or built-in recipe; default lemat-traj.")] = None,
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="mp, alexandria or oqmd; may be repeated; default all.")
    ] = None,
    raw: Annotated[str | None, typer.Option(help="Folder with a folder per source; default as in the recipe.")] = None,
    out: Annotated[str | None, typer.Option(help="Store to fill: a folder, or postgresql://user@host/db.")] = None,
    workers: Workers = None,
    engine: EngineName = None,
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what upstream no longer has, and its rows.")] = False,
    settings: Settings = None,
) -> None:
    """Fetch what is new or changed upstream, and build that and nothing else.

    Updates the sources that the recipe gives a path; with --raw and a recipe that gives none, all.
    """
    from trajmill.report import BuildProgress, FetchProgress, print_summary, print_total
    from trajmill.updater import update as run

    chosen = _recipe(recipe, settings, {"store.path": out, **_engine(workers, engine, scheduler, slurm)})
    named = [name for name in PUBLISHED if getattr(chosen, name).path]
    places = _places(chosen, sources or named or (list(PUBLISHED) if raw else []), raw, None)
    chosen = chosen.with_paths({name: places.get(name) for name in PUBLISHED})
    with FetchProgress() as fetching, BuildProgress() as building:
        summary = run(chosen, dry_run=dry_run, prune=prune, fetching=fetching, building=building)
    print_total(summary.fetched)
    if summary.built:
        print_summary(summary.built, chosen.store.path or "")
    for source, reason in summary.failed.items():
        sys.stderr.write(f"trajmill: {source} was not updated: {' '.join(reason.split())}\n")
    if summary.built and summary.built.stopped:
        raise typer.Exit(130)
    if summary.failed or (summary.built and summary.built.failed):
        raise typer.Exit(1)


@app.command()
def release(
    store: StoreAddress,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to make, or s3://bucket/prefix.")],
    schema: Annotated[
        str | None, typer.Option(help="trajmill (all columns) or lemat-traj (the 25 published ones).")
    ] = None,
    stress: Annotated[str | None, typer.Option(help="auto, ev (eV/A^3, ASE sign) or kbar (VASP sign).")] = None,
    version: Annotated[int | None, typer.Option(help="Version of the store; default the newest.")] = None,
    split: Annotated[
        Path | None, typer.Option(metavar="SPLIT", help="Split of the store, whose parts become the release's splits.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="TOML file or built-in recipe with the rules that run at release.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Export a store as a Hugging Face dataset: Parquet per configuration and a dataset card."""
    from trajmill.releases.push import release_to
    from trajmill.report import ByteProgress, RowProgress, print_release
    from trajmill.splits import Split
    from trajmill.stores import open_store

    chosen = _recipe(recipe, settings, {"release.format": schema, "release.stress": stress})
    parts = Split.load(split) if split else None
    with RowProgress("release") as rows, ByteProgress() as sent:
        summary = release_to(
            open_store(store, version=version), out, chosen, split=parts, report=rows.update, progress=sent.update
        )
    print_release(summary)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Address of a store.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Address of the store to fill; made when not there.")],
) -> None:
    """Copy a store into another of any kind, with all it knows. Run again to go on, or to copy what is new."""
    from trajmill.copying import copy as run
    from trajmill.report import RowProgress, print_copy
    from trajmill.stores import open_store

    with RowProgress("copy") as progress:
        summary = run(open_store(source), open_store(target, create=True), report=progress.update)
    print_copy(summary, target)


@app.command()
def push(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of a release.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Dataset NAMESPACE/NAME of the Hub, or ./folder, s3://bucket/path.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Hub: make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Hub: branch to commit to; made when it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Hub: open a pull request.")] = False,
) -> None:
    """Publish a release, in one commit, and verify it. Run again after a failure: what arrived is not sent again."""
    from trajmill.releases.push import push as run
    from trajmill.report import ByteProgress, print_push

    with ByteProgress() as progress:
        summary = run(
            release, target, private=private, revision=revision, create_pr=create_pr, progress=progress.update
        )
    print_push(summary)


@app.command()
def info(path: Annotated[str, typer.Argument(help="Address of a store or folder of a release.")]) -> None:
    """Count what a store or a release holds and check that nothing is missing. Exit code 1 when a check fails."""
    from trajmill.report import print_info

    if not print_info(path):
        raise typer.Exit(1)


@app.command()
def rejections(
    store: StoreAddress,
    rule: Annotated[str | None, typer.Option(help="Only what this rule rejected.")] = None,
    identifier: Annotated[
        str | None, typer.Option("--id", help="Only this frame, trajectory, task or material.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Rows to show; 0 shows all.")] = 50,
) -> None:
    """Say why frames, trajectories and records were turned away."""
    from trajmill.report import print_rejections

    print_rejections(store, rule, identifier, limit)


@app.command()
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

    wanted = _wanted(dataset, where, part, without)
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


@app.command()
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

    sizes = {name: round(n) for name, n in _named_numbers("--frames", frames, "train=100000").items()}
    shares = _named_numbers("--balance", balance, "mp=0.1")
    if (sizes or preset) and (parts or by != "trajectory" or not stratify):
        raise typer.BadParameter("--frames and --preset draw trajectories, stratified; leave --part and --by out")
    if shares and (preset or not sizes):
        raise typer.BadParameter("--balance goes with --frames")
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"no preset {preset}; there are {', '.join(PRESETS)}")
    if preset and (unknown := sizes.keys() - {"train", "test"}):
        raise typer.BadParameter(f"--preset has the parts train and test, not {min(unknown)}")
    wanted = _wanted(dataset, where, None, without)
    if preset:
        made = PRESETS[preset](wanted, seed=seed, **sizes)
    elif sizes:
        made = draw(wanted, sizes, balance=shares or None, seed=seed)
    else:
        fractions = _named_numbers("--part", parts or ["train=0.8", "val=0.1", "test=0.1"], "train=0.8")
        made = make(wanted, fractions, by=by, stratify=stratify, seed=seed)
    made.save(out)
    print_split(made, out)


@app.command()
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

    wanted = _wanted(dataset, where, part, without)
    total = len(wanted)
    with RowProgress("convert") as progress:
        written = run(
            wanted, out, to, energy=energy, prefix=prefix, workers=workers, per_file=per_file,
            report=lambda done: progress.update(done, total),
        )  # fmt: skip
    if e0s is not None:
        write_e0s(reference_energies(wanted, energy), e0s)
    print_converted(out, written, energy, e0s)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def pes(
    dataset: DatasetAddress,
    out: Annotated[Path, typer.Option(help="Folder to make files in, a folder for each chemical system.")],
    elements: Annotated[
        list[str] | None,
        typer.Option(
            metavar="Fe,Cu,...", help="Chemical system; may be repeated; default those of the LeMat-Traj paper."
        ),
    ] = None,
    only_subsets: Annotated[
        bool,
        typer.Option("--only-subsets", help="Take cells with any of the elements and no other, not only with all."),
    ] = False,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", metavar="DATASET", help="Lay it out beside; may be repeated.")
    ] = None,
    functional: Annotated[str, typer.Option(help="pbe, pbesol, scan or r2scan.")] = "pbe",
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", metavar="ELEMENT=EV", help="Energy per atom; default of the data's own elements."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that compute SOAP.")] = 1,
) -> None:
    """Draw the potential-energy surface of chemical systems: SOAP, two principal components, formation energy."""
    from trajmill.analysis.pes import PRESETS, save_points, surface
    from trajmill.analysis.pes_drawing import save_figures
    from trajmill.dataset import Dataset
    from trajmill.report import RowProgress, print_paths

    datasets = {address: Dataset(address) for address in (dataset, *(compare or []))}
    given = _named_numbers("--reference", reference, "Fe=-8.3")
    systems = [tuple(re.split("[,-]", text)) for text in elements or PRESETS]
    made = []
    for system in systems:
        with RowProgress("-".join(system)) as progress:
            found = surface(
                datasets, system, subsets=only_subsets, functional=functional, references=given or None, jobs=workers,
                report=progress.update,
            )  # fmt: skip
        folder = out / "-".join(system)
        folder.mkdir(parents=True, exist_ok=True)
        save_points(found, folder)
        save_figures(found, folder)
        made.append(folder)
    print_paths(made)


Compared = Annotated[
    list[str] | None, typer.Option("--compare", metavar="DATASET", help="Draw it beside; may be repeated.")
]


@app.command()
def figures(
    dataset: DatasetAddress,
    out: Annotated[Path, typer.Option(help="Folder for pictures (PNG, SVG) and their numbers (CSV, Parquet).")],
    compare: Compared = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only this figure; may be repeated.")
    ] = None,
) -> None:
    """Draw what a dataset is like: elements, forces, energies, stress, space groups, steps, curation, overlap."""
    from trajmill.analysis import FIGURES, base, files, numbers
    from trajmill.report import RowProgress

    chosen, subjects = base.pick(FIGURES, only), files.subjects([dataset, *(compare or [])])
    with RowProgress("count") as progress:
        counts = numbers.count(subjects, chosen, report=progress.update)
    with RowProgress("draw") as progress:
        written = files.save(counts, out, report=progress.update)
    sys.stdout.writelines(f"{line}\n" for line in files.summary(counts, written))


@app.command()
def report(
    dataset: DatasetAddress,
    compare: Compared = None,
    out: Annotated[Path, typer.Option(help="HTML file to make.")] = Path("report.html"),
) -> None:
    """Write one HTML page with all figures, counts, units, curation and versions. It needs no network."""
    from trajmill.analysis import FIGURES, files, numbers, page
    from trajmill.report import RowProgress

    subjects = files.subjects([dataset, *(compare or [])])
    with RowProgress("count") as progress:
        counts = numbers.count(subjects, FIGURES, report=progress.update)
    with RowProgress("draw") as progress:
        page.write(counts, subjects, out, report=progress.update)
    sys.stdout.writelines(f"{line}\n" for line in files.summary(counts, [out]))


@app.command()
def explore(
    dataset: DatasetAddress,
    host: Annotated[str, typer.Option(help="To bind to; any but this machine's own asks for a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token: Annotated[bool, typer.Option("--token", help="Ask for a token on this machine too.")] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
) -> None:
    """Look through a dataset in the browser: a page served from this machine, until Ctrl-C."""
    from trajmill.explorer.server import Explorer, open_browser
    from trajmill.report import RowProgress

    with RowProgress("index") as progress:
        server = Explorer(dataset, host=host, port=port, token=token, report=progress.update)

    def ready() -> None:
        sys.stdout.write(f"{server.url}\nCtrl-C stops it\n")
        sys.stdout.flush()
        if not no_open:
            open_browser(server.url)

    server.run(ready)


@app.command()
def serve(
    dataset: DatasetAddress,
    host: Annotated[str, typer.Option(help="To listen on; the default answers this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 5000,
    provider_prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="Of properties that OPTIMADE does not define: _PREFIX_energy.")
    ] = "trajmill",
) -> None:
    """Answer OPTIMADE clients with final structures and trajectories, until Ctrl-C."""
    from trajmill.optimade import serve as run
    from trajmill.report import RowProgress

    with ExitStack() as stack:
        progress = stack.enter_context(RowProgress("index"))

        def ready(url: str, trajectories: int, frames: int) -> None:
            stack.close()
            sys.stdout.write(f"{url}/v1: {trajectories:,} trajectories, {frames:,} frames\nCtrl-C stops it\n")
            sys.stdout.flush()

        run(dataset, host=host, port=port, prefix=provider_prefix, ready=ready, report=progress.update)


@app.command()
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
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Hold models against DFT: energies, forces, stresses. What was predicted before is not predicted again."""
    from trajmill.report import RowProgress, print_paths
    from trajmill.training.evaluation import evaluate as run

    datasets = {address: _wanted(address, where, None, None) for address in on}
    if sample is not None:
        datasets = {address: dataset.sample(sample) for address, dataset in datasets.items()}
    with RowProgress("evaluate") as progress:
        made = run(
            models, datasets, out, energy=energy, shift=shift, by=by or [], device=device, report=progress.update
        )
    print_paths(made)
    sys.stdout.write(made[0].read_text(encoding="utf-8"))


def _wanted(dataset: str, where: str, part: tuple[Path, str] | None, without: Path | None = None) -> Dataset:
    """Open what a filter matches of a dataset, or of a part of it, without what is marked as a duplicate."""
    from trajmill.dataset import Dataset
    from trajmill.duplicates import Marks
    from trajmill.splits import Split

    matched = Dataset(dataset).filter(where)
    if without is not None:
        matched = matched.without(Marks.load(without).duplicates)
    return matched if part is None else Split.load(part[0]).of(matched, part[1])


def _named_numbers(flag: str, texts: list[str] | None, example: str) -> dict[str, float]:
    """Read NAME=NUMBER."""
    found = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{flag} {text}: write a name and a number, such as {example}") from None
    return found


@recipes.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BUILT_IN)}.")] = "lemat-traj") -> None:
    """Print a built-in recipe as TOML, with what each key means."""
    if name not in BUILT_IN:
        raise typer.BadParameter(f"no recipe {name}; there are: {', '.join(BUILT_IN)}")
    sys.stdout.write(to_toml(BUILT_IN[name]))


def _places(recipe: Recipe, sources: list[str], dest: str | None, default: str | None) -> dict[str, AnyPath]:
    """Return the raw folder of each source: below `dest`, else as the recipe says, else below `default`.

    Raises:
        RecipeError: no such source, or nobody says where its files are to be.
    """
    places: dict[str, AnyPath] = {}
    for name in sources:
        check_published(name)
        path = getattr(recipe, name).path
        if dest is not None or path is None:
            folder = dest or default
            if folder is None:
                raise RecipeError(
                    f"{name}.path: say where its raw files are to be (--raw, or [{name}] path in the recipe)"
                )
            path = as_path(folder) / name
        if isinstance(path, DatabaseAddress):
            raise RecipeError(f"{name}.path: {path} is a database, which is built and not fetched (trajmill build)")
        places[name] = path
    return places


def _recipe(name: str | None, settings: list[str] | None, flags: dict[str, Any]) -> Recipe:
    """Read the recipe; flags override it, `--set` overrides both."""
    given = [f"{key}={_toml(value)}" for key, value in flags.items() if value is not None]
    return load(name, [*given, *(settings or [])])


def _engine(workers: int | None, name: str | None, scheduler: str | None, slurm: str | None) -> dict[str, Any]:
    return {"engine.workers": workers, "engine.name": name, "engine.scheduler": scheduler, "engine.slurm": slurm}


def _toml(value: object) -> str:
    return f"'{value}'" if isinstance(value, (Path, str)) else str(value)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"trajmill: {' '.join(message.split())}\n")
    raise SystemExit(code)


def main() -> None:
    """Run the command line: one line and exit code 2 for what the user can put right, 130 when interrupted."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:  # a wrong flag or argument
        _fail(f"{getattr(error, 'format_message', error.__str__)()} (see trajmill --help)", 2)
    except TrajmillError as error:
        _fail(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    if code == 130:  # typer says so too when Ctrl-C came
        _fail("stopped; run the same command again to go on", 130)
    raise SystemExit(code or 0)


if __name__ == "__main__":
    main()
