"""Clients that are gone without a word, and those that are only silent."""

import contextlib
import socket
import time

import pytest
from workers import wait_until

pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

from websockets.sync.client import connect
from workers import observation
from workers.requests import get
from workers.served import Served

from sqap_vla_ros.serving.remote import RemotePolicy
from sqap_vla_ros.serving.server.http import HttpConnection
from sqap_vla_ros.serving.server.server import SEND_BUFFER, VANISHED_S

TIMEOUT_S = 30.0
HANDSHAKE = (
    "GET {} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextlib.contextmanager
def silent_client(served, path):
    """A client that opens a websocket and answers nothing from then on, as one that has lost its power."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as raw:
        raw.sendall(HANDSHAKE.format(path).encode())
        assert raw.recv(12) == b"HTTP/1.1 101"
        yield raw


def wait_for_reset(raw):
    with contextlib.suppress(ConnectionResetError):
        while raw.recv(65_536):
            pass
        pytest.fail("the connection was closed as if its client could read that")


def test_remote_policys_place_is_free_again_when_it_sends_no_pings():
    with Served(most_clients=1, silent_s=1.0) as served:
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        with silent_client(served, "/native") as gone:
            assert get(served, "/config")[0] == 503  # its place is taken
            wait_for_reset(gone)
            assert wait_until(lambda: get(served, "/config")[0] == 200)


def test_so_it_is_while_the_policy_is_being_loaded():
    with Served("workers.faults:never_loads", most_clients=1, silent_s=1.0) as served:
        with silent_client(served, "/native") as gone:
            wait_for_reset(gone)
        assert wait_until(lambda: get(served, "/config")[0] == 200)


def test_remote_policy_is_kept_while_it_pings(monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.serving.remote.PING_S", 0.2)
    with Served(silent_s=1.0) as served:
        remote = RemotePolicy(served.url)
        time.sleep(2.5)
        remote.predict(observation())
        assert remote.reconnections == 0
        remote.close()


def test_other_clients_may_be_silent_for_as_long_as_they_simulate():
    with (
        Served(silent_s=0.2) as served,
        connect(served.url + "/openpi", compression=None, ping_interval=None) as client,
    ):
        client.recv(TIMEOUT_S)
        time.sleep(1.5)
        client.send(b"\xc1")
        assert "no msgpack" in client.recv(TIMEOUT_S)


def test_the_kernel_asks_whether_the_computers_of_all_clients_are_there(monkeypatch):
    accepted = []
    made = HttpConnection.connection_made

    def kept(connection, transport):
        sock = transport.get_extra_info("socket")
        options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        accepted.append(
            [
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                *(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in options),
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
            ]
        )
        made(connection, transport)

    monkeypatch.setattr(HttpConnection, "connection_made", kept)
    with Served() as served:
        get(served, "/health")
    asks, idle_s, pause_s, times, unacknowledged_ms, buffer = accepted[0]
    assert asks
    assert idle_s + pause_s * times == VANISHED_S == 15
    assert unacknowledged_ms == 15_000
    assert buffer <= 2 * SEND_BUFFER  # the kernel counts twice
