"""Filters: which frames are wanted, in the words of OPTIMADE, as a condition that DuckDB understands.

A filter is what an OPTIMADE server takes (https://schemas.optimade.org): `elements HAS ALL "Fe","O" AND nsites < 20 AND
NOT functional = "scan"`. Every column that holds a number, a text, a truth value or a list of texts can be asked for,
some under shorter names too (`ALIASES`), and a few things that are computed (`DERIVED`). What is unknown (null) matches
nothing but `IS UNKNOWN`.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from typing import Any, NamedTuple

import pyarrow as pa

from trajmill.errors import FilterError

GRAMMAR = r"""
start: any?
any: all ("OR" all)*
all: _phrase ("AND" _phrase)*
_phrase: comparison | "(" any ")" | negated
negated: "NOT" (comparison | "(" any ")")
?comparison: property OPERATOR _value -> compared
    | _value OPERATOR property -> compared_turned
    | property "IS" "KNOWN" -> known
    | property "IS" "UNKNOWN" -> unknown
    | property "CONTAINS" _value -> contains
    | property "STARTS" "WITH"? _value -> starts
    | property "ENDS" "WITH"? _value -> ends
    | property "HAS" _value -> has_all
    | property "HAS" "ALL" _values -> has_all
    | property "HAS" "ANY" _values -> has_any
    | property "HAS" "ONLY" _values -> has_only
    | property "LENGTH" OPERATOR? number -> length
