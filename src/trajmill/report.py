"""What the command line shows: progress while work runs, tables when it is done."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from trajmill.builder import BuildSummary, Listener
from trajmill.engines.base import Done, Event, Failed, Lost
from trajmill.engines.base import Progress as TaskProgress
from trajmill.fetcher import RESERVE, FetchListener, FetchSummary
from trajmill.storage import as_path
from trajmill.stores import is_store, shown

if TYPE_CHECKING:
    from trajmill.converting import Converted
    from trajmill.copying import CopySummary
    from trajmill.dataset import Dataset
    from trajmill.duplicates import Marks
    from trajmill.leakage import Leakage
    from trajmill.physics import Verdict
    from trajmill.releases.hugging_face import ReleaseSummary
    from trajmill.releases.shipment import PushSummary
    from trajmill.splits import Split
    from trajmill.training.experiment import HowFar, Stage
    from trajmill.training.relaxing import Summary
    from trajmill.training.tasks import Epoch, Steps

PLAIN_EVERY = 30.0
"""Seconds between lines of progress when the output is no terminal."""

SHOWN = 20
"""Paths that are listed one by one."""


class BuildProgress(Listener):
    """Shows a build: a live bar on a terminal, a line now and then elsewhere. Goes to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live = self._console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[frames]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._bar.add_task("listing", total=None, done="", frames="")
        self._stopping = False
        self._sizes: dict[str, int] = {}
        self._finished: dict[str, tuple[int, int]] = {}
        self._running: dict[str, tuple[int, int]] = {}
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def preparing(self, source: str, done: int, total: int) -> None:
        """Show it; see `Listener.preparing`."""
        self._bar.start()
        text = f"preparing {source}"
        self._bar.update(self._task, description=text, completed=done, total=total or None)
        if total:
            self._say(f"{text}: {done / total:.0%}")

    def started(self, assets: dict[str, int]) -> None:
        """Show it; see `Listener.started`."""
        self._sizes = assets
        self._start = time.monotonic()
        self._bar.reset(self._task, description="building", total=max(1, sum(assets.values())))

    def stopping(self) -> None:
        """Show it, once; see `Listener.stopping`."""
        if not self._stopping:
            self._stopping = True
            self._bar.update(self._task, description="stopping")
            self._console.print("stopping when the running files are done; Ctrl-C again stops at once")

    def happened(self, event: Event) -> None:
        """Show it; see `Listener.happened`."""
        if isinstance(event, TaskProgress):
            self._running[event.name] = (event.numbers[0], event.numbers[1])
        elif isinstance(event, Done):
            balance = getattr(event.value, "balance", None)
            self._finish(event.name, (balance.frames, balance.rejected.total()) if balance else (0, 0))
        elif isinstance(event, Failed):
            self._finish(event.name, (0, 0))
            self._console.print(f"failed: {event.name}: {event.reason}", style="red", soft_wrap=True)
            if event.traceback and not isinstance(event.error, ValueError):
                self._console.print(event.traceback, style="dim", soft_wrap=True)
        elif isinstance(event, Lost):
            self._running.pop(event.name, None)
            self._console.print(f"{event.name}: {event.reason}; trying again", style="yellow", soft_wrap=True)
        self._show()

    def _finish(self, name: str, numbers: tuple[int, int]) -> None:
        self._running.pop(name, None)
        self._finished[name] = numbers
        self._bar.advance(self._task, self._sizes[name])

    def _show(self) -> None:
        now = time.monotonic()
        counts = [*self._finished.values(), *self._running.values()]
        frames, rejected = (sum(c[i] for c in counts) for i in (0, 1))
        done = f"{len(self._finished)}/{len(self._sizes)} assets"
        rate = f"{frames:,} frames ({frames / max(now - self._start, 1e-3):,.0f}/s), {rejected:,} rejected"
        self._bar.update(self._task, done=done, frames=rate)
        self._say(f"{done}, {rate}")

    def _say(self, text: str) -> None:
        """Say it now and then where there is no bar to be seen."""
        now = time.monotonic()
        if not self._live and now - self._said >= PLAIN_EVERY:
            self._said = now
            self._console.print(text, soft_wrap=True)


