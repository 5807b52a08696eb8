from __future__ import annotations

import pytest

from factories import make_store, make_trajectory
from trajmill.errors import ReleaseError
from trajmill.inspection import find_rejections, inspect_release, inspect_store
from trajmill.recipe import load
from trajmill.releases.hugging_face import release
from trajmill.sources.base import Rejection
from trajmill.stores.delta import DeltaStore

ASSET = "mp/tasks/a.jsonl.gz"


@pytest.fixture
def path(tmp_path):
    lost = [
        Rejection(source="mp", asset=ASSET, rejected_by="license", detail="BY-NC", n_frames=4, task_id="mp-9",
                  trajectory_id="mp-9-pbe"),
        Rejection(source="mp", asset=ASSET, rejected_by="targets", detail="no energy", n_frames=1, task_id="mp-1",
                  trajectory_id="mp-1-pbe", relaxation_step=7),
        Rejection(source="mp", asset=ASSET, rejected_by="readable", detail="line 3", n_frames=None),
    ]  # fmt: skip
    make_store(tmp_path / "store", [make_trajectory()], lost)
    return tmp_path / "store"


def test_store(path):
    found = inspect_store(path)
    tables = {title: list(rows) for title, _, rows in found.tables}
    assert tables["frames"] == [("mp", "pbe", "GGA", 1, 3)]
    assert tables["rejected"] == [("license", "mp", 1, 4), ("targets", "mp", 1, 1), ("readable", "mp", 1, 0)]
    assert [problem for _, problem in found.checks] == [""] * 4


def test_upstream_versions_are_told(path):
    DeltaStore(path).note_upstream({"oqmd": {"version": {"dump": "1.10"}, "digest": "d"}})
    tables = {title: list(rows) for title, _, rows in inspect_store(path).tables}
    assert tables["complete for these upstream versions"] == [("oqmd", "dump", "1.10")]


def test_reasons_are_counted(tmp_path):
    """What is null for a reason, or was inferred, is counted by its kind."""
    notes = [
        ("no corrected energy: Invalid U value of 0.0 for Fe",),
        ("ends at step 3: step 4 was rejected by targets",),
    ]
    notes.append(("ends at step 12: step 14 was rejected by targets",))
    notes += [
        (f"no corrected energy: Incompatible POTCAR {{'{a}'}}, expected {{'{b}'}}",) for a, b in ("AB", "CD", "EF")
    ]
    runs = [make_trajectory(f"mp-{i}", n_frames=i + 1, notes=n, immutable_id=f"mp-{i}") for i, n in enumerate(notes)]
    make_store(tmp_path / "store", runs)
    tables = {title: list(rows) for title, _, rows in inspect_store(tmp_path / "store").tables}
    assert tables["most frequent notes, N for any number and ... for any set"] == [
        ("no corrected energy: Incompatible POTCAR ..., expected ...", 3, 15),
        ("ends at step N: step N was rejected by targets", 2, 5),
        ("no corrected energy: Invalid U value of N.N for Fe", 1, 1),
    ]


def test_a_lost_file_fails_a_check(path, tmp_path):
    release_path = tmp_path / "out"
    from trajmill.stores.delta import DeltaStore

    release(DeltaStore(path), release_path, load())
    assert not any(problem for _, problem in inspect_release(release_path).checks)
    next(release_path.glob("compatible_pbe/*.parquet")).unlink()
    assert inspect_release(release_path).checks[0][1] == "0 found, 3 expected"


def test_nothing_there(tmp_path):
    with pytest.raises(ReleaseError, match="neither a store nor a release"):
        inspect_release(tmp_path)


@pytest.mark.parametrize(
    ("rule", "identifier", "expected", "kept"),
    [
        (None, None, ["license", "readable", "targets"], 0),
        ("license", None, ["license"], 0),
        (None, "mp-9", ["license"], 0),
        (None, "mp-9-pbe", ["license"], 0),
        (None, "mp-9-pbe-2", ["license"], 0),  # a frame of a trajectory that went as a whole
        (None, "mp-1-pbe-7", ["targets"], 0),
        (None, "mp-1-pbe-0", [], 1),
        (None, "mp-1", ["targets"], 3),
        ("license", "mp-1", [], 3),
    ],
)
def test_why_did_it_go(path, rule, identifier, expected, kept):
    rows, total, found = find_rejections(path, rule, identifier, 0)
    assert [row[0] for row in rows] == expected
    assert total == len(expected)
    assert found == kept


def test_limit(path):
    rows, total, _ = find_rejections(path, None, None, 2)
    assert (len(rows), total) == (2, 3)
