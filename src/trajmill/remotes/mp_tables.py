"""Materials Project, Delta Lake on S3: the needed columns of three tables, each at a fixed version.

Each data file becomes a local Parquet file with the same rows in the same order. Rows of trajectories that no build
with this recipe can keep lose their arrays and keep what identifies and counts them: a build reads them all the same,
and turns them away by the same rule.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmill import recipe
from trajmill.errors import RemoteContentError
from trajmill.remotes.base import Stage
from trajmill.remotes.delta_tables import actions, open_table, utc
from trajmill.remotes.mp_wanted import Licences, Wanted
from trajmill.remotes.parquet_copy import ObjectStream, Selection, TableCopy, gathered, open_parquet
from trajmill.remotes.s3 import Bucket
from trajmill.remotes.transfer import Again, Received, Session, plain_disk_errors
from trajmill.sources.parquet_tables import DataFile
from trajmill.uris import one_line

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MaterialsProjectTables:
    """The active tables: trajectories, tasks and materials."""

    options: recipe.FetchMaterialsProject
    source: recipe.MaterialsProject
    license: recipe.License
    name: str = "mp"
    layout: str = "delta"

    def stages(self, session: Session, root: Path) -> Iterator[Stage]:
        """List tasks and materials, then trajectories, which are filtered by the licences; see `Remote.stages`."""
        parsed, build = (Bucket(name, self.options, session) for name in (self.options.parsed, self.options.build))
        places = zip(_selections(), (parsed, parsed, build), strict=True)
        # all three at once, so that the versions go together
        trajectories, tasks, materials = (_Table(self.options, session, *place) for place in places)
        newest = materials.newest(root)
        yield Stage(files=[*newest, *tasks.files(root)], version=materials.version | tasks.version)
        wanted = self._wanted([file.local for file in newest])
        yield Stage(files=[*trajectories.files(root, wanted)], version=trajectories.version)

    def _wanted(self, materials: Sequence[DataFile]) -> Wanted | None:
        """Make the filter of the trajectories; None while the materials are not here."""
        from trajmill.sources.materials_project_delta import read_materials

        licences = None
        if self.license.enabled:
            if not all(file.path.exists() for file in materials):
                return None
            keep_orphans = self.source.tasks_without_material == "keep"
            licences = Licences(read_materials(materials), self.license.accept, keep_orphans=keep_orphans)
        return Wanted(self.options.run_types, licences)


def _selections() -> tuple[Selection, Selection, Selection]:
    """Return what is copied of trajectories, tasks and materials: what `MaterialsProjectDelta` reads."""
    from trajmill.sources import materials_project_delta as delta  # it needs pyarrow

    light = ("elements", "num_electronic_steps")
    energies = [f"electronic_steps.{name}" for name in delta.ELECTRONIC_ENERGIES]
    trajectories = Selection(
        place=delta.TRAJECTORIES.as_posix(),
        columns=(*delta.TYPES, delta.N_STEPS, *delta.ARRAYS, *energies),
        essential=(*delta.TYPES, "elements", "cart_coords", "lattice", "e_fr_energy", "forces"),
        keys=(*delta.TYPES, delta.N_STEPS),
        arrays=(*(name for name in delta.ARRAYS if name not in light), *energies),
    )
    tasks = Selection(
        place=delta.TASKS.as_posix(),
        columns=delta.TASK_COLUMNS,
        essential=("task_id", "input.incar", "input.parameters"),
    )
    materials = Selection(
        place=delta.MATERIALS.as_posix(),
        columns=delta.MATERIAL_COLUMNS,
        essential=("material_id", "task_ids", "deprecated", "builder_meta.license"),
    )
    return trajectories, tasks, materials


class _Table:
    """A Delta table on S3, at the version that is the newest when it is opened."""

    def __init__(
        self, options: recipe.FetchMaterialsProject, session: Session, selection: Selection, bucket: Bucket
    ) -> None:
        self._selection, self._bucket = selection, bucket
        opened = open_table(options, session, selection.place, bucket)
        self.version = {selection.place: str(opened.version())}
        self._actions = actions(opened, bucket.url(selection.place))

    def files(self, root: Path, wanted: Wanted | None = None) -> list[TableFile]:
        """List the active data files."""
        place = self._selection.place
        return [
            TableFile(
                bucket=self._bucket,
                selection=self._selection,
                local=DataFile(root / place / name, name),
                size=int(action["size_bytes"]),
                modified=utc(action["modification_time"]),
                wanted=wanted,
            )
            for name, action in sorted(self._actions.items())
        ]

    def newest(self, root: Path) -> list[TableFile]:
        """List those of the newest `version` partition."""
        from trajmill.sources.materials_project_delta import newest_version

        files = self.files(root)
        names = {file.name for file in newest_version(file.local for file in files)}
        return [file for file in files if file.local.name in names]


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A data file of a table, of which some columns are copied.

    Attributes:
        bucket: where it is.
        selection: what is copied.
        local: the copy, with the file's path in the table.
        size: bytes of the remote file.
        modified: ISO date of the remote file.
        wanted: which rows keep their arrays; None where all do, or while that is not known.
        at_most: `size` is only a bound.
    """

    bucket: Bucket
    selection: Selection
    local: DataFile
    size: int
    modified: str
    wanted: Wanted | None = None
    at_most: bool = True

    @property
    def path(self) -> str:
        """Return its place in the raw folder, which is that in the bucket."""
        return f"{self.selection.place}/{self.local.name}"

    @property
    def uri(self) -> str:
        """Return its address."""
        return self.bucket.url(self.path)

    @property
    def n_bytes(self) -> int:
        """Return the size of the whole file."""
        return self.size

    @property
    def part_of(self) -> str:
        """Return the table: its files are replaced as a whole."""
        return self.selection.place

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the log says, what is copied, and which of the local rows keep their arrays.

        Which rows the local file must have follows from the file itself and today's options and licences: it is fetched
        again when that is no longer what it has. While what is wanted is not known, what it has will do.
        """
        said = {"size": self.size, "modified": self.modified, "columns": self.selection.digest}
        return said | ({"rows": self._rows()} if self.selection.keys else {})

    def _rows(self) -> str | None:
        """Digest which rows are to keep their arrays, or have them while that is not known; None without the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from trajmill.sources.materials_project_delta import LEFT_OUT

        columns = [*self.selection.keys] if self.wanted else [LEFT_OUT]
        digest = hashlib.sha256()
        try:
            with pq.ParquetFile(self.local.path) as parquet:
                for i in range(parquet.num_row_groups):
                    rows = parquet.read_row_group(i, columns=columns)
                    reasons = self._reasons(rows) if self.wanted else rows[LEFT_OUT].to_pylist()
                    digest.update(bytes(reason is None for reason in reasons))
        except (OSError, KeyError, pa.ArrowException):
            return None
        return digest.hexdigest()[:16]

    def _reasons(self, keys: pa.Table) -> list[str | None]:
        return self.wanted.reasons(keys, self.local.partition) if self.wanted else [None] * len(keys)

    def get(self, session: Session, target: Path) -> Received:
        """Copy what is selected; see `RemoteFile.get`. A failed attempt begins anew: Parquet cannot be continued."""
        part = target.with_name(f"{target.name}.part")
        with plain_disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            left_out = session.persist(self.uri, lambda: self._attempt(session, part))
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            part.replace(target)
        return Received(digest, left_out)

    def _attempt(self, session: Session, part: Path) -> dict[str, int]:
        import pyarrow as pa

        stream = ObjectStream(self.bucket, self.path, self.size, session)
        try:
            stream.check()
            with part.open("wb") as sink:
                left_out = self._copy(stream, sink)
                sink.flush()
                os.fsync(sink.fileno())
        except BaseException as error:
            session.advance(-stream.n_bytes)
            part.unlink(missing_ok=True)
            damaged = isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)
            if damaged:
                raise Again(f"damaged, or no Parquet file ({one_line(error)})", final=RemoteContentError) from error
            raise
        return left_out

    def _copy(self, stream: ObjectStream, sink: io.BufferedWriter) -> dict[str, int]:
        """Copy row group by row group; return how many rows lost their arrays, by reason."""
        import pyarrow.parquet as pq

        left_out: Counter[str] = Counter()
        with open_parquet(stream) as parquet:
            copy = TableCopy(parquet, self.selection)
            if missing := [n for n in copy.missing if n not in self.local.partition]:
                raise RemoteContentError(
                    f"{self.uri}: has no column {', '.join(missing)}; has the table changed its form?"
                )
            with pq.ParquetWriter(sink, copy.schema, compression="zstd") as writer:
                for i in range(parquet.num_row_groups):
                    keys = copy.keys(i)
                    reasons = self._reasons(keys)
                    left_out.update(reason for reason in reasons if reason)
                    for table in gathered(copy.rows(i, keys, reasons)):
                        writer.write_table(table, row_group_size=len(table))
        return dict(left_out)
