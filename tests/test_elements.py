from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition, Element

from trajmill.elements import (
    NUMBERS,
    SYMBOLS,
    anonymous_formula,
    composition,
    descriptive_formula,
    reduced_formula,
)


def test_symbols_are_in_order_of_atomic_number():
    assert SYMBOLS[1:] == tuple(Element.from_Z(z).symbol for z in range(1, 119))
    assert NUMBERS["Og"] == 118
    assert "X" not in NUMBERS


@pytest.mark.parametrize(
    ("sites", "reduced", "anonymous", "descriptive"),
    [
        ("O Ti O O Ca", "CaO3Ti", "A3BC", "Ca1 O3 Ti1"),
        ("Na Cl Na Cl", "ClNa", "AB", "Cl2 Na2"),
        ("O O", "O", "A", "O2"),  # no special case for molecules
        ("Fe Fe O O O Fe Fe O O O", "Fe2O3", "A3B2", "Fe4 O6"),
        ("C", "C", "A", "C1"),
    ],
)
def test_formulas(sites, reduced, anonymous, descriptive):
    counts = composition(sites.split())
    assert reduced_formula(counts) == reduced
    assert anonymous_formula(counts) == anonymous
    assert descriptive_formula(counts) == descriptive


def test_more_than_26_elements():
    counts = dict.fromkeys(sorted(SYMBOLS[1:29]), 1)
    assert anonymous_formula(counts) == "ABCDEFGHIJKLMNOPQRSTUVWXYZAaBa"  # OPTIMADE's letters after Z


@given(st.dictionaries(st.sampled_from(SYMBOLS[1:]), st.integers(1, 40), min_size=1, max_size=8))
def test_formulas_against_pymatgen(amounts):
    counts = composition([e for e, n in amounts.items() for _ in range(n)])
    assert list(counts) == sorted(amounts)
    assert Composition(descriptive_formula(counts)) == Composition(amounts)
    assert Composition(reduced_formula(counts)) * gcd(*amounts.values()) == Composition(amounts)
    divided = sorted((n // gcd(*amounts.values()) for n in amounts.values()), reverse=True)
    assert anonymous_formula(counts) == "".join(
        letter + (str(n) if n > 1 else "") for letter, n in zip("ABCDEFGH", divided, strict=False)
    )
