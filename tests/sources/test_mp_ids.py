"""Identifiers and dates of the Materials Project."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajmill.sources.mp_dates import utc_text
from trajmill.sources.mp_ids import LAST_INTEGER_ID, alpha_to_int, canonical_task_id, int_to_alpha


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("mp-149", "mp-149"),
        ("mp-ft", "mp-149"),
        ("mp-aaaaaaft", "mp-149"),
        ("aaaaaaft", "mp-149"),
        ("aaadjowr", "mp-1539165"),
        ("mp-3347529", "mp-3347529"),
        ("mp-3347530", f"mp-{int_to_alpha(3347530)}"),
        ("mp-20000001", f"mp-{int_to_alpha(20000001)}"),
        ("mvc-123", "mvc-123"),
        ("mvc-aaaaaaet", "mvc-123"),
        ("mp-a", "mp-0"),
        ("7145", "7145"),
        ("ft", "ft"),
        ("local-0001", "local-0001"),
        ("mp-146__GGA_Structure_Optimization", "mp-146__GGA_Structure_Optimization"),
        ("MP-149", "MP-149"),
        ("", ""),
    ],
)
def test_canonical_task_id(raw, canonical):
    assert canonical_task_id(raw) == canonical
    assert canonical_task_id(canonical) == canonical


@given(st.integers(0, 26**8 - 1))
def test_alpha_ids_round_trip_and_join_with_integers(value):
    letters = int_to_alpha(value)
    assert alpha_to_int(letters) == value
    forms = {canonical_task_id(f) for f in (f"mp-{value}", f"mp-{letters}", letters.rjust(8, "a"))}
    assert forms == {f"mp-{value}" if value <= LAST_INTEGER_ID else f"mp-{letters}"}


@pytest.mark.parametrize(
    "value",
    [
        "2020-05-03T07:19:38.291000+00:00",
        "2020-05-03T09:19:38+02:00",
        "2020-05-03T07:19:38.291Z",
        "2020-05-03 07:19:38",
        {"$date": "2020-05-03T07:19:38.291Z"},
        {"$date": 1588490378291},
        {"$date": {"$numberLong": "1588490378291"}},
        {"@module": "datetime", "@class": "datetime", "string": "2020-05-03 07:19:38.291000"},
        datetime(2020, 5, 3, 7, 19, 38, tzinfo=UTC),
    ],
)
def test_every_form_of_a_date_is_the_same_text(value):
    assert utc_text(value) == "2020-05-03T07:19:38"


@pytest.mark.parametrize(
    "value", [None, "", "yesterday", {}, {"$date": None}, {"$date": 1e300}, [], {"string": 5.5e300}]
)
def test_no_date_is_null(value):
    assert utc_text(value) is None
