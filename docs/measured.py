"""The tables of what was measured: from `benchmarks/results/*.json`, which the scripts there write with `--save`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
PLAN_FRAMES, PLAN_ASSETS, PLAN_CORES = 1_000_000_000, 100_000, 96
LARGE = 2
"""Bytes per frame from which a column is named."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _results(name: str) -> Any:
    """Read what a benchmark measured last and someone committed."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["results"]


def machines() -> str:
    """Tabulate where and with what each benchmark ran."""
    rows = []
    for file in sorted(RESULTS.glob("*.json")):
        m = json.loads(file.read_text("utf-8"))["machine"]
        what = f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}"
        versions = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
        rows.append((file.stem, m["date"], what, f"Python {m['python']}, {versions}"))
    return table(("results", "date", "machine", "versions"), rows)


def benchmark_stages() -> str:
    """Write the cost of each stage."""
    rows = _results("stages")["rows"]
    stages = list(rows[0]["us_per_frame"])
    cells = ([r["source"], f"{r['frames']:,}", *map(str, r["us_per_frame"].values()), str(r["sum"])] for r in rows)
    return table(("source", "frames", *stages, "sum"), cells)


def benchmark_builds() -> str:
    """Write what whole builds cost, targets beside."""
    found = _results("builds")
    cpu, memory, size = (found["targets"][k] for k in ("cpu_us_per_frame", "worker_peak_mb", "bytes_per_frame"))
    head = ("source", "frames", "frames/s", "CPU us per frame", "of it the parent's", "peak of the worker, MB")
    rows = (
        (
            r["source"],
            f"{r['frames']:,}",
            f"{r['frames_per_s']:,}",
            f"{r['cpu_us_per_frame']:,} (≤ {cpu[r['source']]})",
            f"{r['parent_cpu_us_per_frame']:,}",
            f"{max(r['worker_peaks_mb'])} (≤ {memory})",
            str(r["parent_peak_mb"]),
            f"{r['bytes_per_frame']} (≤ {size})",
        )
        for r in found["rows"]
    )
    return table((*head, "peak of the parent, MB", "bytes per kept frame"), rows)


def benchmark_scaling() -> str:
    """Write what more workers bring."""
    rows = _results("scaling")["rows"]
    head = ("workers", "assets", "frames", "wall time, s", "times as fast", "CPU us per frame", "of it the parent's")
    cells = (
        (
            str(r["workers"]),
            str(r["assets"]),
            f"{r['frames']:,}",
            str(r["wall_s"]),
            f"{rows[0]['wall_s'] / r['wall_s']:.2f}",
            f"{r['cpu_us_per_frame']:,}",
            f"{r['parent_cpu_us_per_frame']:,}",
            ", ".join(map(str, r["worker_peaks_mb"])),
        )
        for r in rows
    )
    return table((*head, "peak of each worker, MB"), cells)


def comparison() -> str:
    """Write how a build compares with one that makes an object of each frame."""
    head = {
        "cpu_us_per_frame": "CPU us per frame",
        "frames_per_s": "frames/s",
        "peak_mb": "peak memory, MB",
        "bytes_per_frame": "bytes per frame",
    }
    ways = {"trajmill": "trajmill", "objects": "an object per frame"}
    rows = []
    for source, found in _results("compare").items():
        frames = f"{source}, {found['trajmill']['frames']:,} frames"
        rows += [(frames, way, *(f"{found[key][k]:,}" for k in head)) for key, way in ways.items()]
        rows.append((frames, "times as much CPU time", f"**{found['ratio']['cpu_us_per_frame']}**", "", "", ""))
    return table(("raw files", "way", *head.values()), rows)


def agreement() -> str:
    """Write how far the two ways of the comparison agree."""
    found = _results("compare")
    head = list(next(iter(found.values()))["agreement"])
    rows = ((source, *(f"{r['agreement'][k]:,}" for k in head)) for source, r in found.items())
    return table(("source", *head), rows)


def log_cost() -> str:
    """Write what a store with many assets costs to commit to, open and ask."""
    head = {
        "assets": "assets",
        "commit_ms": "a commit, ms",
        "commit_cpu_ms": "its CPU time, ms",
        "first_commit_ms": "a build's first, ms",
        "open_s": "open, s",
        "look_ms": "a worker's look, ms",
        "checkpoint_s": "a checkpoint, s",
        "committed_us": "`committed`, us",
        "assets_s": "`assets`, s",
        "balances_s": "`balances`, s",
        "log_mb": "log, MB",
        "checkpoint_mb": "checkpoint, MB",
        "peak_mb": "peak memory, MB",
    }
    found = _results("log")
    rows = [[f"{_digits(r[key]):,}" for key in head] for r in found["rows"]]
    targets = ["target", f"≤ {found['targets']['commit_ms']}", "", "", f"≤ {found['targets']['open_s']}"]
    return table(list(head.values()), [*rows, targets + [""] * (len(head) - len(targets))])


def plan() -> str:
    """Write what a thousand million frames in a hundred thousand assets would take, from what was measured."""
    builds = {r["source"]: r for r in _results("builds")["rows"]}  # the largest corpus of each: they grow
    rows = _results("log")["rows"]
    last = rows[-1]
    of_build = [r["cpu_us_per_frame"] for r in builds.values()]
    disk = [PLAN_FRAMES * r["bytes_per_frame"] / 1e12 for r in builds.values()]
    scale = PLAN_ASSETS / last["assets"]
    costs = [(0, rows[0]["commit_ms"]), *((r["assets"], r["commit_ms"]) for r in rows)]
    costs.append((PLAN_ASSETS, last["commit_ms"] * scale))  # in proportion, as between the sizes that were measured
    commits = sum((n - m) * (before + after) / 2000 for (m, before), (n, after) in pairwise(costs))
    lines = (
        ("work", f"{min(of_build):.0f} to {max(of_build):.0f} us a frame", _span(PLAN_FRAMES, of_build)),
        (f"work on {PLAN_CORES} cores", "assets share nothing", _span(PLAN_FRAMES / PLAN_CORES, of_build)),
        ("disk", "bytes per frame by source", f"{min(disk):.2g} to {max(disk):.2g} TB"),
        ("all commits, one after the other", f"{last['commit_ms'] * scale:,.0f} ms at the end", _hours(commits / 3600)),
        ("opening the store", "once, in the parent", f"{last['open_s'] * scale:.1f} s"),
        (
            "workers finding everything up to date",
            "each asset looked at once",
            _hours(PLAN_ASSETS * last["look_ms"] / 3600e3),
        ),
        ("log", "one entry a commit, checkpoints beside", f"{last['log_mb'] * scale:.0f} MB"),
        (
            "a checkpoint",
            "all assets in one file, every 1,000 commits",
            f"{last['checkpoint_mb'] * scale:.0f} MB, {last['checkpoint_s'] * scale:.1f} s",
        ),
        ("listing assets", "`assets()`, from the log alone", f"{last['assets_s'] * scale:.1f} s"),
        (
            "memory of the parent",
            f"as measured at {last['assets']:,} assets; grows with them",
            f"{last['peak_mb']:.0f} MB",
        ),
        ("memory of a worker", "does not grow", f"{max(max(r['worker_peaks_mb']) for r in builds.values())} MB"),
    )
    return table(("what", "from", "1,000,000,000 frames, 100,000 assets"), lines)


def _span(frames: float, us_per_frame: Sequence[float]) -> str:
    low, high = (f(us_per_frame) * frames / 3600e6 for f in (min, max))
    return f"{low:,.0f} to {high:,.0f} hours" if low >= 2 else f"{60 * low:,.0f} to {60 * high:,.0f} min"


def _digits(value: float) -> float:
    """Keep three digits of a number, and all of those before the point."""
    return round(value) if abs(value) >= 100 else float(f"{value:.3g}")


def soak() -> str:
    """Write how a build went whose workers were killed."""
    r = _results("soak")
    killed = ", ".join(f"{n} {what}" for what, n in r["killed"].items()) or "none"
    lines = (
        ("frames read = kept + rejected", f"{r['read']:,} = {r['kept']:,} + {r['rejected']:,}"),
        ("killed", killed),
        ("assets given up, built by a later run", str(r["given_up"])),
        ("runs until nothing was left to do", str(r["runs"])),
        ("wall time, s, beside the undisturbed build's", f"{r['disturbed_s']} beside {r['undisturbed_s']}"),
        ("files equal to the undisturbed build's", f"all {r['files_equal']}"),
        ("workers, seed", f"{r['workers']}, {r['seed']}"),
    )
    return table(("what", "measured"), lines)


def column_sizes() -> str:
    """Write which columns take the room, bytes per frame."""
    found = _results("columns")
    sources = list(found)
    corpora = [r for source, r in found.items() if source != "real"]  # of few frames every column is large
    largest = {name for r in corpora for name, size in r["columns"].items() if size >= LARGE}
    ordered = sorted(largest, key=lambda name: -max(r["columns"].get(name, 0) for r in found.values()))
    rows = [(f"`{name}`", *(f"{found[s]['columns'].get(name, 0):.1f}" for s in sources)) for name in ordered]
    rows.append(("atoms per frame", *(str(found[s]["atoms_per_frame"]) for s in sources)))
    return table(("bytes per frame", *sources), rows)


def encodings() -> str:
    """Write what other ways of writing would take, and what they would lose."""
    found = _results("columns")
    variants = next(iter(found.values()))["variants"]
    rows = []
    for name in variants:
        each = [r["variants"][name] for r in found.values()]
        cpu = "; ".join(
            f"{v['write_us']:g} / {v['read_us']:g}" for s, v in zip(found, each, strict=True) if s != "real"
        )
        lost = {k: max(v["largest_error"].get(k, 0) for v in each) for v in each for k in v["largest_error"]}
        errors = ", ".join(f"`{k}` {v:.1e}" for k, v in lost.items()) or "exact"
        rows.append((name, *(str(v["bytes_per_frame"]) for v in each), cpu, errors))
    return table(("bytes per frame", *found, "write / read, CPU us per frame", "largest error, eV/Å and Å"), rows)


def loading(form: str, shuffled: bool) -> str:
    """Write how fast each library hands frames out."""
    rows = [r for r in _results("loading")["rows"] if (r["form"], r["shuffled"]) == (form, shuffled)]
    cells = ([r["library"], f"{r['frames_per_s']:,}", str(r["cpu_us_per_frame"]), str(r["peak_mb"])] for r in rows)
    return table(("library", "frames/s", "CPU us per frame", "peak memory, MB"), cells)


def train_mace() -> str:
    """Tabulate how fast graphs are made and trained on, and what MACE's own way needs besides."""
    found = _results("train_mace")
    names = {"trajmill": "from the release as it lies", "mace-lmdb": "MACE's LMDB and loader"}
    rows = [
        (
            {"load": "graphs", "train": "graphs and steps"}[r["task"]],
            names[r["way"]],
            f"{r['frames_per_s']:,.0f}",
            f"{r['cpu_us_per_frame']:,}",
            f"{r['loading']:.0%}",
            str(found["bytes_per_frame"][r["way"]]),
            f"{found['copy_us']:,}" if r["way"] == "mace-lmdb" else "0",
        )
        for r in found["rows"]
    ]
    head = (
        "what",
        "from",
        "frames/s",
        "CPU us per frame",
        "of the time loading",
        "bytes per frame",
        "to copy, us a frame",
    )
    return table(head, rows)


