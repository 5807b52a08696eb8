"""Copying a store into another, of whatever kind: asset by asset, with all that is known of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import pyarrow as pa

from trajmill.errors import StoreError
from trajmill.schema import FILE_SCHEMA
from trajmill.stores import shown
from trajmill.stores.base import ROLES, Store


@dataclass
class CopySummary:
    """What a copy did.

    Attributes:
        copied: rows of each asset that was copied and committed.
        unchanged: assets that were there already, made of the same.
        others: assets of the target that the source does not have; they were left alone.
    """

    copied: dict[str, int] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def copy(source: Store, target: Store, *, report: Callable[[int, int], None] = lambda *_: None) -> CopySummary:
    """Copy all assets that the target does not have yet, each in one commit.

    Rows, their order and the borders of their batches stay, and so does what is recorded of an asset: a build into the
    copy finds it up to date, a release of it has the same content. Stopping at any moment and running again loses and
    repeats nothing.

    Args:
        source: what to copy, at its version.
        target: where to.
        report: told rows done and rows in all.

    Raises:
        StoreError: one of them cannot be read or written; what was committed before is unharmed.
    """
    summary = CopySummary()
    commits = source.commits()
    counts = {role: source.count(role) for role in ROLES}
    total = sum(sum(of_role.values()) for of_role in counts.values())
    with target.locked():
        summary.unchanged = [asset for asset, commit in commits.items() if target.committed(asset, commit.fingerprint)]
        missing = sorted(commits.keys() - summary.unchanged)
        done = sum(of_role.get(asset, 0) for of_role in counts.values() for asset in summary.unchanged)
        report(done, total)
        # one stream per role over all assets: what a source does to find an asset's rows is done once
        streams = {role: _by_asset(source, role, missing) for role in ROLES}
        for asset in missing:
            expected = {role: of_role[asset] for role, of_role in counts.items() if asset in of_role}
            writer = target.writer(asset)
            try:
                for role in expected:
                    name, batches = next(streams[role], (None, ()))
                    for batch in batches if name == asset else ():
                        writer.write(role, batch)
                        done += batch.num_rows
                        report(done, total)
                files = writer.close(commits[asset].fingerprint, commits[asset].versions)
            except BaseException:
                writer.abort()
                raise
            if {file.role: file.rows for file in files} != expected:
                raise StoreError(f"{shown(source.address)}: {asset} has not the rows it says; nothing of it was copied")
            target.commit(replace(commits[asset], files=files))
            summary.copied[asset] = sum(expected.values())
        summary.others = sorted(set(target.assets()) - set(commits))
        target.note_upstream(source.upstream())
    return summary


def _by_asset(store: Store, role: str, assets: list[str]) -> Iterator[tuple[str, Iterable[pa.RecordBatch]]]:
    """Stream the batches of a role, those of an asset together as (asset, batches)."""
    batches = store.read(role, columns=[*FILE_SCHEMA.names, "asset"], assets=assets)
    for asset, of_asset in groupby(batches, key=lambda batch: batch["asset"][0].as_py()):
        yield asset, (pa.RecordBatch.from_arrays(batch.columns[:-1], schema=FILE_SCHEMA) for batch in of_asset)
