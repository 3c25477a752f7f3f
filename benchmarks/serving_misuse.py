"""Requests to a policy server that are sound, and the many ways in which they are not; see serving_abuse.py."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.serving.events import PredictRequest
from sqap_vla_ros.serving.frames import join_request, seal
from sqap_vla_ros.serving.wire import HEADER

_WEBSOCKET = (
    b"GET /%s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HANDSHAKES = {path: _WEBSOCKET % path.encode() for path in ("vla-eval", "openpi", "native")}
KIND = b"multipart/form-data; boundary=XX"
_START = b"POST /act HTTP/1.1\r\nHost: a\r\n"
HEAD = _START + b"Content-Type: " + KIND + b"\r\nContent-Length: %d\r\n\r\n"
COLOURS = ("blue", "pink", "grey", "gold", "teal", "lime", "cyan", "rust")


# Sound requests


def picture(number: int) -> np.ndarray:
    """Return the picture [64, 64, 3] of a client."""
    return np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)


def png(number: int) -> bytes:
    """Return the client's picture as a file."""
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


def instruction(number: int) -> str:
    """Return the prompt of a client."""
    return f"pick up the {COLOURS[number % len(COLOURS)]} cube"


def observation(target: str, number: int) -> dict[str, Any]:
    """Return a client's message to `vla-eval` or `openpi`; `pack` writes it."""
    if target == "openpi":
        return {"observation/image": picture(number), "prompt": instruction(number)}
    payload = {"images": {"agentview": picture(number)}, "task_description": instruction(number)}
    return {"type": "observation", "payload": payload, "seq": number, "timestamp": 0.0}


def form(image: bytes, query: bytes) -> bytes:
    """Return the body of a POST."""
    parts = (("images", image), ("json", query))
    head = 'Content-Disposition: form-data; name="{}"; filename="f"\r\n\r\n'
    return b"".join(b"--XX\r\n" + head.format(n).encode() + d + b"\r\n" for n, d in parts) + b"--XX--\r\n"


# Unsound messages


def damaged(good: bytes, draw: random.Random) -> bytes:
    """Return the bytes with a few of them changed, most near the beginning, half the time cut off, or as they are."""
    if draw.random() < 0.05:
        return good
    frame = bytearray(good)
    for _ in range(draw.randint(1, 8)):
        frame[draw.randrange(min(120, len(frame)) if draw.random() < 0.8 else len(frame))] = draw.randrange(256)
    return bytes(frame[: draw.choice((len(frame), draw.randrange(len(frame))))])


def marked(array: np.ndarray, keys: type) -> dict[Any, Any]:
    """Return an array as a map with the marks of vla-eval (keys are texts) or openpi (bytes)."""
    marks = {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}
    return marks if keys is str else {name.encode(): mark for name, mark in marks.items()}


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, -(2**63), 1e308, float("nan"), float("inf"), "", " ", "text", "x" * 5_000, "\u2800"),
    *(b"", b"\x00" * 10, [], [1.0] * 5, [1e9] * 8, ["1"] * 8, [None] * 8, [[]] * 5, [0] * 2_000, {}, {"a": 1}),
    *({1: 2}, _nested(200), _nested(400), [[0] * 900] * 20, msgpack.ExtType(5, b"abc"), msgpack.Timestamp(1)),
    *(marked(np.zeros(shape, dtype), keys) for keys in (str, bytes) for shape, dtype in (((3,), "<f4"), ((), "<i8"))),
    *(marked(np.zeros(shape, "u1"), str) for shape in ((0, 4, 3), (5_000, 1, 3), (4, 4, 4), (4, 4), (1,) * 12)),
    *(
        {"__ndarray__": True, "data": b"1234", "dtype": kind, "shape": [4]}
        for kind in ("O", "u1,u1", "S1", "", "M8", 3)
    ),
    *({"__image__": True, "format": kind, "data": b"GIF89a" + bytes(50), "shape": []} for kind in ("png", "gif", None)),
    {"__image__": True, "format": "png", "data": png(0)[:500], "shape": [64, 64, 3]},
)


def spoilt(draw: random.Random, value: Any) -> Any:
    """Return a value with one thing in it, or the whole, replaced, renamed or left out."""
    if not isinstance(value, dict) or not value or draw.random() < 0.15:
        return draw.choice(VALUES)
    name = draw.choice(list(value))
    others = {key: entry for key, entry in value.items() if key != name}
    change = draw.random()
    if change < 0.15:
        return others
    if change < 0.25:
        return others | {draw.choice(("other", 5, b"bytes", "")): value[name]}
    return others | {name: spoilt(draw, value[name])}


