"""The engine of clusters: what it shares with the others, and deaths of workers, schedulers and jobs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import chores
import fakes
import trajmill.builder
from engines.conformance import EngineConformance, outcomes
from making import DATA, content
from servers import dask_cluster
from trajmill.builder import build
from trajmill.engines import dask
from trajmill.engines.base import Done, Failed, Lost, Task
from trajmill.engines.dask import DaskEngine
from trajmill.errors import EngineError, MissingExtraError
from trajmill.recipe import load

pytest.importorskip("distributed")
NAMES = ["mp/a.raw", "mp/b.raw", "mp/c.raw", "mp/d.raw"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a scheduler with two workers that their nannies start again."""
    folder = tmp_path_factory.mktemp("cluster")
    with dask_cluster.scheduler(folder) as (address, _), dask_cluster.workers(address, folder):
        yield address


class TestDask(EngineConformance):
    @pytest.fixture
    def engine(self, cluster):
        chores.wait_for(lambda: len(workers(cluster)) == 2, what="both workers to be back")
        return DaskEngine(scheduler=cluster)


def workers(address):
    """Pids of a scheduler's workers, by their address."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return client.run(os.getpid)


# --- workers on this machine


def test_workers_of_its_own(capfd, tmp_path):
    tasks = [*(Task(f"t{i}", chores.double, i) for i in range(4)), Task("noise", chores.make_noise, None)]
    events = list(DaskEngine(2).run([*tasks, Task("died", chores.die_once, tmp_path)]))
    assert {name: e.value for name, e in outcomes(events).items() if name != "noise"} == {
        **{f"t{i}": 2 * i for i in range(4)},
        "died": 2,
    }
    assert [type(e) for e in events if e.name == "died"] == [Lost, Done]
    assert capfd.readouterr() == ("", "")


def test_zero_workers_takes_every_core():
    assert DaskEngine().workers == len(os.sched_getaffinity(0))


def test_the_parent_sleeps_while_it_waits(cluster, tmp_path):
    """Pitfall 25."""
    measured = []

    def watch():
        chores.wait_for(lambda: len(chores.started(tmp_path)) == 2)
        cpu, wall = time.process_time(), time.monotonic()
        time.sleep(1)
        measured.append((time.process_time() - cpu) / (time.monotonic() - wall))
        (tmp_path / "go").touch()

    thread = threading.Thread(target=watch)
    thread.start()
    tasks = [Task(str(i), chores.wait_for_go, tmp_path) for i in range(2)]
    assert len(list(DaskEngine(scheduler=cluster).run(tasks))) == 2
    thread.join()
    assert measured[0] < 0.2


# --- workers that fail


def test_a_worker_killed_from_outside_costs_one_try(cluster, tmp_path):
    def kill():
        chores.wait_for(lambda: chores.started(tmp_path))
        os.kill(chores.started(tmp_path)[0], signal.SIGKILL)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    events = list(DaskEngine(scheduler=cluster).run([Task("t", chores.wait_for_go, tmp_path)]))
    thread.join()
    assert [type(e) for e in events] == [Lost, Done]
    assert len(chores.started(tmp_path)) == 2


def test_a_task_that_says_nothing_is_tried_elsewhere(cluster, tmp_path):
    events = []
    for event in DaskEngine(scheduler=cluster, timeout=3).run([Task("t", chores.wait_for_go, tmp_path)]):
        events.append(event)
        if isinstance(event, Lost):
            (hung,) = chores.started(tmp_path)
            (tmp_path / "go").touch()
    assert [type(e) for e in events] == [Lost, Done]
    assert events[0].reason == "its worker said nothing for 3 s"
    chores.wait_for(lambda: not chores.alive(hung), what="the silent worker to end")


def test_a_task_that_reports_is_left_in_peace(cluster, tmp_path):
    """The timeout counts from the last word, not from the start."""
    timer = threading.Timer(6, (tmp_path / "go").touch)
    timer.start()
    events = list(DaskEngine(scheduler=cluster, timeout=4).run([Task("t", chores.talk_until_go, tmp_path)]))
    timer.join()
    assert not [e for e in events if isinstance(e, (Lost, Failed))]
    assert isinstance(events[-1], Done)


def test_a_worker_with_many_threads_has_one_task_at_a_time(tmp_path):
    traces = tmp_path / "traces"
    traces.mkdir()
    together = []

    def look_and_let_go():
        chores.wait_for(lambda: chores.started(traces))
        time.sleep(0.5)  # a second would have started
        together.extend(chores.started(traces))
        (traces / "go").touch()

    beside = threading.Thread(target=look_and_let_go)
    beside.start()
    with (
        dask_cluster.scheduler(tmp_path) as (address, _),
        dask_cluster.workers(address, tmp_path, 1, "--nthreads", "4"),
    ):
        events = list(DaskEngine(scheduler=address).run([Task(str(i), chores.wait_for_go, traces) for i in range(3)]))
    beside.join()
    assert len(together) == 1
    assert len(events) == 3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("older", r"worker tcp://\S+ has trajmill 0\.0\.9 and not \S+; workers need the same environment"),
        ("broken", r"worker tcp://\S+ cannot run trajmill \(.*no trajmill here.*\); workers need the same environment"),
    ],
)
def test_a_worker_with_another_environment_is_refused_before_work_starts(tmp_path, what, message):
    """Its folder of packages comes first there: one with metadata of an older version, one that does not import."""
    packages = tmp_path / "packages"
    if what == "older":
        (packages / "trajmill-0.0.9.dist-info").mkdir(parents=True)
        (packages / "trajmill-0.0.9.dist-info" / "METADATA").write_text("Name: trajmill\nVersion: 0.0.9\n")
    else:
        (packages / "trajmill").mkdir(parents=True)
        (packages / "trajmill" / "__init__.py").write_text("raise ImportError('no trajmill here')\n")
    path = os.pathsep.join([str(packages), os.environ["PYTHONPATH"]])
    traces = tmp_path / "traces"
    traces.mkdir()
    with (
        dask_cluster.scheduler(tmp_path) as (address, _),
        dask_cluster.workers(address, tmp_path, 1, PYTHONPATH=path),
        pytest.raises(EngineError, match=message),
    ):
        list(DaskEngine(scheduler=address).run([Task("t", chores.die, traces)]))
    assert chores.started(traces) == []


# --- schedulers that fail


def test_no_scheduler_at_the_address(monkeypatch):
    monkeypatch.setattr(dask, "CONNECTING", 1.0)
    with pytest.raises(EngineError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:1"):
        list(DaskEngine(scheduler="tcp://127.0.0.1:1").run([Task("t", chores.double, 1)]))


def test_a_scheduler_without_workers(monkeypatch, tmp_path):
    monkeypatch.setattr(dask, "NO_WORKERS", 1.0)
    with (
        dask_cluster.scheduler(tmp_path) as (address, _),
        pytest.raises(EngineError, match=f"no worker came .* start some: dask worker {address} --nthreads 1"),
    ):
        list(DaskEngine(scheduler=address).run([Task("t", chores.double, 1)]))


# --- builds


@pytest.fixture
def raw(tmp_path):
    for i, name in enumerate("abcd"):
        fakes.write_raw(tmp_path / "raw", name, seed=i, records=40 if name == "a" else 12 - i)
    fakes.write_facts(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def build_here(raw, tmp_path, monkeypatch):
    """Build the fake source in this process; options of the engine are given as `key=value`."""
    monkeypatch.setattr(trajmill.builder, "open_sources", lambda _: [fakes.FakeSource(raw)])
    monkeypatch.setattr(trajmill.builder, "build_asset", fakes.build_asset)

    def run(store, *settings):
        return build(fakes.recipe(tmp_path / store, 2, *settings))

    return run


def at(address):
    return "engine.name=dask", f"engine.scheduler='{address}'"


def test_the_samples_make_the_same_store_as_on_this_machine(cluster, tmp_path):
    def settings(store):
        places = {"mp": DATA / "mp", "alexandria": DATA / "alexandria", "oqmd": DATA / "oqmd"}
        return [f"store.path='{tmp_path / store}'", *(f"{name}.path='{path}'" for name, path in places.items())]

    here = build(load(settings=[*settings("here"), "engine.workers=2"]))
    there = build(load(settings=[*settings("there"), *at(cluster)]))
    assert there.balance == here.balance
    assert content(tmp_path / "there") == content(tmp_path / "here")


@pytest.mark.parametrize("phase", ["middle", "written"])
def test_a_worker_killed_in_an_asset_changes_nothing(cluster, raw, build_here, tmp_path, phase):
    build_here("undisturbed")
    fakes.arrange(raw, "mp/a.raw", phase, "kill")
    summary = build_here("disturbed", *at(cluster))
    assert sorted(summary.built) == NAMES
    assert content(tmp_path / "disturbed") == content(tmp_path / "undisturbed")


def test_an_asset_that_kills_its_workers_is_left_out_alone(cluster, build_here, monkeypatch):
    monkeypatch.setattr(trajmill.builder, "build_asset", fakes.die_on_b)
    summary = build_here("store", *at(cluster))
    assert list(summary.failed) == ["mp/b.raw"]
    assert sorted(summary.built) == ["mp/a.raw", "mp/c.raw", "mp/d.raw"]


def test_a_scheduler_killed_in_a_build_is_an_error_and_the_build_is_continued(raw, build_here, tmp_path):
    build_here("undisturbed")
    control = fakes.arrange(raw, "mp/a.raw", "middle", "pause")
    with dask_cluster.scheduler(tmp_path) as (address, pid), dask_cluster.workers(address, tmp_path):

        def kill():
            chores.wait_for(lambda: fakes.paused(control))
            os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(EngineError, match="scheduler was lost; what was committed is unharmed: run again to go on"):
            build_here("store", *at(address))
        thread.join()
        control.unlink()
    summary = build_here("store")
    assert sorted([*summary.built, *summary.unchanged]) == NAMES
    assert "mp/a.raw" in summary.built
    assert content(tmp_path / "store") == content(tmp_path / "undisturbed")


BUILD = """
import json, sys
from pathlib import Path
import fakes, trajmill.builder
raw, store = map(Path, sys.argv[1:])
trajmill.builder.open_sources = lambda _: [fakes.FakeSource(raw)]
trajmill.builder.build_asset = fakes.build_asset
summary = trajmill.builder.build(fakes.recipe(store, 1, "engine.name=dask"))
print(json.dumps({"built": sorted(summary.built), "stopped": summary.stopped}))
"""


def test_ctrl_c_in_a_terminal_does_not_reach_workers_of_its_own(raw, build_here, tmp_path):
    """It is sent to the whole group of processes."""
    control = fakes.arrange(raw, "mp/a.raw", "middle", "pause")
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, raw, tmp_path / "store"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            chores.wait_for(lambda: fakes.paused(control))
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)  # it may not be quicker than the asset
            control.unlink()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert json.loads(out) == {"built": ["mp/a.raw"], "stopped": True}
    assert err == ""
    build_here("undisturbed")
    assert sorted(build_here("store").built) == NAMES[1:]
    assert content(tmp_path / "store") == content(tmp_path / "undisturbed")


def test_workers_of_its_own_end_when_the_build_is_killed(raw, tmp_path):
    control = fakes.arrange(raw, "mp/a.raw", "middle", "pause")
    command = [sys.executable, "-c", BUILD, raw, tmp_path / "store"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        worker = chores.wait_for(lambda: fakes.paused(control))
        process.kill()
    chores.wait_for(lambda: not chores.alive(worker), what="the worker to end", patience=10)


# --- the command line


def trajmill_build(*arguments, **environment):
    command = [sys.executable, "-m", "trajmill.cli", "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_from_the_command_line(cluster, tmp_path):
    made = trajmill_build(
        "--alexandria", DATA / "alexandria", "--out", tmp_path / "store", "--engine", "dask", "--scheduler", cluster
    )
    assert made.returncode == 0, made.stderr
    assert [line for line in made.stderr.splitlines() if "rejected" not in line] == []  # progress may be there
    assert "assets built, 0 unchanged" in made.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scheduler", "tcp://h:1"], 'engine.scheduler: goes with --engine dask (engine.name = "dask")'),
        (["--slurm", "jobs.toml"], 'engine.slurm: goes with --engine dask (engine.name = "dask")'),
        (["--engine", "dask", "--scheduler", "tcp://h:1", "--slurm", "jobs.toml"], "give one of them"),
        (["--engine", "spark"], "engine.name: Input should be 'local' or 'dask'"),
        (["--engine", "dask", "--slurm", "nosuch.toml"], "nosuch.toml: cannot be read (No such file or directory)"),
        (["--engine", "dask", "--scheduler", "nonsense"], "engine.scheduler: nonsense is no address"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, flags, message):
    made = trajmill_build("--alexandria", DATA / "alexandria", "--out", tmp_path / "store", *flags)
    assert made.returncode == 2
    assert made.stderr.count("\n") == 1
    assert message in made.stderr


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.setitem(sys.modules, "dask.config", None)
    with pytest.raises(MissingExtraError, match=r"dask is not installed: pip install 'trajmill\[dask\]'"):
        DaskEngine()
