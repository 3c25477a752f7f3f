"""One `RemotePolicy` that several threads, or a process and its fork, hold: nobody gets another's chunk."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from policy_doubles import Double
from workers import observation

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")

from workers.served import Served

from sqap_vla_ros.serving.remote import RemotePolicy

WAIT_S = 30.0


@pytest.fixture(scope="module")
def served():
    with Served() as served:
        yield served


@pytest.fixture
def remote(served):
    remote = RemotePolicy(served.url, timeout_s=WAIT_S)
    yield remote
    remote.close()


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
