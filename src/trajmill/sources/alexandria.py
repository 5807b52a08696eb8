"""Alexandria: geometry optimisation paths, bz2 of one JSON object `{"agm000123456": [run, ...], ...}` a file."""

from __future__ import annotations

import bz2
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Generic, cast

import msgspec
import numpy as np

from trajmill import recipe
from trajmill.elements import SYMBOLS, composition
from trajmill.errors import SourceError
from trajmill.raw import current, entry, sha256
from trajmill.sources import mp_settings
from trajmill.sources.base import Asset, Record, Rejection, Report
from trajmill.sources.files import in_parts, read_ahead, takes
from trajmill.sources.pymatgen_json import (
    AnySite,
    FractionalSite,
    Rows,
    Site,
    Structure,
    decode,
    parse,
    stack,
    structure_arrays,
)
from trajmill.storage import AnyPath, readable
from trajmill.trajectory import Trajectory
from trajmill.units import stress_from_vasp

FUNCTIONALS = {"pbesol": "pbesol", "pbe": "pbe"}
"""Functional by what a part of the path begins with; pbesol comes first because pbe begins it."""

LICENSE = "CC-BY-4.0"

KEY = re.compile(rb'"(agm\d+)"\s*:\s*')
LISTED = re.compile(r'href="([^"/]+)"[^\n]*?</a>\s+(\d{2}-\w{3}-\d{4} \d{2}:\d{2})')


class Step(msgspec.Struct, Generic[AnySite], gc=False):
    """An ionic step; stress in kBar with VASP's sign."""

    structure: Structure[AnySite] | None = None
    energy: float | None = None
    forces: Rows | None = None
    stress: Rows | None = None


class Run(msgspec.Struct, Generic[AnySite], gc=False):
    """A VASP relaxation."""

    steps: list[Step[AnySite]] | None = None
    ENMAX: float | None = None


RUNS = msgspec.json.Decoder(list[Run[FractionalSite]])


@dataclass(frozen=True)
class Alexandria:
    """Path files below a folder, old and new layout alike."""

    root: AnyPath
    options: recipe.Alexandria = field(default_factory=recipe.Alexandria)
    name: str = "alexandria"

    def prepare(self, workspace: Path, report: Report = lambda *_: None) -> None:
        """Nothing is joined."""

    def assets(self) -> list[Asset]:
        """List all `*.json.bz2`; the date is what the listing said when they were fetched.

        For files fetched by other means it comes from the listing page (`index.html`) saved beside them.
        """
        files = current(self.root, self.root.rglob("*.json.bz2"))
        if not files:
            raise SourceError(
                f"{self.root}: no *.json.bz2 path files here; point alexandria.path at the folder that holds them"
            )
        dates = {folder: _listed_dates(folder / "index.html") for folder in {f.parent for f in files}}
        shards = [
            Asset(
                name=f"{self.name}/{f.relative_to(self.root).as_posix()}",
                path=f,
                size=f.stat().st_size,
                modified=fetched.modified if (fetched := entry(self.root, f)) else dates[f.parent].get(f.name),
            )
            for f in files
        ]
        return in_parts(shards, self.options.split)

    def raw_digest(self, asset: Asset) -> str:
        """Digest the compressed file and what its place says: the functional from the path, the date of the listing."""
        facts = json.dumps([sha256(asset.path, self.root), _functional(asset.path), asset.modified])
        return hashlib.sha256(facts.encode()).hexdigest()

    def facts_digest(self, task_ids: Iterable[str]) -> str:  # noqa: ARG002
        """Nothing is joined."""
        return ""

    def read(self, asset: Asset) -> Iterator[Record]:
        """Stream the ids of a shard; a damaged id costs itself, a truncated file its last id."""
        functional = _functional(asset.path)
        chunks = read_ahead(lambda: cast("BinaryIO", bz2.open(readable(asset.path))))  # noqa: SIM115 (closed by read_ahead)
        for key, raw, error in split(chunks):
            if not takes(asset, key):
                continue
            problem = error
            if not problem:
                try:
                    yield self._record(asset, key, _runs(raw), functional)
                    continue
                except ValueError as malformed:
                    problem = str(malformed)
            yield Record(n_frames=0, rejections=(self._rejection(asset, key or None, "readable", problem, None),))

    def _record(
        self, asset: Asset, key: str, runs: list[tuple[Run[Any], dict[int, str]]], functional: str | None
    ) -> Record:
        """Make the trajectory of one id."""
        steps: list[Step[Any]] = []
        faults: dict[int, str] = {}
        number: list[int] = []
        encut: list[float] = []
        for k, (run, run_faults) in enumerate(runs):
            faults |= {len(steps) + i: text for i, text in run_faults.items()}
            n = len(run.steps or ())
            steps.extend(run.steps or ())
            number.extend([k] * n)
            encut.extend([np.nan if run.ENMAX is None else run.ENMAX] * n)
        if not steps:
            return Record(n_frames=0, rejections=(self._rejection(asset, key, "targets", "no ionic steps", 0),))
        numbers, lattice, positions = structure_arrays([s.structure for s in steps], faults)
        trajectory = Trajectory(
            source=self.name,
            asset=asset.name,
            task_id=key,
            trajectory_id=f"{key}-{functional or 'unknown'}",
            immutable_id=key,
            numbers=numbers,
            lattice=lattice,
            positions=positions,
            energy=stack([s.energy for s in steps], (), "energy", faults),
            forces=stack([s.forces for s in steps], (len(numbers), 3), "forces", faults),
            stress=stress_from_vasp(stack([s.stress for s in steps], (3, 3), "stress", {})),
            relaxation_number=np.array(number, np.int32),
            relaxation_step=np.arange(len(steps), dtype=np.int32),
            functional=functional,
            encut=np.array(encut),
            license=LICENSE,
            last_modified=asset.modified,
            findings={} if functional else {"unsupported_functional": "no functional in the file's path"},
            faults=faults,
            **self._settings(functional, composition(SYMBOLS[n] for n in numbers)),
        )
        return Record(n_frames=len(steps), trajectories=(trajectory,))

    def _settings(self, functional: str | None, elements: Mapping[str, int]) -> dict[str, Any]:
        """Infer +U and potentials of PBE runs from MP's input set, which Alexandria follows but does not record."""
        if functional == "pbesol":
            return {"run_type": "PBEsol"}
        if functional != "pbe" or self.options.settings == "unknown":
            return {"run_type": None}
        u = mp_settings.hubbard_u(elements)
        return {"run_type": "GGA+U" if u else "GGA", "hubbard_u": u, "potentials": mp_settings.potentials(elements)}

    def _rejection(self, asset: Asset, key: str | None, rule: str, detail: str, n_frames: int | None) -> Rejection:
        return Rejection(
            source=self.name,
            asset=asset.name,
            rejected_by=rule,
            detail=detail,
            n_frames=n_frames,
            task_id=key,
            immutable_id=key,
        )


