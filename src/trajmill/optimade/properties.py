"""What can be asked of the entries that are served: OPTIMADE's properties, and the other columns under a prefix."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

import pyarrow as pa

from trajmill.schema import ADDED, PARTITIONS, PUBLISHED

NUMBER, TEXT, TRUTH, TIME, LIST, UNKNOWN = "number", "text", "truth value", "timestamp", "list", "unknown"

STANDARD = (
    "elements", "nelements", "elements_ratios", "chemical_formula_descriptive", "chemical_formula_reduced",
    "chemical_formula_anonymous", "dimension_types", "nperiodic_dimensions", "nsites", "species", "species_at_sites",
    "lattice_vectors", "cartesian_site_positions", "space_group_it_number",
)  # fmt: skip
"""Columns that are properties of OPTIMADE's structures, of the same name."""

BY_FRAME = (
    "lattice_vectors", "cartesian_site_positions", "space_group_it_number", "energy", "energy_corrected",
    "energy_sigma0", "energy_above_final", "forces", "stress_tensor", "max_force", "magnetic_moments", "encut",
    "cross_compatibility", "relaxation_step", "relaxation_number",
)  # fmt: skip
"""Columns that differ from frame to frame of a trajectory."""

OURS = {"immutable_id": "material_id"}
"""Columns with another name behind the prefix."""

HIDDEN = {"id", "last_modified", "is_final", *STANDARD} - {"space_group_it_number"}
"""Columns that are properties of OPTIMADE's or the same for all entries."""


class Property(NamedTuple):
    """A property of an entry.

    Attributes:
        name: that a client asks for.
        sql: what it is in the table `entries`; of a trajectory that of its last frame.
        kind: what it, or a value of a list, can be compared with; `list` where values are lists or more.
        listed: whether it is a list.
        column: that it is read from, which has the unit and the description; None for one that is no column.
    """

    name: str
    sql: str
    kind: str
    listed: bool = False
    column: str | None = None

    @property
    def sortable(self) -> bool:
        """Whether entries can be sorted by it."""
        return not self.listed and self.kind in (NUMBER, TEXT, TRUTH, TIME)


def of_structures(schema: pa.Schema, prefix: str) -> dict[str, Property]:
    """Return the properties of `structures`, the last frames, by name."""
    return _named([
        Property("id", "id", TEXT),
        Property("type", "'structures'", TEXT),
        Property("immutable_id", "id", TEXT),
        Property("structure_features", "[]::VARCHAR[]", TEXT, listed=True),
        *_columns(schema, prefix),
    ])  # fmt: skip


def of_trajectories(schema: pa.Schema, prefix: str) -> dict[str, Property]:
    """Return the properties of `trajectories`, by name."""
    return _named([
        Property("id", "trajectory_id", TEXT),
        Property("type", "'trajectories'", TEXT),
        Property("immutable_id", "trajectory_id", TEXT),
        Property("nframes", "n_frames", NUMBER),
        Property("reference_frames", "list_distinct([0, n_frames - 1]).list_sort()", NUMBER, listed=True),
        *(p for p in _columns(schema, prefix) if p.column != "trajectory_id"),
    ])  # fmt: skip


def _named(properties: list[Property]) -> dict[str, Property]:
    return {p.name: p for p in properties}


def _columns(schema: pa.Schema, prefix: str) -> list[Property]:
    fields = {field.name: field.type for field in schema}
    fields |= {"trajectory_id": pa.string(), "max_force": pa.float64()}  # the index has them in any case
    found = [Property("last_modified", "modified", TIME)]
    for column, dtype in fields.items():
        kind, listed = _kind(dtype)
        sql = f'"{column}"'
        if column == "species":  # text, as many as there are elements
            sql, kind, listed = "elements", LIST, True
        if column in STANDARD:
            found.append(Property(column, sql, kind, listed, column))
        if column not in HIDDEN:
            found.append(Property(f"_{prefix}_{OURS.get(column, column)}", sql, kind, listed, column))
    return found


def _kind(dtype: pa.DataType) -> tuple[str, bool]:
    """Return what a column can be compared with, and whether it is a list of it."""
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        kind, nested = _kind(dtype.value_type)
        return (LIST if nested else kind), True
    if pa.types.is_boolean(dtype):
        return TRUTH, False
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return NUMBER, False
    return TEXT, False


_ABOUT = {column.name: column for column in (*PUBLISHED, *ADDED, *PARTITIONS)}


def describe(known: Property, by_frame: Set[str]) -> dict[str, Any]:
    """Return what `/info` says of a property that OPTIMADE does not define.

    Args:
        known: the property.
        by_frame: names of those that have a value for each frame.
    """
    about = _ABOUT.get(known.column or "")
    types = {TEXT: "string", TRUTH: "boolean", NUMBER: "float", TIME: "timestamp"}
    dtype = "list" if known.listed or known.name in by_frame else types[known.kind]
    if dtype == "float" and about is not None and pa.types.is_integer(about.type):
        dtype = "integer"
    said = about.description if about is not None else f"Column {known.column} of the dataset."
    if known.name in by_frame:
        said += " A value for each frame; a filter asks for the last frame's."
    described = {"description": said, "type": dtype, "sortable": known.sortable}
    return described | ({"unit": about.unit.replace("A", "Å")} if about is not None and about.unit else {})
