"""Updating: fetch what is new upstream, build what that changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from trajmill.builder import BuildSummary, Listener, build
from trajmill.errors import DiskError, FetchError, RecipeError
from trajmill.fetcher import FetchListener, FetchSummary, check_folder, fetch
from trajmill.recipe import PUBLISHED, Recipe
from trajmill.stores import open_store


@dataclass
class UpdateSummary:
    """What an update did.

    Attributes:
        fetched: of each source that could be asked, what was fetched.
        failed: why a source could not be fetched completely, by source. It was not built.
        built: what was built of the others; None when there were none, or in a dry run.
    """

    fetched: list[FetchSummary] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    built: BuildSummary | None = None


def update(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    prune: bool = False,
    fetching: FetchListener | None = None,
    building: Listener | None = None,
) -> UpdateSummary:
    """Fetch what is new or changed of all sources with a path, then build what that changes, and only that.

    A source that cannot be fetched completely is left as it was; the others are built, your own files among them.

    Args:
        recipe: with a path for each source that is wanted, and for the store.
        dry_run: only say what would be fetched.
        prune: delete what upstream no longer has, and its rows.
        fetching: told how the fetch goes.
        building: told how the build goes.

    Raises:
        RecipeError: paths missing, or such that nothing can be fetched there.
        DiskError: the disk is full or cannot be written.
        StoreError, SourceError: as `build` does.
        KeyboardInterrupt: stopped; run again to go on.
    """
    given = {name: path for name in PUBLISHED if (path := getattr(recipe, name).path) is not None}
    if not given:
        raise RecipeError(f"nothing to update: give a path for one of {', '.join(PUBLISHED)}, or --raw")
    if recipe.store.path is None:
        raise RecipeError("store.path: say where the store is to be (--out, or [store] path in the recipe)")
    # all of them, and the store, before hours are spent on the first
    folders = {source: check_folder(source, root, recipe) for source, root in given.items()}
    if not dry_run:
        open_store(recipe.store.path, create=True)
    summary = UpdateSummary()
    for source, root in folders.items():
        try:
            fetched = fetch(source, root, recipe, dry_run=dry_run, prune=prune, listener=fetching)
        except DiskError:
            raise
        except FetchError as error:
            summary.failed[source] = str(error)
            continue
        summary.fetched.append(fetched)
        if fetched.failed:
            some, n = next(iter(fetched.failed)), len(fetched.failed)
            summary.failed[source] = f"{some} could not be fetched" + (f", nor {n - 1} more" if n > 1 else "")
    complete = {source: root for source, root in folders.items() if source not in summary.failed}
    if complete and not dry_run:
        summary.built = build(recipe.with_paths({name: complete.get(name) for name in PUBLISHED}), listener=building)
    return summary
