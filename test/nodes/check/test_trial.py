"""The policy is tried in its worker, and a server that does not answer is told within seconds."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest
from planted.robot import healthy, values

from sqap_vla_ros.nodes.check import trial
from sqap_vla_ros.nodes.check.picture import draw
from sqap_vla_ros.nodes.check.trial import PREDICTIONS, server_problem, try_policy


@pytest.mark.parametrize(("factory", "fails"), [("straight", False), ("unloadable", True), ("raises", True)])
def test_the_policy_is_tried_in_its_worker(factory, fails):
    observation = healthy().view.observation
    found = try_policy(values(), observation, f"policy_doubles:{factory}")
    if not fails:
        assert found.failure is None
        assert len(found.latencies_s) == PREDICTIONS
        assert found.chunk.stamp_ns == observation.stamp_ns
        drawn = draw(healthy(trial=found))
        assert drawn.shape == observation.image.shape
        assert (drawn != observation.image).any()
    else:
        assert found.failure
        assert found.chunk is None


def test_waiting_ends(monkeypatch):
    found = try_policy(values(), None, "policy_doubles:slow_to_load", wait_s=0.5)
    assert "was not loaded within --wait = 0.5 s" in found.failure


@contextmanager
def server(answer):
    """A server that answers each connection with these bytes, with nothing where there are none. Gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept = []

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer:
                    connection.recv(1000)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


def http(body, status="200 OK"):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


LOADING = '{"status": "loading", "reason": "the policy is being loaded", "progress": "layer 3 of 9"}'


@pytest.mark.parametrize(
    ("answer", "problem", "said"),
    [
        (http('{"status": "ok"}'), None, ""),
        (http(LOADING, "503 Service Unavailable"), None, "the policy is being loaded, layer 3 of 9"),
        (http("<html>", "404 Not Found"), None, ""),
        (http("[]"), None, ""),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is no server of `sqap-vla serve`", ""),
        (b"", "cannot be reached: timed out", ""),
    ],
)
def test_a_server_is_asked_first(answer, problem, said, monkeypatch):
    monkeypatch.setattr(trial, "HEALTH_S", 0.3)
    lines = []
    with server(answer) as address:
        found = server_problem(address, lines.append)
    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")
    assert said in " ".join(lines)


@pytest.mark.parametrize("address", ["ws://127.0.0.1:1", "wss://127.0.0.1:1"])
def test_a_server_that_is_not_there_is_told_within_seconds(address):
    begin_s, lines = time.monotonic(), []
    found = try_policy(values(checkpoint=address), None, say=lines.append)
    assert time.monotonic() - begin_s < 10.0
    assert found.failure.startswith(f"{address} cannot be reached: ")
    assert lines == [f"asking {address}"]
