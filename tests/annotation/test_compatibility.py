import numpy as np
import pytest

from making import floats, ints, make
from trajmill.annotation.compatibility import cross_compatibility


@pytest.mark.parametrize(
    ("source", "symbols", "compatible"),
    [
        ("mp", "Na Cl", True),
        ("mp", "V O", False),
        ("mp", "Cs Cl", False),
        ("mp", "Yb O", True),
        ("mp", "Ca O", True),
        ("alexandria", "Yb O", False),
        ("alexandria", "V O", True),
        ("oqmd", "Na Cl", True),
        *(("oqmd", f"{e} O", False) for e in "Yb W Tl Eu Ce Rh Ru Mo Mn Cr V Ti Ca".split()),
    ],
)
def test_elements(source, symbols, compatible):
    t = make(2, symbols.split(), source=source, ispin=ints(2, 2), encut=floats(520, 520))
    assert cross_compatibility(t).tolist() == [compatible] * 2


@pytest.mark.parametrize(
    ("ispin", "encut", "compatible"),
    [
        (ints(2, 2), floats(520, 600), [True, True]),
        (ints(1, 2), floats(520, 520), [False, True]),
        (ints(-1, 2), floats(520, 520), [False, True]),
        (ints(2, 2), floats(519.9, 520), [False, True]),
        (ints(2, 2), floats(np.nan, 520), [False, True]),
        (None, floats(520, 520), [False, False]),
        (ints(2, 2), None, [False, False]),
    ],
)
def test_oqmd_settings(ispin, encut, compatible):
    assert cross_compatibility(make(2, source="oqmd", ispin=ispin, encut=encut)).tolist() == compatible
    assert cross_compatibility(make(2, source="mp", ispin=ispin, encut=encut)).tolist() == [True, True]


@pytest.mark.parametrize("ispin", [1, 2, -1])
@pytest.mark.parametrize("encut", [300.0, 520.0])
def test_each_condition_only_takes_away(ispin, encut):
    """CaO from OQMD is not compatible, whatever the settings of its run are."""
    t = make(2, ("Ca", "O"), source="oqmd", ispin=ints(ispin, ispin), encut=floats(encut, encut))
    assert not cross_compatibility(t).any()
