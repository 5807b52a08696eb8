"""The explorer's benchmark measures what it says, tried on a few frames; no figure is asserted."""

import pytest

import explore
import servers.chromium
from factories import make_store, make_trajectory
from trajmill.dataset import Dataset


@pytest.mark.skipif(bool(servers.chromium.MISSING), reason=servers.chromium.MISSING or "there is one")
def test_explore(tmp_path):
    make_store(tmp_path / "store", [make_trajectory("mp-1"), make_trajectory("mp-2", n_frames=5)])
    dataset = explore.repeated(tmp_path / "store", 100, tmp_path / "repeated")
    assert len(Dataset(dataset)) == 100
    assert len(Dataset(dataset).trajectory_ids()) == 26
    found = explore.measure(dataset, tmp_path / "cache")
    assert (found["frames"], found["trajectories"]) == (100, 26)
    assert found["browser"]["first_page_ms"] > 0
    assert found["trajectory_ms"]["most"] >= found["trajectory_ms"]["median"] > 0
