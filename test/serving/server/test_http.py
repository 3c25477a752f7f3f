"""Health, configuration and `POST /act`, as their clients see them."""

import contextlib
import json
import socket

import pytest
from workers import wait_until

pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

from workers.requests import form, get, picture, post
from workers.served import Served

from sqap_vla_ros.serving.server.episode import ChunkUse
from sqap_vla_ros.serving.server.http import SPARE

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


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Api-Key other"}, {"Origin": "http://evil.example"}])
def test_why_it_is_not_ready_is_told_to_its_clients_only(headers):
    with Served("policy_doubles:unloadable", token="" if "Origin" in headers else "secret") as served:
        known = {"Authorization": "Api-Key secret"}
        assert wait_until(lambda: "no checkpoint here" in get(served, "/health", **known)[1])
        assert "no checkpoint here" in get(served, "/healthz", **known)[1]
        assert get(served, "/health", **headers) == (503, '{"status": "loading"}')
        assert get(served, "/healthz", **headers) == (503, "loading\n")


def test_health_and_configuration(served):
    assert get(served, "/health") == (200, '{"status": "ok"}')
    assert get(served, "/healthz") == (200, "OK\n")
    assert json.loads(get(served, "/config")[1])["recipe"] == "fp32"
    status, body = get(served, "/etc/passwd")
    assert (status, json.loads(body)["error"]) == (
        404,
        "nothing is served at /etc/passwd: use one of /, /vla-eval, /openpi, /native, /health, /healthz, /config, "
        "/act, /api/inference",
    )


@pytest.mark.parametrize("path", ["/act", "/api/inference"])
def test_an_address_that_takes_posts_says_so_to_a_get(served, path):
    answer = exchange(served, b"GET %s HTTP/1.1\r\n\r\n" % path.encode())
    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: POST\r\n" in answer
    assert f"{path} takes POST: a form with a picture as images, and as json an object with task_description" in str(
        answer
    )


