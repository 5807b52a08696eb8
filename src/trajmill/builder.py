"""A whole build: all assets of all sources of a recipe into one store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from trajmill.engines import open_engine
from trajmill.engines.base import Done, Event, Failed, Task
from trajmill.errors import RecipeError, SourceError, StoreError
from trajmill.locking import Lock
from trajmill.pipeline import Job, Unchanged, build_asset
from trajmill.raw import RawManifest, is_complete
from trajmill.recipe import SOURCES, DatabaseAddress, Recipe
from trajmill.sources import open_sources
from trajmill.sources.base import Source
from trajmill.sources.files import whole_file
from trajmill.storage import AnyPath
from trajmill.stores import open_store, work_folder
from trajmill.stores.base import Balance, Store


@dataclass
class BuildSummary:
    """What a build did.

    Attributes:
        version: store version at the end.
        built: balance of each asset that was built and committed.
        unchanged: assets that were up to date.
        failed: why an asset could not be built, by asset.
        vanished: assets of the store that the sources no longer list; their rows were kept.
        dropped: assets whose raw files are current no more, as their raw manifest says; their rows were removed;
            likewise where the file is now read in other parts.
        stopped: whether it was told to stop before all assets were done.
    """

    version: int = 0
    built: dict[str, Balance] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, Failed] = field(default_factory=dict)
    vanished: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def balance(self) -> Balance:
        """What was built, summed up."""
        return sum(self.built.values(), Balance())


class Listener:
    """What a build tells while it runs; override what is of interest."""

    def preparing(self, source: str, done: int, total: int) -> None:
        """Told how far a source is that joins or partitions its raw files; nothing is known of it at 0 of 0."""

    def started(self, assets: dict[str, int]) -> None:
        """Told the bytes of every asset once all are listed."""

    def stopping(self) -> None:
        """Told, maybe often, that nothing new is started after a first Ctrl-C."""

    def happened(self, event: Event) -> None:
        """Told whatever the engine tells, after it was acted on."""


def build(recipe: Recipe, *, listener: Listener | None = None) -> BuildSummary:
    """Build everything a recipe asks for that the store does not have yet.

    Every asset is one atomic commit; stopping at any moment and running again loses and repeats nothing. Several builds
    may fill one store at once.

    Raises:
        RecipeError: paths missing.
        EngineError: there is nowhere to run the work, or no more; what was committed before is unharmed.
        SourceError: a source's folder holds nothing to read.
        StoreError: the store cannot be opened or written; what was committed before is unharmed.
        KeyboardInterrupt: stopped by a second Ctrl-C; what was committed before is unharmed.
    """
    listener = listener or Listener()
    if recipe.store.path is None:
        raise RecipeError("store.path: say where the store is to be (--out, or [store] path in the recipe)")
    raw = {name: _manifest(recipe, name) for name in SOURCES}  # before anything is read: a fetch may end meanwhile
    sources = open_sources(recipe)
    engine = open_engine(recipe.engine)
    store = open_store(recipe.store.path, create=True)
    summary = BuildSummary()
    with store.locked():
        jobs = _jobs(recipe, sources, store, listener)
        names = {source.name for source in sources}
        gone = [a for a in store.assets() if a not in jobs and a.partition("/")[0] in names]
        read = {whole_file(name) for name in jobs}  # a file may be read in other parts than it was
        outdated = [asset for asset in gone if whole_file(asset) in read or _is_outdated(asset, raw)]
        summary.vanished = [asset for asset in gone if asset not in outdated]
        # the largest first, so that none is left running alone at the end
        order = sorted(jobs, key=lambda name: (-jobs[name].asset.size, name))
        tasks = [Task(name, build_asset, jobs[name]) for name in order]
        with closing(engine.run(tasks)) as events:
            for event in events:
                _act(event, store, summary)
                listener.happened(event)
                if engine.draining:
                    listener.stopping()
        summary.stopped = len(summary.built) + len(summary.unchanged) + len(summary.failed) < len(jobs)
        if not (summary.stopped or summary.failed):  # only now is there something in their place
            for asset in outdated:
                store.drop(asset)
                summary.dropped.append(asset)
            store.note_upstream(_upstream(recipe, {name: raw[name] for name in names}))
    summary.version = store.version
    return summary


def _jobs(recipe: Recipe, sources: Iterable[Source], store: Store, listener: Listener) -> dict[str, Job]:
    """Prepare the sources and list what is to be built, by asset."""
    jobs: dict[str, Job] = {}
    work = recipe.store.work or work_folder(store.address)
    for source in sources:
        report = partial(listener.preparing, source.name)
        report(0, 0)
        with _alone(work, source.name):
            source.prepare(work / source.name, report)
        for asset in source.assets():
            if asset.name in jobs:
                raise SourceError(f"{source.name}: {asset.name} is listed twice, as {asset.path} too")
            jobs[asset.name] = Job(source, asset, recipe, store.for_worker(asset.name))
    listener.started({name: job.asset.size for name, job in jobs.items()})
    return jobs


@contextmanager
def _alone(work: Path, source: str) -> Iterator[None]:
    """Wait for another build that prepares the same source; what it prepared is found then, and not made twice."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = Lock(work / f"{source}.lock", wait=True)
    except OSError as error:
        raise StoreError(f"{work}: cannot be written ({error.strerror}); store.work names another folder") from error
    with lock:
        yield


def _manifest(recipe: Recipe, source: str) -> RawManifest | None:
    """Return the raw manifest of what a source reads: of its folder, or of its file's if it names the file."""
    path: AnyPath | DatabaseAddress | None = getattr(recipe, source).path
    if path is None or isinstance(path, DatabaseAddress):
        return None
    if path.is_dir():
        return RawManifest.load(path)
    manifest = RawManifest.load(path.parent)
    return manifest if manifest and path.name in manifest.files else None


def _is_outdated(asset: str, raw: Mapping[str, RawManifest | None]) -> bool:
    """Tell whether an asset's raw file was replaced by a newer version of its set, or pruned."""
    source, _, path = asset.partition("/")
    manifest, place = raw[source], PurePosixPath(path)
    return manifest is not None and any(p.as_posix() in manifest.dropped for p in (place, *place.parents))


def _upstream(recipe: Recipe, raw: Mapping[str, RawManifest | None]) -> dict[str, Any]:
    """Return the upstream version the store is complete for now, by source; None where the raw files do not say so."""
    now: dict[str, Any] = dict.fromkeys(raw)
    for source, manifest in raw.items():
        path: AnyPath | None = getattr(recipe, source).path
        if manifest and path and is_complete(path if path.is_dir() else path.parent, manifest):
            now[source] = {"version": dict(manifest.version), "digest": manifest.digest}
    return now


def _act(event: Event, store: Store, summary: BuildSummary) -> None:
    """Commit what a worker has built, note what it could not."""
    if isinstance(event, Done):
        if isinstance(event.value, Unchanged):
            summary.unchanged.append(event.name)
        else:
            store.commit(event.value)
            summary.built[event.name] = event.value.balance
    elif isinstance(event, Failed):
        if isinstance(event.error, StoreError):
            raise event.error  # no other asset would fare better
        summary.failed[event.name] = event
