"""The entry types: the model of trajectories, and the collections that the server takes entries of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC
from functools import lru_cache
from typing import Any, Literal

from optimade.exceptions import BadRequest, Forbidden
from optimade.models import EntryResource
from optimade.models.entries import EntryResourceAttributes
from optimade.models.structures import StructureResourceAttributes
from optimade.models.utils import OptimadeField, SupportLevel
from optimade.server.config import ServerConfig
from optimade.server.entry_collections import EntryCollection
from optimade.server.mappers import BaseResourceMapper
from optimade.server.query_params import EntryListingQueryParams, SingleEntryQueryParams
from pydantic import create_model

from trajmill.optimade.filtering import Parser, transformer
from trajmill.optimade.index import Index
from trajmill.optimade.properties import BY_FRAME, STANDARD, Property

FRAMES_LIMIT = 20
"""Trajectories of a page at most where values of all frames are asked for."""


def _attributes() -> Any:
    """Make the model of the properties of OPTIMADE 1.3's trajectories."""
    optional = {"support": SupportLevel.OPTIONAL, "queryable": SupportLevel.OPTIONAL}
    must = {"support": SupportLevel.MUST, "queryable": SupportLevel.MUST}
    fields: dict[str, Any] = {
        "nframes": (int, OptimadeField(description="Number of frames.", **must)),
        "reference_frames": (
            list[int] | None,
            OptimadeField(None, description="First and last frame, counted from 0.", **optional),
        ),
    }
    for name in STANDARD:
        unit = (StructureResourceAttributes.model_fields[name].json_schema_extra or {}).get("x-optimade-unit")
        values = "a value for each frame" if name in BY_FRAME else "one value in a list, the same for all frames"
        description = f"As of structures, {values}. A filter asks for the last frame's."
        fields[name] = (list[Any] | None, OptimadeField(None, description=description, unit=unit, **optional))
    return create_model("TrajectoryAttributes", __base__=EntryResourceAttributes, **fields)


TrajectoryAttributes = _attributes()


class TrajectoryResource(EntryResource):  # type: ignore[misc]  # mypy does not follow optimade
    """A relaxation with one functional: its frames in the order computed."""

    type: Literal["trajectories"] = "trajectories"
    attributes: TrajectoryAttributes  # type: ignore[valid-type]  # made above


class TrajectoryMapper(BaseResourceMapper):  # type: ignore[misc]  # mypy does not follow optimade
    """What their server wants to know of trajectories."""

    ENTRY_RESOURCE_CLASS = TrajectoryResource


