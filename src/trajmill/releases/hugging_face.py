"""A release in the layout of a Hugging Face dataset: a folder of Parquet shards per configuration and a card."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajmill.errors import ReleaseError, SplitError
from trajmill.recipe import Recipe
from trajmill.releases.citations import UNLICENSED
from trajmill.releases.croissant import CROISSANT, croissant
from trajmill.releases.dataset_card import SplitSize, dataset_card
from trajmill.releases.reference_energies import ReferenceEnergies
from trajmill.releases.selection import RELEASE_RULES, select
from trajmill.schema import FRAME_SCHEMA, METADATA, PUBLISHED, parquet_options
from trajmill.storage import AnyPath
from trajmill.stores import shown
from trajmill.stores.base import Balance, Store
from trajmill.units import KBAR_PER_EV_PER_A3
from trajmill.writing import StrPath

if TYPE_CHECKING:
    from trajmill.splits import Split

CONFIGURATIONS = (
    "compatible_pbe",
    "compatible_pbesol",
    "compatible_scan",
    "compatible_r2scan",
    "non_compatible",
    "initial_structures",
)
MANIFEST = "trajmill.json"
"""What the release was made of and what it holds."""

E0S = "e0s.json"
"""Reference energies of isolated atoms."""

ROW_GROUP = 10_000
"""Frames per row group: small enough to stream, large enough to compress."""


@dataclass(frozen=True)
class ReleaseSummary:
    """What a release holds.

    Attributes:
        path: where it is.
        frames: frames per configuration.
        rejected: frames left out by the rules that run at release, by rule.
    """

    path: AnyPath
    frames: dict[str, int]
    rejected: dict[str, int]


def release(
    store: Store,
    out: StrPath,
    recipe: Recipe,
    *,
    split: Split | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> ReleaseSummary:
    """Export a store as a Hugging Face dataset.

    The bytes depend on the store's content and version and on the recipe alone, not on the kind of the store or the
    engine that filled it. The folder appears when it is complete.

    Args:
        store: what to export, at its version.
        out: folder to make; must not exist or be empty.
        recipe: sections `release` and `rules`.
        split: which part each trajectory is in, written as the Hub's splits; None makes all of it `train`.
        report: told frames done and frames in all.

    Raises:
        ReleaseError: the folder is not empty, or the store holds no frames.
        SplitError: the split does not know a trajectory, or names a part as the Hub does not.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReleaseError(f"{out}: exists and is not empty; choose a new folder")
    total = sum(sum(store.count(role).values()) for role in ("frame", "input"))
    if not total:
        raise ReleaseError(f"{shown(store.address)}: holds no frames to release")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        summary = _export(store, partial, recipe, split, lambda done: report(done, total))
        if out.exists():
            out.rmdir()
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return replace(summary, path=out)


