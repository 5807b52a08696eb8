"""OPTIMADE's whole language of filters, as its grammar has it, to conditions in DuckDB's SQL.

`trajmill.filters` is the language for people; this one is for clients, and keeps to the letter of the specification:
timestamps, lists of numbers, operators in lists, properties of other providers, and which error is which.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime
from threading import Lock
from typing import Any, NamedTuple

from lark import Lark, Token, Tree, v_args
from lark.exceptions import LarkError
from optimade.exceptions import BadRequest
from optimade.filterparser.lark_parser import AVAILABLE_PARSERS
from optimade.filtertransformers.base_transformer import BaseTransformer
from optimade.warnings import UnknownProviderProperty

from trajmill.optimade.properties import NUMBER, TEXT, TIME, TRUTH, UNKNOWN, Property

REVERSED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
FUZZY = {"CONTAINS": "contains", "STARTS": "starts_with", "ENDS": "ends_with"}


class Parser:
    """Parses filters by the newest grammar of optimade-python-tools; theirs is not for several threads."""

    def __init__(self) -> None:
        newest = max(AVAILABLE_PARSERS)
        grammar = AVAILABLE_PARSERS[newest]["default"].read_text(encoding="utf-8")
        # their tree does not say whether a truth value was TRUE or FALSE
        self._lark = Lark(re.sub("^bool:", "!bool:", grammar, flags=re.MULTILINE), maybe_placeholders=False)
        self._lock = Lock()

    def parse(self, text: str) -> Tree[Any]:
        """Return the tree of a filter.

        Raises:
            BadRequest: it cannot be read.
        """
        try:
            with self._lock:
                return self._lark.parse(text)
        except LarkError as error:
            raise BadRequest(detail=f"filter {text!r} cannot be read: {error}") from error


class Value(NamedTuple):
    """A value in a filter.

    Attributes:
        sql: as a literal.
        kind: `number`, `text` or `truth value`.
        text: of a text, what it says.
    """

    sql: str
    kind: str
    text: str = ""


def transformer(properties: Mapping[str, Property], never: Set[str], prefix: str, others: Set[str]) -> Any:  # noqa: C901 (a method for each rule of the grammar)
    """Return what turns the tree of a filter into SQL, from its leaves up.

    What OPTIMADE leaves open and is not there raises NotImplementedError, which is answered with 501. A comparison with
    what is unknown is null in SQL, and so is its negation: neither matches, as OPTIMADE wants it.

    Args:
        properties: that can be asked for, by name.
        never: names of properties that are OPTIMADE's but of which no entry has a value.
        prefix: of our own properties.
        others: prefixes of other providers.
    """

    class ToSql(BaseTransformer):  # type: ignore[misc]  # mypy does not follow optimade
        def filter(self, conditions: list[str]) -> str:
            return conditions[0] if conditions else "TRUE"

        def expression(self, conditions: list[str]) -> str:
            return f"({' OR '.join(conditions)})"

        def expression_clause(self, conditions: list[str]) -> str:
            return f"({' AND '.join(conditions)})"

        def expression_phrase(self, parts: list[str]) -> str:
            return f"(NOT {parts[1]})" if len(parts) > 1 else parts[0]

        @v_args(inline=True)
        def property_first_comparison(self, asked: Property, condition: Callable[[Property], str]) -> str:
            return condition(asked)

        @v_args(inline=True)
        def constant_first_comparison(self, value: Value, operator: str, asked: Property) -> str:
            return _compared(asked, REVERSED.get(operator, operator), value)

        @v_args(inline=True)
        def value_op_rhs(self, operator: str, value: Value) -> Callable[[Property], str]:
            return lambda asked: _compared(asked, operator, value)

        @v_args(inline=True)
        def known_op_rhs(self, _: str, known: str) -> Callable[[Property], str]:
            return lambda asked: f"({asked.sql} IS {'NOT ' if known == 'KNOWN' else ''}NULL)"

        def fuzzy_string_op_rhs(self, parts: list[Any]) -> Callable[[Property], str]:
            return lambda asked: _fuzzy(asked, parts[0], parts[-1])

        def set_op_rhs(self, parts: list[Any]) -> Callable[[Property], str]:
            _, *how, values = parts
            if isinstance(values, list):
                return lambda asked: _has(asked, str(how[0]), values)
            return lambda asked: _has(asked, "ANY", [(str(how[0]) if how else "=", values)])

        def value_list(self, parts: list[Any]) -> list[tuple[str, Value]]:
            operator, values = "=", []
            for part in parts:
                if isinstance(part, Token):
                    operator = str(part)
                else:
                    values.append((operator, part))
                    operator = "="
            return values

        def length_op_rhs(self, parts: list[Any]) -> Callable[[Property], str]:
            operator = parts[1] if len(parts) > 2 else "="
            return lambda asked: f"(len({_list(asked)}) {operator} {parts[-1]})"

        def property(self, names: list[str]) -> Property:
            name = str(names[0])
            if len(names) > 1:
                raise NotImplementedError(f"{'.'.join(names)}: nested properties cannot be asked for")
            if name in properties:
                return properties[name]
            provider = name.split("_")[1] if name.startswith("_") else ""
            if name in never or provider not in ("", prefix):
                if provider and provider not in others:
                    warnings.warn(UnknownProviderProperty(f"{name} is of a provider that is not known"), stacklevel=2)
                return Property(name, "NULL", UNKNOWN)
            raise BadRequest(detail=f"there is no property {name}; /info says which there are")

        @v_args(inline=True)
        def string(self, token: str) -> Value:
            text = re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
            return Value("'" + text.replace("'", "''") + "'", TEXT, text)

        @v_args(inline=True)
        def number(self, token: str) -> Value:
            if not math.isfinite(float(token)):
                raise NotImplementedError(f"{token} is out of the range of numbers, which is that of double precision")
            return Value(str(token), NUMBER)

        @v_args(inline=True)
        def bool(self, token: str) -> Value:
            return Value(str(token), TRUTH)

        def property_zip_addon(self, _: list[Any]) -> str:
            raise NotImplementedError("lists cannot be asked for side by side")

        value_zip = value_zip_list = set_zip_op_rhs = property_zip_addon

    return ToSql()


def _literal(asked: Property, value: Value | Property) -> str:
    """Return the SQL of a value that a property is compared with."""
    if isinstance(value, Property):
        raise NotImplementedError(f"{asked.name}: properties cannot be compared with each other")
    if asked.kind == TIME and value.kind == TEXT:
        try:
            moment = datetime.fromisoformat(value.text)
        except ValueError:
            raise BadRequest(detail=f"{value.text!r} is no time of RFC 3339, such as 2025-01-31T12:00:00Z") from None
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
        return f"TIMESTAMP '{moment.replace(tzinfo=None).isoformat(' ')}'"
    if asked.kind not in (value.kind, UNKNOWN):
        raise NotImplementedError(f"{asked.name} is a {asked.kind} and cannot be compared with a {value.kind}")
    return value.sql


def _compared(asked: Property, operator: str, value: Value | Property) -> str:
    literal = _literal(asked, value)
    if asked.listed:
        raise NotImplementedError(f"{asked.name} is a list, which HAS values or a LENGTH")
    if asked.kind == TRUTH and operator not in ("=", "!="):
        raise NotImplementedError(f"{asked.name} is TRUE or FALSE and has no order")
    return f"({asked.sql} {operator} {literal})"


def _fuzzy(asked: Property, operator: str, value: Value | Property) -> str:
    literal = _literal(asked, value)
    if asked.listed or asked.kind not in (TEXT, UNKNOWN) or isinstance(value, Property) or value.kind != TEXT:
        raise NotImplementedError(f"{operator} is for texts, which {asked.name} is not, or not what it was asked with")
    return f"{FUZZY[operator]}({asked.sql}, {literal})"


def _list(asked: Property) -> str:
    """Return the SQL of a list."""
    if asked.kind == UNKNOWN:
        return "NULL::VARCHAR[]"
    if not asked.listed:
        raise NotImplementedError(f"{asked.name} is no list")
    return asked.sql


def _has(asked: Property, how: str, values: Sequence[tuple[str, Value | Property]]) -> str:
    """Return whether a list has all or any of some values, or nothing else; null where it is unknown."""
    listed = _list(asked)
    wanted = [(operator, _literal(asked, value)) for operator, value in values]
    each = [f"e {operator} {literal}" for operator, literal in wanted]
    there = [
        f"list_contains({listed}, {literal})"
        if operator == "="
        else f"(len([e for e in {listed} if e {operator} {literal}]) > 0)"
        for operator, literal in wanted
    ]
    if how == "ONLY":
        found = f"len([e for e in {listed} if NOT ({' OR '.join(each)})]) = 0"
    else:
        found = (" AND " if how == "ALL" else " OR ").join(there)
    return f"(CASE WHEN {listed} IS NOT NULL THEN {found} END)"
