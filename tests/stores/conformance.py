"""The kit every store must pass: subclass `StoreConformance` with a fixture `address` of a store that is not there yet.

What is written, in what order and in which batches, must come back the same to the last bit, whatever the store.
"""

import hashlib
import pickle
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import fakes
import trajmill
from making import make
from trajmill.codec import encode, encode_rejections
from trajmill.errors import StoreError
from trajmill.schema import FILE_SCHEMA
from trajmill.stores import open_store
from trajmill.stores.base import Balance, Commit, stream

VERSIONS = {"trajmill": "1", "numpy": "2.0"}
RECIPE = {"rules": {"elements": ["Yb"], "symprec": 1e-4, "tolerance": 0.020, "tiny": 1e-22}}
ODD = "alexandria/a b=c#d%e%2F&+/Übung 'x\" [1]*?\\.json.bz2"


def fingerprint(text):
    return hashlib.sha256(text.encode()).hexdigest()


def frames(*task_ids, asset="mp/a", n_frames=3, **fields):
    made = [fakes.trajectory(t, asset=asset, n_frames=n_frames, seed=i, **fields) for i, t in enumerate(task_ids)]
    return encode([replace(t, energy_corrected=None) for t in made])


def write(store, asset, label="", **rows):
    """Write batches of an asset by role; return what commits them."""
    rows = rows or {"frame": [frames("t-1", asset=asset)], "rejection": [rejections("r-1", asset=asset)]}
    writer = store.writer(asset)
    for role, batches in rows.items():
        for batch in batches:
            writer.write(role, batch)
    digest = fingerprint(asset + label)
    kept = sum(len(batch) for role, batches in rows.items() if role != "rejection" for batch in batches)
    balance = Balance(records=2, frames=kept, records_kept=1, kept=kept, rejected=Counter(readable=0))
    return Commit(asset, digest, writer.close(digest, VERSIONS), balance, VERSIONS, f"raw of {asset}", RECIPE)


def rejections(*task_ids, asset="mp/a"):
    return encode_rejections([fakes.unreadable(t, asset=asset) for t in task_ids])


def put(store, asset, label="", **rows):
    commit = write(store, asset, label, **rows)
    store.commit(commit)
    return commit


def tasks(store, role="frame", **options):
    """Read (asset, task_id) of a role, in order."""
    batches = store.read(role, columns=["asset", "task_id"], **options)
    return [row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)]


def bits(batch):
    """Everything of a batch by value and bit, NaN and -0.0 included, however its buffers are laid out."""
    sink = pa.BufferOutputStream()
    plain = pa.Table.from_batches([batch]).take(pa.array(range(len(batch))))
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain.combine_chunks())
    return sink.getvalue().to_pybytes()


