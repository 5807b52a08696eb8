"""The numbers of figures: a dataset is read once, by DuckDB, and what all figures ask for is counted from that.

Three tables are made on the way, in a scratch file and in bounded memory, whatever the size of the dataset:

- `frames`: trajectory, functional, source, formula, sites, stage, step, space_group (0 unknown), energy (eV),
  above_final (eV/atom), max_force (eV/A), stress (a third of its trace, eV/A^3, positive under tension), volume (A^3).
  `energies` is the same with `above_final` also where no column of the dataset says it.
- `stages`, the calculations of trajectories: frames, and of the first and the last one step, space group and volume.
- `trajectories`: the same, and their source, functional, formula, sites and number of stages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from trajmill.analysis.base import Figure, NoFigureError, Subject
from trajmill.dataset import Dataset
from trajmill.rows import trajectory_id
from trajmill.subsets import _SOURCE
from trajmill.units import KBAR_PER_EV_PER_A3, MAX_STRESS_ASYMMETRY_KBAR

MEMORY = "1GB"
"""What DuckDB holds at most; the rest goes to the scratch file."""

THREADS = 4
"""What that memory is enough for."""

CONTENTS = """
SELECT source, functional, count(*) AS trajectories, sum(frames)::BIGINT AS frames FROM trajectories
GROUP BY ALL ORDER BY ALL
"""
"""What is counted whatever the figures."""

_STAGES = """
SELECT trajectory, stage, any_value(functional) AS functional, any_value(source) AS source,
       any_value(formula) AS formula, any_value(sites) AS sites, count(*) AS frames,
       min(step) AS first_step, max(step) AS last_step,
       arg_min(space_group, step) AS first_group, arg_max(space_group, step) AS last_group,
       arg_min(volume, step) AS first_volume, arg_max(volume, step) AS last_volume, arg_max(energy, step) AS energy
FROM frames GROUP BY trajectory, stage
"""

_TRAJECTORIES = """
SELECT trajectory, any_value(functional) AS functional, any_value(source) AS source,
       any_value(formula) AS formula, any_value(sites) AS sites, count(*) AS stages, sum(frames)::BIGINT AS frames,
       min(first_step) AS first_step, max(last_step) AS last_step,
       arg_min(first_group, first_step) AS first_group, arg_max(last_group, last_step) AS last_group,
       arg_min(first_volume, first_step) AS first_volume, arg_max(last_volume, last_step) AS last_volume,
       arg_max(energy, last_step) AS energy
