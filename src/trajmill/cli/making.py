"""Make a dataset: fetch, build, update, copy, release, push."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trajmill.cli.common import (
    EngineName,
    Scheduler,
    Settings,
    Slurm,
    StoreAddress,
    Workers,
    app,
    engine_flags,
    recipe_of,
    recipes,
)
from trajmill.errors import RecipeError
from trajmill.recipe import BUILT_IN, PUBLISHED, DatabaseAddress, Recipe, check_published, to_toml
from trajmill.storage import AnyPath, as_path


@app.command(rich_help_panel="Make")
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
        **engine_flags(workers, engine, scheduler, slurm),
    }
    chosen = recipe_of(recipe, settings, flags)
    with BuildProgress() as progress:
        summary = run(chosen, listener=progress)
    print_summary(summary, chosen.store.path or "")
    if summary.stopped:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


@app.command(rich_help_panel="Make")
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

    chosen = recipe_of(recipe, settings, {"fetch.mp.layout": layout})
    places = _places(chosen, sources, dest, "raw")
    with FetchProgress() as progress:
        fetched = [
            run(name, root, chosen, dry_run=dry_run, prune=prune, listener=progress) for name, root in places.items()
        ]
    print_total(fetched)
    if any(summary.failed for summary in fetched):
        raise typer.Exit(1)


@app.command(rich_help_panel="Make")
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

    chosen = recipe_of(recipe, settings, {"store.path": out, **engine_flags(workers, engine, scheduler, slurm)})
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


@app.command(rich_help_panel="Make")
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

    chosen = recipe_of(recipe, settings, {"release.format": schema, "release.stress": stress})
    parts = Split.load(split) if split else None
    with RowProgress("release") as rows, ByteProgress() as sent:
        summary = release_to(
            open_store(store, version=version), out, chosen, split=parts, report=rows.update, progress=sent.update
        )
    print_release(summary)


@app.command(rich_help_panel="Make")
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


@app.command(rich_help_panel="Make")
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
