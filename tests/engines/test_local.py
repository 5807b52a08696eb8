"""The engine of processes: outcomes, deaths, signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import chores
from engines.conformance import EngineConformance, outcomes
from trajmill.engines.base import Failed, Lost, Task
from trajmill.engines.local import LocalEngine


def run(*tasks, workers=2):
    return list(LocalEngine(workers).run(tasks))


@pytest.fixture(autouse=True)
def _no_process_is_left():
    before = chores.children()
    yield
    assert chores.children() - before == set(), "workers or zombies left"


def test_no_more_workers_than_tasks():
    engine = LocalEngine(64).run([Task("t", chores.double, 1)])
    before = chores.children()
    next(engine)
    assert len(chores.children() - before) == 1
    engine.close()


class TestLocal(EngineConformance):
    @pytest.fixture
    def engine(self):
        return LocalEngine(2)


def test_a_death_is_told_with_what_ended_the_worker(tmp_path):
    failed = outcomes(run(Task("t", chores.die, tmp_path)))["t"]
    assert failed.reason == "its worker died (SIGKILL) 3 times; if it was killed for memory, use fewer workers"


def test_death_in_the_middle_of_a_message():
    events = run(Task("t", chores.die_talking, None), Task("u", chores.double, 4), workers=1)
    assert [type(e) for e in events if e.name == "t"] == [Lost, Lost, Failed]
    assert outcomes(events)["u"].value == 8


def test_last_words_of_a_crash_are_passed_on():
    failed = outcomes(run(Task("t", chores.crash, "free(): invalid pointer")))["t"]
    assert "exit code 3" in failed.reason
    assert failed.traceback == "free(): invalid pointer\n"


def test_a_worker_killed_while_idle(tmp_path):
    """The task it gets next is tried again elsewhere."""
    tasks = [Task("wait", chores.wait_for_go, tmp_path), *(Task(f"t{i}", chores.double, i) for i in range(5))]
    events = LocalEngine(2).run(tasks)
    before = chores.children()
    seen = [next(events)]  # of the second worker, which is idle now
    (busy,) = chores.wait_for(lambda: chores.started(tmp_path))
    (idle,) = chores.children() - before - {busy}
    os.kill(idle, signal.SIGKILL)
    chores.wait_for(lambda: not chores.alive(idle))
    (tmp_path / "go").touch()
    seen += list(events)
    assert [type(e) for e in seen].count(Lost) == 1
    assert {n: e.value for n, e in outcomes(seen).items() if n != "wait"} == {f"t{i}": 2 * i for i in range(5)}


def test_noise_of_workers_stays_out_of_the_way(capfd):
    run(Task("t", chores.make_noise, None))
    assert capfd.readouterr() == ("", "")


def test_the_parent_sleeps_while_it_waits(tmp_path):
    """Pitfall 25."""
    events = LocalEngine(2).run([Task(str(i), chores.wait_for_go, tmp_path) for i in range(2)])
    measured = []

    def watch():
        chores.wait_for(lambda: len(chores.started(tmp_path)) == 2)
        cpu, wall = time.process_time(), time.monotonic()
        time.sleep(0.6)
        measured.append((time.process_time() - cpu) / (time.monotonic() - wall))
        (tmp_path / "go").touch()

    thread = threading.Thread(target=watch)
    thread.start()
    assert len(list(events)) == 2
    thread.join()
    assert measured[0] < 0.1


def test_workers_end_when_the_parent_is_killed(tmp_path):
    """Also when their task never reports."""
    parent = subprocess.Popen([sys.executable, "-m", "chores", str(tmp_path)])
    try:
        pids = chores.wait_for(lambda: len(found := chores.started(tmp_path)) == 2 and found)
        assert all(chores.alive(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
    chores.wait_for(lambda: not any(chores.alive(pid) for pid in pids), what="workers to end", patience=10)


def test_zero_workers_takes_every_core():
    assert LocalEngine().workers == len(os.sched_getaffinity(0))
