import json
import warnings

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice as PmgLattice
from pymatgen.core import Structure as PmgStructure

from trajmill.sources.pymatgen_json import Rows, Site, Structure, decode, stack, structure_arrays

STRUCTURE = msgspec.json.Decoder(Structure[Site])


def parsed(*structures):
    return [None if s is None else STRUCTURE.decode(json.dumps(s).encode()) for s in structures]


def as_dict(symbols=("Na", "Cl"), **changes):
    lattice = PmgLattice([[4.0, 0.1, 0.2], [0.3, 5.0, 0.4], [0.5, 0.6, 6.0]])
    structure = PmgStructure(lattice, symbols, [[0.25 * k, 0.1 * k, -0.7 * k] for k in range(len(symbols))])
    return structure.as_dict() | changes


@pytest.mark.parametrize(
    "text",
    ["[[1.0, NaN]]", "[[1.0, -Infinity]]", "[[null, 1]]", "[]", "[[1e400]]"],
)
def test_decode_reads_what_python_writes(text):
    found = decode(msgspec.json.Decoder(Rows), text.encode())
    assert repr(found) == repr([[None if x is None else float(x) for x in row] for row in json.loads(text)])


def test_decode_leaves_text_alone():
    assert decode(msgspec.json.Decoder(list[str | float]), b'["NaNbO3", "NaN", NaN]')[:2] == ["NaNbO3", "NaN"]


@pytest.mark.parametrize("raw", [b"", b"[", b"{}", b'[["x"]]', b"[[" * 50_000, b"\xff", b"[[1]] junk"])
def test_decode_raises_value_error_and_nothing_else(raw):
    with pytest.raises(ValueError, match=r"."):
        decode(msgspec.json.Decoder(Rows), raw)


@pytest.mark.parametrize(
    ("values", "expected", "faults"),
    [
        ([[[1, 2, 3]], [[4, 5, 6]]], [[[1, 2, 3]], [[4, 5, 6]]], {}),
        ([[[1, None, 3]], None], [[[1, np.nan, 3]], [[np.nan] * 3]], {}),
        ([[[1, 2]], [[4, 5, 6]]], [[[np.nan] * 3], [[4, 5, 6]]], {0: "x has shape (1, 2), expected (1, 3)"}),
        ([[[1, 2, 3], [1]], [[4, 5, 6]]], [[[np.nan] * 3], [[4, 5, 6]]], {0: "x: row 1 has 1 components, expected 3"}),
        ([[None], [[4, 5, 6]]], [[[np.nan] * 3], [[4, 5, 6]]], {0: "x has shape (1,), expected (1, 3)"}),
        ([[], [[4, 5, 6]]], [[[np.nan] * 3], [[4, 5, 6]]], {0: "x has shape (0,), expected (1, 3)"}),
        ([[["a", 2, 3]], [[4, 5, 6]]], [[[np.nan] * 3], [[4, 5, 6]]], {0: "x: not numbers"}),
        ([[[10**400, 2, 3]], [[4, 5, 6]]], [[[np.nan] * 3], [[4, 5, 6]]], {0: "x: not numbers"}),
    ],
)
def test_stack(values, expected, faults):
    found = {}
    np.testing.assert_array_equal(stack(values, (1, 3), "x", found), expected)
    assert found == faults


@given(st.lists(st.lists(st.lists(st.floats() | st.none(), max_size=4), max_size=3), max_size=3))
def test_stack_is_what_numpy_makes_of_a_frame(values):
    found = stack(values, (2, 3), "x", faults := {})
    for i, value in enumerate(values):
        whole = len(value) == 2 and all(len(row) == 3 for row in value)
        np.testing.assert_array_equal(found[i], np.array(value, np.float64) if whole else np.full((2, 3), np.nan))
        assert (i in faults) != whole


def test_stack_scalars():
    faults = {}
    np.testing.assert_array_equal(stack([1, None, 2.5], (), "energy", faults), [1.0, np.nan, 2.5])
    assert faults == {}


