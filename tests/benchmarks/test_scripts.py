"""The benchmarks measure what they say, tried on the samples; no figure is asserted."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bench
import columns
import loading
import log
import measuring
import soak
from making import DATA, make
from trajmill.codec import encode
from trajmill.stores import open_store


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder laid out as the generated corpora are, of the samples."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "alexandria").symlink_to(DATA / "alexandria")
    (folder / "mp").symlink_to(DATA / "mp" / "real")
    (folder / "oqmd").mkdir()
    (folder / "oqmd" / "qmdb.sql.gz").symlink_to(DATA / "oqmd" / "qmdb__v1_6__112023.sql.gz")
    return folder


@pytest.fixture(scope="module")
def built(samples, tmp_path_factory):
    """What an undisturbed build of the samples gives: its store, and what it said."""
    store = tmp_path_factory.mktemp("built") / "store"
    return store, soak.build(samples, store, 1)


@pytest.mark.parametrize("source", measuring.SOURCES)
def test_stages(samples, source):
    found = measuring.call(bench.__file__, "--measure", "stages", source, samples, 1)
    costs = found["us_per_frame"]
    assert list(costs) == list(bench.STAGES)
    assert all(costs[stage] > 0 for stage in ("parse", "curate", "symmetry", "encode", "write", "commit"))
    assert found["frames"] > found["kept"] > 0


def test_whole_build(samples):
    found = measuring.call(bench.__file__, "--measure", "builds", "alexandria,mp", samples, 2)
    assert found["frames"] == found["kept"] + sum(found["rejected"].values())
    assert 1 <= len(found["worker_peaks_mb"]) <= 2
    assert all(found[key] > 0 for key in ("cpu_us_per_frame", "parent_peak_mb", "bytes_per_frame"))


def test_all_readers_read_the_same(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "corpus", lambda _: samples)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    paths = loading.prepare(0, tmp_path)
    found = {}
    for library, forms in loading.WAYS.items():
        for form, shuffled in dict(loading.TASKS).items():
            if form in forms:
                arguments = (library, form, shuffled, paths[library])
                found[library, form, shuffled] = measuring.call(loading.__file__, "--measure", *arguments)
    assert len({(row["frames"], *row["sums"]) for row in found.values()}) == 1, found
    assert next(iter(found.values()))["frames"] > 20


class TestClock:
    def test_stages_within_stages_count_once(self):
        clock = bench.Clock()

        class Owner:
            def inner(self):
                return sum(range(200_000))

            def outer(self):
                return self.inner()

        clock.watch(Owner, "inner", "inner")
        clock.watch(Owner, "outer", "outer")
        assert Owner().outer() == sum(range(200_000))
        assert clock.spent["inner"] > clock.spent["outer"] > 0

    def test_what_is_done_between_two_values_counts(self):
        clock = bench.Clock()

        class Owner:
            def each(self):
                for _ in range(3):
                    yield sum(range(200_000))

        clock.watch(Owner, "each", "each")
        values = Owner().each()
        assert "each" in clock.spent
        before = clock.spent["each"]
        assert len(list(values)) == 3
        assert clock.spent["each"] > before

    def test_an_error_leaves_the_stage(self):
        clock = bench.Clock()
        with pytest.raises(ValueError, match="no"), clock.stage("a"):
            raise ValueError("no")
        with clock.stage("b"):
            pass
        assert set(clock.spent) == {"other", "a", "b"}


class Few(random.Random):
    """Chance that kills the build, then a worker, then whatever, and then lets go."""

    def __init__(self):
        super().__init__(0)
        self.pauses, self.whole = [2, 2, 2], [0, 1]

    def expovariate(self, lambd):
        return self.pauses.pop() if self.pauses else 1000

    def choice(self, victims):
        return victims[0]  # the inherited one would use up what `random` has

    def random(self):
        return self.whole.pop(0) if self.whole else super().random()


class TestSoak:
    def test_a_disturbed_build_shows_nothing(self, samples, built, tmp_path):
        quiet, summary = built
        assert summary["failed"] == {}
        store = tmp_path / "store"
        result = soak.disturbed(samples, store, 2, every=2, rng=Few())
        assert result["failed"] == {}
        assert result["killed"]["builds"] >= 1
        assert result["runs"] >= 2
        generated = sum(b.frames for b in open_store(quiet).balances().values())
        found = soak.check(store, quiet, generated)
        assert found["read"] == generated
        assert found["files_equal"] > 3

    def test_only_workers_of_the_build_are_victims(self):
        code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0); input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as other:
            while not measuring.children(other.pid):
                assert other.poll() is None
            assert soak.workers_of(other.pid) == []
            child = measuring.children(other.pid)[0]
            other.kill()
            os.kill(child, signal.SIGKILL)

    def test_frames_that_went_missing_show(self, built):
        store, _ = built
        with pytest.raises(AssertionError, match="frames were generated"):
            soak.check(store, store, 10**6)

    def test_a_changed_file_shows(self, built, tmp_path):
        store, _ = built
        frames = sum(b.frames for b in open_store(store).balances().values())
        other = tmp_path / "other"
        for file in store.glob("role=*/**/*.parquet"):
            copy = other / file.relative_to(store)
            copy.parent.mkdir(parents=True)
            copy.write_bytes(file.read_bytes())
        soak.check(store, other, frames)
        copy.write_bytes(copy.read_bytes()[:-1])
        with pytest.raises(AssertionError, match="differ from the undisturbed build"):
            soak.check(store, other, frames)


def test_a_log_of_many_assets_is_one_that_commits_make(tmp_path):
    log.fill(tmp_path / "store", 30)
    store = open_store(tmp_path / "store")
    assert store.version == 30
    assert store.assets() == [f"alexandria/asset-{i:07}" for i in range(30)]
    assert len(store.balances()) == 30
    found = measuring.call(log.__file__, "--measure", tmp_path / "store", 30, 3)
    assert found["assets"] == 30
    assert open_store(tmp_path / "store").version == 33


@pytest.fixture(scope="module")
def rows():
    unknown = np.full((4, 3, 3), np.nan)  # null in the rows
    trajectories = [make(4, trajectory_id=f"t-{i}", stress=unknown) for i in range(20)]
    return [pa.Table.from_batches([encode(trajectories)])]


class TestColumns:
    def test_exact_variants_lose_nothing(self, rows):
        variants = columns.measure(rows)["variants"]
        exact = {name for name, found in variants.items() if not found["largest_error"]}
        assert exact == {name for name, (_, change) in columns.VARIANTS.items() if change is columns.same}
        assert variants["forces to 2^-17 eV/A"]["largest_error"].keys() == {"forces"}
        assert variants["forces to 2^-17 eV/A"]["largest_error"]["forces"] <= 2.0**-18 * 1.05  # to two digits

    def test_every_variant_reads_back(self, rows):
        for options, change in columns.VARIANTS.values():
            changed = [change(group) for group in rows]
            buffer = pa.BufferReader(columns.write(changed, options))
            back = pq.read_table(buffer)
            assert back.drop(["forces"]).num_rows == 80
            assert back["id"].to_pylist() == rows[0]["id"].to_pylist()
            assert back["stress_tensor"].null_count == 80

    def test_columns_add_up_to_the_file(self, rows):
        file = columns.write(rows, columns.parquet_options)
        sizes = columns.by_column(file, 1)
        assert set(sizes) == set(rows[0].schema.names)
        assert 0 < sum(sizes.values()) < len(file)


def test_results_say_where_they_were_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    measuring.save("a", {"b": 1})
    assert "make docs" in capsys.readouterr().err
    found = json.loads((tmp_path / "benchmarks" / "results" / "a.json").read_text())
    assert found["results"] == {"b": 1}
    machine = found["machine"]
    assert machine["cores"] >= 1
    assert machine["memory_gb"] > 0
    assert {"trajmill", "pyarrow"} <= machine["packages"].keys()


@pytest.mark.parametrize("script", "bench columns compare fetch log soak".split())
def test_a_wrong_option_is_one_line(script):
    done = subprocess.run(
        [sys.executable, measuring.HERE / f"{script}.py", "--nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"{script}.py: error: unrecognized arguments: --nonsense"
