"""Open a store or a release, take what is wanted of it, and iterate it in the form that is wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trajmill.codec import decode
from trajmill.elements import NUMBERS
from trajmill.errors import FilterError, ReleaseError, require
from trajmill.filters import to_sql
from trajmill.formats import find
from trajmill.hub_files import HUB, hub_path, known_stress
from trajmill.pieces import Pieces, pieces_of
from trajmill.releases.hugging_face import CONFIGURATIONS, MANIFEST
from trajmill.rows import ParquetRows, Rows, StoreRows, Wanted, ask, trajectory_id, where
from trajmill.schema import parquet_options
from trajmill.storage import AnyPath, as_path
from trajmill.stores import POSTGRES, is_store, open_store, shown
from trajmill.thinning import Thinning
from trajmill.trajectory import FloatArray, Trajectory
from trajmill.units import stress_from_vasp
from trajmill.writing import StrPath, whole

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

INPUTS = "initial_structures"
"""Configuration of a release that holds geometries without labels."""

LABELS = ("lattice_vectors", "cartesian_site_positions", "species_at_sites", "energy", "forces", "stress_tensor", "id")


@dataclass(frozen=True)
class FlatFrames:
    """Frames of any sizes as flat arrays: atoms of frame i are those from `offsets[i]` to `offsets[i + 1]`.

    Attributes:
        offsets: (n_frames + 1,).
        numbers: (n_atoms,) atomic numbers.
        positions: (n_atoms, 3) A.
        forces: (n_atoms, 3) eV/A; NaN where unknown.
        lattice: (n_frames, 3, 3) A, vectors as rows.
        energy: (n_frames,) eV; NaN where unknown.
        stress: (n_frames, 3, 3) eV/A^3, positive under tension; NaN where unknown.
        ids: of the frames.
    """

    offsets: NDArray[np.int64]
    numbers: NDArray[np.int64]
    positions: FloatArray
    forces: FloatArray
    lattice: FloatArray
    energy: FloatArray
    stress: FloatArray
    ids: pa.Array

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, rows: slice) -> FlatFrames:
        """Return some frames, one after the other, without a copy."""
        start, stop, _ = rows.indices(len(self))
        atoms = slice(self.offsets[start], self.offsets[stop])
        return FlatFrames(
            self.offsets[start : stop + 1] - self.offsets[start],
            self.numbers[atoms], self.positions[atoms], self.forces[atoms],
            self.lattice[start:stop], self.energy[start:stop], self.stress[start:stop], self.ids[start:stop],
        )  # fmt: skip


def joined(parts: Sequence[FlatFrames]) -> FlatFrames:
    """Put frames one after the other; what is alone is not copied."""
    if len(parts) == 1:
        return parts[0]
    n_atoms = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = [part.offsets[:-1] + n for part, n in zip(parts, n_atoms, strict=False)]
    names = ("numbers", "positions", "forces", "lattice", "energy", "stress")
    return FlatFrames(
        offsets=np.concatenate([*offsets, n_atoms[-1:]]),
        ids=pa.concat_arrays([part.ids for part in parts]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
    )


class Dataset:
    """Frames of a store or a release, streamed in the order they are stored.

    Nothing is read before it is iterated. `filter`, `sample`, `only`, `without` and `thin` return a narrower dataset
    and leave this one as it is.

    Args:
        address: of a store (a folder, `s3://...`, `postgresql://...`), or of a release or one configuration of a
            release (a folder, `s3://...`, `hf://datasets/NAMESPACE/NAME[@REVISION]`), of a Parquet file with such rows,
            or of a file or folder of another format (see `trajmill.formats`). What may be said besides can follow it,
            as in `release?configuration=compatible_pbe&split=test`.
        configuration: one of a release's configurations (`compatible_pbe`, ...); None takes all with labels. A store
            has none: use `functional`.
        functional: only trajectories with this functional.
        source: only trajectories of this source.
        stress: unit in which files hold stress that do not say it: `kBar` (VASP's sign, as the published LeMat-Traj),
            or `eV/A^3`.
        split: one of a release's splits (`train`, `test`, ...); None takes all.
        inputs: take the geometries without labels that OQMD's relaxations begin with, and nothing else.

    Raises:
        ReleaseError: nothing that can be opened there, no such configuration, or an unknown unit of stress.
        StoreError: the store cannot be read.
        FilterError: the rows do not say what their functional or source is.
    """

    def __init__(
        self,
        address: str | Path,
        configuration: str | None = None,
        *,
        functional: str | None = None,
        source: str | None = None,
        stress: str | None = None,
        split: str | None = None,
        inputs: bool = False,
    ) -> None:
        address, given = _options(address)
        configuration, split = configuration or given.get("configuration"), split or given.get("split")
        stress = stress or given.get("stress")
        functional, source = functional or given.get("functional"), source or given.get("source")
        self._release: AnyPath | None = None
        if is_store(address):
            if configuration is not None or split is not None:
                raise ReleaseError(
                    f"{shown(address)}: a store has no configurations and splits; make a release, or filter"
                )
            self._rows: Rows = StoreRows(open_store(address), "input" if inputs else "frame")
        else:
            self._release = hub_path(str(address)) if str(address).startswith(HUB) else as_path(address)
            if inputs and configuration is None and self._release.is_dir():
                configuration = INPUTS
            files = _shards(self._release, configuration, split)
            foreign = find(self._release) if not files and isinstance(self._release, Path) else None
            if foreign is None and not files:
                raise ReleaseError(
                    f"{address}: neither a trajmill store nor a release, and no files of another format that is known"
                )
            published = known_stress(str(address)) if stress is None and files else None
            self._rows = foreign or ParquetRows(files, stress or published, doubted="oqmd-" if published else None)
        self._wanted = Wanted()
        self._thinning: Thinning | None = None
        for name, value in (("functional", functional), ("source", source)):
            if value is not None:
                condition = to_sql(f"{name} = {json.dumps(value)}", self.schema)
                self._wanted = self._wanted._replace(conditions=(*self._wanted.conditions, condition))

    @property
    def schema(self) -> pa.Schema:
        """The columns there are, with their units."""
        return self._rows.schema

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What a release says of itself; None for a store."""
        file = self._release / MANIFEST if self._release is not None else None
        return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else None

    # --- narrowing

    def _narrowed(self, **changes: Any) -> Self:
        if self._thinning is not None:
            raise FilterError("thin last: what is taken after thinning would change which frames it keeps")
        other = copy(self)
        other.__dict__["_wanted"] = self._wanted._replace(**changes)
        return other

    def filter(self, text: str) -> Self:
        """Take only frames that a filter matches, such as `elements HAS "Fe" AND max_force < 10`.

        Args:
            text: in the language of OPTIMADE; see `trajmill.filters`.

        Raises:
            FilterError: it cannot be read, or asks for what is not there.
        """
        return self._narrowed(conditions=(*self._wanted.conditions, to_sql(text, self.schema)))

    def only(self, trajectory_ids: Iterable[str]) -> Self:
        """Take only these trajectories."""
        ids = pa.array(trajectory_ids, pa.string())
        if self._wanted.ids is not None:
            known = pc.is_in(ids, self._wanted.ids)
            ids = ids.filter(pc.invert(known) if self._wanted.without else known)
        return self._narrowed(ids=ids, without=False)

    def without(self, trajectory_ids: Iterable[str]) -> Self:
        """Leave these trajectories out, such as those that `trajmill.duplicates` marks."""
        ids = pa.array(trajectory_ids, pa.string()).drop_null()  # SQL's NOT IN is never true with a null among them
        if self._wanted.ids is None or self._wanted.without:
            known = [] if self._wanted.ids is None else [self._wanted.ids]
            return self._narrowed(ids=pa.concat_arrays([*known, ids]), without=True)
        wanted = self._wanted.ids
        return self._narrowed(ids=wanted.filter(pc.invert(pc.is_in(wanted, ids))))

    def sample(self, n: int, *, seed: int = 0) -> Self:
        """Take n trajectories at random, whole ones; all where there are not so many.

        Which ones depends on their identifiers and the seed alone, not on their order or on others of them: those
        drawn from a part of a dataset are among those drawn from all of it, as far as they go.

        Raises:
            FilterError: n is negative.
        """
        if n < 0:
            raise FilterError(f"{n} trajectories cannot be drawn; say 0 or more")
        identity = trajectory_id(self.schema)
        all_of_them = f"SELECT DISTINCT {identity} AS t FROM wanted"
        drawn = self.ask(f"SELECT t FROM ({all_of_them}) ORDER BY md5(t || '/{seed:d}'), t LIMIT {n:d}")
        return self._narrowed(ids=drawn["t"].combine_chunks(), without=False)

    def thin(self, thinning: Thinning) -> Self:
        """Take fewer frames of each trajectory; see `trajmill.thinning` for the ways.

        What is filtered out before does not count, and nothing can be filtered afterwards.
        """
        other = self._narrowed()
        other.__dict__["_thinning"] = thinning
        return other

    # --- iterating

    def ask(self, sql: str) -> pa.Table:
        """Run SQL of DuckDB over the view `wanted`: the rows that are wanted, those that thinning leaves out included.

        The view can be read once: ask for all in one query.
        """
        return ask(self._rows, sql, self._wanted)

    def trajectory_ids(self) -> pa.Array:
        """Return the identifiers of all trajectories, sorted."""
        identity = trajectory_id(self.schema)
        return self.ask(f"SELECT DISTINCT {identity} AS t FROM wanted ORDER BY t")["t"].combine_chunks()

    def __len__(self) -> int:
        """Count the frames."""
        if self._thinning:
            return sum(batch.num_rows for batch in self.batches(columns=["id"]))
        if self._wanted.everything:
            return self._rows.count()
        return int(self.ask("SELECT count(*) AS n FROM wanted")["n"][0].as_py())

    def digest(self, energy: str = "energy") -> str:
        """Return what tells these frames and their energies from others, in whatever order they lie.

        Args:
            energy: which energy, `energy` or `energy_corrected`.
        """
        found = self.ask(
            f"SELECT count(*) AS n, bit_xor(md5_number(concat_ws(' ', id, \"{energy}\")))::VARCHAR AS x FROM wanted"
        )
        n, bits = found["n"][0].as_py(), found["x"][0].as_py()
        return hashlib.sha256(f"{n} {bits}".encode()).hexdigest()

    def batches(self, *, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Stream rows as Arrow record batches, in stored order.

        Args:
            columns: names in the order wanted; None takes all.

        Raises:
            FilterError: there is no such column.
        """
        names = list(self.schema.names if columns is None else columns)
        if missing := [name for name in names if name not in self.schema.names]:
            raise FilterError(f"no column {missing[0]}; there are {', '.join(self.schema.names)}")
        if self._thinning is None:
            yield from self._unthinned(names)
            return
        identity = _identity(self.schema)
        read = list(dict.fromkeys([*names, identity, "energy", "nsites"]))
        for rows in _whole(self._unthinned(read), identity):
            energy = rows["energy"].to_numpy() / rows["nsites"].to_numpy()
            keep = np.concatenate([self._thinning(energy[a:b]) for a, b in pairwise(_starts(rows[identity], identity))])
            yield from rows.filter(pa.array(keep)).select(names).combine_chunks().to_batches()

    def save(self, path: StrPath) -> int:
        """Write the rows to a Parquet file that `trajmill.open` opens, and return how many there are.

        Raises:
            ReleaseError: the file cannot be written.
        """
        n, options = 0, parquet_options(self.schema)
        with whole(path, ReleaseError) as aside, pq.ParquetWriter(aside, self.schema, **options) as writer:
            for batch in self.batches():
                writer.write_batch(batch)
                n += batch.num_rows
        return n

    def _unthinned(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self._wanted.everything:
            yield from self._rows.batches(columns)
        else:
            yield from where(self._rows, columns, self._wanted)

    def trajectories(self) -> Iterator[Trajectory]:
        """Stream trajectories as arrays, also where one lies across two batches or shards."""
        for rows in _whole(self.batches(), _identity(self.schema)):
            yield from decode(rows.replace_schema_metadata(self.schema.metadata))

    def arrays(self) -> Iterator[FlatFrames]:
        """Stream frames as flat arrays, many at a time, without a Python object for each: the fastest way."""
        for batch in self.batches(columns=LABELS):
            yield to_flat(batch.replace_schema_metadata(self.schema.metadata))

    def pieces(self) -> Pieces:
        """Return the frames in pieces that several processes can read, in any order.

        Raises:
            FilterError: they are in no Parquet files, or thinned.
        """
        if self._thinning is not None:
            raise FilterError("thinned frames cannot be read in pieces; save them first, and open what was saved")
        found = [piece for file, asset in self._rows.files() for piece in pieces_of(file, asset)]
        return Pieces(tuple(found), self.schema, self._wanted, self._rows.doubted)

    def atoms(self, *, energy: str = "energy") -> Iterator[Atoms]:
        """Stream frames as ASE Atoms with a SinglePointCalculator.

        Energies in eV, forces in eV/A, stress in eV/A^3 (ASE's sign and Voigt order) where it is known; `info` holds
        id, trajectory_id, functional, run_type, relaxation_step and relaxation_number.

        Args:
            energy: the column to take it from, `energy` or `energy_corrected`; a frame without a value has no energy.

        Raises:
            MissingExtraError: ASE is not installed (extra `ase`).
        """
        return to_atoms(self.trajectories(), energy)

    def structures(self) -> Iterator[Structure]:
        """Stream frames as pymatgen Structures.

        `properties` holds energy (eV), stress (eV/A^3, 3x3, None where it is unknown) and what `atoms` has in `info`;
        the site property `forces` is in eV/A.
        """
        return to_structures(self.trajectories())


def to_atoms(trajectories: Iterable[Trajectory], energy: str = "energy") -> Iterator[Atoms]:
    """Yield the frames of trajectories as `Dataset.atoms` does."""
    ase = require("ase", extra="ase")
    single_point = require("ase.calculators.singlepoint", extra="ase").SinglePointCalculator
    to_voigt = require("ase.stress", extra="ase").full_3x3_to_voigt_6_stress
    for t in trajectories:
        energies = getattr(t, energy)
        for i in range(len(t)):
            atoms = ase.Atoms(numbers=t.numbers, positions=t.positions[i], cell=t.lattice[i], pbc=True)
            labels = {"forces": t.forces[i]}
            if energies is not None and np.isfinite(energies[i]):
                labels["energy"] = float(energies[i])
            if t.stress[i, 0, 0] == t.stress[i, 0, 0]:
                labels["stress"] = to_voigt(t.stress[i])
            atoms.calc = single_point(atoms, **labels)
            atoms.info = _facts(t, i)
            yield atoms


def to_structures(trajectories: Iterable[Trajectory]) -> Iterator[Structure]:
    """Yield the frames of trajectories as `Dataset.structures` does."""
    from pymatgen.core import Lattice, Structure

    for t in trajectories:
        for i in range(len(t)):
            known = t.stress[i, 0, 0] == t.stress[i, 0, 0]
            labels = {"energy": float(t.energy[i]), "stress": t.stress[i].tolist() if known else None}
            yield Structure(
                Lattice(t.lattice[i]), t.symbols, t.positions[i], coords_are_cartesian=True,
                site_properties={"forces": t.forces[i].tolist()}, properties=labels | _facts(t, i),
            )  # fmt: skip


def _facts(t: Trajectory, frame: int) -> dict[str, Any]:
    step = int(t.relaxation_step[frame])
    return {
        "id": f"{t.trajectory_id}-{step}",
        "trajectory_id": t.trajectory_id,
        "functional": t.functional,
        "run_type": t.run_type,
        "relaxation_step": step,
        "relaxation_number": int(t.relaxation_number[frame]),
    }


def _identity(schema: pa.Schema) -> str:
    """Return the column that says of which trajectory a row is."""
    return "trajectory_id" if "trajectory_id" in schema.names else "id"


def _starts(column: pa.Array | pa.ChunkedArray, identity: str) -> list[int]:
    """Return where the trajectories of rows begin, and where the last one ends."""
    if identity == "id":
        column = pc.replace_substring_regex(column, "-[0-9]+$", "")
    new = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
    return [0, *(np.flatnonzero(new) + 1).tolist(), len(column)]


def _whole(batches: Iterable[pa.RecordBatch], identity: str) -> Iterator[pa.Table]:
    """Cut a stream of rows between trajectories."""
    held: pa.Table | None = None
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        if held is not None:
            rows = pa.concat_tables([held, rows])
        cut = _starts(rows[identity], identity)[-2]
        if cut:
            yield rows.slice(0, cut)
        held = rows.slice(cut)
    if held is not None:
        yield held


def to_flat(batch: pa.RecordBatch) -> FlatFrames:
    """Turn rows with the columns `LABELS` into flat arrays; those of positions and forces are the rows' own memory."""
    in_kbar = (batch.schema.metadata or {}).get(b"trajmill.stress_unit") == b"kBar"
    symbols = batch["species_at_sites"].flatten().dictionary_encode()
    numbers = np.array([NUMBERS[s] for s in symbols.dictionary.to_pylist()], np.int64)[symbols.indices.to_numpy()]
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(batch["species_at_sites"]).to_numpy())])
    stress = _triples(batch["stress_tensor"], np.full(len(batch), 3)).reshape(-1, 3, 3)
    return FlatFrames(
        offsets=offsets,
        numbers=numbers,
        positions=_triples(batch["cartesian_site_positions"], np.diff(offsets)),
        forces=_triples(batch["forces"], np.diff(offsets)),
        lattice=_triples(batch["lattice_vectors"], np.full(len(batch), 3)).reshape(-1, 3, 3),
        energy=batch["energy"].to_numpy(zero_copy_only=False),
        stress=stress_from_vasp(stress) if in_kbar else stress,
        ids=batch["id"],
    )