def loading_sizes() -> str:
    """Write how large the files are that each library reads."""
    found = _results("loading")["bytes_per_frame"]
    return table(("library", "bytes per frame on disk"), [[name, f"{n:,}"] for name, n in found.items()])


def leakage_cost() -> str:
    """Write what comparing structures costs, beside comparing all pairs of a formula."""
    lines = []
    for r in _results("leakage")["rows"]:
        seconds = f"{r['wall_s']:,.0f}" if "wall_s" in r else f"{r['reckoned_s']:,.0f} (reckoned)"
        lines.append([f"{r['size']:,}", r["what"], f"{r['pairs']:,}", seconds, str(r.get("peak_mb", ""))])
    return table(("structures a side", "what", "pairs compared", "wall time, s", "peak memory, MB"), lines)


def leakage_recall() -> str:
    """Write how many of the copies that are moved and strained are found."""
    rows = _results("leakage")["recall"]["copies"]
    head = ("moved by up to, A", "strain", "copies", "the same to StructureMatcher", "of them compared", "found")
    keys = ("moved", "strain", "copies", "same", "near", "found")
    return table(head, [[str(r[key]) for key in keys] for r in rows])


def figures_cost() -> str:
    """Write what all figures of a dataset cost, and the report."""
    head = ("frames", "columns", "what", "of it counting, s", "wall time, s", "peak memory, MB", "page, MB")
    keys = ("schema", "what", "counted_s", "wall_s", "peak_mb", "megabytes")
    rows = ([f"{r['frames']:,}", *(str(r.get(key, "")) for key in keys)] for r in _results("figures")["rows"])
    return table(head, rows)