class FetchProgress(FetchListener):
    """Shows a fetch: bytes, speed, time left on a terminal, a line now and then elsewhere. Goes to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live = self._console.is_terminal
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[files]}"), console=self._console, disable=not self._live,
            transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._lock = threading.Lock()
        self._files = self._done = self._total = self._bytes = 0
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def ended(self, summary: FetchSummary) -> None:
        """Say what was done, on standard output; see `FetchListener.ended`."""
        self._bar.stop()
        print_fetch(summary)

    def listing(self, source: str) -> None:
        """Show it; see `FetchListener.listing`."""
        self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._files = self._done = self._total = self._bytes = 0
        self._task = self._bar.add_task(f"listing {source}", total=None, files="")

    def planned(self, source: str, n_files: int, n_bytes: int) -> None:
        """Show it; see `FetchListener.planned`."""
        self._files, self._total = self._files + n_files, self._total + n_bytes
        self._show(description=f"fetching {source}", total=self._total)

    def advanced(self, n_bytes: int) -> None:
        """Show it; see `FetchListener.advanced`."""
        with self._lock:
            self._bytes += n_bytes
            self._show(completed=self._bytes)
            if not self._live and time.monotonic() - self._said >= PLAIN_EVERY:
                self._said = time.monotonic()
                done, total = decimal(self._bytes), decimal(self._total)
                self._console.print(f"{self._done}/{self._files} files, {done} of {total}", soft_wrap=True)

    def finished(self, path: str, n_bytes: int) -> None:  # noqa: ARG002 (the bytes came one by one)
        """Show it; see `FetchListener.finished`."""
        self._done += 1
        self._show(files=f"{self._done}/{self._files} files")

    def noted(self, text: str) -> None:
        """Show it; see `FetchListener.noted`."""
        self._console.print(text, style="yellow", soft_wrap=True)

    def _show(self, **fields: Any) -> None:
        if self._task is not None:
            self._bar.update(self._task, **fields)


class RowProgress:
    """Shows rows done of all rows on a terminal, nothing elsewhere. Goes to standard error."""

    def __init__(self, what: str) -> None:
        console = Console(stderr=True, markup=False)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, what: str | None = None) -> None:
        """Show how far it is, and with what, if that has changed."""
        self._bar.update(self._task, completed=done, total=total, description=what)


class ByteProgress:
    """Shows bytes done of all bytes on a terminal, nothing elsewhere. Goes to standard error."""

    def __init__(self) -> None:
        console = Console(stderr=True, markup=False)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)
        self._what = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show how far it is; when all is done the line is free for others, such as huggingface_hub's bars."""
        if what != self._what:
            self._what = what
            self._bar.reset(self._task, description=what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)
        if done >= total:
            self._bar.stop()


