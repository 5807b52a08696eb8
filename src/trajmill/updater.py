"""Updating: fetch what is new upstream, build what that changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trajmill.builder import BuildSummary, Listener, build
from trajmill.errors import RecipeError
from trajmill.fetcher import FetchListener, FetchSummary, fetch
from trajmill.recipe import SOURCES, Recipe


@dataclass
class UpdateSummary:
    """What an update did.

    Attributes:
        fetched: of each source, what was fetched.
        built: what was built then; None when not everything could be fetched, or in a dry run.
    """

    fetched: list[FetchSummary] = field(default_factory=list)
    built: BuildSummary | None = None


def raw_folders(recipe: Recipe) -> dict[str, Path]:
    """Return the folder of each source that the recipe gives a path.

    Raises:
        RecipeError: no path at all, or one that is a file.
    """
    folders: dict[str, Path] = {name: path for name in SOURCES if (path := getattr(recipe, name).path) is not None}
    if not folders:
        raise RecipeError(f"nothing to update: give a path for one of {', '.join(SOURCES)}, or --raw")
    for name, path in folders.items():
        if path.is_file():
            raise RecipeError(f"{name}.path: {path} is a file; raw files are fetched into a folder")
    return folders


def update(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    prune: bool = False,
    fetching: FetchListener | None = None,
    building: Listener | None = None,
) -> UpdateSummary:
    """Fetch what is new or changed of all sources with a path, then build what that changes, and only that.

    Args:
        recipe: with a path for each source that is wanted, and for the store.
        dry_run: only say what would be fetched.
        prune: delete what upstream no longer has, and its rows.
        fetching: told how the fetch goes.
        building: told how the build goes.

    Raises:
        TrajmillError: as `fetch` and `build` do.
        KeyboardInterrupt: stopped; run again to go on.
    """
    folders = raw_folders(recipe)
    if recipe.store.path is None:
        raise RecipeError("store.path: say where the store is to be (--out, or [store] path in the recipe)")
    summary = UpdateSummary()
    for source, root in folders.items():
        summary.fetched.append(fetch(source, root, recipe, dry_run=dry_run, prune=prune, listener=fetching))
    if not dry_run and not any(fetched.failed for fetched in summary.fetched):
        summary.built = build(recipe, listener=building)
    return summary
