"""Models by test sets: what they say of every frame, and tables of how far that is from DFT."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trajmill.converting import ENERGIES
from trajmill.dataset import Dataset
from trajmill.errors import ModelError
from trajmill.training.calculators import calculator
from trajmill.training.metrics import METRICS, SHIFTS, Errors, Score, by_group, errors_of, score
from trajmill.training.predictions import predict
from trajmill.training.tables import FORMATS, markdown

GROUPS = ("source", "functional", "element", "force range", "step")

Report = Callable[[int, int], None]


def evaluate(
    models: Sequence[str],
    datasets: Mapping[str, Dataset],
    out: Path,
    *,
    energy: str = "energy",
    shift: str = "none",
    by: Sequence[str] = (),
    device: str = "cpu",
    report: Report = lambda *_: None,
) -> list[Path]:
    """Hold models against test sets.

    Args:
        models: names, see `trajmill.training.calculators.calculator`.
        datasets: test sets by name.
        out: folder: `predictions/`, a Parquet file for each model and test set, which is not made again, and tables
            `scores.md`, `.csv`, `.tex`; `failures.md` counts what models said nothing of.
        energy: what models are held against, `energy` or `energy_corrected`.
        shift: how energies are put on one scale, one of `SHIFTS`; stated in the table.
        by: groupings, each with a table of its own, of `GROUPS`.
        device: `cpu` or `cuda`.
        report: told frames done and frames in all.

    Returns:
        The files made, the table of scores first.

    Raises:
        ModelError: no such model, shift or grouping, or nothing can be written.
    """
    _check(energy, shift, by)
    folder = out / "predictions"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror})") from error
    sizes = {name: len(dataset) for name, dataset in datasets.items()}
    total, done = len(models) * sum(sizes.values()), 0
    found: dict[tuple[str, str], Errors] = {}
    for model in models:
        loaded: Any = None
        for name, dataset in datasets.items():
            file = folder / f"{_file_name(model)}--{_file_name(name)}--{_digest(dataset, energy)}.parquet"
            if not file.is_file():
                loaded = loaded or calculator(model, device=device)
                predict(dataset, loaded, file, energy=energy, name=model, report=partial(_on, report, done, total))
            done += sizes[name]
            report(done, total)
            found[model, name] = errors_of(file, shift=shift)
    without = {name: sizes[name] - len(found[models[0], name]) - found[models[0], name].failed for name in datasets}
    return _write(found, out, energy, shift, by, without)


def _on(report: Report, before: int, total: int, done: int) -> None:
    report(before + done, total)


def _check(energy: str, shift: str, by: Sequence[str]) -> None:
    for what, given, known in (("energy", [energy], ENERGIES), ("shift", [shift], SHIFTS), ("grouping", by, GROUPS)):
        if wrong := [x for x in given if x not in known]:
            raise ModelError(f"no {what} {wrong[0]}; there are {', '.join(known)}")


def _write(
    found: Mapping[tuple[str, str], Errors],
    out: Path,
    energy: str,
    shift: str,
    by: Sequence[str],
    without: Mapping[str, int],
) -> list[Path]:
    """Write the tables."""
    scores = {key: score(errors) for key, errors in found.items()}
    made = []
    for suffix, form in FORMATS.items():
        made.append(out / f"scores.{suffix}")
        made[-1].write_text(form(scores), encoding="utf-8")
    rows = [
        [*key, f"{len(e):,}", f"{without[key[1]]:,}", f"{e.failed:,}", f"{e.undefined:,}", energy, shift]
        for key, e in found.items()
    ]
    head = (
        "model",
        "test set",
        "frames",
        "without an energy",
        "no answer",
        "atoms without an angle",
        "energy",
        "shift of energies",
    )
    made.append(out / "frames.md")
    made[-1].write_text(markdown(head, rows), encoding="utf-8")
    for name in by:
        groups = {key: by_group(errors, name) for key, errors in found.items()}
        lines = [
            [*key, label, *(_short(s[metric]) for metric in METRICS)]
            for key, of_groups in groups.items()
            for label, s in of_groups.items()
        ]
        made.append(out / f"by_{name.replace(' ', '_')}.md")
        made[-1].write_text(markdown(("model", "test set", name, *METRICS.values()), lines), encoding="utf-8")
    return made


def _short(s: Score) -> str:
    return f"{s.value:.4g}" if s.value == s.value else "-"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")[-60:]


def _digest(dataset: Dataset, energy: str) -> str:
    """Return what tells the frames that were asked about from others."""
    ids = hashlib.sha256(json.dumps(energy).encode())
    for batch in dataset.batches(columns=["id", energy]):
        ids.update("\n".join(map(str, batch["id"].to_pylist())).encode())
        ids.update(json.dumps(batch[energy].to_pylist()).encode())
    return ids.hexdigest()[:12]
