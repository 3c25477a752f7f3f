"""Restarts, pauses and time-outs with a worker that only pretends and a clock that only the test moves."""

import numpy as np
import pytest

from sqap_vla_ros.contracts import Observation, PolicyInfo
from sqap_vla_ros.serving.events import LoadFailed, LoadProgress, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.supervisor import LONGEST_PAUSE_S, WorkerSupervisor
from sqap_vla_ros.serving.worker import WorkerError

OBSERVATION = Observation(np.zeros((4, 4, 3), np.uint8), 0, "pick", None, np.eye(4))


class FakeWorker:
    def __init__(self) -> None:
        self.ready = self.busy = self.closed = self.discarded = self.gone = False
        self.pid = 1
        self.killed: list[str] = []
        self.queue: list = []

    def start(self) -> None:
        self.started = True

    def events(self) -> list:
        events, self.queue = self.queue, []
        self.busy = self.busy and not any(isinstance(event, (Result, PredictFailed)) for event in events)
        return events

    def submit(self, observation, *, seed: int) -> int:
        if self.gone:
            raise WorkerError("does not listen any more")
        self.busy = True
        return 1

    def kill(self, why: str) -> None:
        self.killed.append(why)

    def close(self) -> None:
        self.closed = True

    def discard(self) -> None:
        self.discarded = True

    def becomes_ready(self, recipe: str = "sqap") -> None:
        self.ready = True
        info = PolicyInfo("tabletop", "", recipe, 1, 16, 0.2, 224, (16, 16), "tabletop", "none")
        self.queue.append(Ready(info=info, warm_latency_s=0.1))


@pytest.fixture
def made() -> list[FakeWorker]:
    return []


@pytest.fixture
def supervisor(made) -> WorkerSupervisor:
    def make() -> FakeWorker:
        made.append(FakeWorker())
        return made[-1]

    supervisor = WorkerSupervisor(make, prediction_timeout_s=5.0, load_timeout_s=60.0)
    supervisor.start()
    return supervisor


def test_until_it_is_ready_there_is_a_problem(supervisor, made):
    assert "being loaded" in supervisor.problem
    assert not supervisor.idle
    made[0].becomes_ready()
    supervisor.poll(0.0)
    assert supervisor.problem is None
    assert supervisor.idle


def test_what_is_waited_for_is_the_problem_while_loading_and_while_predicting(supervisor, made):
    made[0].queue.append(LoadProgress("waiting up to 9 s for the server"))
    supervisor.poll(0.0)
    assert supervisor.problem == "the policy is being loaded: waiting up to 9 s for the server"
    made[0].becomes_ready()
    supervisor.poll(1.0)
    assert supervisor.problem is None
    for answer in (Result(1, chunk=None, policy_s=0.1), PredictFailed(1, "not reached")):
        supervisor.submit(OBSERVATION, seed=0, now_s=2.0)
        made[0].queue.append(LoadProgress("waiting up to 4 s for the server"))
        supervisor.poll(2.5)
        assert supervisor.problem == "waiting up to 4 s for the server"
        made[0].queue.append(answer)
        supervisor.poll(3.0)
        assert supervisor.problem is None


def test_a_dead_worker_is_discarded_and_replaced_after_growing_pauses(supervisor, made):
    now_s, pauses = 0.0, []
    for _ in range(7):
        made[-1].becomes_ready()
        made[-1].queue.append(Lost("ended by SIGSEGV"))
        supervisor.poll(now_s)
        assert made[-1].discarded
        assert not made[-1].closed  # which would wait
        assert not supervisor.idle
        count, died_s = len(made), now_s
        while len(made) == count:
            assert "ended by SIGSEGV; starting it again in" in supervisor.problem
            now_s += 0.25
            supervisor.poll(now_s)
        pauses.append(now_s - died_s)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert supervisor.restarts == 7


def test_another_policy_after_a_restart_is_not_taken(supervisor, made):
    made[-1].becomes_ready()
    made[-1].queue.append(Lost("the server went away"))
    supervisor.poll(0.0)
    supervisor.poll(2.0)
    made[-1].becomes_ready("fp32")
    assert supervisor.poll(3.0) == []
    assert "another policy answers now (recipe fp32, was sqap)" in supervisor.problem
    assert made[-1].discarded
    supervisor.poll(30.0)
    made[-1].becomes_ready()
    assert len(supervisor.poll(31.0)) == 1
    assert supervisor.problem is None


def test_a_prediction_in_between_makes_the_pause_short_again(supervisor, made):
    for now_s in (0.0, 100.0):
        made[-1].becomes_ready()
        supervisor.poll(now_s)
        supervisor.submit(OBSERVATION, seed=0, now_s=now_s)
        made[-1].queue.append(Result(1, chunk=None, policy_s=0.1))
        supervisor.poll(now_s)
        made[-1].queue.append(Lost("gone"))
        supervisor.poll(now_s)
        assert "again in 1 s" in supervisor.problem
        supervisor.poll(now_s + 1.0)


def test_a_hung_prediction_is_ended(supervisor, made):
    made[0].becomes_ready()
    supervisor.poll(0.0)
    supervisor.submit(OBSERVATION, seed=0, now_s=10.0)
    supervisor.poll(14.9)
    assert made[0].killed == []
    supervisor.poll(15.1)
    supervisor.poll(15.2)
    assert made[0].killed == ["a prediction took longer than 5 s: the policy does not answer"]


def test_a_policy_that_does_not_finish_loading_is_ended(supervisor, made):
    supervisor.poll(100.0)
    supervisor.poll(160.0)
    assert made[0].killed == []
    supervisor.poll(160.1)
    supervisor.poll(300.0)
    assert made[0].killed == ["the policy was not loaded within 60 s"]
    made[0].queue.append(Lost("ended"))
    supervisor.poll(301.0)
    supervisor.poll(302.0)
    supervisor.poll(361.0)
    assert made[1].killed == []
    supervisor.poll(362.5)
    assert made[1].killed == ["the policy was not loaded within 60 s"]


def test_a_failed_restart_is_tried_again(supervisor, made):
    made[0].queue.append(LoadFailed("no memory"))
    supervisor.poll(0.0)
    supervisor.poll(1.0)
    assert len(made) == 2
    made[1].queue.append(LoadFailed("no memory"))
    supervisor.poll(2.0)
    assert "no memory; starting it again in 2 s" in supervisor.problem


def test_a_worker_found_gone_when_asked_is_a_problem_and_no_crash(supervisor, made):
    made[0].becomes_ready()
    supervisor.poll(0.0)
    made[0].gone = True
    assert supervisor.submit(OBSERVATION, seed=0, now_s=0.0) is None
    assert "does not listen" in supervisor.problem


def test_after_closing_nothing_is_started_again(supervisor, made):
    made[0].queue.append(Lost("gone"))
    supervisor.poll(0.0)
    supervisor.close()
    supervisor.poll(100.0)
    assert len(made) == 1
