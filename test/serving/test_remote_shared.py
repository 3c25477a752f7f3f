"""One `RemotePolicy` that several threads, or a process and its fork, hold: nobody gets another's chunk."""

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from policy_doubles import Double
from workers import observation

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")


from sqap_vla_ros.serving.remote import RemotePolicy

WAIT_S = 30.0


def same(remotely, sent, seed):
    """The chunk is the one of this observation and seed."""
    return remotely.deltas.tobytes() == Double().predict(sent, seed=seed).deltas.tobytes() and remotely.seed == seed


def test_threads_wait_for_one_another(remote):
    def ask(seed):
        sent = observation(seed)
        return same(remote.predict(sent, seed=seed), sent, seed)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(24)))
    assert remote.reconnections == 0


def test_a_fork_makes_a_connection_of_its_own_while_the_parent_predicts(remote):
    """Also where another thread holds the lock at that moment, which nobody in the child would give back."""
    first, second = observation(1), observation(2)
    assert same(remote.predict(first, seed=1), first, 1)
    answers, tells = os.pipe()
    with remote._one_at_a_time:
        child = os.fork()
        if child == 0:
            ended = threading.Timer(WAIT_S, os._exit, (3,))  # no test hangs for a child
            ended.start()
            try:
                fine = same(remote.predict(second, seed=2), second, 2) and remote.reconnections == 1
                remote.close()
                os.write(tells, b"fine" if fine else b"wrong")
            finally:
                os._exit(0)
    os.close(tells)
    for seed in range(3, 8):
        sent = observation(seed)
        assert same(remote.predict(sent, seed=seed), sent, seed)
    with open(answers, "rb") as file:
        assert file.read() == b"fine"
    os.waitpid(child, 0)
    assert same(remote.predict(first, seed=1), first, 1)  # and the child's close has not closed it
    assert remote.reconnections == 0


def test_two_connections_number_their_requests_apart(served, remote):
    other = RemotePolicy(served.url)
    try:
        assert other._request != remote._request
    finally:
        other.close()


def test_it_cannot_be_pickled(remote):
    with pytest.raises(TypeError, match="cannot be pickled: make a RemotePolicy in each process"):
        pickle.dumps(remote)


@pytest.mark.parametrize("call", ["reset", "close"])
def test_a_reset_or_a_close_waits_for_the_prediction_under_way_and_holds_for_the_next(remote, call):
    def resets():
        return int(remote.predict(observation(instruction="count resets")).normalized[0, 0])

    before = resets()
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(remote.predict, observation(instruction="a second"))
        time.sleep(0.3)
        getattr(remote, call)()
        assert under_way.done()
        under_way.result()
    assert resets() == before + 1


@pytest.mark.parametrize("pixel", [("10", "20"), np.array([10, 20]), [np.float32(10), 20]])
def test_a_pixel_that_is_taken_here_is_taken_there(remote, pixel):
    sent = replace(observation(1), gripper_pixel=pixel)
    assert same(remote.predict(sent), replace(sent, gripper_pixel=(10.0, 20.0)), 0)