def bad_message(draw: random.Random, target: str) -> bytes | str:
    """Return a message to `vla-eval` or `openpi`; a few are sound."""
    keys = bytes if target == "openpi" else str
    message = observation(target, draw.randrange(8))
    holder = message if target == "openpi" else message["payload"]["images"]
    name = "observation/image" if target == "openpi" else "agentview"
    holder[name] = marked(holder[name], keys)
    if target == "vla-eval" and draw.random() < 0.5:
        holder[name] = {"__image__": True, "format": "png", "data": png(1), "shape": [64, 64, 3]}
    if draw.random() < 0.3:
        state = {"states": [0.1] * 8} if target == "vla-eval" else {"observation/state": [0.1] * 8}
        (message if target == "openpi" else message["payload"]).update(state)
    kind = draw.random()
    if kind < 0.5:
        return damaged(msgpack.packb(message), draw)
    if kind < 0.93:
        return bytes(msgpack.packb(spoilt(draw, message)))
    return draw.choice(
        (
            "a text where a binary frame is due",
            b"",
            msgpack.packb(message) + b"\x00",
            b"\xdd\x00\x01\x00\x00" + b"\x90" * 2**16,
            b"\x91" * 2_000,
            b"\xdf\xff\xff\xff\xff",
            json.dumps({"type": "observation"}).encode(),
        )
    )


_CHECKSUM = 4  # bytes, ahead of a native frame


def bad_native(draw: random.Random) -> bytes | str:
    """Return a frame to `/native`: half are damaged under a sound checksum; a few are sound."""
    number = draw.randrange(8)
    asked = Observation.of(picture(number), instruction(number))
    good = join_request(PredictRequest.of(draw.randrange(1, 2**40), asked, seed=number, reset=True), asked.image)
    content = good[_CHECKSUM:]
    kind = draw.random()
    if kind < 0.5:
        return seal(damaged(content, draw))
    if kind < 0.6:  # the checksum does not fit: the connection ends
        return damaged(good, draw)
    if kind < 0.7:
        return good
    length = struct.Struct("<I")
    return draw.choice(
        (
            "a text where a binary frame is due",
            seal(b""),
            seal(content, b"\x00"),
            seal(content[:-1]),
            seal(length.pack(draw.randrange(2**32)), content[length.size :]),
            seal(length.pack(len(HEADER)), HEADER),
            seal(length.pack(len(HEADER) + 1), HEADER, bytes([draw.randrange(256)])),
            seal(length.pack(80), HEADER, bytes([draw.randrange(1, 9)]), b"\xff" * 76),
            seal(length.pack(2**16), draw.randbytes(2**16)),
        )
    )


def bad_frame(draw: random.Random) -> bytes:
    """Return bytes that break the rules of websockets (RFC 6455), masked with zeros."""
    mask = bytes(4)
    return draw.choice(
        (
            b"\x82\x01a",  # not masked
            b"\xf2\x80" + mask,  # reserved bits
            b"\x83\x80" + mask,  # an unknown kind
            b"\x80\x80" + mask,  # the end of nothing
            b"\x82\xff" + struct.pack(">Q", 2**40) + mask,  # far too long
            b"\x82\xff" + b"\xff" * 8 + mask,
            b"\x89\xfe\x00\x80" + mask + bytes(128),  # a ping that is too long
            b"\x09\x80" + mask,  # a ping in parts
            b"\x81\x82" + mask + b"\xff\xff",  # a text that is none
            b"\x88\x82" + mask + b"\x00\x01",  # a close with an impossible code
            b"\x88\x81" + mask + b"\x03",  # half a code
            b"\x02\x80" + mask + b"\x82\x80" + mask,  # a message within a message
        )
    )


# Unsound requests


def bad_request(draw: random.Random) -> bytes:
    """Return a `POST /act`, or what should have been one; a few are sound."""
    query = {"task_description": instruction(draw.randrange(8))}
    if draw.random() < 0.3:
        query["state"] = [0.1] * 8
    good = form(png(draw.randrange(8)), json.dumps(query).encode())
    kind = draw.random()
    if kind < 0.35:
        body = damaged(good, draw)
        return HEAD % len(body) + body
    if kind < 0.45:
        return b"POST " + damaged((HEAD % len(good))[5:], draw) + good
    if kind < 0.6:
        body = form(draw.choice((png(0), png(0)[:300], b"", b"GIF89a")), _bad_query(draw, query))
        return HEAD % len(body) + body
    return draw.choice(BREACHES)(draw, good)


