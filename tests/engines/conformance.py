"""The kit every engine must pass: subclass `EngineConformance` with a fixture `engine` of two workers."""

import os
import signal
import threading
import time

import pytest

import chores
from trajmill.engines.base import Done, Failed, Lost, Progress, Task


def outcomes(events):
    return {e.name: e for e in events if isinstance(e, (Done, Failed))}


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


class EngineConformance:
    @pytest.fixture(autouse=True)
    def _signals_are_handled_as_before(self):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        yield
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_every_task_has_its_result(self, engine):
        events = list(engine.run([Task(f"t{i}", chores.double, i) for i in range(20)]))
        assert {e.name: e.value for e in events} == {f"t{i}": 2 * i for i in range(20)}
        assert len(events) == 20

    def test_no_tasks(self, engine):
        assert list(engine.run([])) == []

    def test_workers_run_at_the_same_time(self, engine, tmp_path):
        events = list(engine.run([Task(str(i), chores.meet, (tmp_path, 2)) for i in range(2)]))
        assert len({e.value for e in events}) == 2

    def test_a_worker_has_one_task_at_a_time_in_the_order_given(self, engine, tmp_path):
        def look_and_let_go():
            chores.wait_for(lambda: len(chores.started(tmp_path)) == 2)
            time.sleep(0.3)  # a third would have started
            together.extend(chores.started(tmp_path))
            names.update(chores.started_names(tmp_path))
            (tmp_path / "go").touch()

        together, names = [], set()
        beside = threading.Thread(target=look_and_let_go)
        beside.start()
        events = list(engine.run([Task(i, chores.say_and_wait_for_go, (tmp_path, i)) for i in "01234"]))
        beside.join()
        assert len(set(together)) == len(together) == 2
        assert names == {"0", "1"}  # which of them ends first depends on when it looks
        assert len(events) == 5

    def test_an_exception_is_a_failure_and_the_others_go_on(self, engine):
        done = outcomes(engine.run([Task("bad", chores.fail, "what is wrong"), Task("good", chores.double, 4)]))
        assert done["bad"].reason == "ValueError: what is wrong"
        assert isinstance(done["bad"].error, ValueError)
        assert "in fail" in done["bad"].traceback
        assert done["good"].value == 8

    def test_an_exception_that_cannot_travel_is_told_in_words(self, engine):
        done = outcomes(engine.run([Task("bad", chores.fail_awkwardly, None), Task("good", chores.double, 4)]))
        assert done["bad"].reason == "AwkwardError: trouble at home"
        assert done["bad"].error is None
        assert "fail_awkwardly" in done["bad"].traceback
        assert done["good"].value == 8

    def test_a_value_that_cannot_travel_is_a_failure(self, engine):
        done = outcomes(engine.run([Task("bad", chores.return_awkwardly, None), Task("good", chores.double, 4)]))
        assert "pickle" in done["bad"].reason
        assert done["good"].value == 8

    def test_a_killed_worker_costs_one_try(self, engine, tmp_path):
        events = list(engine.run([Task("t", chores.die_once, tmp_path), Task("u", chores.double, 4)]))
        assert [type(e) for e in events if e.name == "t"] == [Lost, Done]
        assert next(e.reason for e in events if isinstance(e, Lost)).startswith("its worker died (")
        assert outcomes(events)["t"].value == 2
        assert outcomes(events)["u"].value == 8

    def test_three_deaths_are_a_failure_and_the_others_go_on(self, engine, tmp_path):
        tasks = [Task("t", chores.die, tmp_path), *(Task(f"u{i}", chores.double, i) for i in range(4))]
        events = list(engine.run(tasks))
        assert [type(e) for e in events if e.name == "t"] == [Lost, Lost, Failed]
        reason = outcomes(events)["t"].reason
        assert reason.startswith("its worker died (")
        assert ") 3 times; if it was killed for memory, " in reason
        assert len(chores.started(tmp_path)) == 3
        assert sorted(e.value for e in events if isinstance(e, Done)) == [0, 2, 4, 6]

    def test_progress_arrives_while_a_task_runs(self, engine, tmp_path):
        events = engine.run([Task("t", chores.talk_until_go, tmp_path)])
        assert next(events) == Progress("t", (1, 2))
        (tmp_path / "go").touch()
        assert isinstance(list(events)[-1], Done)

    def test_first_signal_lets_running_tasks_finish(self, engine, tmp_path):
        def let_go():
            thread.join()
            (tmp_path / "go").touch()

        thread = signal_main(1, lambda: len(chores.started(tmp_path)) == 2)
        after = threading.Thread(target=let_go)
        after.start()
        events = list(engine.run([Task(str(i), chores.wait_for_go, tmp_path) for i in range(6)]))
        after.join()
        assert [type(e) for e in events] == [Done, Done]
        assert engine.draining
        assert len(chores.started(tmp_path)) == 2

    def test_a_task_whose_worker_dies_after_the_first_signal_is_not_started_again(self, engine, tmp_path):
        def kill():
            thread.join()
            os.kill(chores.started(tmp_path)[0], signal.SIGKILL)

        thread = signal_main(1, lambda: len(chores.started(tmp_path)) == 2)
        killer = threading.Thread(target=kill)
        killer.start()
        seen = []
        for event in engine.run([Task(str(i), chores.wait_for_go, tmp_path) for i in range(3)]):
            seen.append(type(event))
            (tmp_path / "go").touch()
        killer.join()
        assert seen == [Lost, Done]

    def test_second_signal_stops_at_once(self, engine, tmp_path):
        thread = signal_main(2, lambda: len(chores.started(tmp_path)) == 2)
        with pytest.raises(KeyboardInterrupt):
            list(engine.run([Task(str(i), chores.wait_for_go, tmp_path) for i in range(6)]))
        thread.join()
        pids = chores.started(tmp_path)
        assert len(pids) == 2
        chores.wait_for(lambda: not any(chores.alive(pid) for pid in pids), what="workers to end", patience=10)

    def test_an_engine_works_again_after_it_was_drained(self, engine):
        for event in engine.run([Task(f"t{i}", chores.double, i) for i in range(4)]):
            assert isinstance(event, Done)
            os.kill(os.getpid(), signal.SIGINT)
            break
        assert engine.draining
        assert len(list(engine.run([Task(f"t{i}", chores.double, i) for i in range(4)]))) == 4

    def test_outside_the_main_thread_signals_are_left_alone(self, engine):
        events = []
        thread = threading.Thread(target=lambda: events.extend(engine.run([Task("t", chores.double, 2)])))
        thread.start()
        thread.join()
        assert events == [Done("t", 4)]

    def test_closing_the_generator_ends_busy_workers(self, engine, tmp_path):
        events = engine.run([Task("t", chores.talk_until_go, tmp_path)])
        assert isinstance(next(events), Progress)
        (pid,) = chores.started(tmp_path)
        events.close()
        chores.wait_for(lambda: not chores.alive(pid), what="the worker to end", patience=10)