def _triples(column: pa.Array, counts: NDArray[np.int64]) -> FloatArray:
    """Return the (n, 3) numbers of all rows, of which each has so many triples; NaN for a row that has none."""
    known = column.is_valid().to_numpy(zero_copy_only=False)
    there: FloatArray = column.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 3)
    if known.all():
        return there
    triples = np.full((counts.sum(), 3), np.nan)
    triples[np.repeat(known, counts)] = there
    return triples


def _options(address: str | Path) -> tuple[str | Path, dict[str, str]]:
    """Part an address from the options that follow it."""
    text = str(address)
    place, mark, query = text.partition("?")
    if not mark or text.startswith(POSTGRES) or ("://" not in text and Path(text).exists()):
        return address, {}
    given = dict(parse_qsl(query, keep_blank_values=True))
    known = ("configuration", "split", "stress", "functional", "source")
    if wrong := [name for name in given if name not in known] or ([] if given else [query]):
        raise ReleaseError(f"{text}: no option {wrong[0]}; there are {', '.join(known)}, as in ?split=test&source=mp")
    return place, given


def _shards(release: AnyPath, configuration: str | None, split: str | None) -> list[AnyPath]:
    """List the Parquet files of a release, or of one of its configurations and splits."""
    if release.is_file():
        if configuration is not None or split is not None:
            raise ReleaseError(f"{release}: a file has no configurations and splits")
        return [release] if release.name.endswith(".parquet") else []
    if configuration is None:
        below = [c for c in CONFIGURATIONS if c != INPUTS and (release / c).is_dir()]
        folders = [release / c for c in below] or [release]
    else:
        folders = [release / configuration]
    found = [file for folder in folders for file in _in_order(folder)]
    if configuration is not None and not found:
        there = sorted({p.parent.name for p in release.glob("*/*-00000-of-*.parquet")})
        raise ReleaseError(f"{release}: no configuration {configuration}; there are: {', '.join(there) or 'none'}")
    if split is None:
        return found
    splits = {file: file.name.partition("-")[0] for file in found}
    if split not in splits.values():
        raise ReleaseError(f"{release}: no split {split}; there are: {', '.join(sorted({*splits.values()})) or 'none'}")
    return [file for file in found if splits[file] == split]


def _in_order(folder: AnyPath) -> list[AnyPath]:
    return sorted(folder.glob("*.parquet"))