def _export(
    store: Store, out: Path, recipe: Recipe, split: Split | None, report: Callable[[int], None]
) -> ReleaseSummary:
    """Write everything of a release into a folder."""
    left_out = select(store, recipe.rules)
    schema, stress_unit = release_schema(recipe)
    filled = _Filled(out, schema, stress_unit, recipe.release.rows_per_file, split)
    done = 0
    for role in ("frame", "input"):
        for rows in _rows(store, role, left_out):
            filled.add(rows, role)
            done += len(rows)
            report(done)
    sizes = filled.close()
    rejected: Counter[str] = Counter()
    for rule, n in zip(left_out["rule"].to_pylist(), left_out["n_frames"].to_pylist(), strict=True):
        rejected[rule] += n
    frames = {name: sum(size.frames for size in of_name.values()) for name, of_name in sizes.items()}
    manifest = _manifest(store, recipe, stress_unit, frames, filled.contents, filled.licences, rejected)
    if split:
        manifest["split"] = {"names": split.names, "rule": split.rule, "digest": split.digest}
        manifest["splits"] = {n: {part: s.frames for part, s in of_name.items()} for n, of_name in sizes.items()}
    _write(out / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    _write(out / E0S, json.dumps(filled.e0s.solve(), indent=1))
    _write(out / "README.md", dataset_card(manifest, schema, sizes))
    _write(out / CROISSANT, json.dumps(croissant(manifest, schema, out), indent=1))
    return ReleaseSummary(out, frames, dict(rejected))


class _Filled:
    """Shards that are being filled, and what is counted on the way.

    Attributes:
        e0s: fitted to the frames.
        contents: frames and trajectories by configuration, source, functional and run type.
        licences: frames by licence.
    """

    def __init__(self, out: Path, schema: pa.Schema, stress_unit: str, rows_per_file: int, split: Split | None) -> None:
        parts = split.names if split else ("train",)
        if unfit := [part for part in parts if not re.fullmatch(r"\w+(\.\w+)*", part, re.ASCII)]:
            raise SplitError(f"no name for a split: {unfit[0]}; take letters, digits, underscores, dots between them")
        self._schema, self._stress_unit, self._split = schema, stress_unit, split
        self._shards = {
            (name, part): _Shards(out / name, part, schema, rows_per_file) for name in CONFIGURATIONS for part in parts
        }
        self.e0s = ReferenceEnergies()
        self.contents: dict[tuple[str, ...], tuple[int, int]] = {}
        self.licences: Counter[str] = Counter()

    def add(self, rows: pa.Table, role: str) -> None:
        """Write rows of a role, each to where it belongs."""
        if role == "frame":
            self.e0s.add(rows)
        self.licences.update(_licences(rows))
        for name, chosen in _by_configuration(rows, role):
            for part, its in _by_part(chosen, self._split, role):
                self._shards[name, part].write(as_released(its, self._schema, self._stress_unit))
            for key, (n_frames, n_runs) in _contents(name, chosen).items():
                before = self.contents.get(key, (0, 0))
                self.contents[key] = before[0] + n_frames, before[1] + n_runs

    def close(self) -> dict[str, dict[str, SplitSize]]:
        """Finish the files; return how much each split of each configuration holds."""
        sizes: dict[str, dict[str, SplitSize]] = {}
        for (name, part), shard in self._shards.items():
            if n := shard.close():
                sizes.setdefault(name, {})[part] = SplitSize(n, shard.n_bytes, shard.on_disk)
        return sizes


def release_schema(recipe: Recipe) -> tuple[pa.Schema, str]:
    """Return the schema of a release and the unit of its stress, which is also in the schema's metadata."""
    published = recipe.release.format == "lemat-traj"
    kbar = recipe.release.stress == "kbar" or (recipe.release.stress == "auto" and published)
    unit = "kBar" if kbar else "eV/A^3"
    schema = pa.schema([c.field for c in PUBLISHED]) if published else FRAME_SCHEMA
    if kbar:
        note = {"unit": "kBar", "description": "Stress as VASP prints it, positive when the cell is compressed."}
        index = schema.names.index("stress_tensor")
        schema = schema.set(index, schema.field(index).with_metadata(note))
    return schema.with_metadata(
        METADATA | {"trajmill.stress_unit": unit, "trajmill.format": recipe.release.format}
    ), unit


def _rows(store: Store, role: str, left_out: pa.Table) -> Iterator[pa.Table]:
    """Stream the frames of a role, asset by asset in the order of their names, without what the release leaves out."""
    gone: dict[str, list[str]] = {}
    for asset, trajectory in zip(left_out["asset"].to_pylist(), left_out["trajectory_id"].to_pylist(), strict=True):
        gone.setdefault(asset, []).append(trajectory)
    for batch in store.read(role, columns=FRAME_SCHEMA.names):
        rows = pa.Table.from_batches([batch])
        if unwanted := gone.get(batch["asset"][0].as_py()):
            rows = rows.filter(pc.invert(pc.is_in(rows["trajectory_id"], pa.array(unwanted))))
        if len(rows):
            yield rows


def _by_configuration(rows: pa.Table, role: str) -> Iterator[tuple[str, pa.Table]]:
    """Cut rows into configurations by their own content."""
    if role == "input":
        yield "initial_structures", rows
        return
    compatible = rows["cross_compatibility"]
    for functional in sorted(pc.unique(rows["functional"]).to_pylist()):
        part = rows.filter(pc.and_(compatible, pc.equal(rows["functional"], functional)))
        if len(part):
            yield f"compatible_{functional}", part
    rest = rows.filter(pc.invert(compatible))
    if len(rest):
        yield "non_compatible", rest


def _by_part(rows: pa.Table, split: Split | None, role: str) -> Iterator[tuple[str, pa.Table]]:
    """Cut rows into the parts of a split; an input whose relaxation is not in the dataset is in the first."""
    if split is None:
        yield "train", rows
        return
    part = split.parts_of(rows["trajectory_id"])
    if role == "frame" and (part < 0).any():
        unknown = rows["trajectory_id"][int(np.argmax(part < 0))]
        raise SplitError(f"the split does not know {unknown}; it was made for other data")
    for i, name in enumerate(split.names):
        chosen = rows.filter(pa.array(np.maximum(part, 0) == i))
        if len(chosen):
            yield name, chosen


def as_released(rows: pa.Table, schema: pa.Schema, stress_unit: str, given: str = "eV/A^3") -> pa.Table:
    """Give rows the columns and units of a release.

    Args:
        rows: with all of its columns at least.
        schema: of the release.
        stress_unit: of the release.
        given: unit in which the rows have stress.
    """
    if stress_unit == "kBar" and given != "kBar":
        index = rows.schema.names.index("stress_tensor")
        rows = rows.set_column(index, "stress_tensor", _scaled(rows["stress_tensor"], -KBAR_PER_EV_PER_A3))
    if schema.metadata[b"trajmill.format"] == b"lemat-traj":  # the published set has the raw energy outside PBE
        index = rows.schema.names.index("energy_corrected")
        corrected = pc.if_else(pc.equal(rows["functional"], "pbe"), rows["energy_corrected"], rows["energy"])
        rows = rows.set_column(index, "energy_corrected", corrected)
    return rows.select(schema.names).cast(schema)


def _scaled(matrices: pa.ChunkedArray, factor: float) -> pa.Array:
    """Multiply every number of a list<list<double>> column."""
    outer = matrices.combine_chunks()
    inner = outer.flatten()
    values = pc.multiply(inner.flatten(), factor)
    lengths = pc.fill_null(pc.list_value_length(outer), 0)
    borders = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    rows = pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, 3), pa.int32()), values)
    return pa.ListArray.from_arrays(borders, rows, mask=outer.is_null() if outer.null_count else None)