def split(chunks: Iterable[bytes]) -> Iterator[tuple[str, bytes, str]]:
    """Cut a path file into its records at the top-level keys, holding one record in memory.

    Keys are found by their form (`"agm..." :`), not by counting brackets, so that damage inside a record ends with it.

    Yields:
        id, JSON text of its runs, and what is wrong with the file there (empty for a good record, the id is empty
        when the fault belongs to no record).

    Raises:
        OSError: the file could not be read at all, which says nothing about its content.
    """
    buffer = bytearray()
    key: str | None = None
    error = ""
    begin = searched = 0
    try:
        for chunk in chunks:
            buffer += chunk
            while match := _next_key(buffer, searched):
                if key is None:
                    if bytes(buffer[: match.start()]).strip() != b"{":
                        yield "", b"", f"unexpected text before the first id: {_excerpt(buffer)}"
                else:
                    yield key, bytes(buffer[begin : match.start()]).rstrip().removesuffix(b","), ""
                key, begin = match[1].decode(), match.end() - match.start()
                del buffer[: match.start()]
                searched = begin
            searched = max(begin, len(buffer) - 64)  # a key may lie across two chunks
    except (EOFError, OSError, ValueError) as problem:
        if getattr(problem, "errno", None):  # the disk's fault, not the file's: to be tried again
            raise
        error = f"damaged or truncated file: {problem}"
    rest = bytes(buffer[begin:]).rstrip()
    if key is None:
        if error or rest.replace(b" ", b"") != b"{}":
            what = _excerpt(buffer) if buffer else "nothing"
            yield "", b"", error or f"no Alexandria ids in this file, it holds {what}"
    elif error:
        yield key, b"", error
    else:
        whole = rest.endswith(b"}")
        yield key, rest[:-1], "" if whole else "the file ends inside this record"


def _next_key(buffer: bytearray, begin: int) -> re.Match[bytes] | None:
    """Search for a key; `find` is several times as fast as a regular expression."""
    while (begin := buffer.find(b'"agm', begin)) >= 0:
        if match := KEY.match(buffer, begin):
            return match
        begin += 1
    return None


def _excerpt(buffer: bytearray) -> str:
    return repr(bytes(buffer[:40]).decode("latin-1"))


def _runs(raw: bytes) -> list[tuple[Run[Any], dict[int, str]]]:
    """Decode the runs of an id, with a text for each step that is malformed.

    Raises:
        ValueError: the record as a whole is no JSON list of runs.
    """
    try:
        return [(run, {}) for run in decode(RUNS, raw)]
    except ValueError:
        pass
    value = parse(raw)
    if not isinstance(value, list) or not all(isinstance(run, dict) for run in value):
        raise ValueError("the record is no list of runs")
    return [_lenient_run(run) for run in value]


def _lenient_run(run: dict[str, Any]) -> tuple[Run[Site], dict[int, str]]:
    """Decode a run field by field, so that a malformed field costs its own frame and no other."""
    faults: dict[int, str] = {}
    steps = run.get("steps")
    steps = steps if isinstance(steps, list) else []
    read = []
    for i, raw in enumerate(steps):
        fields = {}
        for info in msgspec.structs.fields(Step[Site]):
            try:
                fields[info.name] = msgspec.convert(raw.get(info.name), info.type)
            except (msgspec.ValidationError, AttributeError) as problem:
                faults[i] = f"{info.name}: {problem}"
        read.append(Step(**fields))
    try:
        encut = msgspec.convert(run.get("ENMAX"), float | None)
    except msgspec.ValidationError:
        encut = None
    return Run(steps=read, ENMAX=encut), faults


def _functional(path: AnyPath) -> str | None:
    """Read the functional from the path, the part nearest to the file first."""
    for part in reversed(path.parts):
        for prefix, functional in FUNCTIONALS.items():
            if re.match(rf"{prefix}(?![a-z])", part):
                return functional
    return None


def _listed_dates(page: AnyPath) -> dict[str, str]:
    """Read modification dates from an nginx listing page: ISO times by file name (from href, the text may be cut)."""
    if not page.is_file():
        return {}
    found = LISTED.findall(page.read_text(encoding="utf-8", errors="replace"))
    return {name: datetime.strptime(date, "%d-%b-%Y %H:%M").isoformat() for name, date in found}
