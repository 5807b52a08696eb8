"""The dataset card of a release: every number in it is counted, none is typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

ATTRIBUTION = {
    "mp": "[Materials Project](https://materialsproject.org), CC BY 4.0: tasks of materials under the licence BY-C.",
    "alexandria": "[Alexandria](https://alexandria.icams.rub.de), CC BY 4.0.",
    "oqmd": "[Open Quantum Materials Database](https://oqmd.org), CC BY 4.0.",
}

CITATIONS = {
    "mp": """@article{jain2013commentary,
  title = {Commentary: The Materials Project: A materials genome approach to accelerating materials innovation},
  author = {Jain, Anubhav and Ong, Shyue Ping and Hautier, Geoffroy and Chen, Wei and Richards, William Davidson and
            Dacek, Stephen and Cholia, Shreyas and Gunter, Dan and Skinner, David and Ceder, Gerbrand and
            Persson, Kristin A.},
  journal = {APL Materials}, volume = {1}, pages = {011002}, year = {2013}, doi = {10.1063/1.4812323}
}""",
    "alexandria": """@article{schmidt2024improving,
  title = {Improving machine-learning models in materials science through large datasets},
  author = {Schmidt, Jonathan and Cerqueira, Tiago F. T. and Romero, Aldo H. and Loew, Antoine and
            J{\\"a}ger, Fabian and Wang, Hai-Chen and Botti, Silvana and Marques, Miguel A. L.},
  journal = {Materials Today Physics}, volume = {48}, pages = {101560}, year = {2024},
  doi = {10.1016/j.mtphys.2024.101560}
}""",
    "oqmd": """@article{kirklin2015open,
  title = {The Open Quantum Materials Database (OQMD): assessing the accuracy of DFT formation energies},
  author = {Kirklin, Scott and Saal, James E. and Meredig, Bryce and Thompson, Alex and Doak, Jeff W. and
            Aykol, Muratahan and R{\\"u}hl, Stephan and Wolverton, Chris},
  journal = {npj Computational Materials}, volume = {1}, pages = {15010}, year = {2015},
  doi = {10.1038/npjcompumats.2015.10}
}""",
}

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

frames = load_dataset("<this repository or folder>", "{configuration}", split="train")
```"""

STRESS = {
    "kBar": "kBar, as VASP prints it: positive when the cell is compressed",
    "eV/A^3": "eV/A^3, positive under tension (ASE sign): -(VASP kBar value)/1602.1766208",
}

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
"""Hugging Face's size categories by upper bound."""


def dataset_card(manifest: dict[str, Any], schema: pa.Schema, n_bytes: dict[str, int]) -> str:
    """Write the README.md of a release.

    Args:
        manifest: what the release holds, as in `trajmill.json`.
        schema: its columns.
        n_bytes: size of each configuration in memory.
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
        HOW_TO_LOAD.format(configuration=next(iter(manifest["frames"]))),
        "## Contents",
        _table(("configuration", "source", "functional", "run type", "trajectories", "frames"), contents),
        ABOUT_ROWS,
        "## Units and conventions",
        _table(("quantity", "unit and convention"), units),
        "## Curation",
        f"Read: {manifest['read']['records']:,} records, {manifest['read']['frames']:,} frames.",
        ABOUT_RULES,
        _table(("rule", "frames rejected", "records rejected"), _curation(manifest)),
        "## Columns",
        _table(("column", "type", "unit", "meaning"), (_column(f) for f in schema)),
        "## Sources, licence and citation",
        "\n".join(f"- {ATTRIBUTION.get(s, s)}" for s in sources),
        "Please cite the sources you use:",
        "```bibtex\n" + "\n\n".join(CITATIONS[s] for s in sources if s in CITATIONS) + "\n```",
    ]
    return "\n\n".join(parts)


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


def _front_matter(manifest: dict[str, Any], schema: pa.Schema, n_bytes: dict[str, int]) -> str:
    """Write the YAML that the Hub and `datasets` read: configurations, features, sizes, licence."""
    total = sum(manifest["frames"].values())
    size = next((name for bound, name in SIZES if total < bound), "n>10M")
    lines = [
        "---",
        "license: cc-by-4.0",
        "pretty_name: Relaxation trajectories",
        "size_categories:",
        f"- {size}",
        "tags:",
    ]
    lines += [f"- {tag}" for tag in ("chemistry", "materials-science", "dft", "interatomic-potentials")]
    lines.append("configs:")
    for name in manifest["frames"]:
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train-*.parquet"]
    lines.append("dataset_info:")
    for name, n in manifest["frames"].items():
        lines += [f"- config_name: {name}", "  features:"]
        for column in schema:
            lines += [f"  - name: {column.name}", *_feature(column.type, 4)]
        lines += ["  splits:", "  - name: train", f"    num_bytes: {n_bytes[name]}", f"    num_examples: {n}"]
        lines += [f"  dataset_size: {n_bytes[name]}"]
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
