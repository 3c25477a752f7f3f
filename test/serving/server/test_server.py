"""The server as its clients see it, with policies that behave and policies that do not."""

import asyncio
import contextlib
import errno
import json
import select
import socket
import threading
import time

import numpy as np
import pytest
from workers import wait_until

pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from workers.requests import IMAGE, form, get, post
from workers.served import Served

from sqap_vla_ros.robot.interchange.action_space import ACTION_SPACES
from sqap_vla_ros.serving.server.episode import ChunkUse
from sqap_vla_ros.serving.server.http import HttpConnection
from sqap_vla_ros.serving.server.packing import pack, unpack
from sqap_vla_ros.serving.server.protocols import OpenPi
from sqap_vla_ros.serving.server.server import ServerConfig

HANDSHAKE = (
    b"GET /openpi HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def served():
    with Served(chunk_use=ChunkUse(horizon=4)) as served:
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        yield served


class VlaEval:
    """What vla-eval's client does, step by step."""

    def __init__(self, served, path="/vla-eval", **options) -> None:
        self._stack = contextlib.ExitStack()
        self.socket = self._stack.enter_context(
            connect(served.url + path, compression=None, open_timeout=TIMEOUT_S, **options)
        )
        self.seq = 0

    def close(self):
        self._stack.close()

    def send(self, kind, payload):
        self.seq += 1
        self.socket.send(pack({"type": kind, "payload": payload, "seq": self.seq, "timestamp": 0.0}, keys=str))

    def receive(self):
        return unpack(self.socket.recv(TIMEOUT_S))

    def act(self, instruction="pick", **images):
        self.send("observation", {"images": images or {"agentview": IMAGE}, "task_description": instruction})
        return self.receive()


@pytest.fixture
def client(served):
    client = VlaEval(served)
    yield client
    client.close()


# vla-eval


def test_vla_eval_says_hello_and_gets_one_action_an_observation(client):
    client.send("hello", {"harness_version": "0.8.0", "protocol_version": 1})
    hello = client.receive()
    assert (hello["type"], hello["seq"], hello["payload"]["protocol_version"]) == ("hello", 1, 1)
    client.send("episode_start", {"task": {"name": "pick"}})
    for _ in range(5):
        answer = client.act()
        assert (answer["type"], answer["seq"]) == ("action", client.seq)
        assert answer["payload"]["actions"].dtype == np.float32
        np.testing.assert_array_equal(answer["payload"]["actions"], np.float32([0.002, 0, 0, 0, 0, 0, 1]))
    client.send("episode_end", {"metrics": {}})
    assert client.act()["type"] == "action"


@pytest.mark.parametrize(("version", "said"), [(2, "got 2"), ("1", "got a text"), (np.ones(2), "got an array")])
@pytest.mark.parametrize("path", ["/", "/vla-eval"])
def test_another_version_of_vla_evals_protocol_is_refused_and_the_connection_stays(served, path, version, said):
    client = VlaEval(served, path)
    try:
        if path == "/":
            assert client.receive()["type"] == "hello"
        client.send("hello", {"protocol_version": version})
        answer = client.receive()
        assert (answer["type"], answer["seq"]) == ("error", client.seq)
        assert answer["payload"]["error"] == f"version 1 of vla-eval's protocol is spoken here, {said}"
        assert client.act()["type"] == "action"
    finally:
        client.close()


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"images": {}, "task_description": "pick"}, "the image is missing"),
        ({"task_description": "pick"}, "images must be a map"),
        ({"images": {"a": IMAGE}, "task_description": 5}, "the instruction must be a text"),
        ({"images": {"a": IMAGE.astype(np.float32)}, "task_description": "pick"}, "of float32"),
        ({"images": {"a": IMAGE}}, "the instruction is missing"),
        ({"images": {"a": IMAGE}, "task_description": "pick", "states": [np.nan] * 8}, "must be finite"),
        ({"images": {"a": IMAGE}, "task_description": "nan"}, "action 3 of the chunk is not finite"),
        ({"images": {"a": IMAGE}, "task_description": "recursion"}, "RecursionError"),
        ([], "payload of 'observation' must be a map"),
    ],
)
def test_a_bad_observation_gets_a_sentence_and_the_connection_stays(client, payload, text):
    client.send("observation", payload)
    answer = client.receive()
    assert (answer["type"], answer["seq"]) == ("error", client.seq)
    assert text in answer["payload"]["error"]
    assert client.act()["type"] == "action"


