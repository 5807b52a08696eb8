"""Look into a store or a release: counts, checks, and why a frame is not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.errors import ReleaseError
from trajmill.releases.hugging_face import MANIFEST
from trajmill.storage import COLUMNS, AnyPath, parquet, readable
from trajmill.stores import open_store, shown
from trajmill.stores.base import Balance, Store, stream


@dataclass
class Inspection:
    """What was found.

    Attributes:
        title: one line.
        tables: (title, column heads, rows).
        checks: (what was checked, what is wrong; empty when nothing is).
    """

    title: str
    tables: list[tuple[str, tuple[str, ...], Iterable[Sequence[Any]]]] = field(default_factory=list)
    checks: list[tuple[str, str]] = field(default_factory=list)


_BY_KIND = """
SELECT source, functional, run_type, count(DISTINCT trajectory_id), count(*) FROM rows GROUP BY ALL ORDER BY ALL
"""

_BY_RULE = """
SELECT rejected_by, source, count(*), sum(coalesce(n_frames, 0))::BIGINT AS frames
FROM rows GROUP BY ALL ORDER BY frames DESC, rejected_by, source
"""

_NOTES = """
SELECT regexp_replace(regexp_replace(note, '[{][^}]*[}]', '...', 'g'), '[0-9]+', 'N', 'g') AS kind,
       count(DISTINCT trajectory_id) AS n, count(*)
FROM (SELECT trajectory_id, unnest(notes) AS note FROM rows) GROUP BY kind ORDER BY n DESC, kind LIMIT 20
"""

_REASONS = """
SELECT rejected_by, source, coalesce(trajectory_id, task_id, immutable_id), relaxation_step, n_frames, rejection_detail,
       count(*) OVER ()
FROM rows
WHERE ($rule IS NULL OR rejected_by = $rule)
  AND ($id IS NULL OR $id IN (trajectory_id, task_id, immutable_id, trajectory_id || '-' || relaxation_step)
       -- a frame of a trajectory that went as a whole
       OR (relaxation_step IS NULL AND starts_with($id, trajectory_id || '-') AND regexp_matches($id, '-[0-9]+$')))