def fetch_cost() -> str:
    """Write what fetching costs beside curl."""
    measured = _results("fetch")
    head = {"wall_s": "wall time, s", "cpu_s": "CPU time, s", "peak_mb": "peak memory, MB"}
    rows = ([name, *(str(result[key]) for key in head)] for name, result in measured["ways"].items())
    what = f"{measured['gigabytes']:.2f} GB in {measured['files']} files, 4 at a time"
    return table((what, *head.values()), rows)


def explorer() -> str:
    """Write how long the explorer takes."""
    found = _results("explore")
    targets, browser, started = found["targets"], found["browser"], found["first_start"]
    queries, trajectory = found["queries_ms"].values(), found["trajectory_ms"]
    rows = [
        ("frames, trajectories", f"{found['frames']:,}, {found['trajectories']:,}"),
        ("Parquet files, index, MB", f"{found['files_mb']:,}, {found['index_mb']}"),
        ("first start, index made, s", f"{started['start_s']} (CPU time {started['cpu_s']})"),
        ("second start, s", str(found["second_start_s"])),
        ("first page, all that it needs, ms", f"{found['first_page_ms']} (≤ {targets['first_page_ms']:,})"),
        ("first page, until Chromium shows it, ms", f"{browser['first_page_ms']} (≤ {targets['first_page_ms']:,})"),
        ("a page of what a filter matches, ms", f"{min(queries):.0f} to {max(queries):.0f}"),
        (
            "a trajectory out of the files, ms",
            f"{trajectory['median']} (≤ {targets['trajectory_ms']}), {trajectory['most']} at most",
        ),
        ("a trajectory, until Chromium without a GPU has drawn it, ms", f"{browser['trajectory_ms']:,}"),
        ("peak memory, index made / serving, MB", f"{started['peak_mb']} / {found['peak_mb']}"),
    ]
    return table(("what", "measured"), rows)


