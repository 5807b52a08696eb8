"""Remotes: where each source publishes. `open_remote` is the table of them."""

from __future__ import annotations

from collections.abc import Callable

from trajmill.recipe import Recipe, check_published
from trajmill.remotes.base import Remote


def open_remote(source: str, recipe: Recipe) -> Remote:
    """Open the publisher of a source.

    Raises:
        RecipeError: no such source, or one that is published nowhere.
    """
    from trajmill.remotes.alexandria import AlexandriaRemote
    from trajmill.remotes.oqmd import OqmdRemote

    table: dict[str, Callable[[], Remote]] = {
        "mp": lambda: _materials_project(recipe),
        "alexandria": lambda: AlexandriaRemote(recipe.fetch.alexandria),
        "oqmd": lambda: OqmdRemote(recipe.fetch.oqmd),
    }
    check_published(source)
    return table[source]()


def _materials_project(recipe: Recipe) -> Remote:
    if recipe.fetch.mp.layout == "jsonl":
        from trajmill.remotes.mp_documents import MaterialsProjectDocuments

        return MaterialsProjectDocuments(recipe.fetch.mp)
    from trajmill.remotes.mp_tables import MaterialsProjectTables

    return MaterialsProjectTables(recipe.fetch.mp, recipe.mp, recipe.rules.license)
