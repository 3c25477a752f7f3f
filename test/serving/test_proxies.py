"""The proxy that an environment names: servers on the robot's own network are spoken to without it."""

import socket
import sys

import pytest
from workers import observation

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")

from workers.served import Served

from sqap_vla_ros.commands.policy_checks import require_server
from sqap_vla_ros.serving.frames import uses_proxy
from sqap_vla_ros.serving.remote import RemoteError, RemotePolicy

NAMES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy")


@pytest.fixture
def _proxy(monkeypatch):
    """A proxy at a port where nobody listens, for everything."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in NAMES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.usefixtures("_proxy")
def test_a_server_on_this_computer_is_spoken_to_directly():
    with Served() as served:
        for address in (served.url, f"ws://localhost:{served.port}"):
            remote = RemotePolicy(address, reach_timeout_s=20.0)
            assert remote.predict(observation()).stamp_ns == observation().stamp_ns
            remote.close()


@pytest.mark.usefixtures("_proxy")
@pytest.mark.parametrize(
    ("address", "used"),
    [
        ("ws://workstation:8000", False),
        ("ws://192.168.1.7:8000", False),
        ("wss://policies.example.org", True),
        ("WSS://policies.example.org", True),
        ("wss://localhost:8443", False),
        ("wss://127.0.0.1:8443", False),
        ("wss://[::1]:8443", False),
    ],
)
def test_only_a_server_behind_tls_on_another_computer_is_spoken_to_through_it(address, used):
    assert uses_proxy(address) is used


@pytest.mark.usefixtures("_proxy")
def test_an_environment_may_except_a_server(monkeypatch):
    monkeypatch.setenv("no_proxy", "example.org")
    assert not uses_proxy("wss://policies.example.org")


def test_without_a_proxy_none_is_used(monkeypatch):
    for name in (*NAMES, *map(str.upper, NAMES)):
        monkeypatch.delenv(name, raising=False)
    assert not uses_proxy("wss://policies.example.org")


@pytest.mark.usefixtures("_proxy")
def test_a_name_that_only_the_proxy_knows_is_left_to_it(monkeypatch):
    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    require_server("wss://policies.invalid")
    with pytest.raises(ValueError, match=r"--checkpoint ws://policies\.invalid: Name or service not known"):
        require_server("ws://policies.invalid")


@pytest.mark.usefixtures("_proxy")
def test_a_kind_of_proxy_that_needs_a_library_is_a_sentence(monkeypatch):
    monkeypatch.setenv("wss_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(RemoteError, match="cannot be reached through the environment's proxy: "):
        RemotePolicy("wss://policies.invalid", reach_timeout_s=1.0)
