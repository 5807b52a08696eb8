"""What commands share: the application, types of options, what they read before they call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trajmill.recipe import Recipe, load

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


def wanted_of(dataset: str, where: str, part: tuple[Path, str] | None, without: Path | None = None) -> Dataset:
    """Open what a filter matches of a dataset, or of a part of it, without what is marked as a duplicate."""
    from trajmill.dataset import Dataset
    from trajmill.duplicates import Marks
    from trajmill.splits import Split

    matched = Dataset(dataset).filter(where)
    if without is not None:
        matched = matched.without(Marks.load(without).duplicates)
    return matched if part is None else Split.load(part[0]).of(matched, part[1])


def named_numbers(flag: str, texts: list[str] | None, example: str) -> dict[str, float]:
    """Read NAME=NUMBER."""
    found = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{flag} {text}: write a name and a number, such as {example}") from None
    return found


def recipe_of(name: str | None, settings: list[str] | None, flags: dict[str, Any]) -> Recipe:
    """Read the recipe; flags override it, `--set` overrides both."""
    given = [f"{key}={_toml(value)}" for key, value in flags.items() if value is not None]
    return load(name, [*given, *(settings or [])])


def engine_flags(workers: int | None, name: str | None, scheduler: str | None, slurm: str | None) -> dict[str, Any]:
    """Return what these flags say, by key of the recipe."""
    return {"engine.workers": workers, "engine.name": name, "engine.scheduler": scheduler, "engine.slurm": slurm}


def _toml(value: object) -> str:
    return f"'{value}'" if isinstance(value, (Path, str)) else str(value)
