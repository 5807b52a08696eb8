"""Materials Project, JSON Lines on S3: tasks in both of their places, the newest dated snapshot of the materials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trajmill import recipe
from trajmill.errors import RemoteNotFoundError
from trajmill.remotes.base import PlainFile, Stage
from trajmill.remotes.s3 import Bucket
from trajmill.remotes.transfer import Session

TASKS = (("tasks_atomate2/",), ("tasks-legacy/", "tasks/"))
"""Places of the tasks; of each, the first prefix that has any. A task may be in one place only."""

COLLECTIONS = "collections/"
_SNAPSHOT = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class MaterialsProjectDocuments:
    """The JSON Lines files, which are no longer added to."""

    options: recipe.FetchMaterialsProject
    name: str = "mp"
    layout: str = "jsonl"

    def stages(self, session: Session, root: Path) -> Iterator[Stage]:  # noqa: ARG002 (objects are fetched whole)
        """List tasks and materials; see `Remote.stages`."""
        parsed, build = (Bucket(name, self.options, session) for name in (self.options.parsed, self.options.build))
        files = [file for places in TASKS for file in _first(parsed, places)]
        # the collections also hold tables without a date, of the Delta layout
        dates = [name for name in build.folders(COLLECTIONS) if _SNAPSHOT.fullmatch(name)]
        for date in sorted(dates, reverse=True):
            if materials := _json_lines(build, f"{COLLECTIONS}{date}/materials/", part_of="materials"):
                yield Stage(files=[*files, *materials], version={"materials": date})
                return
        raise RemoteNotFoundError(
            f"{build.url(COLLECTIONS)}: no dated snapshot of materials; see fetch.mp in the recipe"
        )


def _first(bucket: Bucket, prefixes: tuple[str, ...]) -> list[PlainFile]:
    for prefix in prefixes:
        if found := _json_lines(bucket, prefix):
            return found
    raise RemoteNotFoundError(f"{bucket.url(prefixes[0])}: no *.jsonl.gz files of tasks; see fetch.mp in the recipe")


def _json_lines(bucket: Bucket, prefix: str, part_of: str = "") -> list[PlainFile]:
    """List the documents below a prefix, without the manifests among them."""
    return [
        file
        for file in bucket.files(prefix, part_of)
        if file.path.endswith(".jsonl.gz") and "manifest" not in file.path.rpartition("/")[2]
    ]
