"""Sources: each reads one database's raw files. `open_sources` is the table of them."""

from __future__ import annotations

from collections.abc import Callable

from trajmill.errors import RecipeError
from trajmill.recipe import Recipe
from trajmill.sources.base import Source


def open_sources(recipe: Recipe) -> list[Source]:
    """Open the sources a recipe names a path for.

    Raises:
        RecipeError: no path at all, or one that is not there.
    """
    from trajmill.sources.alexandria import Alexandria
    from trajmill.sources.ase_files import AseFiles
    from trajmill.sources.materials_project import open_materials_project
    from trajmill.sources.oqmd import open_oqmd
    from trajmill.sources.vasp import Vasp

    table: dict[str, Callable[..., Source]] = {
        "mp": open_materials_project,
        "alexandria": Alexandria,
        "oqmd": open_oqmd,
        "vasp": Vasp,
        "ase": AseFiles,
    }
    sources: list[Source] = []
    for name, opener in table.items():
        options = getattr(recipe, name)
        if options.path is None:
            continue
        if not options.path.exists():
            raise RecipeError(f"{name}.path: {options.path} does not exist")
        sources.append(opener(options.path, options))
    if not sources:
        raise RecipeError(f"nothing to build: give a path for one of {', '.join(table)}")
    return sources