class StoreConformance:
    """What every store must do."""

    @pytest.fixture
    def store(self, address):
        return open_store(address, create=True)

    def test_rows_come_back_to_the_last_bit(self, store):
        rng = np.random.default_rng(1)
        exact = [
            make(n, symbols, asset="mp/a", task_id=f"t-{i}", trajectory_id=f"t-{i}-pbe", lattice=lattice(rng, n),
                 energy=rng.normal(size=n) * 10.0 ** rng.integers(-300, 300, n))
            for i, (n, symbols) in enumerate([(1, ["H"]), (3, ["Na", "Cl"]), (2, ["Fe"] * 40)])
        ]  # fmt: skip
        odd = make(2, asset="mp/a", notes=('it\'s "odd" \\N', "", "\t\n\0 Ü 日本 😀"), potentials=(), immutable_id=None)
        odd.stress[0] = np.nan
        odd.forces[0, 0, 0] = -0.0
        batches = [encode(exact), encode([odd])]
        special = batches[0].to_pylist()
        special[0] |= {
            "energy": float("nan"),
            "max_force": float("inf"),
            "magnetic_moments": [float("nan"), -0.0, None],
        }
        special[1] |= {"forces": [], "species_at_sites": [], "notes": [None, ""], "energy": 5e-324, "nelements": -128}
        batches.append(pa.RecordBatch.from_pylist(special, schema=FILE_SCHEMA))
        batches.append(batches[0].slice(1, 3))
        turned_away = [rejections("r-1", "r-\0-2"), rejections("")]
        put(store, "mp/a", frame=batches, input=[batches[1]], rejection=turned_away)
        for role, written in (("frame", batches), ("input", [batches[1]]), ("rejection", turned_away)):
            read = list(open_store(store.address).read(role))
            assert [len(b) for b in read] == [len(b) for b in written], "batches are cut as they were written"
            assert all(b.schema.equals(FILE_SCHEMA, check_metadata=True) for b in read)
            assert [bits(b) for b in read] == [bits(b) for b in written]

    def test_assets_by_name_rows_as_written(self, store):
        for asset in ("oqmd/b", "mp/é", "mp/b", "alexandria/Z", "mp/B", "mp/a"):
            batches = [frames(*(f"{asset}-{i}-{j}" for j in range(3)), asset=asset, n_frames=1) for i in (5, 1, 3)]
            put(store, asset, frame=batches)
        names = ["alexandria/Z", "mp/B", "mp/a", "mp/b", "mp/é", "oqmd/b"]
        assert store.assets() == list(store.count("frame")) == names
        expected = [(a, f"{a}-{i}-{j}") for a in names for i in (5, 1, 3) for j in range(3)]
        assert tasks(store) == expected
        assert tasks(store, assets=["oqmd/b", "mp/a", "mp/none"]) == [x for x in expected if x[0] in ("mp/a", "oqmd/b")]
        assert tasks(store, assets=[]) == []
        assert tasks(store, where={"task_id": "mp/B-1-2"}) == [("mp/B", "mp/B-1-2")]
        assert tasks(store, where={"task_id": "mp/B-1-2", "functional": "scan"}) == []
        assert tasks(store, where={"task_id": "mp/B-1-2"}, assets=["mp/a"]) == []
        assert tasks(store, where={"functional": "pbe"}) == expected
        assert tasks(store, where={"task_id": "it's"}) == []

    def test_columns_in_the_order_asked(self, store):
        put(store, "mp/a")
        (batch,) = store.read("frame", columns=["role", "forces", "asset", "nsites"])
        assert batch.schema.names == ["role", "forces", "asset", "nsites"]
        assert batch["role"].to_pylist() == ["frame"] * 3
        (batch,) = store.read("rejection", columns=["asset"])
        assert batch.to_pylist() == [{"asset": "mp/a"}]
        with stream(store, "frame", ["id", "energy"]) as rows:
            assert rows.schema.names == ["id", "energy"]
            assert len(rows.read_all()) == 3

    def test_two_streams_at_once(self, store):
        put(store, "mp/a", frame=[frames("x", n_frames=1), frames("y", n_frames=1)])
        put(store, "mp/b", frame=[frames("z", asset="mp/b", n_frames=1)])
        first, second = store.read("frame"), store.read("frame")
        for a, b in zip(first, second, strict=True):
            assert a.equals(b)
            assert store.version == 2, "other questions can be asked meanwhile"
        left = store.read("frame")
        next(left)
        left.close()

    def test_a_commit_replaces_the_rows_of_its_asset_alone(self, store):
        put(store, "mp/a", frame=[frames("a-1", "a-2", n_frames=1)], rejection=[rejections("r")])
        put(store, "mp/b", frame=[frames("b-1", asset="mp/b", n_frames=1)], rejection=[rejections("r", asset="mp/b")])
        put(store, "mp/a", "changed", frame=[frames("a-3", n_frames=1)])
        for seen in (store, open_store(store.address)):
            assert tasks(seen) == [("mp/a", "a-3"), ("mp/b", "b-1")]
            assert tasks(seen, "rejection") == [("mp/b", "r")]
            assert seen.version == 3

    def test_nothing_is_visible_before_the_commit(self, store):
        put(store, "mp/a", frame=[frames("old", n_frames=1)])
        commit = write(store, "mp/a", "changed", frame=[frames("new", n_frames=1)])
        for seen in (store, open_store(store.address)):
            assert tasks(seen) == [("mp/a", "old")]
            assert seen.version == 1
        store.commit(commit)
        assert tasks(store) == tasks(open_store(store.address)) == [("mp/a", "new")]

    def test_what_is_open_keeps_its_version(self, store):
        put(store, "mp/a", frame=[frames("old", n_frames=1)])
        other = open_store(store.address)
        assert other.version == 1
        put(store, "mp/a", "changed", frame=[frames("new", n_frames=1)])
        store.drop("mp/a")
        put(store, "mp/b")
        assert (other.version, other.assets(), tasks(other)) == (1, ["mp/a"], [("mp/a", "old")])
        assert (store.version, store.assets()) == (4, ["mp/b"])

    def test_what_a_commit_recorded(self, store):
        commits = {a: put(store, a) for a in ("mp/a", "oqmd/b")}
        for seen in (store, open_store(store.address)):
            assert seen.commits() == {a: replace(c, files=()) for a, c in commits.items()}
            assert seen.committed("mp/a", fingerprint("mp/a"))
            assert not seen.committed("mp/a", fingerprint("mp/b"))
            assert not seen.committed("mp/c", fingerprint("mp/c"))
            assert seen.count("frame") == {"mp/a": 3, "oqmd/b": 3}
            assert seen.count("input") == {}
            assert seen.count("rejection") == {"mp/a": 1, "oqmd/b": 1}
            assert seen.balances() == {a: c.balance for a, c in commits.items()}
            assert seen.raw_digests() == {"mp/a": "raw of mp/a", "oqmd/b": "raw of oqmd/b"}
            assert seen.versions() == {"numpy": ["2.0"], "trajmill": ["1"]}
            assert seen.built_with() == {"mp": [RECIPE], "oqmd": [RECIPE]}
            assert sorted(seen.task_ids("mp/a")) == ["r-1", "t-1"]
            assert list(seen.task_ids("mp/none")) == []

    def test_what_is_sent_to_a_worker_knows_its_asset(self, store):
        put(store, "mp/a")
        put(store, "mp/b", frame=[frames("b", asset="mp/b")])
        worker = pickle.loads(pickle.dumps(store.for_worker("mp/a")))
        assert worker.committed("mp/a", fingerprint("mp/a"))
        assert sorted(worker.task_ids("mp/a")) == ["r-1", "t-1"]
        new = pickle.loads(pickle.dumps(store.for_worker("mp/new")))
        assert not new.committed("mp/new", fingerprint("mp/new"))
        assert list(new.task_ids("mp/new")) == []
        store.commit(write(new, "mp/new", frame=[frames("n", asset="mp/new", n_frames=1)]))
        assert tasks(store, assets=["mp/new"]) == [("mp/new", "n")]

    def test_as_a_dataset(self, store):
        put(store, "mp/a", frame=[frames("x", "y", n_frames=3)])
        put(store, "mp/b", frame=[frames("z", asset="mp/b", n_frames=2)])
        dataset = trajmill.open(store.address)
        assert len(dataset) == 8
        narrow = dataset.filter('step > 0 AND functional = "pbe" AND elements LENGTH >= 1')
        ids = [i for batch in narrow.batches(columns=["id", "asset"]) for i in batch["id"].to_pylist()]
        assert ids == ["x-pbe-1", "x-pbe-2", "y-pbe-1", "y-pbe-2", "z-pbe-1"]
        assert len(narrow) == 5
        assert dataset.only(["z-pbe"]).trajectory_ids().to_pylist() == ["z-pbe"]
        assert [len(t) for t in dataset.sample(2).trajectories()] in ([3, 3], [3, 2])
        (batch,) = dataset.filter('asset = "mp/b"').batches()
        assert set(batch["asset"].to_pylist()) == {"mp/b"}
        assert batch.schema.equals(dataset.schema, check_metadata=True)

    def test_an_asset_without_rows(self, store):
        put(store, "mp/a")
        put(store, "mp/a", "emptied", frame=[])
        put(store, "mp/never", frame=[])
        assert store.assets() == tasks(store) == []
        assert store.committed("mp/a", fingerprint("mp/aemptied"))
        assert list(store.commits()) == ["mp/a", "mp/never"]

    def test_a_dropped_asset_leaves_no_trace(self, store):
        put(store, "mp/a")
        put(store, "mp/b")
        store.drop("mp/a")
        store.drop("mp/none")
        assert [store.assets(), list(store.commits()), list(store.balances())] == [["mp/b"]] * 3
        assert not store.committed("mp/a", fingerprint("mp/a")), "it would never be built again"
        put(store, "mp/a")
        assert store.assets() == ["mp/a", "mp/b"]

    def test_upstream_versions_are_recorded_once(self, store):
        assert store.upstream() == {}
        put(store, "mp/a")
        first, second = {"mp": {"version": {"it's": "1"}}}, {"mp": {"version": {"it's": "2"}}}
        store.note_upstream(first)
        store.note_upstream(first)
        assert (store.version, store.upstream()) == (2, first)
        store.note_upstream(second)
        assert open_store(store.address).upstream() == second
        store.note_upstream({"oqmd": {"version": {"dump": "1"}}, "mp": None})
        assert open_store(store.address).upstream() == {"oqmd": {"version": {"dump": "1"}}}

    def test_odd_names_of_assets(self, store):
        for asset in (ODD, "mp/$(x);`y`|<>:,{}~^@!", "mp/日本", "mp/%s {0} $1"):
            put(store, asset)
            put(store, asset, "again", frame=[frames("second", asset=asset, n_frames=1)])
            assert tasks(store, assets=[asset]) == [(asset, "second")]
            assert store.committed(asset, fingerprint(asset + "again"))
            assert list(store.task_ids(asset)) == ["second"]

    def test_abort_leaves_nothing(self, store):
        writer = store.writer("mp/a")
        writer.write("frame", frames("t-1"))
        writer.abort()
        assert store.assets() == []
        put(store, "mp/a")

    def test_a_worker_that_is_killed_leaves_nothing_to_see(self, store):
        put(store, "mp/a", frame=[frames("old", n_frames=1)])
        for at in ("writing", "closed"):
            run_until_killed(store.address, at)
            assert tasks(open_store(store.address)) == [("mp/a", "old")]
        with store.locked():
            put(store, "mp/a", "again", frame=[frames("new", n_frames=1)])
        assert tasks(store) == [("mp/a", "new")]

    def test_many_commit_at_once(self, address):
        """Four threads, each with a store of its own, over the same assets: each asset ends with one set of rows."""
        open_store(address, create=True)
        faults = []

        def work(name):
            try:
                mine = open_store(address)
                for turn in range(4):
                    for asset in ("mp/a", "mp/b", f"mp/{name}"):
                        batch = frames(f"{name}-{turn}", asset=asset, n_frames=2)
                        put(mine, asset, f"{name}-{turn}", frame=[batch], rejection=[rejections("r", asset=asset)])
            except Exception as error:  # noqa: BLE001 (shown by the test)
                faults.append(error)

        threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        store = open_store(address)
        assert store.assets() == ["mp/a", "mp/b", "mp/w0", "mp/w1", "mp/w2", "mp/w3"]
        assert set(store.count("frame").values()) == {2}
        assert set(store.count("rejection").values()) == {1}
        assert len(tasks(store)) == 12
        assert len(set(tasks(store))) == 6, "both frames of an asset are of one commit"
        for asset, task in tasks(store):
            assert store.committed(asset, fingerprint(asset + task))

    def test_there_must_be_one(self, address):
        for options in ({}, {"version": 0}):
            with pytest.raises(StoreError, match="no trajmill store here; `trajmill build` makes one") as caught:
                open_store(address, **options)
            assert "\n" not in str(caught.value)
        open_store(address, create=True)
        assert open_store(address, create=True).version == 0
        with pytest.raises(StoreError, match="99"):
            open_store(address, version=99)
        assert open_store(address, version=0).version == 0


def lattice(rng, n_frames):
    return np.repeat(np.eye(3)[None] * 9.0, n_frames, axis=0) + rng.normal(size=(n_frames, 3, 3))


def run_until_killed(address, at):
    """Write an asset's rows in a process that kills itself while writing, or when the rows are ready."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import fakes
from trajmill.codec import encode
from trajmill.stores import open_store
writer = open_store({address!r}).writer("mp/a")
writer.write("frame", encode([fakes.trajectory()]))
if {at!r} == "closed":
    writer.close("f" * 64, {{}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0, done.stderr
