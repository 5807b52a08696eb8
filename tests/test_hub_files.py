"""Reading datasets of the Hub, by the real huggingface_hub and DuckDB, from a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from factories import make_store, make_trajectory
from servers.hub import TOKEN, hub_server
from trajmill.errors import ReleaseError
from trajmill.hub_files import hub_path
from trajmill.recipe import load
from trajmill.releases.hugging_face import release

READ = """
import json, sys
import trajmill
dataset = trajmill.open(sys.argv[1], **json.loads(sys.argv[2]))
if sys.argv[3]:
    dataset = dataset.filter(sys.argv[3])
print(json.dumps({
    "ids": dataset.batches(columns=["id"]).__next__()["id"].to_pylist(),
    "stress": {t.trajectory_id: t.stress[0].tolist() for t in dataset.trajectories()},
    "flat": next(dataset.arrays()).stress[0].tolist(),
    "n": len(dataset),
}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Releases with the published columns and with ours, the published one as its authors' repository and another's."""
    folder = tmp_path_factory.mktemp("releases")
    stress = np.tile(np.diag([0.01, 0.02, 0.03]), (3, 1, 1))
    ours = [
        make_trajectory("mp-1", functional="pbe", stress=stress),
        make_trajectory("oqmd-2", functional="pbe", stress=stress),
        make_trajectory("mp-3", functional="pbesol", energy_corrected=None, stress=stress),
    ]
    store = make_store(folder / "store", ours)
    release(store, folder / "ours", load())
    release(store, folder / "published", load(settings=["release.format=lemat-traj"]))
    for file in (folder / "published").rglob("*.parquet"):  # those of others say nothing of units
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with hub_server() as server:
        for repository, name in (("LeMaterial/LeMat-Traj", "published"), ("me/copy", "published"), ("me/ours", "ours")):
            server.create(repository)
            for file in sorted((folder / name).rglob("*")):
                if file.is_file() and file.name != "trajmill.json":
                    server.push_by_hand(repository, file.relative_to(folder / name).as_posix(), file.read_bytes())
        yield server


@pytest.fixture
def environment(hub, tmp_path):
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG")}
    env = keep | {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return env | {"NO_PROXY": "127.0.0.1", "HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.endpoint}


@pytest.fixture
def run(environment):
    def run(*command):
        return subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=100, check=False
        )

    return run


def read(run, address, where="", **options):
    result = run("-c", READ, address, json.dumps(options), where)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_the_published_dataset_comes_in_our_units_and_says_so(run):
    found, said = read(run, "hf://datasets/LeMaterial/LeMat-Traj", configuration="compatible_pbe")
    np.testing.assert_allclose(found["stress"]["mp-1-pbe"], np.diag([0.01, 0.02, 0.03]), rtol=1e-12)
    np.testing.assert_allclose(found["flat"], np.diag([0.01, 0.02, 0.03]), rtol=1e-12)
    assert np.isnan(found["stress"]["oqmd-2-pbe"]).all()
    assert found["n"] == 6
    assert "kBar" in said
    assert said.count("\n") == 1


def test_filters_are_handed_down(run):
    found, _ = read(run, "hf://datasets/LeMaterial/LeMat-Traj@main", 'id STARTS WITH "mp-1" OR id STARTS WITH "oqmd"')
    assert list(found["stress"]) == ["mp-1-pbe", "oqmd-2-pbe"]
    assert np.isnan(found["stress"]["oqmd-2-pbe"]).all()


def test_a_copy_is_not_taken_for_it(run):
    result = run("-m", "trajmill.cli", "query", "hf://datasets/me/copy")
    assert result.returncode == 2
    assert "does not say in which unit stress is" in result.stderr
    found, _ = read(run, "hf://datasets/me/copy", configuration="compatible_pbe", stress="kBar")
    assert found["stress"]["oqmd-2-pbe"][0][0] == pytest.approx(0.01)


def test_our_own_releases_need_nothing_said(run):
    found, said = read(run, "hf://datasets/me/ours")
    assert (found["n"], said) == (9, "")
    assert found["stress"]["oqmd-2-pbe"][0][0] == 0.01
    found, _ = read(run, "hf://datasets/me/ours/compatible_pbesol")
    assert list(found["stress"]) == ["mp-3-pbesol"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://datasets/me/nothing", "no such dataset"),
        ("hf://datasets/me/ours@nobody", "no such dataset or revision"),
        ("hf://datasets/me/ours/nowhere", "no such folder"),
        ("hf://me/ours", "write hf://datasets/"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(run, address, reason):
    result = run("-m", "trajmill.cli", "query", address)
    assert result.returncode == 2, result.stderr
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_address_of_no_dataset():
    with pytest.raises(ReleaseError, match="write hf://datasets"):
        hub_path("hf://datasets/only-a-name")


OPENED = """
import sys
import trajmill
from trajmill.errors import ReleaseError
dataset = trajmill.open("hf://datasets/me/ours")
print("opened", flush=True)
sys.stdin.readline()
try:
    print(len(list((dataset.filter("nsites < 3") if sys.argv[1] else dataset).batches())))
except ReleaseError as error:
    print(error)
"""


@pytest.mark.parametrize("filtered", ["", "yes"])
def test_a_hub_that_fails_while_it_is_read_is_said_in_a_line(hub, environment, filtered):
    command = [sys.executable, "-c", OPENED, filtered]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "opened\n"
        hub.fail("GET", "/datasets/me/ours/resolve", 403, message="not today")
        try:
            said, errors = process.communicate("go\n", timeout=60)
        finally:
            hub.heal()
    assert (process.returncode, said.count("\n")) == (0, 1), said + errors
    assert "cannot be read" in said


def test_a_hub_that_fails_at_once_is_said_in_a_line(hub, run):
    hub.fail("GET", "/datasets/me/ours/resolve", 403, message="not today")
    try:
        result = run("-m", "trajmill.cli", "query", "hf://datasets/me/ours")
    finally:
        hub.heal()
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "the Hub cannot be read" in result.stderr


def test_a_folder_is_written_from_the_hub(run, tmp_path):
    command = ("-m", "trajmill.cli", "convert", "hf://datasets/me/ours", str(tmp_path / "train"), "--to", "cif")
    for _ in range(2):  # the second finds all done
        result = run(*command)
        assert result.returncode == 0, result.stderr
        assert "9 frames written" in result.stdout