ORDER BY ALL
"""

_REPEATED = "SELECT count(*) - count(DISTINCT id) FROM rows"

_KIND = ["source", "functional", "run_type", "trajectory_id"]
_REASON = ["rejected_by", "source", "trajectory_id", "task_id", "immutable_id", "relaxation_step", "n_frames"]
_REASON += ["rejection_detail"]


def _ask(store: Store, sql: str, role: str, columns: list[str], **values: Any) -> list[tuple[Any, ...]]:
    """Run SQL over these columns of a role."""
    with stream(store, role, columns) as rows:
        return _query(sql, rows, **values)


def _query(sql: str, rows: pa.RecordBatchReader, **values: Any) -> list[tuple[Any, ...]]:
    """Run SQL over a stream of rows."""
    with duckdb.connect() as db:
        db.register("rows", rows)
        return db.execute(sql, values).fetchall()


def inspect_store(address: str | Path) -> Inspection:
    """Count a store's frames and rejections, and check them against what its commits counted.

    Raises:
        StoreError: no store there.
    """
    store = open_store(address)
    frames, inputs = (store.count(role) for role in ("frame", "input"))
    present = set(store.assets())
    balance = sum((b for asset, b in store.balances().items() if asset in present), Balance())
    found = Inspection(f"{shown(address)}: store, version {store.version}, {len(present)} assets")
    head = ("source", "functional", "run type", "trajectories", "frames")
    found.tables.append(("frames", head, _ask(store, _BY_KIND, "frame", _KIND)))
    if inputs:
        found.tables.append(("unlabelled input geometries", head, _ask(store, _BY_KIND, "input", _KIND)))
    rules = _ask(store, _BY_RULE, "rejection", ["rejected_by", "source", "n_frames"])
    found.tables.append(("rejected", ("rule", "source", "rejections", "frames"), rules))
    if notes := _ask(store, _NOTES, "frame", ["trajectory_id", "notes"]):
        found.tables.append(
            ("most frequent notes, N for any number and ... for any set", ("note", "trajectories", "frames"), notes)
        )
    upstream = [
        (source, part, version) for source, m in store.upstream().items() for part, version in m["version"].items()
    ]
    if upstream:
        found.tables.append(("complete for these upstream versions", ("source", "part", "version"), upstream))
    if balance.no_space_group:
        found.title += f"; no space group found for {balance.no_space_group:,} frames"
    n_frames, n_inputs = sum(frames.values()), sum(inputs.values())
    n_rejected = sum(row[3] for row in rules)
    ((repeated,),) = _ask(store, _REPEATED, "frame", ["id"])
    found.checks += [
        ("kept + rejected = read", _differ(n_frames + n_inputs + n_rejected, balance.frames)),
        (
            "records kept + rejected = read",
            _differ(balance.records_kept + balance.records_rejected.total(), balance.records),
        ),
        ("rows = what the commits counted", _differ(n_frames + n_inputs, balance.kept)),
        ("rejections = what the commits counted", _differ(n_rejected, balance.rejected.total())),
    ]
    if repeated:
        note = f"{repeated:,} frames have an id that occurs before (in another asset; a release keeps the newest)"
        found.title += f"; {note}"
    return found


def inspect_release(path: AnyPath) -> Inspection:
    """Count a release's frames and check them against its manifest.

    Raises:
        ReleaseError: no release there.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReleaseError(f"{path}: neither a store nor a release (no _delta_log, no {MANIFEST})") from error
    except json.JSONDecodeError as error:
        raise ReleaseError(f"{path / MANIFEST}: damaged ({error})") from error
    found = Inspection(
        f"{path}: release, schema {manifest['format']}, stress in {manifest['stress_unit']}, "
        f"store version {manifest['store_version']}"
    )
    head = ("configuration", "source", "functional", "run type", "trajectories", "frames")
    columns = ("configuration", "source", "functional", "run_type", "trajectories", "frames")
    found.tables.append(("contents", head, [[row[c] for c in columns] for row in manifest["contents"]]))
    rejected, records = manifest["rejected_at_build"], manifest["records_rejected_at_build"]
    rows = [(rule, rejected.get(rule, 0), records.get(rule, 0)) for rule in sorted({*rejected, *records})]
    rows += [(f"{rule} (at release)", n, None) for rule, n in manifest["rejected_at_release"].items()]
    found.tables.append(("rejected", ("rule", "frames", "records"), rows))
    for name, expected in manifest["frames"].items():
        files = sorted((path / name).glob("*-of-*.parquet"))
        problem = _differ(sum(pq.read_metadata(readable(f, COLUMNS)).num_rows for f in files), expected)
        if not problem and (repeated := _query(_REPEATED, parquet(files).scanner(columns=["id"]).to_reader())[0][0]):
            problem = f"{repeated:,} ids occur twice"
        found.checks.append((f"{name}: rows as in the manifest, ids unique", problem))
    kept, left_out = sum(manifest["frames"].values()), sum(manifest["rejected_at_release"].values())
    total = kept + left_out + sum(rejected.values())
    found.checks.append(("kept + rejected = read", _differ(total, manifest["read"]["frames"])))
    return found


def _differ(found: int, expected: int) -> str:
    return "" if found == expected else f"{found:,} found, {expected:,} expected"


def find_rejections(
    address: str | Path, rule: str | None, identifier: str | None, limit: int
) -> tuple[list[tuple[Any, ...]], int, int]:
    """Find rejections of a store.

    Args:
        address: of the store.
        rule: only of this rule.
        identifier: only of this frame id, trajectory id, task id or material id.
        limit: rows to return, 0 for all.

    Returns:
        Rows of (rule, source, trajectory or record, step, frames, detail), how many there are in all, and how many
        kept frames bear the identifier.
    """
    store = open_store(address)
    sql = _REASONS + (f"LIMIT {limit}" if limit else "")
    found = _ask(store, sql, "rejection", _REASON, rule=rule, id=identifier)
    kept = {frame for role in ("frame", "input") for frame in _named(store, role, identifier)}
    return [row[:-1] for row in found], found[0][-1] if found else 0, len(kept)


def _named(store: Store, role: str, identifier: str | None) -> Iterator[tuple[Any, ...]]:
    """Find the frames of a role that bear an identifier, as (role, asset, id), some more than once."""
    for name in ("id", "trajectory_id", "task_id", "immutable_id") if identifier else ():
        for batch in store.read(role, columns=["role", "asset", "id"], where={name: identifier or ""}):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
