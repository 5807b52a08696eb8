"""Engines: where the work runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trajmill.errors import RecipeError

if TYPE_CHECKING:
    from trajmill.engines.base import Engine
    from trajmill.recipe import Engine as Options


def open_engine(options: Options) -> Engine:
    """Make the engine that a recipe asks for.

    Raises:
        RecipeError: options that do not go together, or a SLURM file that is not right.
        MissingExtraError: dask is not installed.
    """
    if options.name == "local":
        for key in ("scheduler", "slurm"):
            if getattr(options, key) is not None:
                raise RecipeError(f'engine.{key}: goes with --engine dask (engine.name = "dask")')
        from trajmill.engines.local import LocalEngine

        return LocalEngine(options.workers)
    if options.scheduler is not None and options.slurm is not None:
        raise RecipeError("engine.scheduler, engine.slurm: give one of them; jobs have a scheduler of their own")
    from trajmill.engines.dask import DaskEngine
    from trajmill.engines.slurm import SlurmJobs

    jobs = SlurmJobs.load(options.slurm) if options.slurm is not None else None
    return DaskEngine(options.workers, scheduler=options.scheduler, jobs=jobs, timeout=options.timeout)