def test_stack_keeps_the_first_fault_of_a_frame():
    faults = {0: "earlier"}
    stack([[[1]], [[4, 5, 6]]], (1, 3), "x", faults)
    assert faults == {0: "earlier"}


@given(
    st.lists(st.sampled_from(["H", "Fe", "O"]), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.sampled_from(["both", "abc", "xyz"]),
)
def test_structures_agree_with_pymatgen(symbols, n, seed, coordinates):
    random = np.random.default_rng(seed)
    structures = [
        PmgStructure(4 * np.eye(3) + random.normal(size=(3, 3)), symbols, random.uniform(-1, 2, (len(symbols), 3)))
        for _ in range(n)
    ]
    dicts = [json.loads(json.dumps(s.as_dict())) for s in structures]
    for d in dicts:
        for site in d["sites"]:
            if coordinates != "both":
                del site["xyz" if coordinates == "abc" else "abc"]
    faults = {}
    numbers, lattice, positions = structure_arrays(parsed(*dicts), faults)
    assert faults == {}
    assert numbers.tolist() == [s.Z for s in structures[0].species]
    np.testing.assert_allclose(lattice, [s.lattice.matrix for s in structures], rtol=0)
    np.testing.assert_allclose(positions, [s.cart_coords for s in structures], atol=1e-12)


def mixed_site():
    return as_dict() | {
        "sites": [{"species": [{"element": "Na", "occu": 0.5}, {"element": "K", "occu": 0.5}], "abc": [0, 0, 0]}] * 2
    }


def with_sites(**changes):
    structure = as_dict()
    return structure | {"sites": [site | changes for site in structure["sites"]]}


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (None, "no structure"),
        (as_dict(("Na",)), "1 sites, 2 before"),
        (as_dict(("Cl", "Na")), "other elements or order of sites than before"),
        (mixed_site(), "a site is not occupied by exactly one element"),
        (with_sites(species=[{"element": "Na", "occu": 0.9}]), "a site is not occupied by exactly one element"),
        (with_sites(species=[]), "a site is not occupied by exactly one element"),
        (with_sites(species=[{"element": "Xx", "occu": 1}]), "unknown elements Xx"),
        (as_dict() | {"sites": []}, "no sites"),
        (with_sites(abc=None, xyz=None), "positions has shape (2,), expected (2, 3)"),
        (with_sites(abc=[0.1, 0.2]), "positions has shape (2, 2), expected (2, 3)"),
        (as_dict() | {"lattice": {"matrix": [[1.0, 2.0, 3.0]]}}, "lattice has shape (1, 3), expected (3, 3)"),
    ],
)
def test_a_bad_structure_costs_its_frame(second, fault):
    faults = {}
    numbers, lattice, positions = structure_arrays(parsed(as_dict(), second, as_dict()), faults)
    assert list(faults) == [1]
    assert faults[1] == fault
    assert numbers.tolist() == [11, 17]
    usable = np.isfinite(lattice).all(axis=(1, 2)) & np.isfinite(positions).all(axis=(1, 2))
    assert usable.tolist() == [True, False, True]


def test_the_first_readable_frame_decides_the_sites():
    faults = {}
    numbers, _, _ = structure_arrays(parsed(None, as_dict()), faults)
    assert numbers.tolist() == [11, 17]
    assert faults == {0: "no structure"}


def test_no_readable_structure():
    faults = {}
    numbers, lattice, positions = structure_arrays([None, None], faults)
    assert numbers.shape == (0,)
    assert lattice.shape == (2, 3, 3)
    assert positions.shape == (2, 0, 3)
    assert np.isnan(lattice).all()


def test_vectors_are_rows():
    """A transposed cell gives other distances unless it is symmetric."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = PmgStructure.from_dict(as_dict())
    _, lattice, positions = structure_arrays(parsed(as_dict()), {})
    d = positions[0, 1] - positions[0, 0]
    shifts = np.array(np.meshgrid(*[range(-2, 3)] * 3)).reshape(3, -1).T @ lattice[0]
    assert np.linalg.norm(d + shifts, axis=1).min() == pytest.approx(structure.get_distance(0, 1))