class Entries(EntryCollection):  # type: ignore[misc]  # mypy does not follow optimade
    """Entries of one type out of the index.

    Args:
        index: where they are.
        mapper: what their server wants to know of the type.
        properties: that there are, by name.
        config: of the server.
    """

    def __init__(
        self, index: Index, mapper: BaseResourceMapper, properties: Mapping[str, Property], config: ServerConfig
    ) -> None:
        mapper.PROVIDER_FIELDS = tuple(name for name in properties if name.startswith("_"))
        never = {*mapper.ALL_ATTRIBUTES} - {*properties}
        prefix = config.provider.prefix
        to_sql = transformer(properties, never, prefix, mapper.KNOWN_PROVIDER_PREFIXES)
        super().__init__(mapper.ENTRY_RESOURCE_CLASS, mapper, to_sql, config)
        self.parser = Parser()
        self.provider_fields = list(mapper.PROVIDER_FIELDS)
        self.properties = properties
        self._index = index
        self.by_frame: set[str] = set()
        if mapper.ENTRY_RESOURCE_CLASS is TrajectoryResource:
            self.by_frame = {name for name, p in properties.items() if p.column in BY_FRAME}

    def __len__(self) -> int:
        return self._index.n_trajectories

    def insert(self, data: list[Any]) -> None:
        """Refuse: what is served is only read."""
        raise NotImplementedError("what is served is only read")

    def count(self, **criteria: Any) -> int:
        """Count the entries that the SQL in `filter` matches."""
        if not criteria.get("filter"):
            return len(self)
        found = self._index.query(f"SELECT count(*) AS n FROM entries WHERE {criteria['filter']}")
        return int(found[0]["n"])

    def handle_query_params(self, params: EntryListingQueryParams | SingleEntryQueryParams) -> dict[str, Any]:
        """Read the query's parameters; see `EntryCollection.handle_query_params`.

        A listing of trajectories has values of all frames only where they are asked for by name.
        """
        criteria: dict[str, Any] = super().handle_query_params(params)
        if "page_above" in criteria:
            raise NotImplementedError("page_above: pages go by page_offset or page_number")
        listing = isinstance(params, EntryListingQueryParams)
        if listing and not params.response_fields:
            criteria["fields"] -= self.by_frame
        if listing and criteria["fields"] & self.by_frame and criteria["limit"] > FRAMES_LIMIT:
            raise Forbidden(detail=f"page_limit is {FRAMES_LIMIT} at most where values of all frames are asked for")
        return criteria | {"shown": criteria["fields"]}

    def parse_sort_params(self, sort_params: str) -> Sequence[tuple[str, int]]:
        """Return by what to sort, and 1 or -1 for the direction.

        Raises:
            BadRequest: entries cannot be sorted by it.
        """
        wanted = list(super().parse_sort_params(sort_params))
        for name, _ in wanted:
            if name not in self.properties or not self.properties[name].sortable:
                raise BadRequest(detail=f"entries cannot be sorted by {name}")
        return wanted

    def get_next_query_params(
        self, params: EntryListingQueryParams, results: dict[str, Any] | list[dict[str, Any]] | None
    ) -> dict[str, list[str]]:
        """Return the parameters of the next page; theirs do not count `page_number` up."""
        if params.page_number is not None and not params.page_offset:
            return {"page_number": [str(max(params.page_number, 1) + 1)]}
        next_page: dict[str, list[str]] = super().get_next_query_params(params, results)
        return next_page

    def _run_db_query(
        self, criteria: dict[str, Any], single_entry: bool = False
    ) -> tuple[list[dict[str, Any]], int | None, bool]:
        """Return documents, how many match in all, and whether more come after these."""
        skip = criteria.get("skip", 0)
        order = [
            f"{self.properties[name].sql} {'ASC' if direction > 0 else 'DESC'} NULLS LAST"
            for name, direction in criteria.get("sort", [])
        ]
        found = self._index.query(
            f"SELECT position FROM entries WHERE {criteria['filter'] or 'TRUE'} "
            f"ORDER BY {', '.join([*order, 'position'])} LIMIT {criteria['limit']} OFFSET {skip}"
        )
        documents = self._documents([row["position"] for row in found], criteria["shown"])
        total = len(documents) if single_entry else self.count(**criteria)
        return documents, total, skip + len(documents) < total

    def _documents(self, positions: Sequence[int], shown: set[str]) -> list[dict[str, Any]]:
        """Return some properties of some entries."""
        if not positions:
            return []
        wanted = [p for name, p in self.properties.items() if name in shown and name not in self.by_frame]
        values = [f'{p.sql if p.column is None else chr(34) + p.column + chr(34)} AS "{p.name}"' for p in wanted]
        listed = ", ".join(map(str, positions))
        rows = self._index.query(
            f"SELECT position AS of, {', '.join(values)} FROM entries "
            f"WHERE position BETWEEN {min(positions)} AND {max(positions)} AND position IN ({listed})"
        )
        by_position = {row.pop("of"): row for row in rows}
        for row in rows:
            self._finish(row)
        by_frame = [self.properties[name] for name in sorted(self.by_frame & shown)]
        if by_frame:
            frames = self._index.frames(positions, sorted({str(p.column) for p in by_frame}))
            for position, row in by_position.items():
                row |= {p.name: frames[position][str(p.column)] for p in by_frame}
        return [by_position[position] for position in positions]

    def _finish(self, row: dict[str, Any]) -> None:
        """Make values what JSON is to have."""
        if row.get("last_modified"):
            row["last_modified"] = row["last_modified"].replace(tzinfo=UTC)
        if row.get("species"):
            row["species"] = _species(row["species"])
        if self.by_frame:
            row |= {name: [row[name]] for name in STANDARD if row.get(name) is not None}


@lru_cache(maxsize=10_000)
def _species(text: str) -> list[dict[str, Any]]:
    """Return species without the keys that say nothing."""
    return [{key: value for key, value in one.items() if value is not None} for one in json.loads(text)]
