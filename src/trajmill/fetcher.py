"""Fetching: a source's raw files into a folder, only what is new or changed, and a manifest of what is there."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any, TypeVar

from trajmill.errors import DiskError, FetchError, RecipeError, RemoteContentError, RemoteUnavailableError
from trajmill.locking import Lock
from trajmill.raw import LOCK, Journal, RawFile, RawManifest, is_place
from trajmill.recipe import Recipe
from trajmill.remotes import open_remote
from trajmill.remotes.base import Remote, RemoteFile, Stage
from trajmill.remotes.transfer import Received, Session, plain_disk_errors
from trajmill.storage import AnyPath, ObjectPath

RESERVE = 1 << 28
"""Bytes of the disk that are left free."""

GIVE_UP = 5
"""Files in a row that a server did not answer for: then it will not for others."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class FetchSummary:
    """What a fetch did, or, for a dry run, what one would do.

    Attributes:
        source, layout, root: what was fetched and where to.
        dry_run: whether nothing was done.
        version: upstream's version of each part.
        new, changed, unchanged: paths of the files upstream has; new and changed ones were fetched.
        vanished: paths upstream no longer has; they were kept.
        unasked: paths of sets that were not asked for this time; they were kept.
        superseded: paths that a newer version of their set has replaced; they are no longer read.
        pruned: paths that were deleted.
        failed: why a file could not be had, by path; the manifest then still names the version before.
        n_bytes: of the new and changed files, without what has arrived of them before.
        at_most: whether `n_bytes` is a bound, because of tables only some columns are copied.
        free: bytes free on the disk before.
    """

    source: str
    layout: str
    root: Path
    dry_run: bool = False
    version: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    n_bytes: int = 0
    at_most: bool = False
    free: int = 0


class FetchListener:
    """What a fetch tells while it runs, from several threads; override what is of interest."""

    def listing(self, source: str) -> None:
        """Told before upstream is asked what there is."""

    def planned(self, source: str, n_files: int, n_bytes: int) -> None:
        """Told how much is to be fetched; more than once when there are stages."""

    def advanced(self, n_bytes: int) -> None:
        """Told how many bytes arrived; negative when some turned out useless."""

    def finished(self, path: str, n_bytes: int) -> None:
        """Told that a file is done, and how large it was thought to be."""

    def noted(self, text: str) -> None:
        """Told in words what went wrong and is tried again."""

    def ended(self, summary: FetchSummary) -> None:
        """Told when a fetch is over, unless it ended with an error."""


def fetch(
    source: str,
    root: AnyPath,
    recipe: Recipe,
    *,
    dry_run: bool = False,
    prune: bool = False,
    listener: FetchListener | None = None,
) -> FetchSummary:
    """Fetch what is new or changed of a source's raw files.

    Can be stopped at any moment and run again; what has arrived is not fetched twice. The folder's manifest moves to
    the new version when everything is there.

    Args:
        source: `mp`, `alexandria` or `oqmd`.
        root: folder of the source's raw files.
        recipe: section `fetch`; for the Delta layout of `mp` also its licences.
        dry_run: only say what would be done.
        prune: delete files that upstream no longer has or has replaced. Without it they stay on disk.
        listener: told what happens.

    Raises:
        RecipeError: no such source.
        FetchError: nothing can be fetched; its subclasses say why. Single files that cannot be had are in the summary.
        SourceError: the folder's manifest is damaged.
        KeyboardInterrupt: stopped; run again to go on.
    """
    listener = listener or FetchListener()
    remote = open_remote(source, recipe)
    root = check_folder(source, root, recipe)
    with Session(recipe.fetch, listener.advanced, listener.noted) as session:
        if dry_run:
            summary = _Fetch(remote, root, session, listener, dry_run=True).run()
        else:
            with _alone(root):
                work = _Fetch(remote, root, session, listener)
                summary = work.run()
                if not summary.failed:
                    work.settle(prune=prune)
    listener.ended(summary)
    return summary


