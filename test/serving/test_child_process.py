"""A child process under watch: its packets, and its end however it comes."""

import os
import queue
import signal

import pytest
from workers import children, wait_until

from sqap_vla_ros.serving import child_process
from sqap_vla_ros.serving.child_process import ChildProcess

TIMEOUT_S = 20.0


class Watched:
    def __init__(self, behaviour: str = "echo", refuse: str | None = None) -> None:
        self.packets: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.ends: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.refuse = refuse
        self.process = ChildProcess(
            "workers.mains", [behaviour], [], on_packet=self.on_packet, on_end=lambda why: self.ends.put(why)
        )

    def on_packet(self, packet: bytes) -> str | None:
        self.packets.put(packet)
        return self.refuse

    def end(self) -> str:
        return self.ends.get(timeout=TIMEOUT_S)


@pytest.fixture
def echo():
    watched = Watched()
    assert watched.process.send(b"abc")
    assert watched.packets.get(timeout=TIMEOUT_S) == b"cba"
    yield watched
    watched.process.stop(0.0)
    watched.process.join(TIMEOUT_S)


def test_packets_keep_their_boundaries(echo):
    for packet in (b"one", b"two", b"three"):
        echo.process.send(packet)
    assert [echo.packets.get(timeout=TIMEOUT_S) for _ in range(3)] == [b"eno", b"owt", b"eerht"]


def test_it_ends_by_itself_when_it_is_stopped(echo):
    pid = echo.process.pid
    echo.process.stop(TIMEOUT_S)
    assert echo.end() == "the policy worker exited with status 0"
    echo.process.join(TIMEOUT_S)
    assert echo.process.pid is None
    assert pid not in children()
    assert not echo.process.send(b"abc")
    echo.process.kill("again")  # of no effect
    echo.process.stop(0.0)


def test_the_first_reason_for_an_end_is_the_one_that_counts(echo):
    echo.process.kill("too slow")
    echo.process.kill("again")
    assert echo.end() == "too slow"
    assert echo.ends.empty()


def test_a_stopped_child_that_does_not_read_takes_no_more_packets_and_is_ended_all_the_same(echo):
    os.kill(echo.process.pid, signal.SIGSTOP)
    assert wait_until(lambda: not echo.process.send(bytes(10_000)))
    echo.process.stop(0.2)
    assert "SIGKILL" in echo.end()


def test_what_it_said_last_is_heard():
    watched = Watched("last words")
    assert watched.end() == "the policy worker exited with status 4"
    assert [watched.packets.get_nowait() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_child_that_closes_the_socket_and_lives_on_is_ended():
    watched = Watched("closes")
    pid = watched.process.pid
    assert watched.end() == "the policy worker was ended: it closed its connection"
    assert pid not in children()


def test_a_child_whose_packet_is_refused_is_ended():
    watched = Watched(refuse="refused")
    watched.process.send(b"abc")
    assert watched.end() == "refused"


def test_an_end_that_does_not_come_is_reported_as_that(echo, monkeypatch):
    """As with a driver that does not return: SIGKILL changes nothing for now."""
    monkeypatch.setattr(child_process, "EXIT_S", 0.1)
    monkeypatch.setattr(echo.process, "_kill_group", lambda: None)
    echo.refuse = "refused"
    echo.process.send(b"abc")
    assert echo.end() == "refused, and it does not end, not even by SIGKILL"
    assert echo.process.pid is not None
    os.kill(echo.process.pid, signal.SIGKILL)
    assert wait_until(lambda: echo.process.pid is None)
    assert echo.ends.empty()
