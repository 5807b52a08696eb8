"""What OQMD's `settings` text says about a calculation."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from trajmill.elements import NUMBERS

_LONGEST = 100_000  # characters; real ones have about a thousand, and parsing nested text takes memory


@dataclass(frozen=True)
class Settings:
    """Settings of one calculation.

    Attributes:
        encut: eV, NaN when unknown.
        ispin: 1 or 2, -1 when unknown.
        functional: `pbe`, None when a potential was made for another one.
        run_type: `GGA` or `GGA+U`; the potentials' functional when that is not PBE; None when unknown.
        hubbard_u: U - J in eV by element, empty when none is applied, None when unknown.
        potentials: names such as `Ca_pv`, None when unknown.
    """

    encut: float
    ispin: int
    functional: str | None
    run_type: str | None
    hubbard_u: Mapping[str, float] | None
    potentials: tuple[str, ...] | None


@lru_cache(maxsize=1024)
def read_settings(text: str | None) -> Settings | None:
    """Read the text of a Python dictionary; None when it is missing or no dictionary."""
    raw = _dictionary(text or "")
    if raw is None:
        return None
    names, exchange = _potentials(raw.get("potentials"))
    hubbard_u = _hubbard_u(raw, names)
    ispin = _number(raw.get("ispin"))
    run_type = None if hubbard_u is None and "hubbards" in raw else "GGA" if hubbard_u == {} else "GGA+U"
    foreign = sorted(exchange - {"PBE"})
    return Settings(
        encut=_number(raw.get("encut")),
        ispin=int(ispin) if ispin in {1, 2} else -1,
        functional=None if foreign else "pbe",
        run_type="/".join(foreign) if foreign else run_type,
        hubbard_u=hubbard_u,
        potentials=names,
    )


def _dictionary(text: str) -> dict[Any, Any] | None:
    """Parse a Python literal, by way of JSON where that says the same (ten times faster)."""
    if len(text) > _LONGEST:
        return None
    try:
        parsed = msgspec.json.decode(_as_json(text))
    except msgspec.DecodeError:
        try:
            parsed = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    return parsed if isinstance(parsed, dict) else None


def _as_json(text: str) -> str:
    """Write a Python literal as JSON; text that is no JSON for what that cannot say (tuples, other quotes)."""
    if '"' in text or "\\" in text:
        return ""
    parts = text.split("'")  # every ' opens or closes a string here, so outside and inside alternate
    outside = "'".join(parts[::2]).replace("True", "true").replace("False", "false").replace("None", "null")
    parts[::2] = outside.split("'")
    return '"'.join(parts)


def _number(value: object) -> float:
    """Take a number or the text of one, NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else float("nan")
    except (ValueError, OverflowError):
        return float("nan")


def _potentials(value: object) -> tuple[tuple[str, ...] | None, set[str]]:
    """Names and functionals of the potentials; None when they are not listed (a set's name such as 'vasp_rec')."""
    if not isinstance(value, list) or not value:
        return None, set()
    entries = [p for p in value if isinstance(p, dict)]
    names = tuple(p["name"] for p in entries if isinstance(p.get("name"), str))
    exchange = {p["xc"] for p in entries if isinstance(p.get("xc"), str)}
    return names if len(names) == len(value) else None, exchange


def _hubbard_u(raw: Mapping[Any, Any], potentials: tuple[str, ...] | None) -> dict[str, float] | None:
    """U - J by element; qmpy lists them in the order of the potentials, as `ldauus` when read from an OUTCAR."""
    if "ldau" not in raw:  # `hubbards` names a set of values that were meant to be used, not which were
        return None if raw.get("hubbards") else {}
    if str(raw["ldau"]).strip(".").upper()[:1] != "T":
        return {}
    u, j = ([_number(v) for v in raw.get(k + "s", raw.get(k)) or ()] for k in ("ldauu", "ldauj"))
    j = j or [0.0] * len(u)
    elements = [name.partition("_")[0] for name in potentials or ()]
    if not u or not len(u) == len(j) == len(elements) == len(set(elements)) or not set(elements) <= NUMBERS.keys():
        return None
    values = {e: a - b for e, a, b in zip(elements, u, j, strict=True)}
    return None if any(v != v for v in values.values()) else {e: v for e, v in values.items() if v}
