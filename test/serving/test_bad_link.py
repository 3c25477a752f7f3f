"""A policy over a network that delays, drops, cuts and repeats: lost answers are errors, and none is a wrong one."""

import time

import pytest
from workers import observation, wait_until

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")

from workers.link import BadLink, DeadLink
from workers.served import Served

from sqap_vla_ros.serving import remote as remote_policy
from sqap_vla_ros.serving.remote import RemoteError, RemotePolicy


@pytest.fixture(scope="module")
def served():
    with Served() as served:
        assert wait_until(lambda: served.engine.problem is None)
        yield served


@pytest.fixture
def link(served):
    with BadLink(served.url) as link:
        yield link


@pytest.fixture
def remote(link):
    remote = RemotePolicy(link.url)
    yield remote
    remote.close()


def is_answered(remote, seed: int) -> bool:
    """The answer is that to this observation, and no other."""
    sent = observation(seed)
    return remote.predict(sent).normalized[0, 0] == float(sent.image.sum())


def test_the_time_on_the_network_is_a_stage_of_the_prediction(remote, link):
    link.delay_s = 0.15
    timings = remote.predict(observation()).timings_ms
    assert timings["network"] >= 150.0
    assert timings["total"] >= timings["network"]
    assert list(timings)[-2:] == ["network", "total"]


def test_a_lost_answer_is_an_error_in_time_and_the_next_prediction_is_right(link):
    remote = RemotePolicy(link.url, timeout_s=1.0)
    link.drops = True
    begin = time.monotonic()
    with pytest.raises(RemoteError, match=r"no answer within 1 s|cannot be reached in time"):
        remote.predict(observation(1))
    assert 0.9 < time.monotonic() - begin < 10.0
    link.drops = False
    remote = RemotePolicy(link.url)
    assert is_answered(remote, 2)
    remote.close()


def test_a_connection_that_is_cut_while_the_answer_is_awaited_is_opened_again(remote, link):
    link.cuts = 2
    assert is_answered(remote, 3)
    assert remote.reconnections == 2


def test_an_answer_that_comes_again_is_not_taken_for_the_next(remote, link):
    link.repeats = True
    assert all(is_answered(remote, seed) for seed in range(4))
    assert remote.reconnections == 0


@pytest.mark.parametrize("where", ["answers", "requests"])
def test_a_wrong_bit_on_the_way_is_no_answer(served, where):
    """In the checksum, in lengths, in numbers, and in the last byte."""
    with BadLink(served.url) as link:
        remote = RemotePolicy(link.url, timeout_s=0.5)
        for byte in (0, 5, 30, 60, 200, -1):
            link.damages, link.damaged_byte = where, byte
            with pytest.raises(RemoteError, match=r"a frame is damaged|no answer within|cannot be reached in time"):
                remote.predict(observation(2))
            link.damages = ""
            assert is_answered(remote, byte + 1)
        remote.close()


@pytest.fixture
def _impatient(monkeypatch):
    for name, value in {"PING_S": 0.1, "PONG_S": 0.3, "OPEN_S": 0.3}.items():
        monkeypatch.setattr(remote_policy, name, value)


@pytest.mark.usefixtures("_impatient")
def test_a_link_that_dies_without_an_end_is_named_while_a_prediction_waits(served):
    said = []
    with DeadLink(served.port) as link:
        remote = RemotePolicy(link.url, timeout_s=3.0, say=said.append)
        assert is_answered(remote, 1)
        link.dead = True
        begin = time.monotonic()
        with pytest.raises(RemoteError, match="cannot be reached in time: timed out"):
            remote.predict(observation(2))
        assert time.monotonic() - begin < 10.0
        assert said
        assert all(f"the server at {link.url}/native" in text for text in said)
        link.dead = False
        assert is_answered(remote, 3)
        remote.close()


@pytest.mark.usefixtures("_impatient")
def test_a_link_that_dies_while_the_policy_is_loaded_is_named_and_tried_again():
    said = []
    with Served("workers.faults:never_loads") as served, DeadLink(served.port) as link:

        def say(text):
            said.append(text)
            if "is loading" in text:
                link.dead = True

        served.engine.progress = "layer 3 of 32"
        with pytest.raises(RemoteError, match="cannot be reached in time: timed out"):
            RemotePolicy(link.url, load_timeout_s=3.0, say=say)
        assert said[0] == f"the server at {link.url}/native is loading: layer 3 of 32"
    assert len(said) >= 2  # the dead link, before the end of the time
    assert all(text.startswith("waiting up to ") for text in said[1:])


def test_a_server_that_loads_answers_pings_and_is_waited_for(monkeypatch):
    monkeypatch.setattr(remote_policy, "PING_S", 0.05)
    monkeypatch.setattr(remote_policy, "PONG_S", 0.5)
    said = []
    with Served("workers.faults:never_loads") as served, pytest.raises(RemoteError, match="still being loaded"):
        RemotePolicy(served.url, load_timeout_s=2.0, say=said.append)
    assert not any("waiting" in text for text in said[:-1])
