"""The dataset card of a release: every number in it is counted, none is typed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from trajmill.releases.citations import ATTRIBUTION, bibtex, licence_of

ABOUT_ROWS = """
Each row is a frame; the rows of a trajectory follow each other in the order computed. `initial_structures` holds input
geometries without labels. Energies of different functionals or run types (GGA, GGA+U) do not compare. `e0s.json` holds
isolated-atom reference energies by least squares, per functional and run type.
""".strip()

ABOUT_RULES = """
What is not here was turned away by a rule and counted; a record counts as rejected when no frame of it was kept.
""".strip()

HOW_TO_LOAD = """```python
from datasets import load_dataset

here = "<this repository or folder>"
{examples}
```

`streaming=True` reads without downloading everything first. As arrays over whole trajectories, from a local copy:

```python
import trajmill

for trajectory in trajmill.open("<folder>", "{first}").trajectories():
    trajectory.energy, trajectory.forces, trajectory.stress
```"""

CITING = """
Please cite the sources you use. The columns and the idea of one dataset of these databases are those of LeMat-Traj by
[LeMaterial](https://huggingface.co/LeMaterial) ([arXiv:2508.20875](https://arxiv.org/abs/2508.20875)).
""".strip()

HOW_MADE = """
Version {version} of a trajmill store, by the recipe and from the raw files (their digests) in `trajmill.json`; the same
version and recipe give the same bytes. `croissant.json` describes files, with their digests, and columns for machines.
The rows were written with:
""".strip()

STRESS = {
    "kBar": "kBar, as VASP prints it: positive when the cell is compressed",
    "eV/A^3": "eV/A^3, positive under tension (ASE sign): -(VASP kBar value)/1602.1766208",
}

SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B")),
)
"""Hugging Face's size categories by upper bound."""

TAGS = ("chemistry", "physics", "materials-science", "dft", "interatomic-potentials", "croissant")


class SplitSize(NamedTuple):
    """How much a split of a configuration holds.

    Attributes:
        frames: rows.
        in_memory: bytes of their values.
        on_disk: bytes of its files.
    """

    frames: int
    in_memory: int
    on_disk: int


SplitSizes = Mapping[str, SplitSize]


def dataset_card(manifest: dict[str, Any], schema: pa.Schema, n_bytes: Mapping[str, SplitSizes]) -> str:
    """Write the README.md of a release.

    Args:
        manifest: what the release holds, as in `trajmill.json`.
        schema: its columns.
        n_bytes: of each configuration, for each of its splits, frames and size in memory and on disk.
    """
    sources = sorted({row["source"] for row in manifest["contents"]})
    versions = ", ".join(manifest["packages"].get("trajmill", []))
    contents = (
        [
            *(row[key] for key in ("configuration", "source", "functional", "run_type")),
            f"{row['trajectories']:,}",
            f"{row['frames']:,}",
        ]
        for row in manifest["contents"]
    )
    units = (
        ("energy", "eV per cell, the energy whose gradient the forces are"),
        ("forces", "eV/A, as computed, no drift removed"),
        ("stress_tensor", STRESS[manifest["stress_unit"]]),
        ("lengths", "A; lattice vectors as rows, Cartesian positions"),
    )
    parts = [
        _front_matter(manifest, schema, n_bytes),
        "# Relaxation trajectories from DFT",
        f"{sum(manifest['frames'].values()):,} frames from {', '.join(sources)}, unified and curated by trajmill "
        f"{versions} (store version {manifest['store_version']}, schema `{manifest['format']}`).",
        _how_to_load(n_bytes),
        "## Contents",
        _table(("configuration", "source", "functional", "run type", "trajectories", "frames"), contents),
        ABOUT_ROWS,
        *_about_split(manifest),
        "## Units and conventions",
        _table(("quantity", "unit and convention"), units),
        "## Curation",
        f"Read: {manifest['read']['records']:,} records, {manifest['read']['frames']:,} frames.",
        ABOUT_RULES,
        _table(("rule", "frames rejected", "records rejected"), _curation(manifest)),
        "## Columns",
        _table(("column", "type", "unit", "meaning"), (_column(f) for f in schema)),
        "## Sources and licences",
        "\n".join(f"- {ATTRIBUTION.get(s, s)}" for s in sources),
        "Licences of the frames, as their sources name them: "
        + ", ".join(f"{name} ({n:,})" for name, n in manifest["licences"].items())
        + ".",
        "## How to cite",
        CITING,
        "```bibtex\n" + bibtex(manifest) + "\n```",
        "## How it was made",
        HOW_MADE.format(version=manifest["store_version"]),
        _table(("package", "version"), ((k, ", ".join(v)) for k, v in manifest["packages"].items())),
    ]
    return "\n\n".join(parts)


def _how_to_load(sizes: Mapping[str, SplitSizes]) -> str:
    """Write one line of Python for each split of each configuration."""
    lines = [
        f'{name if len(splits) == 1 else f"{name}_{split}"} = load_dataset(here, "{name}", split="{split}")'
        f"  # {size.frames:,} frames"
        for name, splits in sizes.items()
        for split, size in splits.items()
    ]
    return HOW_TO_LOAD.format(examples="\n".join(lines), first=next(iter(sizes)))


def _about_split(manifest: dict[str, Any]) -> Iterable[str]:
    """Say how splits were made, if they were."""
    if made := manifest.get("split"):
        yield (
            f"Split by trajectories into {', '.join(made['names'])}, by the rule `{json.dumps(made['rule'])}`; digest "
            f"of the assignment `{made['digest']}`."
        )


def _curation(manifest: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    frames, records = manifest["rejected_at_build"], manifest["records_rejected_at_build"]
    for rule in sorted({*frames, *records}):
        yield rule, f"{frames.get(rule, 0):,}", f"{records.get(rule, 0):,}"
    for rule, n in manifest["rejected_at_release"].items():
        yield f"{rule} (at release)", f"{n:,}", ""


def _column(column: pa.Field) -> tuple[str, str, str, str]:
    metadata = {k.decode(): v.decode() for k, v in (column.metadata or {}).items()}
    return f"`{column.name}`", str(column.type).replace("item: ", ""), metadata["unit"], metadata["description"]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _front_matter(manifest: dict[str, Any], schema: pa.Schema, n_bytes: Mapping[str, SplitSizes]) -> str:
    """Write the YAML that the Hub and `datasets` read: configurations, features, sizes, licence."""
    total = sum(manifest["frames"].values())
    size = next((name for bound, name in SIZES if total < bound), "10B<n<100B")
    lines = [
        "---",
        f"license: {licence_of(manifest)}",
        "pretty_name: Relaxation trajectories",
        "task_categories:",
        "- other",
        "size_categories:",
        f"- {size}",
        "tags:",
    ]
    lines += [f"- {tag}" for tag in TAGS]
    lines.append("configs:")
    for name, splits in n_bytes.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*.parquet"]
    lines.append("dataset_info:")
    for name, splits in n_bytes.items():
        lines += [f"- config_name: {name}", "  features:"]
        for column in schema:
            lines += [f"  - name: {column.name}", *_feature(column.type, 4)]
        lines.append("  splits:")
        for part, amount in splits.items():
            lines += [f"  - name: {part}", f"    num_bytes: {amount.in_memory}", f"    num_examples: {amount.frames}"]
        lines.append(f"  download_size: {sum(size.on_disk for size in splits.values())}")
        lines.append(f"  dataset_size: {sum(size.in_memory for size in splits.values())}")
    return "\n".join([*lines, "---"])


def _feature(dtype: pa.DataType, indent: int) -> list[str]:
    """Write a type as `datasets` writes it: `sequence:` for every level of a list."""
    space = " " * indent
    if not pa.types.is_list(dtype):
        return [f"{space}dtype: {_dtype(dtype)}"]
    if pa.types.is_list(dtype.value_type):
        return [f"{space}sequence:", *_feature(dtype.value_type, indent + 2)]
    return [f"{space}sequence: {_dtype(dtype.value_type)}"]


def _dtype(dtype: pa.DataType) -> str:
    return {"double": "float64"}.get(str(dtype), str(dtype))