@pytest.mark.parametrize("path", ["/health", "/config", "/openpi"])
def test_an_address_that_takes_no_posts_says_so(served, path):
    answer = exchange(served, b"POST %s HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % path.encode())
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: GET\r\n" in answer
    assert f"{path} takes GET; POST goes to /act" in str(answer)


@pytest.mark.parametrize("path", ["/", "/vla-eval", "/openpi", "/native"])
def test_who_asks_for_no_websocket_is_told_what_is_spoken_there(served, path):
    answer = exchange(served, b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nUpgrade: websocket" in head
    assert json.loads(body)["error"] == (
        f"{path} takes websockets, and this request asks for none: GET /health tells whether the server is ready"
    )


def test_a_handshake_that_is_wrong_is_refused_in_the_same_form(served):
    upgrade = b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    head, _, body = exchange(served, b"GET /openpi HTTP/1.1\r\n" + upgrade + b"\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"].startswith("no websocket can be opened: missing Sec-WebSocket-Key header")


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/healthz", 200), ("/config", 200), ("/act", 405), ("/", 426), ("/no", 404)]
)
def test_head_is_answered_as_get_without_the_body(served, path, status):
    head, _, body = exchange(served, b"HEAD %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body == b""
    assert b"\r\nContent-Length: %d\r\n" % len(get(served, path)[1].encode()) in head


def test_head_tells_that_the_policy_is_being_loaded_and_web_pages_no_more_than_get():
    with Served("workers.faults:never_loads") as served:
        assert exchange(served, b"HEAD /health HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        assert exchange(served, b"HEAD /config HTTP/1.1\r\nOrigin: http://a\r\n\r\n").startswith(b"HTTP/1.1 403 ")


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
        (form(b"", b"{}"), "multipart/form-data", 422, "names no boundary"),
        (form(picture(), b"{"), "multipart/form-data; boundary=XX", 422, "is no JSON"),
        (form(picture(), b"[]"), "multipart/form-data; boundary=XX", 422, "must be an object"),
        (form(picture(), b"{}"), "multipart/form-data; boundary=XX", 422, "the instruction is missing"),
        (form(picture(), b'{"task_description": 5}'), "multipart/form-data; boundary=XX", 422, "must be a text"),
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
            answer = raw.recv(1000)
            assert b"413 " in answer
            assert b"the body has 100000000000 bytes, at most 10000 are allowed" in answer
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


def exchange(served, sent, *, half_close=False):
    """Send bytes; return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as raw:
        raw.sendall(sent)
        if half_close:
            raw.shutdown(socket.SHUT_WR)
        answer = b""
        while data := raw.recv(65_536):
            answer += data
    return answer


GOOD = form(picture(), b'{"task_description": "pick"}')
HEAD = b"POST /act HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400, "TLS is not spoken here"),
        (b"GET /health HTTP/3\r\n\r\n", 400, "no HTTP request line: 'GET /health HTTP/3'"),
        (b"GET /health HTTP/1.1\r\nno header\r\n\r\n", 400, "no HTTP header: 'no header'"),
        (b"GET /health HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 400, "a GET has no body"),
        (b"HEAD /health HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 400, "a HEAD has no body"),
        (b"GET /\xe4 HTTP/1.1\r\n\r\n", 400, "no HTTP request line"),
        (b"POST //[ HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 400, "no address: '//['"),
        (b"PUT /act HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, "GET or POST is needed, got PUT"),
        (HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") % 3, 501, "Transfer-Encoding"),
    ],
)
def test_what_is_no_sound_request_gets_a_sentence(served, sent, status, text):
    head, _, body = exchange(served, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert text in json.loads(body)["error"]


def test_a_client_that_closes_its_side_is_answered_all_the_same(served):
    assert exchange(served, HEAD % len(GOOD) + GOOD, half_close=True).startswith(b"HTTP/1.1 200 OK")
    cut = exchange(served, HEAD % len(GOOD) + GOOD[:100], half_close=True)
    assert b"the request is cut off: 100 of the %d bytes of its body came" % len(GOOD) in cut
    assert b"cut off: its headers are not complete" in exchange(served, b"GET /hea", half_close=True)


def test_a_refusal_reaches_a_client_that_is_still_sending(served):
    for _ in range(5):
        sent = b"POST /elsewhere HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n" + bytes(8_000_000)
        assert b"POST goes to /act" in exchange(served, sent)


def test_of_pipelined_requests_the_first_is_answered(served):
    answer = exchange(served, 3 * (HEAD % len(GOOD) + GOOD))
    assert answer.count(b"HTTP/1.1 200 OK") == 1


def test_a_request_that_comes_too_slowly_is_told_so():
    with Served(request_s=0.5) as served:
        answer = exchange(served, HEAD % 100 + bytes(10))
        assert b"408 " in answer
        assert b"did not come within 0.5 s: 10 of the 100 bytes" in answer
        assert exchange(served, b"") == b""


def test_connections_that_never_ask_give_way_to_those_that_do():
    with Served(most_clients=1) as served:
        silent = [socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) for _ in range(2 + SPARE)]
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        assert silent[0].recv(1) == b""
        for one in silent:
            one.close()


REFUSED = b"POST /elsewhere HTTP/1.1\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (REFUSED, b"404"),
        (b"\x16\x03\x01", b"400"),
        (HEAD % len(GOOD) + GOOD, b"200"),
        (b"GET /none HTTP/1.1\r\n\r\n", b"404"),
    ],
    ids=["refused POST", "no request", "answered POST", "refused GET"],
)
def test_answered_clients_that_do_not_close_give_way_to_those_that_ask(sent, status, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.serving.server.http.LINGER_S", TIMEOUT_S)
    with Served(most_clients=1) as served, contextlib.ExitStack() as open_ones:
        assert wait_until(lambda: get(served, "/health")[0] == 200)
        answered = []
        for _ in range(2 + SPARE):
            raw = open_ones.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S))
            raw.sendall(sent)
            assert raw.recv(1000)[9:12] == status
            answered.append(raw)
        for _ in range(3):
            assert get(served, "/health")[0] == 200


def test_clients_that_say_too_little_cannot_pile_up_by_being_refused(monkeypatch):
    """Each of them reads why, and no more connections stay open than are allowed."""
    monkeypatch.setattr("sqap_vla_ros.serving.server.http.LINGER_S", TIMEOUT_S)
    with Served(most_clients=1) as served, contextlib.ExitStack() as open_ones:
        slow = []
        for _ in range(2 * (2 + SPARE)):
            slow.append(
                open_ones.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S))
            )
            slow[-1].sendall(b"GET /hea")
        assert get(served, "/health")[0] in (200, 503)
        assert b"the request did not come while others wait: its headers are not complete" in slow[0].recv(1000)
        assert slow[0].recv(1000) == b""
        closed = 0
        for one in slow:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                with contextlib.suppress(ConnectionResetError):  # its few bytes came after it was closed
                    while one.recv(1000):
                        pass
                closed += 1
        assert closed >= 2 + SPARE - 1


def test_a_defect_met_by_a_post_is_an_answer_and_no_open_connection(served, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.serving.server.http.decode_image", lambda data: {}["defect"])
    status, answer = post(served, "/act", form(picture(), b'{"task_description": "pick"}'))
    assert (status, json.loads(answer)) == (500, {"error": "the server has a defect; its log says more"})
