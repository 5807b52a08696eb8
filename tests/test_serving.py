"""The OPTIMADE server as a program of its own, asked by optimade-python-tools' validator and client, over loopback."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from making import DATA
from trajmill.builder import build
from trajmill.errors import MissingExtraError
from trajmill.optimade import ServeError, serve
from trajmill.recipe import load
from trajmill.releases.hugging_face import release

requests = pytest.importorskip("requests")
pytest.importorskip("optimade")

of_their_validator = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields':DeprecationWarning")

SYMBOLS = [("Na", "Cl"), ("Fe", "O", "O"), ("Si",)]


@contextmanager
def serving(dataset, *options) -> Iterator[str]:
    """Serve a dataset, and return the base URL; in the end Ctrl-C must stop it, and leave nothing."""
    command = [sys.executable, "-m", "trajmill.cli", "serve", str(dataset), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        said = process.stdout.readline()
        assert said, process.stderr.read()
        assert process.stdout.readline() == "Ctrl-C stops it\n"
        yield re.match(r"(http://\S+)/v1: ", said)[1]
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert out == ""
        assert "Traceback" not in errors
    finally:
        watch.cancel()
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "store"
    runs = [
        make_trajectory(
            f"mp-{i}", n_frames=1 + i % 5, symbols=SYMBOLS[i % 3], energy=-float(i), immutable_id=f"mp-{i // 2}",
            functional="pbe" if i % 2 else "scan", asset=f"mp/tasks/{i % 3}.jsonl.gz",
            energy_corrected=None if i % 4 == 0 else np.full(1 + i % 5, -i - 0.5),
        )
        for i in range(30)
    ]  # fmt: skip
    make_store(path, runs)
    return path


@pytest.fixture(scope="module")
def server(store):
    with serving(store) as url:
        yield url


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "samples"
    settings = [
        f"mp.path='{DATA / 'mp/real'}'", f"alexandria.path='{DATA / 'alexandria'}'",
        f"oqmd.path='{DATA / 'oqmd/qmdb__v1_6__112023.sql.gz'}'", f"store.path='{path}'", "engine.workers=1",
        "mp.tasks_without_material=keep",
    ]  # fmt: skip
    build(load(settings=settings))
    return path


def get(url, path, status=200, **parameters):
    answer = requests.get(f"{url}/v1/{path}", params=parameters, timeout=30)
    assert answer.status_code == status, answer.text
    return answer.json()


def found(url, text, path="structures"):
    """Return the ids that a filter matches, and see that as many are announced."""
    answer = get(url, path, filter=text, response_fields="nsites", page_limit=500)
    ids = [entry["id"] for entry in answer["data"]]
    assert answer["meta"]["data_returned"] == len(ids)
    return ids


def refused(url, text, status):
    return get(url, "structures", status, filter=text)["errors"][0]["detail"]


def validate(url):
    from optimade.validator import ImplementationValidator

    validator = ImplementationValidator(base_url=url, respond_json=True)
    validator.validate_implementation()
    results = validator.results
    assert validator.valid, (results.failure_messages, results.internal_failure_messages)
    assert results.optional_failure_messages == []
    return results


@of_their_validator
@pytest.mark.parametrize("base", ["", "/v1", "/v1.2"])
def test_their_validator_passes(server, base):
    assert validate(server + base).success_count > 35


@of_their_validator
def test_their_validator_passes_for_the_samples(samples):
    with serving(samples) as url:
        validate(url)


def test_their_client_gets_what_the_dataset_has(server, store):
    from optimade.client import OptimadeClient

    client = OptimadeClient(base_urls=server, use_async=False, silent=True, max_results_per_provider=0)
    text = 'elements HAS "Fe" AND nsites > 1'
    answered = client.get(text)["structures"][text][server]
    assert answered["errors"] == []
    served = {entry["id"]: entry["attributes"] for entry in answered["data"]}
    finals = trajmill.open(store).filter(f"is_final = TRUE AND {text}")
    assert len(served) == len(finals) == 10
    for atoms in finals.atoms():
        entry = served[atoms.info["id"]]
        assert entry["species_at_sites"] == atoms.get_chemical_symbols()
        np.testing.assert_array_equal(entry["cartesian_site_positions"], atoms.positions)
        np.testing.assert_array_equal(entry["lattice_vectors"], atoms.cell[:])
        assert entry["_trajmill_energy"] == atoms.get_potential_energy()
        np.testing.assert_array_equal(entry["_trajmill_forces"], atoms.get_forces())
        np.testing.assert_array_equal(entry["_trajmill_stress_tensor"], atoms.get_stress(voigt=False))
        for ours, name in (("trajectory_id", "trajectory_id"), ("functional", "functional"), ("run_type", "run_type")):
            assert entry[f"_trajmill_{ours}"] == atoms.info[name]
        assert (entry["_trajmill_source"], entry["_trajmill_license"]) == ("mp", "BY-C")
        assert entry["last_modified"] == "2025-01-01T00:00:00Z"
        assert entry["_trajmill_max_force"] == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max())


def test_a_trajectory_has_all_frames_in_order(server, store):
    (run,) = trajmill.open(store).only(["mp-14-scan"]).trajectories()
    entry = get(server, "trajectories/mp-14-scan")["data"]
    served = entry["attributes"]
    assert (entry["type"], served["nframes"], served["reference_frames"]) == ("trajectories", 5, [0, 4])
    assert served["elements"] == [["Si"]]
    np.testing.assert_array_equal(served["cartesian_site_positions"], run.positions)
    np.testing.assert_array_equal(served["lattice_vectors"], run.lattice)
    np.testing.assert_array_equal(served["_trajmill_energy"], run.energy)
    np.testing.assert_array_equal(served["_trajmill_forces"], run.forces)
    np.testing.assert_array_equal(served["_trajmill_stress_tensor"], run.stress)
    assert served["_trajmill_relaxation_step"] == [0, 1, 2, 3, 4]
    assert served["_trajmill_functional"] == "scan"


def test_a_listing_has_frames_where_they_are_asked_for(server):
    plain = get(server, "trajectories")["data"][0]["attributes"]
    assert "nframes" in plain
    assert "cartesian_site_positions" not in plain
    asked = get(server, "trajectories", response_fields="cartesian_site_positions,_trajmill_energy")["data"]
    assert all({*entry["attributes"]} == {"cartesian_site_positions", "_trajmill_energy"} for entry in asked)
    assert [len(entry["attributes"]["_trajmill_energy"]) for entry in asked[:5]] == [1, 4, 2, 5, 3]
    too_many = get(server, "trajectories", 403, response_fields="_trajmill_forces", page_limit=21)
    assert "page_limit is 20 at most" in too_many["errors"][0]["detail"]
    sliced = get(server, "trajectories/mp-14-scan", 501, dimension_slices="dim_frames[0:1:]")
    assert "dimension_slices" in sliced["errors"][0]["detail"]


@pytest.mark.parametrize("way", ["page_offset", "page_number"])
@pytest.mark.parametrize("path", ["structures", "trajectories"])
def test_pages_hold_every_entry_once(server, path, way):
    url, ids = f"{server}/v1/{path}?page_limit=7&{way}={way == 'page_number':d}&response_fields=nsites&sort=-nsites", []
    while url:
        answer = requests.get(url, timeout=30).json()
        ids += [entry["id"] for entry in answer["data"]]
        url = answer["links"]["next"]
        assert len(ids) <= 30
    assert len(set(ids)) == 30
    assert [re.sub("-(pbe|scan).*", "", i) for i in ids[:2]] == ["mp-1", "mp-4"], "ties stay in stored order"


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ('elements HAS "Fe"', 10),
        ('elements HAS ALL "Fe", "O" AND NOT elements HAS "Si"', 10),
        ('elements HAS ANY "Si","Na"', 20),
        ('elements HAS ONLY "Fe","O","Si"', 20),
        ('NOT elements HAS "Fe"', 20),
        ("elements LENGTH 2", 20),
        ("elements LENGTH < 2", 10),
        ("species LENGTH 2", 20),
        ("elements_ratios HAS 0.5", 10),
        ("elements_ratios HAS < 0.4", 10),
        ("elements_ratios HAS ALL > 0.3, < 0.4", 10),
        ("dimension_types HAS 1", 30),
        ('structure_features HAS "disorder"', 0),
        ("structure_features LENGTH 0", 30),
        ('"ClNa" = chemical_formula_reduced', 10),
        ("2 < nsites", 10),
        ('chemical_formula_anonymous STARTS WITH "A" AND chemical_formula_anonymous ENDS "B"', 20),
        ('chemical_formula_descriptive CONTAINS "O2"', 10),
        ("lattice_vectors IS KNOWN", 30),
        ("chemical_formula_hill IS UNKNOWN", 30),
        ('chemical_formula_hill = "x" OR NOT chemical_formula_hill = "x"', 0),
        ('last_modified >= "2024-12-31T20:00:00-04:00"', 30),
        ('last_modified > "2024-12-31T20:00:00-04:00"', 0),
        ('id = "mp-1-pbe-1" OR immutable_id = "mp-4-scan-4"', 2),
        ('type = "structures"', 30),
        ("space_group_it_number = 1", 30),
        ("_trajmill_energy < -20 AND _trajmill_energy >= -25", 5),
        ('_trajmill_functional = "pbe" AND _trajmill_run_type = "GGA"', 15),
        ("_trajmill_energy_corrected IS UNKNOWN", 8),
        ("NOT _trajmill_energy_corrected > 0", 22),
        ("_trajmill_cross_compatibility = TRUE", 30),
        ("_trajmill_cross_compatibility = FALSE", 0),
        ("_exmpl_gap > 1 OR NOT _exmpl_gap > 1", 0),
        ('id = "it\'s \\"quoted\\" \\\\"', 0),
        ("nsites = 2 OR nsites = 3 AND nelements = 1", 10),
    ],
)
def test_filters(server, text, n):
    assert len(found(server, text)) == n


def test_filters_of_trajectories(server):
    assert found(server, 'nframes >= 4 AND elements HAS "Fe"', "trajectories") == [
        "mp-4-scan", "mp-13-pbe", "mp-19-pbe", "mp-28-scan",
    ]  # fmt: skip
    assert found(server, 'id = "mp-4-scan" AND _trajmill_energy = -4 AND reference_frames HAS 4', "trajectories")


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("nsite = 2", 400, "there is no property nsite"),
        ("_trajmill_gap = 2", 400, "there is no property _trajmill_gap"),
        ("elements HAS", 400, "cannot be read"),
        ("nsites = 2; DROP TABLE entries", 400, "cannot be read"),
        ('last_modified > "yesterday"', 400, "no time of RFC 3339"),
        ('nsites = "2"', 501, "nsites is a number and cannot be compared with a text"),
        ("nsites = nelements", 501, "cannot be compared with each other"),
        ("nsites LENGTH 2", 501, "nsites is no list"),
        ("elements = 2", 501, "elements is a text"),
        ('elements = "Fe"', 501, "elements is a list"),
        ('nsites CONTAINS "2"', 501, "nsites is a number"),
        ("_trajmill_cross_compatibility > FALSE", 501, "has no order"),
        ('species.name HAS "Fe"', 501, "nested properties"),
        ('elements:elements_ratios HAS "Fe":0.5', 501, "side by side"),
        ("nsites < 1e999", 501, "out of the range"),
    ],
)
def test_wrong_filters_say_why(server, text, status, said):
    assert said in refused(server, text, status)


def test_other_refusals(server):
    assert "cannot be sorted" in get(server, "structures", 400, sort="elements")["errors"][0]["detail"]
    assert get(server, "structures", 403, page_limit=501)["errors"]
    assert get(server, "structures", 501, page_above="mp-1")["errors"]
    assert get(server, "structures", 400, include="calculations")["errors"]
    assert get(server, "structures", 400, response_fields="crazy")["errors"]
    assert get(server, "info/crazy", 404)["errors"]
    assert get(server, "structures/crazy")["data"] is None
    for method in ("post", "put", "patch", "delete"):
        assert getattr(requests, method)(f"{server}/v1/structures", timeout=30).status_code == 405


def test_info_describes_what_is_served(server):
    assert get(server, "info")["data"]["attributes"]["entry_types_by_format"] == {
        "json": ["structures", "trajectories"]
    }
    properties = get(server, "info/structures")["data"]["properties"]
    energy = properties["_trajmill_energy"]
    assert (energy["type"], energy["unit"], energy["sortable"]) == ("float", "eV", True)
    assert properties["_trajmill_stress_tensor"]["unit"] == "eV/Å^3"
    assert properties["_trajmill_relaxation_step"]["type"] == "integer"
    assert not properties["elements"]["sortable"]
    of_frames = get(server, "info/trajectories")["data"]["properties"]
    assert of_frames["nframes"]["type"] == "integer"
    assert of_frames["_trajmill_energy"]["type"] == "list"
    for path, described in (("structures", properties), ("trajectories", of_frames)):
        entry = get(server, f"{path}/{get(server, path)['data'][3]['id']}")["data"]
        assert {*entry["attributes"], "id", "type"} == {*described}


def test_many_clients_at_once(server):
    from concurrent.futures import ThreadPoolExecutor

    filters = [f'nsites = {n} AND elements HAS "{e}"' for n, e in ((1, "Si"), (2, "Na"), (3, "Fe"), (3, "Si"))] * 10
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda text: len(found(server, text)), filters))
    assert counts == [10, 10, 10, 0] * 10


def test_published_columns_and_units(store, tmp_path):
    """What has 25 columns, stress in kBar and its frames in any order is served alike, under another prefix."""
    release(trajmill.stores.open_store(store), tmp_path / "out", load(settings=["release.format=lemat-traj"]))
    (folder,) = [f for f in (tmp_path / "out").iterdir() if f.name == "compatible_pbe"]
    (file,) = folder.glob("*.parquet")
    rows = pq.read_table(file)
    assert len(rows.column_names) == 25
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    pq.write_table(shuffled, tmp_path / "shuffled.parquet", row_group_size=7)
    (run,) = trajmill.open(store).only(["mp-13-pbe"]).trajectories()
    with serving(tmp_path / "shuffled.parquet", "--provider-prefix", "x1") as url:
        assert len(found(url, "nelements > 0")) == 15
        final = get(url, "structures/mp-13-pbe-3")["data"]["attributes"]
        np.testing.assert_allclose(final["_x1_stress_tensor"], run.stress[-1])
        assert final["_x1_max_force"] == pytest.approx(np.linalg.norm(run.forces[-1], axis=1).max())
        assert final["_x1_trajectory_id"] == "mp-13-pbe"
        served = get(url, "trajectories/mp-13-pbe")["data"]["attributes"]
        np.testing.assert_array_equal(served["cartesian_site_positions"], run.positions)
        np.testing.assert_allclose(served["_x1_stress_tensor"], run.stress)
        np.testing.assert_allclose(served["_x1_max_force"], np.linalg.norm(run.forces, axis=2).max(axis=1))


def test_a_trajectory_in_two_assets_is_served_once(tmp_path):
    old = make_trajectory("mp-1", n_frames=5, asset="mp/tasks/a.jsonl.gz", energy=-1.0)
    new = make_trajectory("mp-1", n_frames=3, asset="mp/tasks/b.jsonl.gz", energy=-2.0)
    make_store(tmp_path / "store", [old, new, make_trajectory("mp-2", asset="mp/tasks/a.jsonl.gz")])
    with serving(tmp_path / "store") as url:
        assert sorted(found(url, "nsites > 0")) == ["mp-1-pbe-2", "mp-2-pbe-2"]
        served = get(url, "trajectories/mp-1-pbe")["data"]["attributes"]
        np.testing.assert_array_equal(served["_trajmill_energy"], new.energy)


def test_files_of_others_are_served(tmp_path):
    sample = DATA / "evalsets/mptrj"
    with serving(sample) as url:
        assert get(url, "structures")["meta"]["data_returned"] == len(trajmill.open(sample).trajectory_ids())


def test_terminated_it_leaves_no_files(store, tmp_path):
    command = [sys.executable, "-m", "trajmill.cli", "serve", str(store), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={"TMPDIR": str(tmp_path), "PATH": ""}, text=True)
    process.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 1
    process.terminate()
    process.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_served_is_said_in_a_line(store, tmp_path):
    def fails(*arguments):
        command = [sys.executable, "-m", "trajmill.cli", "serve", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen there" in fails(store, "--port", taken.getsockname()[1])
    assert "cannot listen there" in fails(store, "--host", "999.0.0.1")
    assert "write small letters" in fails(store, "--provider-prefix", "My_")
    assert "neither a trajmill store nor a release" in fails(tmp_path)
    assert "--port" in fails(store, "--port", 99999)


def test_an_empty_store_and_a_missing_extra(tmp_path, monkeypatch):
    make_store(tmp_path / "store", [])
    with pytest.raises(ServeError, match="has no frames"):
        serve(str(tmp_path / "store"), port=0)
    monkeypatch.setitem(sys.modules, "optimade", None)
    for name in [name for name in sys.modules if name.startswith("optimade.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"optimade is not installed: pip install 'trajmill\[optimade\]'"):
        serve(str(tmp_path / "store"), port=0)
