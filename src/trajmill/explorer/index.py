"""The index, asked: which trajectories there are, page by page, and where in the dataset's files one lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from trajmill.explorer.query import PAGE, Query, QueryError

_SHOWN = (
    "trajectory_id", "chemical_formula_reduced", "source", "functional", "run_type", "space_group_it_number",
    "nsites", "n_frames", "energy_per_atom", "energy_drop", "max_force", "relaxation_converged",
)  # fmt: skip
"""What the table on the page shows of each trajectory."""

_COUNTED = ("source", "functional", "space_group_it_number")


class Span(NamedTuple):
    """Where rows of a trajectory lie: in which piece of the dataset, from which row to which."""

    piece: int
    first_row: int
    last_row: int


class Index:
    """A row for each trajectory of a dataset.

    May be asked by several threads at once.

    Args:
        file: that `trajmill.explorer.indexing.prepare` made.
    """

    def __init__(self, file: Path) -> None:
        # nothing that is asked can reach other files, even if it got past the grammar of filters
        safe: dict[str, Any] = {
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "lock_configuration": "true",
        }
        self._db = duckdb.connect(file, read_only=True, config=safe)
        self._elements = self._count_elements("TRUE", {})

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def summary(self) -> dict[str, Any]:
        """Return what the whole dataset holds: numbers, and each choice with its number of trajectories."""
        n, frames, most = self._rows(
            "SELECT count(*), coalesce(sum(n_frames), 0)::BIGINT, max(nsites) FROM trajectories"
        )[0]
        choices = {
            name: self._rows(
                f"SELECT {name}, count(*) FROM trajectories WHERE {name} IS NOT NULL GROUP BY ALL ORDER BY ALL"
            )
            for name in _COUNTED
        }
        return {
            "trajectories": n,
            "frames": frames,
            "most_sites": most,
            "sources": choices["source"],
            "functionals": choices["functional"],
            "space_groups": choices["space_group_it_number"],
        }

    def page(self, query: Query) -> dict[str, Any]:
        """Return a page of the trajectories that are wanted, how many there are, and how many have each element.

        Raises:
            QueryError: its filter asks for what cannot be computed.
        """
        try:
            everything = query.condition == "TRUE"
            (total,) = self._rows(f"SELECT count(*) FROM trajectories WHERE {query.condition}", query.values)[0]
            rows = self._rows(
                f"SELECT {', '.join(_SHOWN)} FROM trajectories WHERE {query.condition} ORDER BY {query.order} "
                f"LIMIT {PAGE} OFFSET {query.page * PAGE:d}",
                query.values,
            )
            elements = self._elements if everything else self._count_elements(query.condition, query.values)
        except duckdb.Error as error:
            raise QueryError("filter", f"cannot be asked for ({str(error).splitlines()[0]})") from error
        return {
            "total": total,
            "page": query.page,
            "page_size": PAGE,
            "rows": [dict(zip(_SHOWN, row, strict=True)) for row in rows],
            "elements": elements,
        }

    def spans(self, trajectory_id: str) -> list[Span]:
        """Return where a trajectory lies, in the order of its frames; nothing for one that is not there."""
        found = self._rows(
            "SELECT piece, first_row, last_row FROM spans WHERE trajectory_id = $id ORDER BY ALL", {"id": trajectory_id}
        )
        return [Span(*row) for row in found]

    def _count_elements(self, condition: str, values: dict[str, Any]) -> dict[str, int]:
        each = f"SELECT unnest(elements) AS element FROM trajectories WHERE {condition}"
        return dict(self._rows(f"SELECT element, count(*) FROM ({each}) GROUP BY element", values))

    def _rows(self, sql: str, values: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        with self._db.cursor() as db:  # a connection of its own for each thread
            return db.execute(sql, values).fetchall()