def estimates() -> str:
    """Write what a million frames, and as many as were published, take to build at the measured rates."""
    largest = {r["source"]: r for r in _results("builds")["rows"]}  # corpora grow
    rows = []
    for name, millions in (*((source, 1) for source in largest), ("alexandria", 120)):
        cpu = millions * largest[name]["cpu_us_per_frame"] / 3600
        gigabytes = millions * largest[name]["bytes_per_frame"] / 1000
        times = (_hours(cpu / workers) for workers in (1, 2, 12))
        rows.append((name, f"{millions:,} million", *times, f"{gigabytes:.2g} GB"))
    head = ("source", "frames read", "CPU time", "2 workers", "12 workers", "store, if all are kept")
    return table(head, rows)


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


TABLES: dict[str, Callable[[], str]] = {
    "benchmark-machines": machines,
    "benchmark-stages": benchmark_stages,
    "benchmark-builds": benchmark_builds,
    "benchmark-scaling": benchmark_scaling,
    "comparison": comparison,
    "agreement": agreement,
    "log-cost": log_cost,
    "plan": plan,
    "soak": soak,
    "column-sizes": column_sizes,
    "encodings": encodings,
    "estimates": estimates,
    "explorer": explorer,
    "fetch-cost": fetch_cost,
    "figures-cost": figures_cost,
    "leakage-cost": leakage_cost,
    "leakage-recall": leakage_recall,
    "loading-flat": partial(loading, "flat", False),
    "loading-arrays": partial(loading, "arrays", False),
    "loading-atoms": partial(loading, "atoms", False),
    "loading-shuffled-batches": partial(loading, "batches", True),
    "loading-shuffled-arrays": partial(loading, "arrays", True),
    "loading-shuffled-atoms": partial(loading, "atoms", True),
    "loading-sizes": loading_sizes,
    "train-mace": train_mace,
}