def _print(*lines: object) -> None:
    """Print results to standard output, at full width when it is no terminal."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))


def _table(title: str, head: tuple[str, ...], rows: Any) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    cells = [[f"{c:,}" if isinstance(c, int) else str("" if c is None else c) for c in row] for row in rows]
    for i, name in enumerate(head):
        numeric = bool(cells) and all(row[i].replace(",", "").isdigit() for row in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def print_summary(summary: BuildSummary, store: str | Path) -> None:
    """Say what a build did."""
    b = summary.balance
    head = f"{shown(store)}: version {summary.version}; {len(summary.built)} assets built"
    head += f", {len(summary.unchanged)} unchanged"
    _print(head + (f", {len(summary.failed)} failed" if summary.failed else ""))
    if summary.built:
        _print(f"records {b.records:,} = {b.records_kept:,} kept + {b.records_rejected.total():,} rejected")
        _print(f"frames  {b.frames:,} = {b.kept:,} kept + {b.rejected.total():,} rejected")
        _print(_rules(b.rejected, b.records_rejected))
    if summary.dropped:
        _print(f"rows of {_many(len(summary.dropped), 'asset')} removed: raw files replaced or pruned")
    if summary.vanished:
        _print(f"{len(summary.vanished)} assets of the store are not among these raw files; their rows were kept:")
        _print(*(f"  {name}" for name in summary.vanished))
    for name, failure in sorted(summary.failed.items()):
        _print(f"failed: {name}: {failure.reason}")
    if summary.stopped:
        _print("stopped before all was done; run the same command again to go on")


def print_fetch(s: FetchSummary) -> None:
    """Say what a fetch did, or would do."""
    counts = f"{len(s.new):,} new, {len(s.changed):,} changed, {_many(len(s.unchanged), 'unchanged file')}"
    _print(f"{s.root}: {s.source} ({s.layout}): {counts}; {_amount([s])}{' to fetch' if s.dry_run else ''}")
    if s.version:
        _print("upstream: " + ", ".join(f"{part} {version}" for part, version in sorted(s.version.items())))
    if s.dry_run:
        _print_room([s])
    for what, paths in (
        ("no longer upstream, kept (--prune deletes)", s.vanished),
        ("of sets that were not asked for, kept", s.unasked),
        ("replaced by a newer version, no longer read", s.superseded),
        ("deleted", s.pruned),
    ):
        if paths:
            _print(f"{_many(len(paths), 'file')} {what}:")
            _print(*(f"  {path}" for path in paths[:SHOWN]), *(["  ..."] if len(paths) > SHOWN else []))
    for path, reason in sorted(s.failed.items()):
        _print(f"failed: {path}: {reason}")
    if s.failed:
        _print(f"{_many(len(s.failed), 'file')} could not be fetched; run the same command again to go on")


def print_total(summaries: Sequence[FetchSummary]) -> None:
    """Say what a dry run of several sources comes to."""
    if len(summaries) > 1 and all(s.dry_run for s in summaries):
        _print(f"together {_amount(summaries)} to fetch")
        _print_room(summaries)


def _print_room(summaries: Sequence[FetchSummary]) -> None:
    free = min(s.free for s in summaries)
    fits = sum(s.n_bytes for s in summaries) + RESERVE <= free
    _print(f"{decimal(free)} free: {'the disk can hold that' if fits else 'TOO LITTLE'}")


def _amount(summaries: Sequence[FetchSummary]) -> str:
    at_most = "at most " if any(s.at_most for s in summaries) else ""
    return f"{at_most}{decimal(sum(s.n_bytes for s in summaries))}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _rules(frames: Counter[str], records: Counter[str]) -> Table:
    rows = [(rule, frames[rule], records[rule]) for rule in sorted({*frames, *records}, key=lambda r: (-frames[r], r))]
    return _table("rejected", ("rule", "frames", "records"), rows)


def print_release(summary: ReleaseSummary) -> None:
    """Say what a release holds."""
    _print(f"{summary.path}: {sum(summary.frames.values()):,} frames")
    _print(_table("configurations", ("configuration", "frames"), summary.frames.items()))
    if summary.rejected:
        _print(_table("left out at release", ("rule", "frames"), summary.rejected.items()))


def print_copy(summary: CopySummary, target: str) -> None:
    """Say what a copy did."""
    n_rows = sum(summary.copied.values())
    copied = f"{_many(len(summary.copied), 'asset')} ({n_rows:,} rows) copied, {len(summary.unchanged)} unchanged"
    _print(f"{shown(target)}: {copied}")
    if summary.others:
        _print(f"{_many(len(summary.others), 'asset')} were there before and stay")


def print_push(summary: PushSummary) -> None:
    """Say what a push did."""
    if not summary.uploaded and not summary.deleted:
        _print(f"{summary.target}: nothing to do, {len(summary.unchanged)} files are there already")
        return
    sent = f"{len(summary.uploaded)} files ({summary.n_bytes:,} bytes) new or changed"
    _print(f"{summary.target}: {sent}, {len(summary.unchanged)} unchanged, {len(summary.deleted)} deleted; verified")
    if summary.url:
        _print(summary.url)


FEW = ("id", "chemical_formula_reduced", "nsites", "functional", "energy", "max_force", "energy_above_final")
"""Columns that are shown where none are asked for."""


def print_rows(dataset: Dataset, columns: Sequence[str] | None, limit: int) -> None:
    """Show rows of a dataset, and say how many there are."""
    n = len(dataset)
    names = columns or [name for name in FEW if name in dataset.schema.names]
    rows: list[dict[str, Any]] = []
    for batch in dataset.batches(columns=names):
        rows += batch.slice(0, limit - len(rows) if limit else None).to_pylist()
        if limit and len(rows) >= limit:
            break
    _print(_table(f"{n:,} frames", tuple(names), ([row[name] for name in names] for row in rows)))
    if len(rows) < n:
        _print(f"the first {len(rows):,} are shown; --limit shows more, --out writes all of them to a file")


def print_split(split: Split, path: Path) -> None:
    """Say what is in which part."""
    counts = [len(split[name]) for name in split.names]
    rows = [(name, n, f"{n / max(sum(counts), 1):.4f}") for name, n in zip(split.names, counts, strict=True)]
    _print(_table(f"{path}: {sum(counts):,} trajectories", ("part", "trajectories", "fraction"), rows), *split.notes)


def print_converted(out: Path, converted: Converted, energy: str, e0s: Path | None) -> None:
    """Say what a conversion did."""
    left_out = f", {converted.left_out:,} without {energy} left out" if converted.left_out else ""
    _print(f"{out}: {_many(converted.written, 'frame')} written{left_out}")
    if e0s is not None:
        _print(f"{e0s}: energies of elements by atomic number, for MACE's --E0s")


def print_paths(made: Sequence[Path]) -> None:
    """Say what was written."""
    _print(*map(str, made))


class TrainingProgress(RowProgress):
    """Shows how far an epoch is on a terminal, and says after each how the training went. Goes to standard error."""

    def __init__(self) -> None:
        super().__init__("train")

    def tell(self, row: Steps | Epoch) -> None:
        """Show what a training tells."""
        from trajmill.training.tasks import Steps

        if isinstance(row, Steps):
            speed = f"{row.frames_per_s:,.0f} frames/s, {row.waited:.0%} of the time waiting for frames"
            self.update(row.step, row.steps, f"epoch {row.epoch}: loss {row.loss:.4g}, {speed}")
            return
        stress = "" if row.stress_rmse is None else f", stress {1000 * row.stress_rmse:.2f} meV/A^3"
        when = "before the first" if row.epoch is None else str(row.epoch)
        errors = f"energy {1000 * row.energy_rmse:.1f} meV/atom, forces {1000 * row.force_rmse:.1f} meV/A{stress}"
        sys.stderr.write(f"epoch {when}: loss {row.loss:.5g}; root mean square errors: {errors}\n")


class ExperimentProgress(TrainingProgress):
    """Shows what an experiment is doing, and how far that is. Goes to standard error."""

    def tell_of(self, stage: Stage, how_far: HowFar) -> None:
        """Show what an experiment tells."""
        if how_far is None:
            sys.stderr.write(f"{stage.what} {stage.name}\n".replace(" \n", "\n"))
        elif isinstance(how_far, tuple):
            self.update(*how_far, stage.what)
        else:
            self.tell(how_far)


def print_relaxations(found: Summary, out: Path) -> None:
    """Show how relaxations of a model went."""
    rows = [
        ("relaxations", f"{found.relaxations:,}"),
        ("without an answer", f"{found.failed:,}"),
        ("converged", f"{found.converged:.1%}"),
        ("in DFT's structure", f"{found.matched:.1%}"),
        ("distance of atoms, (V/n)^(1/3)", f"{found.rmsd:.4f}"),
        ("energy MAE, meV/atom", f"{1000 * found.energy_mae:.1f}"),
        ("volume, mean absolute change", f"{found.volume_mae:.2%}"),
        ("steps", f"{found.steps:.0f}"),
        ("in DFT's space group", f"{found.space_group_kept:.1%}"),
    ]
    _print(_table(str(out), ("what", "of the model"), rows))


def print_verdicts(found: Sequence[Verdict]) -> bool:
    """Say what the physics check found; return whether nothing is wrong."""
    words = {True: "right", False: "wrong", None: "too few pairs to tell"}
    rows = [
        (
            v.source,
            v.pairs,
            f"{v.median:.3f}",
            f"{v.near:.0%}",
            words[v.passed] + (f": {v.looks_like}" * bool(v.looks_like)),
        )
        for v in found
    ]
    head = ("source", "pairs of frames", "median residual", "below 0.25", "units and signs")
    _print(_table("energy change beside the work of forces and stress", head, rows))
    return all(v.passed is not False for v in found)


def print_leakage(found: Leakage, limit: int) -> bool:
    """Show what was found; return whether it is more than a prototype."""
    rows = [(sign, len(pairs)) for sign, pairs in found.found.items()]
    _print(_table(f"{found.tested:,} trajectories to be unseen; in common with a trained one:", ("sign", "seen"), rows))
    for sign, pairs in found.found.items():
        if pairs:
            _print(_table(sign, ("to be unseen", "trained on"), pairs[: limit or None]))
    return bool(found.trajectories)


def print_held_out(found: Sequence[str], listed: int, limit: int) -> bool:
    """Show trajectories of materials that are to be unseen; return whether there are any."""
    _print(f"{len(found):,} trajectories are of one of {listed:,} listed materials", *found[: limit or None])
    return bool(found)


def print_duplicates(marks: Marks, path: Path) -> None:
    """Say what is marked."""
    counts = marks.counts()
    rows = [(*key, counts[key]) for key in sorted(counts, key=lambda key: (-counts[key], str(key)))]
    _print(f"{path}: {sum(counts.values()):,} of {marks.rule['trajectories']:,} trajectories are duplicates")
    if rows:
        _print(_table("duplicates", ("source", "duplicate of", "same", "trajectories"), rows))


def print_info(address: str | Path) -> bool:
    """Print what a store or release holds; return whether its checks hold."""
    from trajmill.inspection import inspect_release, inspect_store

    report = inspect_store(address) if is_store(address) else inspect_release(as_path(address))
    _print(report.title)
    for table in report.tables:
        _print(_table(*table))
    for name, problem in report.checks:
        _print(f"{'FAILED' if problem else 'ok'}: {name}{f': {problem}' if problem else ''}")
    return not any(problem for _, problem in report.checks)


def print_rejections(store: str | Path, rule: str | None, identifier: str | None, limit: int) -> None:
    """Print rejections with their reasons; an identifier that was kept is said to be there."""
    from trajmill.inspection import find_rejections

    rows, total, kept = find_rejections(store, rule, identifier, limit)
    if kept:
        _print(f"{identifier}: {kept:,} frames of it are in the store")
    _print(_table("rejections", ("rule", "source", "trajectory or record", "step", "frames", "detail"), rows))
    _print(f"{len(rows):,} of {total:,} rejections shown" + (" (--limit 0 shows all)" if len(rows) < total else ""))
