"""trajmill: raw DFT relaxation data of open materials databases to one clean dataset of trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajmill.builder import build
    from trajmill.dataset import Dataset
    from trajmill.dataset import Dataset as open  # noqa: A004, N813 (trajmill.open, as gzip.open)
    from trajmill.fetcher import fetch
    from trajmill.recipe import load as load_recipe
    from trajmill.releases.hugging_face import release
    from trajmill.trajectory import Trajectory
    from trajmill.updater import update

__all__ = ["Dataset", "Trajectory", "build", "fetch", "load_recipe", "open", "release", "update"]

_WHERE = {
    "Dataset": ("trajmill.dataset", "Dataset"),
    "Trajectory": ("trajmill.trajectory", "Trajectory"),
    "build": ("trajmill.builder", "build"),
    "fetch": ("trajmill.fetcher", "fetch"),
    "load_recipe": ("trajmill.recipe", "load"),
    "open": ("trajmill.dataset", "Dataset"),
    "release": ("trajmill.releases.hugging_face", "release"),
    "update": ("trajmill.updater", "update"),
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are used: `import trajmill` loads nothing heavy."""
    if name not in _WHERE:
        raise AttributeError(f"module 'trajmill' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
