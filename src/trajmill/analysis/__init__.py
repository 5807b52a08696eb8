"""What datasets look like: figures, a report, the potential-energy surface."""

from __future__ import annotations

from trajmill.analysis import (
    energy,
    max_force,
    overlap,
    periodic_table,
    sizes,
    space_groups,
    steps,
    stress,
    volume,
    waterfall,
)

FIGURES = tuple(
    module.FIGURE
    for module in (
        periodic_table, max_force, space_groups, steps, energy, stress, volume, sizes, waterfall, overlap
    )
)  # fmt: skip
"""All figures, in the order they are shown."""

__all__ = ["FIGURES"]
