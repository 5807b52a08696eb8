"""What the page asks for: parameters of an address, checked, as a condition for DuckDB with values beside it.

Nothing that a user writes becomes SQL. Values are bound; names of columns come from tables here; a filter goes through
the grammar of `trajmill.filters`, which knows the columns of the index and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trajmill.elements import NUMBERS
from trajmill.errors import FilterError
from trajmill.explorer.indexing import SCHEMA
from trajmill.filters import to_sql

SYSTEMS = {
    "triclinic": (1, 2),
    "monoclinic": (3, 15),
    "orthorhombic": (16, 74),
    "tetragonal": (75, 142),
    "trigonal": (143, 167),
    "hexagonal": (168, 194),
    "cubic": (195, 230),
}
"""First and last space group of each crystal system."""

SORTS = {
    "stored": "number",
    "formula": "chemical_formula_reduced",
    "id": "trajectory_id",
    "source": "source",
    "functional": "functional",
    "space_group": "space_group_it_number",
    "sites": "nsites",
    "frames": "n_frames",
    "energy": "energy_per_atom",
    "drop": "energy_drop",
    "force": "max_force",
}
"""What trajectories can be sorted by."""

PAGE = 50
"""Trajectories of a page."""

LONGEST = 2000
"""Characters of a filter, at most."""

MOST = 2**31 - 1

KNOWN = {"include", "exclude", "only", "source", "functional", "system", "space_group", "min_sites", "max_sites",
         "filter", "sort", "descending", "page"}  # fmt: skip


class QueryError(Exception):
    """A parameter makes no sense.

    Args:
        name: of the parameter.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True)
class Query:
    """Which trajectories are wanted, and in which order.

    Attributes:
        condition: in DuckDB's SQL, with the names of `values` in it.
        values: by name.
        order: in DuckDB's SQL.
        page: which page of it, from 0.
    """

    condition: str
    values: dict[str, Any]
    order: str
    page: int


def read(parameters: Mapping[str, str]) -> Query:
    """Read the parameters of an address.

    Raises:
        QueryError: one is unknown or makes no sense.
    """
    if unknown := sorted(parameters.keys() - KNOWN):
        raise QueryError(unknown[0], f"nothing is called {unknown[0]}")
    given = {name: value for name, value in parameters.items() if value.strip()}
    found = [*_of_elements(given), *_of_names(given), *_of_numbers(given)]
    conditions = [condition for condition, _ in found]
    if "filter" in given:
        conditions.append(_filter(given["filter"]))
    column = _one_of(given, "sort", SORTS) if "sort" in given else "number"
    way = "DESC" if "descending" in given else "ASC"
    return Query(
        condition=" AND ".join(conditions) or "TRUE",
        values={name: value for _, values in found for name, value in values.items()},
        order=f"{column} {way} NULLS LAST, number",
        page=_number(given, "page") if "page" in given else 0,
    )


Part = tuple[str, dict[str, Any]]
"""A condition and its values."""


def _of_elements(given: Mapping[str, str]) -> Iterator[Part]:
    include, exclude = _elements(given, "include"), _elements(given, "exclude")
    if include:
        yield "list_has_all(elements, $include)", {"include": include}
        if "only" in given:
            yield "list_has_all($include, elements)", {}
    if exclude:
        yield "NOT list_has_any(elements, $exclude)", {"exclude": exclude}


def _of_names(given: Mapping[str, str]) -> Iterator[Part]:
    for name in ("source", "functional"):
        if name in given:
            yield f"{name} = ${name}", {name: given[name]}
    if "system" in given:
        low, high = _one_of(given, "system", SYSTEMS)
        yield "space_group_it_number BETWEEN $low AND $high", {"low": low, "high": high}


def _of_numbers(given: Mapping[str, str]) -> Iterator[Part]:
    for name, compared in (
        ("space_group", "space_group_it_number ="),
        ("min_sites", "nsites >="),
        ("max_sites", "nsites <="),
    ):
        if name in given:
            yield f"{compared} ${name}", {name: _number(given, name)}


def _filter(text: str) -> str:
    if len(text) > LONGEST:
        raise QueryError("filter", f"longer than {LONGEST} characters")
    try:
        return to_sql(text, SCHEMA)
    except FilterError as error:
        raise QueryError("filter", str(error)) from None
    except RecursionError:
        raise QueryError("filter", "too many brackets within brackets") from None


def _elements(given: Mapping[str, str], name: str) -> list[str]:
    symbols = given[name].split(",") if name in given else []
    if wrong := [symbol for symbol in symbols if symbol not in NUMBERS]:
        raise QueryError(name, f"{wrong[0][:20]!r} is no element")
    return symbols


def _one_of(given: Mapping[str, str], name: str, known: Mapping[str, Any]) -> Any:
    if given[name] not in known:
        raise QueryError(name, f"one of {', '.join(known)}")
    return known[given[name]]


def _number(given: Mapping[str, str], name: str) -> int:
    text = given[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MOST):
        raise QueryError(name, "a whole number, 0 or more")
    return int(text)