def check_folder(source: str, root: AnyPath, recipe: Recipe) -> Path:
    """Check that raw files of a source can be fetched into a folder and read from there by this recipe.

    Returns:
        The folder.

    Raises:
        RecipeError: they cannot be.
    """
    if isinstance(root, ObjectPath):
        raise RecipeError(
            f"{root}: raw files are fetched into a folder of this machine, where downloads can be resumed; "
            "copy that folder there and build from the copy"
        )
    try:
        is_file = root.is_file() or (root.suffix in (".gz", ".sql") and not root.exists())
    except OSError as error:
        raise RecipeError(f"{source}.path: {root} cannot be read ({error.strerror})") from error
    if is_file:
        raise RecipeError(f"{source}.path: {root} is a file; raw files are fetched into a folder")
    read, fetched = recipe.mp.layout, recipe.fetch.mp.layout
    if source == "mp" and read not in ("auto", fetched):
        raise RecipeError(f"mp.layout is {read} and fetch.mp.layout {fetched}; make them the same")
    return root


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Make the folder and keep other fetches out of it.

    Raises:
        DiskError: it cannot be written.
        FetchError: another fetch is at work.
    """
    with plain_disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = Lock(root / LOCK)
    with lock:
        if lock.holder is not None:
            raise FetchError(f"{root}: another fetch (process {lock.holder}) is at work here; wait for it or stop it")
        yield


class _Fetch:
    """One fetch, from listing to manifest."""

    def __init__(
        self, remote: Remote, root: Path, session: Session, listener: FetchListener, *, dry_run: bool = False
    ) -> None:
        self.remote, self.root, self.session, self.listener = remote, root, session, listener
        self.journal = Journal(root)
        manifest = RawManifest.load(root)
        held = (manifest.source, manifest.layout) if manifest else self.journal.begun_for
        if held not in (None, (remote.name, remote.layout)):
            raise FetchError(
                f"{root}: holds {held[0]} in the layout {held[1]}; fetch {remote.name} ({remote.layout}) into another "
                f"folder, or set fetch.{remote.name}.layout"
            )
        self.before = manifest or RawManifest(source=remote.name, layout=remote.layout)
        self.known = {**self.before.files, **self.journal.read()}
        self.listed: dict[str, RawFile | None] = {}
        self.parts: set[str] = set()
        free = shutil.disk_usage(_existing(root)).free
        self.summary = FetchSummary(source=remote.name, layout=remote.layout, root=root, dry_run=dry_run, free=free)

    def run(self) -> FetchSummary:
        """List what upstream has and fetch what is not here."""
        self.listener.listing(self.remote.name)
        for stage in _in_thread(self.remote.stages(self.session, self.root), self.session):
            self.summary.version |= stage.version
            self._check_versions(stage)
            wanted = [file for file in stage.files if not self._have(file)]
            self.listener.planned(self.remote.name, len(wanted), sum(file.n_bytes for file in wanted))
            if not self.summary.dry_run:
                self._check_room(wanted)
                self._get_all(wanted)
            if self.summary.failed:
                return self.summary  # what follows may need it
        self._look_back()
        return self.summary

    def _have(self, file: RemoteFile) -> bool:
        """Note a listed file; tell whether it is here, as upstream has it now."""
        if not is_place(file.path) or file.path in self.listed:
            raise RemoteContentError(f"{file.uri}: is listed twice, or as {file.path!r}, which is no place in a folder")
        known = self.known.get(file.path)
        self.parts.add(file.part_of)
        self.listed[file.path] = known
        if known and known.remote == _plain(file.identity) and (checked := known.checked(self.root)):
            self.listed[file.path] = checked
            self.summary.unchanged.append(file.path)
            return True
        (self.summary.changed if file.path in self.before.files else self.summary.new).append(file.path)
        self.summary.n_bytes += max(0, file.n_bytes - self._begun(file))
        self.summary.at_most |= file.at_most
        return False

    def _begun(self, file: RemoteFile) -> int:
        """Return how many bytes of a file have arrived before."""
        try:
            return 0 if file.at_most else (self.root / f"{file.path}.part").stat().st_size
        except OSError:
            return 0

    def _check_versions(self, stage: Stage) -> None:
        """Refuse what looks like an accident upstream: its rows would replace those that are here.

        Raises:
            RemoteContentError: an older version than the one before, or much less of a newer one.
        """
        for part, version in stage.version.items():
            before = self.before.version.get(part)
            if before is None or version == before:
                continue
            if _numbers(version) < _numbers(before):
                raise RemoteContentError(
                    f"{self.remote.name}: upstream has gone back from {part} {before} to {version}; nothing was "
                    "changed here. If that is meant, fetch into another folder"
                )
            if any(file.at_most for file in stage.files if file.part_of == part):
                continue  # a table's version is complete by itself
            old = sum(f.remote.get("size") or f.size for f in self.before.files.values() if f.part_of == part)
            new = sum(f.n_bytes for f in stage.files if f.part_of == part)
            if new < self.session.options.min_share * old:
                raise RemoteContentError(
                    f"{self.remote.name}: {part} {version} has {new:,} bytes, {before} had {old:,}; is it still being "
                    "published? Nothing was changed here. Run again later, or lower fetch.min_share"
                )

    def _check_room(self, wanted: list[RemoteFile]) -> None:
        """Refuse to begin what the disk cannot hold, as far as that is known."""
        n_bytes = sum(file.n_bytes - self._begun(file) for file in wanted if not file.at_most)
        free = shutil.disk_usage(self.root).free
        if n_bytes + RESERVE > free:
            raise DiskError(
                f"{self.root}: {n_bytes / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free; choose another "
                "folder or make room"
            )

    def _get_all(self, wanted: list[RemoteFile]) -> None:
        """Fetch files side by side and note each in the journal, also when another one then ends it all."""

        def get(file: RemoteFile) -> RawFile:
            received = file.get(self.session, self.root / file.path)
            with plain_disk_errors(self.root):
                found = _entry(self.root, file, received)
                self.journal.add(found)
            return found

        if wanted:
            with plain_disk_errors(self.root):
                self.journal.begin(self.remote.name, self.remote.layout)
        in_vain = 0
        with closing(_side_by_side(wanted, get, self.session)) as results:
            for file, result in results:
                self.listener.finished(file.path, file.n_bytes)
                if isinstance(result, RawFile):
                    self.listed[file.path] = result
                    in_vain = 0
                    continue
                in_vain += isinstance(result, RemoteUnavailableError)
                if not isinstance(result, FetchError) or isinstance(result, DiskError) or in_vain >= GIVE_UP:
                    raise result  # nothing else would fare better
                self.summary.failed[file.path] = str(result)
                for paths in (self.summary.new, self.summary.changed):
                    if file.path in paths:
                        paths.remove(file.path)

    def _look_back(self) -> None:
        """Tell apart what upstream no longer has and what it has replaced."""
        for path, file in sorted(self.before.files.items()):
            part = file.part_of
            if path in self.listed:
                continue
            if part and part not in self.parts:
                self.summary.unasked.append(path)
            elif part and self.summary.version.get(part) != self.before.version.get(part):
                self.summary.superseded.append(path)
            else:
                self.summary.vanished.append(path)

    def settle(self, *, prune: bool) -> None:
        """Let the manifest name the new version; delete what is current no more, if so wanted."""
        files = {path: replace(file, vanished=False) for path, file in self.listed.items() if file}
        summary = self.summary
        if prune:
            summary.pruned, summary.vanished = summary.vanished, []
        files |= {path: replace(self.known[path], vanished=True) for path in summary.vanished}
        files |= {path: self.known[path] for path in summary.unasked}
        dropped = dict.fromkeys(self.known, "superseded") | dict(self.before.dropped)  # known: also from the journal
        dropped |= dict.fromkeys(summary.superseded, "superseded") | dict.fromkeys(summary.pruned, "pruned")
        after = RawManifest(
            source=self.remote.name,
            layout=self.remote.layout,
            version={**self._kept_versions(), **summary.version},
            files=files,
            dropped={path: why for path, why in dropped.items() if path not in files},
        )
        with plain_disk_errors(self.root):
            after.save(self.root)
            if prune:
                summary.pruned = sorted(path for path in after.dropped if (self.root / path).exists())
                self._delete([*after.dropped, *self._parts()])

    def _kept_versions(self) -> dict[str, str]:
        """Return the versions of sets that were not asked for this time."""
        kept = {self.before.files[path].part_of for path in self.summary.unasked}
        return {part: version for part, version in self.before.version.items() if part in kept}

    def _parts(self) -> list[str]:
        """List what is left of downloads that upstream overtook; all that it has now are complete."""
        notes = {path.relative_to(self.root).as_posix() for path in self.root.rglob("*.part.json")}
        parts = {note.removesuffix(".json") for note in notes} | {f"{path}.part" for path in self.known}
        return sorted(notes | {part for part in parts if (self.root / part).exists()})

    def _delete(self, paths: list[str]) -> None:
        """Delete files, and the folders that they leave empty."""
        for path in paths:
            (self.root / path).unlink(missing_ok=True)
            for folder in PurePosixPath(path).parents[:-1]:
                with suppress(OSError):
                    (self.root / folder).rmdir()


def _in_thread(stages: Iterator[Stage], session: Session) -> Iterator[Stage]:
    """Pass stages on that are made in a thread: deltalake, which may wait for a server in it, holds off signals."""
    while True:
        [(_, stage)] = _side_by_side([stages], lambda it: next(it, None), session)
        if isinstance(stage, BaseException):
            raise stage
        if stage is None:
            return
        yield stage


def _side_by_side(
    items: list[Item], get: Callable[[Item], Result], session: Session
) -> Generator[tuple[Item, Result | BaseException], None, None]:
    """Yield each item with what was got for it, or with what went wrong, as they are done.

    The threads are daemons: one that waits for a silent server does not hold up a user who wants to stop. Whatever it
    was doing, the part on disk is good.
    """
    todo: SimpleQueue[Item | None] = SimpleQueue()
    done: SimpleQueue[tuple[Item, Result | BaseException]] = SimpleQueue()

    def work() -> None:
        while (item := todo.get()) is not None:
            try:
                done.put((item, get(item)))
            except BaseException as error:  # noqa: BLE001 (handed to the reading thread, which decides)
                done.put((item, error))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(session.options.connections, len(items)))]
    for item in (*items, *(None for _ in threads)):
        todo.put(item)
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            yield done.get()
    except BaseException:
        session.stop.set()
        raise
    finally:
        end = time.monotonic() + 1.0
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()) if session.stop.is_set() else None)


def _entry(root: Path, file: RemoteFile, received: Received) -> RawFile:
    """Describe a file that has arrived."""
    status = (root / file.path).stat()
    return RawFile(
        path=file.path,
        uri=file.uri,
        remote=_plain(file.identity),
        modified=file.modified,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=received.sha256,
        fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        part_of=file.part_of,
        left_out=dict(received.left_out),
    )


def _plain(identity: Mapping[str, Any]) -> Any:
    """Return an identity as it comes back from JSON."""
    return json.loads(json.dumps(identity))


def _numbers(version: str) -> list[int]:
    """Return the numbers of a version or date, which compare as versions do: 1.10 is newer than 1.9."""
    return [int(number) for number in re.findall(r"\d+", version)]


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())
