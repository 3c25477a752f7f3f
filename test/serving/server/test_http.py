"""Health, configuration and `POST /act`, as their clients see them."""

import json
import socket

import pytest
from workers import wait_until

pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

from workers.requests import form, get, picture, post
from workers.served import Served

from sqap_vla_ros.serving.server.episode import ChunkUse

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def served():
    with Served() as served:
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        yield served


def test_health_says_loading_until_it_is_ok():
    with Served("workers.faults:never_loads") as served:
        assert json.loads(get(served, "/health")[1])["status"] == "loading"
        assert get(served, "/healthz") == (503, "the policy is being loaded\n")


def test_health_and_configuration(served):
    assert get(served, "/health") == (200, '{"status": "ok"}')
    assert get(served, "/healthz") == (200, "OK\n")
    assert json.loads(get(served, "/config")[1])["recipe"] == "fp32"
    assert get(served, "/etc/passwd")[0] == 404


@pytest.mark.parametrize("path", ["/act", "/api/inference"])
def test_cogacts_clients_post_a_picture_and_get_an_action(served, path):
    status, body = post(served, path, form(picture(), b'{"task_description": "pick"}'))
    assert (status, json.loads(body)) == (200, [0.002, 0, 0, 0, 0, 0, 1])


def test_a_client_that_asks_before_it_sends_a_picture_is_told_to_go_on(served):
    body = form(picture(), b'{"task_description": "pick"}')
    head = b"POST /act HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: %d\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as raw:
        raw.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert raw.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert raw.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_post_may_be_answered_with_several_actions():
    with Served(chunk_use=ChunkUse(post_actions=3)) as served:
        status, body = post(served, "/act", form(picture(), b'{"task_description": "pick"}'))
    assert (status, json.loads(body)) == (200, [[0.002, 0, 0, 0, 0, 0, 1]] * 3)


@pytest.mark.parametrize(
    ("body", "kind", "status", "text"),
    [
        (b"{}", "application/json", 415, "must be multipart/form-data"),
        (b"", "multipart/form-data; boundary=XX", 422, "lacks the part 'images'"),
        (form(b"", b"{}"), "multipart/form-data", 422, "lacks the part 'images'"),
        (form(picture(), b"{"), "multipart/form-data; boundary=XX", 422, "is no JSON"),
        (form(picture(), b"[]"), "multipart/form-data; boundary=XX", 422, "must be an object"),
        (form(picture(), b"{}"), "multipart/form-data; boundary=XX", 422, "the instruction is missing"),
        (form(b"no", b'{"task_description": "a"}'), "multipart/form-data; boundary=XX", 422, "cannot be decoded"),
        (form(picture(), b'{"task_description": "nan"}'), "multipart/form-data; boundary=XX", 503, "not finite"),
    ],
)
def test_a_bad_post_gets_a_status_and_a_sentence(served, body, kind, status, text):
    got, answer = post(served, "/act", body, kind)
    assert got == status
    assert text in json.loads(answer)["error"]


def test_a_post_that_is_too_large_or_goes_elsewhere_is_refused_before_it_is_read():
    with Served(max_frame=10_000) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.sendall(b"POST /act HTTP/1.1\r\nContent-Length: 100000000000\r\n\r\n")
            assert b"413 " in raw.recv(1000)
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.sendall(b"POST /elsewhere HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
            assert b"404 " in raw.recv(1000)
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.sendall(b"POST /act HTTP/1.1\r\n" + b"x" * 20_000)
            assert b"431 " in raw.recv(1000)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"Content-Type: text/plain", b"more than one Content-Type"),
        (b"X-Bell: \x07", b"no HTTP header: 'X-Bell: \\\\x07'"),
        (b"Content-Length: 1", b"needs one Content-Length"),
    ],
)
def test_a_post_with_impossible_headers_gets_a_sentence(served, header, text):
    head = b"POST /act HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: 2\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as raw:
        raw.sendall(head + header + b"\r\n\r\n{}")
        assert text in raw.recv(1000)


def test_a_defect_met_by_a_post_is_an_answer_and_no_open_connection(served, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.serving.server.http.decode_image", lambda data: {}["defect"])
    status, answer = post(served, "/act", form(picture(), b'{"task_description": "pick"}'))
    assert (status, json.loads(answer)) == (500, {"error": "the server has a defect; its log says more"})