NO_MESSAGES = [b"", b"\xc1", b"\x00", pack([], keys=str), pack({"type": "hello"}, keys=str), "text"]


@pytest.mark.parametrize("frame", NO_MESSAGES)
def test_a_frame_that_is_no_message_gets_a_sentence_and_the_connection_stays(client, frame):
    client.socket.send(frame)
    answer = client.receive()
    assert answer["type"] == "error"
    assert len(answer["payload"]["error"]) > 10
    assert client.act()["type"] == "action"


def test_a_type_that_is_no_text_is_refused_and_the_connection_stays(client):
    client.send(np.zeros(2), {})
    assert client.receive()["payload"]["error"] == "the type of a message must be a text, got an array"
    assert client.act()["type"] == "action"


def test_an_unknown_kind_of_message_is_named(client):
    client.send("dance", {})
    assert "unknown message type 'dance'" in client.receive()["payload"]["error"]


def test_libero_gets_liberos_actions():
    with Served(actions=ACTION_SPACES["libero"]) as served:
        client = VlaEval(served)
        np.testing.assert_allclose(client.act()["payload"]["actions"], [0.04, 0, 0, 0, 0, 0, -1], atol=1e-7)
        client.close()


# openpi, and either


@pytest.mark.parametrize("path", ["/openpi", "/"])
def test_openpi_gets_metadata_then_chunks_and_errors_as_text(served, path):
    with connect(served.url + path, compression=None) as socket:
        assert unpack(socket.recv(TIMEOUT_S))["horizon"] == 16
        observation = {"observation/image": IMAGE, "observation/state": np.zeros(8), "prompt": "pick"}
        for number in range(2):
            socket.send(pack(observation, keys=bytes))
            answer = unpack(socket.recv(TIMEOUT_S))
            assert answer["actions"].shape == (16, 7)
            assert ("prev_total_ms" in answer["server_timing"]) == (number > 0)
        for wrong, text in ((pack({"prompt": "pick"}, keys=bytes), "the image is missing"), (b"\xc1", "no msgpack")):
            socket.send(wrong)
            error = socket.recv(TIMEOUT_S)
            assert isinstance(error, str)
            assert text in error
        socket.send(pack(observation, keys=bytes))
        assert unpack(socket.recv(TIMEOUT_S))["actions"].shape == (16, 7)


def test_a_client_at_another_rate_is_told_it_and_gets_chunks_of_it():
    with Served(chunk_use=ChunkUse(control_hz=20.0)) as served, connect(served.url + "/openpi") as socket:
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        about = json.loads(get(served, "/config")[1])
        assert (about["horizon"], about["dt_s"]) == (32, 0.05)  # of 16 actions at 10 Hz
        socket.recv(TIMEOUT_S)
        socket.send(pack({"observation/image": IMAGE, "prompt": "pick"}, keys=bytes))
        actions = unpack(socket.recv(TIMEOUT_S))["actions"]
        np.testing.assert_allclose(actions, np.tile([0.001, 0, 0, 0, 0, 0, 1], (32, 1)), atol=1e-12)


def test_on_the_root_the_first_frame_is_vla_evals_hello(served):
    client = VlaEval(served, "/")
    assert client.receive()["type"] == "hello"
    client.send("hello", {})
    assert client.act()["type"] == "action"
    client.close()


# Several clients, and faults of the worker


def test_a_picture_that_takes_long_to_decode_keeps_nobody_waiting(served, client, monkeypatch):
    decoded = threading.Event()

    def slowly(frame):
        assert decoded.wait(TIMEOUT_S)
        return unpack(frame)

    other = VlaEval(served)
    monkeypatch.setattr("sqap_vla_ros.serving.server.protocols.unpack", slowly)
    client.send("observation", {"images": {"agentview": IMAGE}, "task_description": "pick"})
    assert get(served, "/health")[0] == 200  # the event loop is free
    decoded.set()
    assert client.receive()["type"] == "action"
    assert other.act()["type"] == "action"
    other.close()


