"""The engine of processes: outcomes, deaths, signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import chores
from trajmill.engines.base import Done, Failed, Lost, Progress, Task
from trajmill.engines.local import LocalEngine


def run(*tasks, workers=2):
    return list(LocalEngine(workers).run(tasks))


def outcomes(events):
    return {e.name: e for e in events if isinstance(e, (Done, Failed))}


@pytest.fixture(autouse=True)
def _no_process_is_left():
    before = chores.children()
    yield
    assert chores.children() - before == set(), "workers or zombies left"


def signal_main(times, when):
    """Send SIGINT to this process as Ctrl-C would, from beside, once `when` is true."""

    def work():
        chores.wait_for(when)
        for _ in range(times):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.1)  # two signals at once are one

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_every_task_has_its_result():
    events = run(*(Task(f"t{i}", chores.double, i) for i in range(20)), workers=3)
    assert {e.name: e.value for e in events} == {f"t{i}": 2 * i for i in range(20)}
    assert len(events) == 20


def test_no_tasks():
    assert run() == []


def test_no_more_workers_than_tasks():
    engine = LocalEngine(64).run([Task("t", chores.double, 1)])
    before = chores.children()
    next(engine)
    assert len(chores.children() - before) == 1
    engine.close()


def test_workers_run_at_the_same_time(tmp_path):
    events = run(*(Task(str(i), chores.meet, (tmp_path, 2)) for i in range(2)), workers=2)
    assert len({e.value for e in events}) == 2


def test_an_exception_is_a_failure_and_the_others_go_on():
    events = run(Task("bad", chores.fail, "what is wrong"), Task("good", chores.double, 4), workers=1)
    failed = outcomes(events)["bad"]
    assert failed.reason == "ValueError: what is wrong"
    assert isinstance(failed.error, ValueError)
    assert "in fail" in failed.traceback
    assert outcomes(events)["good"].value == 8


def test_an_exception_that_cannot_travel_is_told_in_words():
    events = run(Task("bad", chores.fail_awkwardly, None), Task("good", chores.double, 4), workers=1)
    failed = outcomes(events)["bad"]
    assert failed.reason == "AwkwardError: trouble at home"
    assert failed.error is None
    assert "fail_awkwardly" in failed.traceback
    assert outcomes(events)["good"].value == 8


def test_a_value_that_cannot_travel_is_a_failure():
    events = run(Task("bad", chores.return_awkwardly, None), Task("good", chores.double, 4), workers=1)
    assert "pickle" in outcomes(events)["bad"].reason
    assert outcomes(events)["good"].value == 8


def test_a_killed_worker_costs_one_try(tmp_path):
    events = run(Task("t", chores.die_once, tmp_path), Task("u", chores.double, 4), workers=1)
    assert [type(e) for e in events if e.name == "t"] == [Lost, Done]
    assert events[0].reason == "its worker died (SIGKILL)"
    assert outcomes(events)["t"].value == 2
    assert outcomes(events)["u"].value == 8


def test_three_deaths_are_a_failure_and_the_others_go_on(tmp_path):
    events = run(Task("t", chores.die, tmp_path), *(Task(f"u{i}", chores.double, i) for i in range(4)))
    assert [type(e) for e in events if e.name == "t"] == [Lost, Lost, Failed]
    reason = outcomes(events)["t"].reason
    assert reason == "its worker died (SIGKILL) 3 times; if it was killed for memory, use fewer workers"
    assert len(chores.started(tmp_path)) == 3
    assert sorted(e.value for e in events if isinstance(e, Done)) == [0, 2, 4, 6]


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


def test_progress_arrives_while_a_task_runs(tmp_path):
    events = LocalEngine(1).run([Task("t", chores.talk_until_go, tmp_path)])
    assert next(events) == Progress("t", (1, 2))
    (tmp_path / "go").touch()
    assert isinstance(list(events)[-1], Done)


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


def test_first_signal_lets_running_tasks_finish(tmp_path):
    tasks = [Task(str(i), chores.wait_for_go, tmp_path) for i in range(6)]

    def let_go():
        thread.join()
        (tmp_path / "go").touch()

    thread = signal_main(1, lambda: len(chores.started(tmp_path)) == 2)
    after = threading.Thread(target=let_go)
    after.start()
    events = run(*tasks, workers=2)
    after.join()
    assert [type(e) for e in events] == [Done, Done]
    assert len(chores.started(tmp_path)) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_task_whose_worker_dies_after_the_first_signal_is_not_started_again(tmp_path):
    events = LocalEngine(1).run([Task("t", chores.wait_for_go, tmp_path), Task("u", chores.double, 1)])
    thread = signal_main(1, lambda: chores.started(tmp_path))

    def kill():
        thread.join()
        os.kill(chores.started(tmp_path)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert [type(e) for e in events] == [Lost]
    killer.join()


def test_second_signal_stops_at_once(tmp_path):
    thread = signal_main(2, lambda: len(chores.started(tmp_path)) == 2)
    with pytest.raises(KeyboardInterrupt):
        run(*(Task(str(i), chores.wait_for_go, tmp_path) for i in range(6)), workers=2)
    thread.join()
    pids = chores.started(tmp_path)
    assert len(pids) == 2
    assert not any(chores.alive(pid) for pid in pids)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_engine_works_again_after_it_was_drained(tmp_path):
    engine = LocalEngine(1)
    for event in engine.run([Task(f"t{i}", chores.double, i) for i in range(3)]):
        assert isinstance(event, Done)
        os.kill(os.getpid(), signal.SIGINT)
    assert engine.draining
    assert len(list(engine.run([Task(f"t{i}", chores.double, i) for i in range(3)]))) == 3


def test_outside_the_main_thread_signals_are_left_alone():
    events = []
    thread = threading.Thread(target=lambda: events.extend(run(Task("t", chores.double, 2))))
    thread.start()
    thread.join()
    assert events == [Done("t", 4)]


def test_closing_the_generator_ends_busy_workers(tmp_path):
    events = LocalEngine(2).run([Task("quick", chores.double, 1), Task("slow", chores.wait_for_go, tmp_path)])
    before = chores.children()
    next(events)
    chores.wait_for(lambda: chores.started(tmp_path))
    pids = chores.children() - before
    assert len(pids) == 2
    events.close()
    assert not any(chores.alive(pid) for pid in pids)


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