@dataclass
class _Shards:
    """Writes `{part}-00000-of-0000N.parquet`, N files of equal numbers of rows."""

    folder: Path
    part: str
    schema: pa.Schema
    rows_per_file: int
    waiting: list[pa.Table] = field(default_factory=list)
    n_waiting: int = 0
    rows: int = 0
    n_bytes: int = 0
    on_disk: int = 0
    n_files: int = 0
    in_file: int = 0
    writer: Any = None

    def write(self, rows: pa.Table) -> None:
        self.waiting.append(rows)
        self.n_waiting += len(rows)
        self.rows += len(rows)
        self.n_bytes += sum(_n_bytes(chunk) for column in rows.columns for chunk in column.chunks)
        if self.n_waiting >= ROW_GROUP:
            self._flush(whole=True)

    def _flush(self, *, whole: bool) -> None:
        """Write waiting rows in row groups that do not depend on how they arrived; without `whole` also the rest."""
        rows = pa.concat_tables(self.waiting).combine_chunks()
        while len(rows) >= (ROW_GROUP if whole else 1):
            n = min(ROW_GROUP, self.rows_per_file - self.in_file)
            if self.writer is None:
                self.folder.mkdir(exist_ok=True)
                options = parquet_options(self.schema)
                self.writer = pq.ParquetWriter(self._file(self.n_files), self.schema, **options)
                self.n_files += 1
            self.writer.write_table(rows.slice(0, n))
            self.in_file += min(n, len(rows))
            rows = rows.slice(n)
            if self.in_file == self.rows_per_file:
                self._close_file()
        self.waiting, self.n_waiting = [rows], len(rows)

    def _file(self, i: int) -> Path:
        """Return where a file is as long as nobody knows how many there will be."""
        return self.folder / f"{self.part}-{i:05d}.parquet"

    def _close_file(self) -> None:
        self.writer.close()
        self.writer, self.in_file = None, 0

    def close(self) -> int:
        """Finish the files, give them their final names, return the number of rows."""
        if self.n_waiting:
            self._flush(whole=False)
        if self.writer is not None:
            self._close_file()
        for i in range(self.n_files):
            named = self.folder / f"{self.part}-{i:05d}-of-{self.n_files:05d}.parquet"
            self._file(i).replace(named)
            self.on_disk += named.stat().st_size
        return self.rows


