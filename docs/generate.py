"""Write what of the documentation follows from the code: tables of columns, rules, recipe keys; schema.json.

    python docs/generate.py           rewrite them
    python docs/generate.py --check   say which are out of date, and fail

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of `TABLES`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path, PosixPath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import measured
from measured import table
from trajmill import recipe, schema
from trajmill.annotation.compatibility import DIFFERING_ELEMENTS, OQMD_MIN_ENCUT
from trajmill.curation import RULES
from trajmill.releases.hugging_face import CONFIGURATIONS
from trajmill.releases.selection import RELEASE_RULES
from trajmill.sources.mp_settings import POTENTIALS, U_VALUES
from trajmill.sources.vasp_types import FUNCTIONALS
from trajmill.storage import ObjectPath

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
UNIT_COLUMNS = ("energy", "energy_corrected", "energy_above_final", "forces", "stress_tensor", "lattice_vectors")
UNIT_COLUMNS += ("cartesian_site_positions", "magnetic_moments", "encut", "hubbard_u")
TYPE_NAMES: dict[Any, str] = {
    Path: "path",
    PosixPath: "path",
    ObjectPath: "`s3://` address",
    recipe.DatabaseAddress: "`mysql://` address",
    bool: "`true` or `false`",
    int: "integer",
    float: "number",
    str: "text",
}
SECTIONS = ("mp", "alexandria", "oqmd", "vasp", "ase", "fetch", "rules", "annotation", "store", "engine", "release")


def columns(chosen: Iterable[schema.Column]) -> str:
    """Tabulate columns of the dataset."""
    rows = ((f"`{c.name}`", f"`{_arrow(c.type)}`", _unit(c.unit), c.description) for c in chosen)
    return table(("column", "type", "unit", "meaning"), rows)


def units() -> str:
    """Tabulate the columns that have a unit and a convention."""
    by_name = {c.name: c for c in (*schema.PUBLISHED, *schema.ADDED)}
    rows = ((f"`{name}`", _unit(by_name[name].unit), by_name[name].description) for name in UNIT_COLUMNS)
    return table(("column", "unit", "convention"), rows)


def rules() -> str:
    """Tabulate the rules in the order they run."""
    rows = []
    options = recipe.Rules()
    for rule in RULES:
        section = rule.section or rule.name
        where = ", ".join(sorted(rule.sources)) or "all"
        if rule.name == "elements":
            where = ", ".join(sorted(options.elements.exclude))
        rows.append((rule.name, where, "build", section))
    rows += [(name, "mp" if name == "primary_agreement" else "all", "release", name) for name in RELEASE_RULES]
    return table(
        ("rule", "sources", "runs at", "recipe", "default"),
        (
            (f"[`{name}`](#{name})", where, when, f"`rules.{section}`", _on(getattr(options, section).enabled))
            for name, where, when, section in rows
        ),
    )


def keys(section: str) -> str:
    """Tabulate the keys of a section of the recipe, `rules.geometry` for one below another."""
    model: Any = recipe.Recipe()
    for part in section.split("."):
        model = getattr(model, part)
    return table(("key", "values", "default", "meaning"), _keys(section, model))


def _keys(section: str, model: BaseModel) -> Iterator[Sequence[str]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _keys(f"{section}.{name}", value)
        else:
            yield f"`{section}.{name}`", _values(field), _toml(value), field.description or ""


def _values(field: FieldInfo) -> str:
    """Say in words what a key may hold."""
    bounds = "".join(
        f" {sign} {getattr(m, name)}"
        for m in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"))
        if getattr(m, name, None) is not None
    )
    return _type(field.annotation) + bounds


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f'`"{a}"`' for a in args)
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(a) for a in args if a is not NoneType)
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"table of {_type(args[1])}"
    return TYPE_NAMES[annotation]


def _toml(value: Any) -> str:
    """Write a default as it would stand in the recipe."""
    return "" if value is None else f"`{_toml_text(value)}`"


def _toml_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_text, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml_text(v)}" for k, v in value.items()) + " }"
    return str(value)


def _arrow(dtype: pa.DataType) -> str:
    return f"list<{_arrow(dtype.value_type)}>" if pa.types.is_list(dtype) else str(dtype)


def _unit(unit: str) -> str:
    return unit.replace("A", "Å").replace("^3", "³").replace("mu_B", "μB")


def _on(enabled: bool) -> str:
    return "on" if enabled else "off"


def functionals() -> str:
    """Tabulate which run types the dataset holds."""
    return table(("run type", "functional"), ((f"`{r}`", f"`{f}`") for r, f in FUNCTIONALS.items()))


def differing_elements() -> str:
    """Tabulate the elements that make a frame not cross-compatible."""
    rows = [(source, ", ".join(sorted(elements))) for source, elements in DIFFERING_ELEMENTS.items()]
    more = f"\nOQMD frames also need `ispin` 2 and a cut-off of at least {OQMD_MIN_ENCUT:g} eV.\n"
    return table(("source", "elements"), rows) + more


def input_set() -> str:
    """List the U values and potentials that are inferred for Alexandria."""
    u = ", ".join(f"{e} {value:g}" for e, value in sorted(U_VALUES.items()))
    return f"- U - J in eV, with O or F in the cell: {u}.\n- Potentials: {', '.join(POTENTIALS.values())}.\n"


def configurations() -> str:
    """List the configurations of a release."""
    return ", ".join(f"`{name}`" for name in CONFIGURATIONS) + ".\n"


TABLES: dict[str, Callable[[], str]] = {
    "columns-published": lambda: columns(schema.PUBLISHED),
    "columns-added": lambda: columns(schema.ADDED),
    "columns-ledger": lambda: columns((*schema.LEDGER, *schema.PARTITIONS)),
    "units": units,
    "rules": rules,
    "functionals": functionals,
    "differing-elements": differing_elements,
    "input-set": input_set,
    "configurations": configurations,
    **measured.TABLES,
    **{f"recipe.{s}": lambda s=s: keys(s) for s in SECTIONS},
    **{f"recipe.rules.{s}": lambda s=s: keys(f"rules.{s}") for s in recipe.Rules.model_fields},
}


def regenerate(text: str) -> str:
    """Return a page with its tables made anew."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def pages() -> list[Path]:
    """List the pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def contents() -> dict[Path, str]:
    """Return what each page, and `schema.json`, should hold."""
    texts = {page: regenerate(page.read_text("utf-8")) for page in pages()}
    columns_as_json = StringIO()
    with redirect_stdout(columns_as_json):
        schema.main()
    return texts | {ROOT / "docs" / "schema.json": columns_as_json.getvalue()}


def main() -> int:
    """Rewrite the files, or with `--check` say which would change."""
    outdated = {file: text for file, text in contents().items() if not file.exists() or file.read_text("utf-8") != text}
    for file, text in outdated.items():
        print(file.relative_to(ROOT))
        if "--check" not in sys.argv:
            file.write_text(text, "utf-8")
    if outdated and "--check" in sys.argv:
        print("out of date: run `make docs` and commit", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