def test_clients_in_turn_do_not_mix_their_episodes(served):
    clients = [VlaEval(served) for _ in range(4)]
    got = {}

    def drive(index):
        images = np.full((8, 8, 3), index, np.uint8)
        got[index] = [clients[index].act("count resets", agentview=images)["type"] for _ in range(12)]

    threads = [threading.Thread(target=drive, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert all(kinds == ["action"] * 12 for kinds in got.values())
    for client in clients:
        client.close()


def test_a_lost_worker_is_an_error_and_the_next_one_answers(client):
    assert "exited with status 0" in client.act("exit 0")["payload"]["error"]
    assert client.act()["type"] == "action"  # it waits for the restart


def test_a_hung_prediction_and_a_full_line_are_errors():
    with Served(patience_s=1.0, prediction_timeout_s=2.5) as served:
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        first, second = VlaEval(served), VlaEval(served)
        first.send("observation", {"images": {"a": IMAGE}, "task_description": "hang"})
        assert wait_until(lambda: served.engine.load == 1)
        assert "no answer within 1 s: 2 requests are in line" in second.act()["payload"]["error"]
        assert "took longer than 2.5 s" in first.receive()["payload"]["error"]
        for client in (first, second):
            client.close()


def test_a_client_that_leaves_gives_its_turn_to_the_next():
    with Served(prediction_timeout_s=3.0) as served:
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        hanging, leaving, patient = VlaEval(served), VlaEval(served), VlaEval(served)
        hanging.send("observation", {"images": {"a": IMAGE}, "task_description": "hang"})
        assert wait_until(lambda: served.engine.load == 1)
        leaving.send("observation", {"images": {"a": IMAGE}, "task_description": "hang"})
        assert wait_until(lambda: served.engine.load == 2)
        leaving.close()
        assert patient.act()["type"] == "action"  # else it would hang a second time
        for client in (hanging, patient):
            client.close()


def test_a_policy_that_cannot_be_loaded_ends_the_engine_with_the_reason():
    with Served("policy_doubles:unloadable") as served:
        assert wait_until(lambda: "no checkpoint here" in get(served, "/health")[1])
    assert "no checkpoint here" in str(served.error)


# Access and limits


def test_a_host_that_others_reach_needs_a_token():
    with pytest.raises(ValueError, match="can be reached from outside: set a token"):
        ServerConfig(host="0.0.0.0")
    assert ServerConfig(host="0.0.0.0", token="secret")
    for host in ("127.0.0.1", "::1", "localhost"):
        assert ServerConfig(host=host)


def test_a_token_is_asked_for_everywhere_but_at_health():
    with Served(token="secret") as served:
        assert get(served, "/health")[0] in (200, 503)
        assert get(served, "/config")[0] == 401
        for sent, said in (
            ({}, "a token is needed: set SQAP_VLA_TOKEN to the same on both sides, or send the header"),
            (
                {"Authorization": "Basic secret"},
                "a token is needed: set SQAP_VLA_TOKEN to the same on both sides, or send the header",
            ),
            ({"Authorization": "Api-Key wrong"}, "the token given is not this server's"),
            ({"Authorization": "Bearer schl\u00fcssel"}, "the token given is not this server's"),
        ):
            for status, body in (get(served, "/config", **sent), post(served, "/act", form(b"", b""), **sent)):
                assert status == 401
                assert said in json.loads(body)["error"]
        assert get(served, "/config", Authorization="Bearer secret")[0] == 200
        assert post(served, "/act", form(b"", b""))[0] == 401
        with pytest.raises(InvalidStatus):
            VlaEval(served)
        client = VlaEval(served, additional_headers={"Authorization": "Api-Key secret"})
        assert client.act()["type"] == "action"
        client.close()


def test_web_pages_may_not_use_it(served):
    with pytest.raises(InvalidStatus) as refused:
        VlaEval(served, origin="http://evil.example")
    assert refused.value.response.status_code == 403
    assert get(served, "/config", Origin="http://evil.example")[0] == 403
    assert get(served, "/health", Origin="http://evil.example") == (200, '{"status": "ok"}')  # and nothing else


def test_so_many_clients_and_no_more():
    with Served(most_clients=2) as served:
        clients = [VlaEval(served) for _ in range(2)]
        assert all(client.act()["type"] == "action" for client in clients)
        with pytest.raises(InvalidStatus) as refused:
            VlaEval(served)
        assert "2 clients are connected" in refused.value.response.body.decode()
        clients[0].close()
        assert wait_until(lambda: get(served, "/config")[0] == 200)
        for client in clients:
            client.close()


def test_clients_that_connect_at_once_are_no_more_than_are_allowed(monkeypatch):
    handshake = HttpConnection.handshake

    async def slowly(connection, *args, **options):
        await handshake(connection, *args, **options)
        await asyncio.sleep(0.5)

    monkeypatch.setattr(HttpConnection, "handshake", slowly)
    with Served(most_clients=2) as served, contextlib.ExitStack() as open_ones:
        sockets = []
        for _ in range(6):
            sockets.append(open_ones.enter_context(socket.create_connection(("127.0.0.1", served.port), TIMEOUT_S)))
            sockets[-1].sendall(HANDSHAKE)
        statuses = sorted(one.recv(12)[9:] for one in sockets)
        assert statuses == [b"101"] * 2 + [b"503"] * 4


def test_a_place_is_free_again_when_a_client_leaves_before_it_is_answered(monkeypatch):
    handshake = HttpConnection.handshake
    ended = 0

    async def late(connection, *args, **options):
        nonlocal ended
        await asyncio.wait([connection.connection_lost_waiter], timeout=1.0)
        await handshake(connection, *args, **options)
        ended += 1

    monkeypatch.setattr(HttpConnection, "handshake", late)
    with Served(most_clients=1) as served:
        with socket.create_connection(("127.0.0.1", served.port), TIMEOUT_S) as raw:
            raw.sendall(HANDSHAKE)
        assert wait_until(lambda: ended == 1)
        assert get(served, "/config")[0] == 200


def test_a_handshake_for_no_websocket_takes_no_place():
    no_upgrade = b"GET /openpi HTTP/1.1\r\nHost: a\r\n\r\n"
    with Served(most_clients=1) as served, socket.create_connection(("127.0.0.1", served.port), TIMEOUT_S) as raw:
        raw.sendall(no_upgrade)
        assert raw.recv(12)[9:] == b"426"
        assert get(served, "/config")[0] == 200  # it is still open


def test_a_frame_above_the_limit_closes_that_connection_alone():
    with Served(max_frame=100_000) as served:
        client, other = VlaEval(served), VlaEval(served)
        with contextlib.suppress(ConnectionClosed):
            client.socket.send(bytes(200_000))
        with pytest.raises(ConnectionClosed) as closed:
            client.socket.recv(TIMEOUT_S)
        assert closed.value.rcvd.code == 1009
        assert other.act()["type"] == "action"
        other.close()


def test_a_damaged_frame_of_the_package_itself_ends_the_connection_with_the_reason(served):
    with connect(served.url + "/native", compression=None) as client:
        client.recv(TIMEOUT_S)
        client.send(b"\x01\x02\x03\x04damaged")
        with pytest.raises(ConnectionClosed, match=r"1007 .*a frame is damaged, or of another version"):
            client.recv(TIMEOUT_S)


def test_a_silent_client_is_disconnected():
    with Served(idle_s=0.5) as served:
        silent = VlaEval(served)
        with pytest.raises(ConnectionClosed):
            silent.socket.recv(TIMEOUT_S)


def test_clients_that_never_finish_their_handshake_do_not_keep_the_server_from_ending():
    with Served() as served, socket.create_connection(("127.0.0.1", served.port)) as silent:
        silent.sendall(b"GET /vla-eval HTTP/1.1\r\n")
        begin = time.monotonic()
        served.stop()
        assert time.monotonic() - begin < 10.0  # less than ServerConfig.request_s


def test_a_client_that_does_not_read_is_disconnected(monkeypatch):
    answers = 0
    respond = OpenPi.answer

    async def counted(conversation, frame):
        nonlocal answers
        answers += 1
        return await respond(conversation, frame)

    monkeypatch.setattr(OpenPi, "answer", counted)
    with Served(send_s=0.5) as served, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # later the window would shrink, and resets miss it
        raw.settimeout(TIMEOUT_S)
        raw.connect(("127.0.0.1", served.port))
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        raw.sendall(HANDSHAKE)
        empty = b"\x82\x80\x00\x00\x00\x00"  # a frame that is answered with a sentence
        raw.sendall(10_000 * empty)
        # It is reset although it sends nothing more, and before the kernel has swallowed megabytes of answers.
        events = select.poll()
        events.register(raw, select.POLLERR)
        assert events.poll(TIMEOUT_S * 1e3)
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        assert answers < 10_000
        assert get(served, "/health")[0] == 200