def _n_bytes(values: pa.Array) -> int:
    """Return the bytes of values in memory, whatever buffers hold them; `nbytes` also counts validity or does not."""
    if pa.types.is_list(values.type):
        return 4 * len(values) + _n_bytes(values.flatten())
    if pa.types.is_string(values.type):
        return 4 * len(values) + int(pc.sum(pc.binary_length(values)).as_py() or 0)
    return int(len(values) * values.type.bit_width // 8)


def _licences(rows: pa.Table) -> dict[str, int]:
    """Count frames by the licence of their record."""
    counted = pc.value_counts(pc.fill_null(rows["license"], UNLICENSED)).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def _contents(configuration: str, rows: pa.Table) -> dict[tuple[str, ...], tuple[int, int]]:
    """Count frames and trajectories (by their final frames) by configuration, source, functional and run type."""
    if configuration == "initial_structures":  # one frame each, and no final one
        rows = rows.set_column(rows.schema.names.index("is_final"), "is_final", pa.repeat(True, len(rows)))
    groups = rows.group_by(["source", "functional", "run_type"]).aggregate([("id", "count"), ("is_final", "sum")])
    return {
        (configuration, g["source"], g["functional"], g["run_type"] or "unknown"): (g["id_count"], g["is_final_sum"])
        for g in groups.to_pylist()
    }


def _manifest(
    store: Store,
    recipe: Recipe,
    stress_unit: str,
    frames: dict[str, int],
    contents: dict[tuple[str, ...], tuple[int, int]],
    licences: Counter[str],
    rejected: Counter[str],
) -> dict[str, Any]:
    """Describe the release; nothing in it depends on when or where it was made."""
    balance = sum(store.balances().values(), Balance())
    keys = ("configuration", "source", "functional", "run_type")
    return {
        "store_version": store.version,
        "format": recipe.release.format,
        "stress_unit": stress_unit,
        "packages": store.versions(),
        "recipe": {  # rows by what they were built with, which the release's own recipe need not be
            "build": store.built_with(),
            "rules": recipe.rules.model_dump(mode="json", include=set(RELEASE_RULES)),
            "release": recipe.release.model_dump(mode="json"),
        },
        "raw": _raw(store),
        "frames": frames,
        "contents": [
            {**dict(zip(keys, key, strict=True)), "frames": n_frames, "trajectories": n_runs}
            for key, (n_frames, n_runs) in sorted(contents.items())
        ],
        "licences": dict(sorted(licences.items())),
        "read": {"records": balance.records, "frames": balance.frames},
        "rejected_at_build": dict(sorted(balance.rejected.items())),
        "records_rejected_at_build": dict(sorted(balance.records_rejected.items())),
        "rejected_at_release": dict(sorted(rejected.items())),
    }


def _raw(store: Store) -> dict[str, Any]:
    """Return, by source, a digest of the raw content the rows were made of, and the upstream version where it is known.

    `manifest` is the digest of the raw manifest: of all files that were fetched, also those that hold no record.
    """
    by_source: dict[str, list[str]] = {}
    for asset, raw in sorted(store.raw_digests().items()):
        by_source.setdefault(asset.partition("/")[0], []).append(f"{asset} {raw}\n")
    upstream = store.upstream()
    return {
        source: {
            "assets": len(lines),
            "digest": hashlib.sha256("".join(lines).encode()).hexdigest(),
            "upstream": upstream.get(source, {}).get("version"),
            "manifest": upstream.get(source, {}).get("digest"),
        }
        for source, lines in by_source.items()
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
