"""Open a store or a release and iterate its trajectories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from trajmill.codec import decode
from trajmill.errors import ReleaseError, require
from trajmill.releases.hugging_face import CONFIGURATIONS, MANIFEST
from trajmill.storage import COLUMNS, AnyPath, as_path, parquet, readable
from trajmill.stores import is_store, open_store, shown
from trajmill.stores.base import Store
from trajmill.trajectory import Trajectory

if TYPE_CHECKING:
    from ase import Atoms


class Dataset:
    """Trajectories of a store or a release, streamed in the order they are stored.

    Args:
        address: of a store (a folder, `s3://...`, `postgresql://...`), or of a release or one configuration of a
            release (a folder, `s3://...`).
        configuration: one of a release's configurations (`compatible_pbe`, ...); None takes all with labels. A store
            has none: use `functional`.
        functional: only trajectories with this functional.
        source: only trajectories of this source.

    Raises:
        ReleaseError: nothing that can be opened there, or no such configuration.
        StoreError: the store cannot be read.
    """

    def __init__(
        self,
        address: str | Path,
        configuration: str | None = None,
        *,
        functional: str | None = None,
        source: str | None = None,
    ) -> None:
        self._wanted = {name: value for name, value in (("functional", functional), ("source", source)) if value}
        self._store: Store | None = None
        if is_store(address):
            if configuration is not None:
                raise ReleaseError(
                    f"{shown(address)}: a store has no configurations; make a release, or filter by functional"
                )
            self._store = open_store(address)
            return
        self._release = as_path(address)
        self._files = _shards(self._release, configuration)
        if not self._files:
            raise ReleaseError(f"{address}: neither a trajmill store nor a release, no Parquet files found")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What a release says of itself; None for a store."""
        file = None if self._store else self._release / MANIFEST
        return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else None

    def __len__(self) -> int:
        """Count the frames."""
        if self._store and self._wanted:
            return sum(batch.num_rows for batch in self.batches(columns=["source"]))
        if self._store:
            return sum(self._store.count("frame").values())
        if not self._wanted:
            return sum(pq.read_metadata(readable(file, COLUMNS)).num_rows for file in self._files)
        return int(parquet(self._files).count_rows(filter=self._filter()))

    def _filter(self) -> Any:
        expression = None
        for name, value in self._wanted.items():
            term = pads.field(name) == value
            expression = term if expression is None else expression & term
        return expression

    def batches(self, *, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Stream the rows as Arrow record batches, filters applied, in stored order."""
        if self._store:
            yield from self._store.read("frame", columns=columns, where=self._wanted)
            return
        for file in self._files:
            scanner = parquet([file]).scanner(
                columns=columns, filter=self._filter(), batch_size=10_000, use_threads=False
            )
            yield from (batch for batch in scanner.to_batches() if batch.num_rows)

    def trajectories(self) -> Iterator[Trajectory]:
        """Stream whole trajectories as arrays, also where a trajectory lies across two batches or shards."""
        held: pa.Table | None = None
        for batch in self.batches():
            rows = pa.Table.from_batches([batch])
            if held is not None:
                rows = pa.concat_tables([held, rows])
            *complete, last = decode(rows)
            yield from complete
            held = rows.slice(len(rows) - len(last))
        if held is not None:
            yield from decode(held)

    def atoms(self) -> Iterator[Atoms]:
        """Stream frames as ASE Atoms with a SinglePointCalculator.

        Energies in eV, forces in eV/A, stress in eV/A^3 (ASE's sign and Voigt order) where it is known; `info` holds
        id, trajectory_id, functional, run_type, relaxation_step and relaxation_number.

        Raises:
            MissingExtraError: ASE is not installed (extra `ase`).
        """
        ase = require("ase", extra="ase")
        single_point = require("ase.calculators.singlepoint", extra="ase").SinglePointCalculator
        to_voigt = require("ase.stress", extra="ase").full_3x3_to_voigt_6_stress
        for t in self.trajectories():
            for i in range(len(t)):
                atoms = ase.Atoms(numbers=t.numbers, positions=t.positions[i], cell=t.lattice[i], pbc=True)
                labels = {"energy": float(t.energy[i]), "forces": t.forces[i]}
                if t.stress[i, 0, 0] == t.stress[i, 0, 0]:
                    labels["stress"] = to_voigt(t.stress[i])
                atoms.calc = single_point(atoms, **labels)
                step = int(t.relaxation_step[i])
                atoms.info = {
                    "id": f"{t.trajectory_id}-{step}",
                    "trajectory_id": t.trajectory_id,
                    "functional": t.functional,
                    "run_type": t.run_type,
                    "relaxation_step": step,
                    "relaxation_number": int(t.relaxation_number[i]),
                }
                yield atoms


def _shards(release: AnyPath, configuration: str | None) -> list[AnyPath]:
    """List the Parquet files of a release, or of one of its configurations."""
    if configuration is None:
        below = [c for c in CONFIGURATIONS if c != "initial_structures" and (release / c).is_dir()]
        folders = [release / c for c in below] or [release]
        return [file for folder in folders for file in _in_order(folder)]
    found = _in_order(release / configuration)
    if not found:
        there = sorted(p.parent.name for p in release.glob("*/train-00000-*.parquet"))
        raise ReleaseError(f"{release}: no configuration {configuration}; there are: {', '.join(there) or 'none'}")
    return found


def _in_order(folder: AnyPath) -> list[AnyPath]:
    return sorted(folder.glob("*.parquet"))
