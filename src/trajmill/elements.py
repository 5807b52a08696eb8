"""Chemical symbols and the formulas made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from math import gcd
from string import ascii_uppercase

SYMBOLS: tuple[str, ...] = (
    "X",
    *"H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr".split(),
    *"Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu".split(),
    *"Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr".split(),
    *"Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og".split(),
)
"""Symbol by atomic number; 0 is ASE's placeholder X and never a valid site here."""

NUMBERS: Mapping[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}
"""Atomic number by symbol."""


def composition(symbols: Iterable[str]) -> dict[str, int]:
    """Count atoms per element, elements in alphabetical order."""
    counts: dict[str, int] = {}
    for symbol in symbols:
        counts[symbol] = counts.get(symbol, 0) + 1
    return dict(sorted(counts.items()))


def reduced_formula(counts: Mapping[str, int]) -> str:
    """Return OPTIMADE's `chemical_formula_reduced`: alphabetical, divided by the common divisor, ones left out."""
    divisor = reduce(gcd, counts.values(), 0) or 1
    return "".join(e + (str(n // divisor) if n != divisor else "") for e, n in counts.items())


_LETTERS = [*ascii_uppercase, *(a + b for b in "abcd" for a in ascii_uppercase)]


def anonymous_formula(counts: Mapping[str, int]) -> str:
    """Return OPTIMADE's `chemical_formula_anonymous`: "A2B", letters in order of falling count, then Aa, Ba, ..."""
    divisor = reduce(gcd, counts.values(), 0) or 1
    numbers = sorted((n // divisor for n in counts.values()), reverse=True)
    return "".join(letter + (str(n) if n > 1 else "") for letter, n in zip(_LETTERS, numbers, strict=False))


def descriptive_formula(counts: Mapping[str, int]) -> str:
    """Return the content of the whole cell, alphabetical, counts always written: "Ca1 O3 Ti1"."""
    return " ".join(f"{e}{n}" for e, n in counts.items())