def _bad_query(draw: random.Random, query: dict[str, Any]) -> bytes:
    raw = (b"", b"{", b"\xff\xfe", b"[" * 5_000, b'{"state": ' + b"1" * 5_000 + b"}", b'"text"', b"nul", b"{}" * 2)
    if draw.random() < 0.3:
        return draw.choice(raw)
    values = (None, True, 3, "", " ", "x" * 5_000, [], {}, [1] * 100, [1e400] * 8, ["a"] * 8, [10**400] * 8, "\ud800")
    return json.dumps(query | {draw.choice(("task_description", "state")): draw.choice(values)}).encode()


def _other_type(draw: random.Random, body: bytes) -> bytes:
    kinds = (
        b"application/json",
        b"text/plain",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"",
        b";" * 99,
    )
    more = (b"multipart/mixed; boundary=XX", b"application/x-www-form-urlencoded", KIND.replace(b"XX", b"Y" * 300))
    return (HEAD % len(body) + body).replace(KIND, draw.choice((*kinds, *more)))


def _cut_off(draw: random.Random, body: bytes) -> bytes:
    return HEAD % len(body) + body[: draw.randrange(len(body))]


def _wrong_length(draw: random.Random, body: bytes) -> bytes:
    lengths = (b"-1", b"+5", b"1e3", b"0x10", b"", b"9" * 30, b"10, 10", b"%d" % (len(body) // 2), b"0", b" 5 5")
    return (HEAD % 77 + body).replace(b" 77", b" " + draw.choice(lengths))


def _chunked(draw: random.Random, body: bytes) -> bytes:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") % len(body)
    if draw.random() < 0.5:
        head = head.replace(b"Content-Length: %d\r\n" % len(body), b"")
    return head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def _pipelined(draw: random.Random, body: bytes) -> bytes:
    return (HEAD % len(body) + body) * draw.randint(2, 4) + b"GET /health HTTP/1.1\r\n\r\n"


def _huge_headers(draw: random.Random, body: bytes) -> bytes:
    one, many = b"X: " + b"x" * draw.choice((5_000, 20_000, 10**6)), b"\r\n".join([b"X: x"] * draw.choice((300, 9_000)))
    start = draw.choice((_START, b"GET /health HTTP/1.1\r\n"))
    return start + draw.choice((one, many)) + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _other_request(draw: random.Random, body: bytes) -> bytes:
    lines = (
        b"PUT /act",
        b"DELETE /",
        b"HEAD /health",
        b"OPTIONS *",
        b"PRI *",
        b"GET /act",
        b"POST /",
        b"POST //[",
        b"GET //[",
    )
    versions = (b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"", b" http/1.1")
    head = draw.choice(lines) + draw.choice(versions) + b"\r\nContent-Length: 3\r\n\r\nabc"
    return draw.choice(
        (head, head, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n" + head, body, b"\x00" * 50)
    )


def _bad_header(draw: random.Random, body: bytes) -> bytes:
    entries = (b"no colon", b": no name", b"a b: c", b"X: \x07", b" folded", b"Content-Type: text/plain", b"X\xff: 1")
    more = (b"Content-Length: 3", b"Expect: 100-continue", b"Expect: everything", b"Origin: http://a", b"Host: b")
    return (HEAD % len(body)).replace(b"\r\n\r\n", b"\r\n" + draw.choice((*entries, *more)) + b"\r\n\r\n") + body


def _forms_in_forms(draw: random.Random, body: bytes) -> bytes:
    inner = [b"--B%d\r\nContent-Type: multipart/mixed; boundary=B%d\r\n\r\n" % (n, n + 1) for n in range(1_500)]
    body = draw.choice((b"".join(inner), b"\n" * 10**5, b"--XX\r\n" * 10**4, b"--XX\r\n\r\n" * 10**4, b"\r\n--XX--"))
    return (HEAD % len(body)).replace(b"XX", draw.choice((b"XX", b"B0"))) + body


BREACHES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _other_type,
    _cut_off,
    _wrong_length,
    _chunked,
    _pipelined,
    _huge_headers,
    _other_request,
    _bad_header,
    _forms_in_forms,
)
