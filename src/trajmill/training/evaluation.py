"""Models by test sets: what they say of every frame, and tables of how far that is from DFT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trajmill.converting import ENERGIES
from trajmill.dataset import Dataset
from trajmill.errors import ModelError, require
from trajmill.training.calculators import calculator, digest_of
from trajmill.training.metrics import SHIFTS, by_group, errors_of, score, score_unseen
from trajmill.training.plots import Found, Held, save
from trajmill.training.predictions import predict
from trajmill.training.tables import FORMATS, KEYS, MATRICES, Scores, labels, markdown
from trajmill.writing import StrPath, file_name

GROUPS = ("source", "functional", "element", "force range", "step")

Report = Callable[[int, int], None]

Seen = Callable[[str, str], Iterable[str]]
"""Tells which trajectories of a test set a model was trained on, or on what is like them."""


def evaluate(
    models: Sequence[str] | Mapping[str, str],
    datasets: Mapping[str, Dataset],
    out: StrPath,
    *,
    energy: str = "energy",
    shift: str = "none",
    by: Sequence[str] = (),
    plots: bool = False,
    seen: Seen | None = None,
    device: str = "cpu",
    report: Report = lambda *_: None,
) -> list[Path]:
    """Hold models against test sets.

    Args:
        models: names, see `trajmill.training.calculators.calculator`; or by what they are to be called in tables.
        datasets: test sets by name.
        out: folder: `predictions/`, a Parquet file for each model and test set, which is not made again; tables:
            `scores` in Markdown, CSV and LaTeX, `matrix` with test sets as columns in Markdown and LaTeX, `frames.md`
            of what was asked and not answered.
        energy: what models are held against, `energy` or `energy_corrected`.
        shift: how energies are put on one scale, one of `SHIFTS`; stated in the table.
        by: groupings, each with a table `by_` of its own, of `GROUPS`.
        plots: whether figures are drawn as well, into `plots/`.
        seen: asked of each model and test set when all is predicted; a matrix `unseen` of all other trajectories is
            made as well.
        device: `cpu` or `cuda`.
        report: told frames done and frames in all.

    Returns:
        The files made, the table of scores first.

    Raises:
        ModelError: no such model, shift or grouping, or nothing can be written.
        FigureError: a figure cannot be written.
        MissingExtraError: the package of a model, or matplotlib for figures (extra `figures`), is not installed.
    """
    _check(energy, shift, by)
    if plots:
        require("matplotlib", extra="figures")  # before models are asked for hours
    out = Path(out)
    folder = out / "predictions"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror})") from error
    sizes = {name: len(dataset) for name, dataset in datasets.items()}
    total, done = len(models) * sum(sizes.values()), 0
    named = models if isinstance(models, Mapping) else {model: model for model in models}
    frames = {name: dataset.digest(energy) for name, dataset in datasets.items()}
    found: dict[tuple[str, str], Held] = {}
    for label, model in named.items():
        loaded: Any = None
        for name, dataset in datasets.items():
            digest = digest_of(model, frames[name], energy)[:12]
            file = folder / f"{file_name(label)}--{file_name(name)}--{digest}.parquet"
            if not file.is_file():
                loaded = loaded or calculator(model, device=device)
                predict(dataset, loaded, file, energy=energy, name=model, report=partial(_on, report, done, total))
            done += sizes[name]
            report(done, total)
            errors = errors_of(file, shift=shift)
            found[label, name] = Held(file, errors, score(errors))
    without = {name: sizes[name] - len(its.errors) - its.errors.failed for (_, name), its in found.items()}
    try:
        made = _tables(found, out, energy, shift, by, without, seen)
        return made + (save(found, out / "plots", energy=energy, shift=shift) if plots else [])
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror or error})") from error


def _on(report: Report, before: int, total: int, done: int) -> None:
    report(before + done, total)


def _check(energy: str, shift: str, by: Sequence[str]) -> None:
    for what, given, known in (("energy", [energy], ENERGIES), ("shift", [shift], SHIFTS), ("grouping", by, GROUPS)):
        if wrong := [x for x in given if x not in known]:
            raise ModelError(f"no {what} {wrong[0]}; there are {', '.join(known)}")


def _tables(
    found: Found,
    out: Path,
    energy: str,
    shift: str,
    by: Sequence[str],
    without: Mapping[str, int],
    seen: Seen | None,
) -> list[Path]:
    """Write the tables."""
    scores: Scores = {key: its.scores for key, its in found.items()}
    called = labels(energy, shift)
    texts = {f"scores.{suffix}": form(KEYS, scores, called) for suffix, form in FORMATS.items()}
    texts |= {f"matrix.{suffix}": form(scores, called) for suffix, form in MATRICES.items()}
    if seen is not None:
        unseen: Scores = {key: score_unseen(its.errors, seen(*key)) for key, its in found.items()}
        texts |= {f"unseen.{suffix}": form(unseen, called) for suffix, form in MATRICES.items()}
    texts["frames.md"] = _frames(found, energy, shift, without)
    for name in ("scores.md", "matrix.md"):
        texts[name] += _unanswered(found)
    for name in by:
        groups: Scores = {
            (*key, label): of_group
            for key, its in found.items()
            for label, of_group in by_group(its.errors, name).items()
        }
        file = f"by_{name.replace(' ', '_')}"
        texts |= {f"{file}.{suffix}": form((*KEYS, name), groups, called) for suffix, form in FORMATS.items()}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def _unanswered(found: Found) -> str:
    """Say where a model was asked about more than it is scored on, lest it win by what it leaves out."""
    counts = {key: (len(its.errors), its.errors.failed) for key, its in found.items()}
    lines = [
        f"{model} says something of {n:,} of the {n + failed:,} frames of {test}; its scores are of those.\n"
        for (model, test), (n, failed) in counts.items()
        if failed
    ]
    return "".join(f"\n{line}" for line in lines)


def _frames(found: Found, energy: str, shift: str, without: Mapping[str, int]) -> str:
    """Say how many frames there are, and how energies were held against each other."""
    head = (
        *KEYS, "frames", "without an energy", "no answer", "atoms without an angle", "energy", "shift of energies"
    )  # fmt: skip
    counts = {key: (len(e), without[key[1]], e.failed, e.undefined) for key, (_, e, _) in found.items()}
    rows = [[*key, *(f"{n:,}" for n in its), energy, shift] for key, its in counts.items()]
    return markdown(head, rows)
