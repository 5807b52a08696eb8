"""Filters: what they match, and that a wrong one is a line that says what is wrong."""

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajmill.errors import FilterError
from trajmill.filters import DERIVED, properties, to_sql
from trajmill.schema import FRAME_SCHEMA

ROWS = [
    # id, elements, nsites, functional, max_force, is_final, relaxation_step, space_group_it_number, notes
    ("a", ["Fe", "O"], 2, "pbe", 0.5, True, 3, 225, None),
    ("b", ["Fe"], 4, "scan", 12.0, False, 0, 229, ["odd", "very odd"]),
    ("c", ["Fe", "O", "S"], 30, "pbe", None, True, 1, None, ["odd"]),
    ("d", ["O"], 8, None, 0.0, False, 0, 1, []),
    ("e", ["Cl", "Na"], 2, 'it\'s "odd"', 2.5, True, 7, 225, None),
]
NAMES = "id elements nsites functional max_force is_final relaxation_step space_group_it_number notes".split()
SCHEMA = pa.schema([FRAME_SCHEMA.field(name) for name in NAMES])
TABLE = pa.Table.from_pylist([dict(zip(NAMES, row, strict=True)) for row in ROWS], schema=SCHEMA)


def matched(text, table=TABLE):
    with duckdb.connect() as db:
        db.register("rows", table)
        found = db.execute(f"SELECT id FROM rows WHERE {to_sql(text, table.schema)}").fetchall()
    return "".join(sorted(i for (i,) in found))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "abcde"),
        ("nsites = 2", "ae"),
        ("nsites != 2", "bcd"),
        ("nsites<4 OR nsites>=30", "ace"),
        ("4 > nsites", "ae"),
        ("2 <= nsites AND nsites <= 4", "abe"),
        ('elements HAS "Fe"', "abc"),
        ('elements HAS ALL "Fe","O"', "ac"),
        ('elements HAS ANY "S", "Na"', "ce"),
        ('elements HAS ONLY "Fe","O"', "abd"),
        ("elements LENGTH 2", "ae"),
        ("elements LENGTH >= 2", "ace"),
        ('functional = "pbe"', "ac"),
        ('NOT functional = "pbe"', "be"),  # what is unknown matches nothing
        ('functional CONTAINS "ca"', "b"),
        ('functional STARTS WITH "pb" OR functional ENDS "an"', "abc"),
        ('functional = "it\'s \\"odd\\""', "e"),
        ("functional IS UNKNOWN", "d"),
        ("max_force IS KNOWN AND max_force < 1e0", "ad"),
        ("max_force > -.5 AND NOT (max_force > 1 OR is_final = TRUE)", "d"),
        ("is_final = FALSE", "bd"),
        ("is_final != FALSE", "ace"),
        ("step = 0", "bd"),
        ("space_group = 225 OR space_group IS UNKNOWN", "ace"),
        ('chemical_system = "O-Fe"', "a"),
        ('chemical_system = "S-O-Fe" OR "Na-Cl" = chemical_system', "ce"),
        ('notes HAS "odd"', "bc"),
        ('nsites=2 AND functional="pbe" OR nsites=8', "ad"),  # AND binds closer
        ("\n nsites\t=\n2 ", "ae"),
    ],
)
def test_matches(text, expected):
    assert matched(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nsite < 3", "nothing is called nsite; did you mean nsites?"),
        ("zzz = 3", "nothing is called zzz; there are chemical_system, elements, functional, id"),
        ("forces = 3", "nothing is called forces"),
        ('elements = "Fe"', "elements is a list: it HAS a value, HAS ALL, HAS ANY or HAS ONLY some"),
        ("elements HAS 3", "elements is a list of texts"),
        ('nsites HAS "Fe"', "nsites is a number and no list"),
        ("functional = 3", "functional is a text, 3 is a number"),
        ('nsites < "3"', "nsites is a number, '3' is a text"),
        ('nsites CONTAINS "3"', "CONTAINS, STARTS and ENDS are for texts"),
        ("functional CONTAINS 3", "functional is a text, 3 is a number"),
        ("is_final < TRUE", "compare it with = or !="),
        ("functional LENGTH 3", "functional is no list and has no length"),
        ("nsites <", "cannot be read at its end"),
        ("nsites < 3 nsites", "cannot be read at 'nsites'"),
        ("nsites > relaxation_step", "cannot be read at 'relaxation_step'"),
        ("nsites == 3", "cannot be read at '= 3'"),
        ("(nsites = 3", "cannot be read at its end"),
        ('functional = "pbe', "cannot be read at '\"pbe'"),
        ('functional = "\\q"', "has an escape that is none"),
        ("nsites = 3; DROP TABLE rows", "cannot be read at '; DROP TABLE rows'"),
    ],
)
def test_a_wrong_filter_is_one_line_that_says_what_is_wrong(text, message):
    with pytest.raises(FilterError) as caught:
        to_sql(text, SCHEMA)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_compared_as_it_is(text):
    """Nothing in a text is SQL."""
    import json

    table = TABLE.set_column(3, SCHEMA.field("functional"), pa.array([text, "x", "y", None, text], pa.string()))
    for ascii_only in (True, False):
        assert matched(f"functional = {json.dumps(text, ensure_ascii=ascii_only)}", table) == "ae"


@given(st.text(alphabet="nsite<=>!\"'AND OR()HL0123.e-", max_size=25))
def test_any_nonsense_is_an_error_or_a_filter(text):
    try:
        sql = to_sql(text, SCHEMA)
    except FilterError:
        return
    with duckdb.connect() as db:
        db.register("rows", TABLE)
        db.execute(f"SELECT id FROM rows WHERE {sql}").fetchall()


def test_what_is_derived_is_what_the_column_says():
    """The published schema has no column for the largest force."""
    forces = [[[0.0, 3.0, 4.0], [1.0, 0.0, 0.0]], [[0.5, 0.0, 0.0]], None]
    schema = pa.schema([FRAME_SCHEMA.field("id"), FRAME_SCHEMA.field("forces"), FRAME_SCHEMA.field("elements")])
    table = pa.table({"id": ["a", "b", "c"], "forces": forces, "elements": [["Fe", "O"], ["O"], ["O"]]}, schema=schema)
    assert matched("max_force = 5", table) == "a"
    assert matched("max_force <= 0.5", table) == "b"
    assert set(DERIVED) <= set(properties(schema))
    assert properties(FRAME_SCHEMA)["max_force"].sql == '"max_force"'
