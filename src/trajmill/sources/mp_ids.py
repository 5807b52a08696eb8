"""Identifiers of the Materials Project: `mp-149`, `mp-ft` and `aaaaaaft` are the same task."""

from __future__ import annotations

import re
from string import ascii_lowercase

LAST_INTEGER_ID = 3_347_529
"""Newest id the Materials Project still writes as an integer; later ones are letters (AlphaID) only."""

_PREFIXED_INTEGER = re.compile(r"(mp|mvc)-([0-9]+)")
_PREFIXED_LETTERS = re.compile(r"(mp|mvc)-([a-z]+)")
_PADDED_LETTERS = re.compile(r"[a-z]{8}")


def alpha_to_int(letters: str) -> int:
    """Return the integer that an AlphaID without prefix stands for: base 26, a = 0, padded with `a` on the left."""
    value = 0
    for letter in letters:
        value = value * 26 + ord(letter) - ord("a")
    return value


def int_to_alpha(value: int) -> str:
    """Return the AlphaID of an integer >= 0, without prefix and padding."""
    letters = ascii_lowercase[value % 26]
    while value := value // 26:
        letters = ascii_lowercase[value % 26] + letters
    return letters


def canonical_task_id(raw: str) -> str:
    """Return the one form of an identifier under which tasks and materials are joined.

    Args:
        raw: the identifier as a document writes it.

    Returns:
        `mp-149` for `mp-149`, `mp-ft` and `aaaaaaft`; above `LAST_INTEGER_ID` the letters without padding, `mp-hinte`.
        The prefix `mvc-` is kept. Identifiers that are not the Materials Project's stay as they are.
    """
    if match := _PREFIXED_INTEGER.fullmatch(raw):
        prefix, value = match[1], int(match[2])
    elif match := _PREFIXED_LETTERS.fullmatch(raw):
        prefix, value = match[1], alpha_to_int(match[2])
    elif _PADDED_LETTERS.fullmatch(raw):
        prefix, value = "mp", alpha_to_int(raw)
    else:
        return raw
    return f"{prefix}-{value}" if value <= LAST_INTEGER_ID else f"{prefix}-{int_to_alpha(value)}"