property: NAME
_values: _value ("," _value)*
_value: string | number | true | false
string: STRING
number: NUMBER
true: "TRUE"
false: "FALSE"
OPERATOR: "<=" | ">=" | "!=" | "=" | "<" | ">"
NAME: /[a-z_][a-z_0-9.]*/
STRING: /"([^"\\]|\\.)*"/s
NUMBER: /[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?/
%ignore /\s+/
"""
"""OPTIMADE's grammar, but for lists side by side, operators in lists and comparisons of two properties."""

ALIASES = {"step": "relaxation_step", "stage": "relaxation_number", "space_group": "space_group_it_number"}
"""Shorter names of columns."""

DERIVED = {
    "chemical_system": ("array_to_string(elements, '-')", "text", "elements"),
    "max_force": ("list_max([sqrt(f[1]**2 + f[2]**2 + f[3]**2) for f in forces])", "number", "forces"),
}
"""What is computed where there is no column of the name: SQL, kind, and the column that it is computed from."""

EXAMPLE = 'elements HAS ALL "Fe","O" AND nsites < 20'


class Property(NamedTuple):
    """What can be asked for.

    Attributes:
        name: as it was asked.
        sql: what it is in DuckDB.
        kind: `number`, `text`, `truth value` or `list` (of texts).
    """

    name: str
    sql: str
    kind: str


def properties(schema: pa.Schema) -> dict[str, Property]:
    """Return what can be asked for of rows with this schema, by name."""
    found = {
        field.name: Property(field.name, f'"{field.name}"', kind) for field in schema if (kind := _kind(field.type))
    }
    found |= {short: found[name]._replace(name=short) for short, name in ALIASES.items() if name in found}
    for name, (sql, kind, column) in DERIVED.items():
        if name not in found and column in schema.names:
            found[name] = Property(name, sql, kind)
    return found


def to_sql(text: str, schema: pa.Schema) -> str:
    """Return the condition in DuckDB's SQL that a filter stands for.

    Args:
        text: the filter; an empty one takes everything.
        schema: of the rows it is for.

    Raises:
        FilterError: it cannot be read, or asks for what is not there.
    """
    from lark.exceptions import UnexpectedInput, VisitError

    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        at_end = getattr(getattr(error, "token", None), "type", "") == "$END"
        at = "at its end" if at_end else f"at {text[error.pos_in_stream or 0 :][:20]!r}"
        raise FilterError(f"filter {text!r}: cannot be read {at}; write for example {EXAMPLE}") from None
    try:
        return str(_translator(properties(schema)).transform(tree))
    except VisitError as error:
        if isinstance(error.orig_exc, FilterError):
            raise FilterError(f"filter {text!r}: {error.orig_exc}") from None
        raise


def _kind(dtype: pa.DataType) -> str | None:
    if pa.types.is_boolean(dtype):
        return "truth value"
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text"
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return "list" if _kind(dtype.value_type) == "text" else None
    return None


@cache
def _parser() -> Any:
    from lark import Lark

    return Lark(GRAMMAR, parser="lalr")


class _Value(NamedTuple):
    sql: str
    kind: str


def _translator(known: dict[str, Property]) -> Any:  # noqa: C901 (a method for each rule of the grammar)
    """Return what turns the tree of a filter into SQL, from its leaves up."""
    from lark import Transformer, v_args

    @v_args(inline=True)
    class Translator(Transformer[Any, str]):
        def start(self, condition: str = "TRUE") -> str:
            return condition

        def any(self, *conditions: str) -> str:
            return f"({' OR '.join(conditions)})"

        def all(self, *conditions: str) -> str:
            return f"({' AND '.join(conditions)})"

        def negated(self, condition: str) -> str:
            return f"(NOT {condition})"

        def compared(self, asked: Property, operator: str, value: _Value) -> str:
            if asked.kind == "list":
                raise FilterError(f"{asked.name} is a list: it HAS a value, HAS ALL, HAS ANY or HAS ONLY some")
            _must_be(asked.kind, value, asked)
            if asked.kind == "truth value" and operator not in ("=", "!="):
                raise FilterError(f"{asked.name} is TRUE or FALSE; compare it with = or !=")
            if asked.name == "chemical_system":  # in whatever order it was written
                value = _Value("'" + "-".join(sorted(value.sql.strip("'").split("-"))) + "'", "text")
            return f"({asked.sql} {operator} {value.sql})"

        def compared_turned(self, value: _Value, operator: str, asked: Property) -> str:
            return self.compared(asked, operator.translate(str.maketrans("<>", "><")), value)

        def known(self, asked: Property) -> str:
            return f"({asked.sql} IS NOT NULL)"

        def unknown(self, asked: Property) -> str:
            return f"({asked.sql} IS NULL)"

        def contains(self, asked: Property, value: _Value) -> str:
            return _of_text("contains", asked, value)

        def starts(self, asked: Property, value: _Value) -> str:
            return _of_text("starts_with", asked, value)

        def ends(self, asked: Property, value: _Value) -> str:
            return _of_text("ends_with", asked, value)

        def has_all(self, asked: Property, *values: _Value) -> str:
            return f"list_has_all({asked.sql}, {_listed(asked, values)})"

        def has_any(self, asked: Property, *values: _Value) -> str:
            return f"list_has_any({asked.sql}, {_listed(asked, values)})"

        def has_only(self, asked: Property, *values: _Value) -> str:
            return f"list_has_all({_listed(asked, values)}, {asked.sql})"

        def length(self, asked: Property, *rest: Any) -> str:
            if asked.kind != "list":
                raise FilterError(f"{asked.name} is no list and has no length")
            *operator, number = rest
            return f"(len({asked.sql}) {operator[0] if operator else '='} {number.sql})"

        def property(self, name: str) -> Property:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
                raise FilterError(f"nothing is called {name}; {hint}")
            return known[name]

        def string(self, token: str) -> _Value:
            try:
                text = json.loads(token, strict=False)
            except ValueError:
                raise FilterError(f"{token} has an escape that is none") from None
            return _Value("'" + text.replace("'", "''") + "'", "text")

        def number(self, token: str) -> _Value:
            return _Value(str(token), "number")

        def true(self) -> _Value:
            return _Value("TRUE", "truth value")

        def false(self) -> _Value:
            return _Value("FALSE", "truth value")

    return Translator()


def _must_be(kind: str, value: _Value, asked: Property) -> None:
    if value.kind != kind:
        raise FilterError(f"{asked.name} is a {asked.kind}, {value.sql} is a {value.kind}")


def _of_text(function: str, asked: Property, value: _Value) -> str:
    if asked.kind != "text":
        raise FilterError(f"{asked.name} is a {asked.kind}; CONTAINS, STARTS and ENDS are for texts")
    _must_be("text", value, asked)
    return f"{function}({asked.sql}, {value.sql})"


def _listed(asked: Property, values: tuple[_Value, ...]) -> str:
    if asked.kind != "list":
        raise FilterError(f"{asked.name} is a {asked.kind} and no list; HAS is for lists")
    for value in values:
        _must_be("text", value, asked._replace(kind="list of texts"))
    return f"[{', '.join(value.sql for value in values)}]"