FROM stages GROUP BY trajectory
"""

_ABOVE = """
SELECT frames.* EXCLUDE (above_final), (frames.energy - trajectories.energy) / frames.sites AS above_final
FROM frames JOIN trajectories USING (trajectory)
"""
"""The energy above the final frame where no column says it."""


@dataclass
class Counts:
    """The numbers of figures of several datasets.

    Attributes:
        figures: that were asked for, in their order.
        contents: trajectories and frames by source and functional, by label of the dataset.
        tables: by name of the figure, then by label of the dataset.
        left_out: why there are none, likewise.
    """

    figures: Sequence[Figure]
    contents: dict[str, pa.Table] = field(default_factory=dict)
    tables: dict[str, dict[str, pa.Table]] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)


def count(
    subjects: Mapping[str, Subject],
    figures: Sequence[Figure],
    *,
    report: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> Counts:
    """Count what figures show of datasets, each of which is read once.

    Args:
        subjects: by label.
        figures: which.
        report: told datasets done and datasets in all.
    """
    counts = Counts(figures)
    for done, (label, subject) in enumerate(subjects.items()):
        report(done, len(subjects))
        tables: dict[str, pa.Table] = {}
        for figure in figures:
            try:
                _check(figure, subject)
                if callable(figure.numbers):
                    tables[figure.name] = figure.numbers(subject)
            except NoFigureError as reason:
                counts.left_out.setdefault(figure.name, {})[label] = str(reason)
        missing = {name for name, reasons in counts.left_out.items() if label in reasons}
        asked = {f.name: f.numbers for f in figures if isinstance(f.numbers, str) and f.name not in missing}
        counts.contents[label], *answers = _ask(subject.dataset, [CONTENTS, *asked.values()])
        for name, table in {**tables, **dict(zip(asked, answers, strict=True))}.items():
            counts.tables.setdefault(name, {})[label] = table
    report(len(subjects), len(subjects))
    return counts


def _check(figure: Figure, subject: Subject) -> None:
    """Refuse a figure of columns that are not there."""
    if missing := [name for name in figure.needs if name not in subject.dataset.schema.names]:
        raise NoFigureError(f"there is no column {missing[0]}")


def _ask(dataset: Dataset, questions: Sequence[str]) -> list[pa.Table]:
    """Read a dataset once and answer all questions about it."""
    above = "frames" if "energy_above_final" in dataset.schema.names else f"({_ABOVE})"
    answers = ", ".join(f"(SELECT list(x) FROM ({sql}) x) AS a{i}" for i, sql in enumerate(questions))
    with tempfile.TemporaryDirectory(prefix="trajmill-figures-") as folder:
        place = folder.replace("'", "''")
        found = dataset.ask(
            f"""
            SET preserve_insertion_order = false; SET memory_limit = '{MEMORY}'; SET temp_directory = '{place}';
            SET threads = least(current_setting('threads'), {THREADS});
            ATTACH '{place}/scratch.duckdb' AS scratch;
            CREATE TABLE scratch.frames AS {_frames(dataset)};
            CREATE TEMP VIEW frames AS FROM scratch.frames;
            CREATE TABLE scratch.stages AS {_STAGES};
            CREATE TEMP VIEW stages AS FROM scratch.stages;
            CREATE TABLE scratch.trajectories AS {_TRAJECTORIES};
            CREATE TEMP VIEW trajectories AS FROM scratch.trajectories;
            CREATE TEMP VIEW energies AS FROM {above};
            SELECT {answers}
            """
        )
    return [_table(column.combine_chunks()) for column in found.columns]


def _table(answer: pa.ListArray) -> pa.Table:
    """Return the only value of a column, a list of rows, as a table."""
    rows = answer.flatten()
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)])


def _frames(dataset: Dataset) -> str:
    """Write the SQL of `frames`; what a dataset has no column for is null."""
    there = set(dataset.schema.names)

    def known(sql: str, *columns: str, otherwise: str = "NULL") -> str:
        return sql if there.issuperset(columns) else otherwise

    by_id = _SOURCE.format(id="id")
    largest = "sqrt(list_max([f[1] * f[1] + f[2] * f[2] + f[3] * f[3] FOR f IN forces]))"
    return f"""
    SELECT {trajectory_id(dataset.schema)} AS trajectory,
           coalesce({known("functional", "functional")}, 'unknown') AS functional,
           coalesce({known("source", "source", otherwise=by_id)}, 'unknown') AS source,
           {known("chemical_formula_reduced", "chemical_formula_reduced", otherwise="NULL::VARCHAR")} AS formula,
           {known("nsites", "nsites")}::INTEGER AS sites,
           {known("relaxation_number", "relaxation_number", otherwise="0")}::INTEGER AS stage,
           {known("relaxation_step", "relaxation_step", otherwise="0")}::INTEGER AS step,
           coalesce({known("space_group_it_number", "space_group_it_number")}, 0)::INTEGER AS space_group,
           {known("energy", "energy")}::DOUBLE AS energy,
           {known("energy_above_final", "energy_above_final")}::DOUBLE AS above_final,
           {known("max_force", "max_force", otherwise=known(largest, "forces"))}::DOUBLE AS max_force,
           {known(_mean_stress(dataset), "stress_tensor")}::DOUBLE AS stress,
           {known(_volume(), "lattice_vectors")}::DOUBLE AS volume
    FROM wanted
    """


def _mean_stress(dataset: Dataset) -> str:
    """Write the SQL of a third of the trace of the stress in eV/A^3, positive under tension."""
    s = "stress_tensor[{}][{}]".format
    trace = " + ".join(s(i, i) for i in (1, 2, 3))
    if (dataset.schema.metadata or {}).get(b"trajmill.stress_unit") != b"kBar":
        return f"(({trace}) / 3)"
    asymmetry = ", ".join(f"abs({s(i, j)} - {s(j, i)})" for i, j in ((1, 2), (1, 3), (2, 3)))
    symmetric = f"greatest({asymmetry}) <= {MAX_STRESS_ASYMMETRY_KBAR}"
    return f"(CASE WHEN {symmetric} THEN -({trace}) / {3 * KBAR_PER_EV_PER_A3!r} END)"


def _volume() -> str:
    """Write the SQL of the volume of the cell in A^3."""
    a = "lattice_vectors[{}][{}]".format
    minors = [f"{a(1, i)} * ({a(2, j)} * {a(3, k)} - {a(2, k)} * {a(3, j)})" for i, j, k in _CYCLIC]
    return f"abs({' + '.join(minors)})"


_CYCLIC = ((1, 2, 3), (2, 3, 1), (3, 1, 2))
