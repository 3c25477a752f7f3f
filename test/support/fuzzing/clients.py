"""What clients send to a policy server, and what a server answers: distorted and damaged frames and requests."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import numpy as np
from fuzzing.mutation import damaged, distorted
from PIL import Image as Picture

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo, TokenSelection
from sqap_vla_ros.robot.interchange.action_space import ActionSpace
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import LoadProgress, PredictFailed, PredictRequest, Ready, Result
from sqap_vla_ros.serving.frames import DamagedFrame, join_request, seal
from sqap_vla_ros.serving.server.episode import ChunkUse
from sqap_vla_ros.serving.server.http import _query_and_image
from sqap_vla_ros.serving.server.observations import ObservationReader
from sqap_vla_ros.serving.server.protocols import PROTOCOLS, Conversation, Frame, Service
from sqap_vla_ros.serving.server.requests import HttpError, RequestReader

_SHAPE = (12, 16, 3)
_PIXELS = np.arange(np.prod(_SHAPE), dtype=np.uint8).reshape(_SHAPE)
_INFO = PolicyInfo("double", "0" * 64, "fp32", 0, 4, 0.1, 224, (16, 16), "double", "sqap")
_BYTES = "b:"  # marks texts of the trees below that are sent as bytes
_STATE = [0.1, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0, 0.0]
_KEYS = ("__ndarray__", "data", "dtype", "shape", "__npgeneric__")


def fuzz_frames(folder: Path, seed: int) -> None:
    """Send a distorted message to one of the websocket protocols; a good one after it is answered as ever."""
    rng = Random(f"frames {seed}")
    path = rng.choice(tuple(PROTOCOLS))
    asyncio.run(_converse(rng, path))


def fuzz_posts(folder: Path, seed: int) -> None:
    """Post a distorted form."""
    rng = Random(f"posts {seed}")
    reader = RequestReader(2**20)
    data = _request(rng)
    try:
        for part in (data[: len(data) // 3], data[len(data) // 3 :]):
            complete = reader.feed(part)
        if not complete:
            raise ValueError(reader.missing())
        query, image = _query_and_image(reader)
    except HttpError as error:
        raise ValueError(str(error)) from error
    ObservationReader().read({"image": image}, query.get("task_description"), query.get("state"), 0)


def fuzz_answers(folder: Path, seed: int) -> None:
    """Damage what a server or a worker answers."""
    rng = Random(f"answers {seed}")
    message = wire.decode(damaged(rng, wire.encode(rng.choice(_answers()))))
    assert wire.encode(message)


class _Engine:
    """Answers every observation at once."""

    progress, problem, info = "", None, _INFO

    async def loading(self) -> AsyncIterator[str]:
        yield "loading"

    async def loaded(self) -> PolicyInfo:
        return _INFO

    async def predict(self, owner: object, observation: Observation, *, seed: int, reset: bool) -> Result:
        assert observation.image.dtype == np.uint8
        assert observation.instruction.strip()
        return Result(1, dataclasses.replace(_chunk(), stamp_ns=observation.stamp_ns), 0.01)


async def _converse(rng: Random, path: str) -> None:
    service: Any = Service(_Engine(), ObservationReader(), ActionSpace(), ChunkUse())  # type: ignore[arg-type]
    conversation: Conversation = PROTOCOLS[path](service)
    async for greeting in conversation.greetings():
        assert greeting
    good, bad = _good_frame(path), _bad_frame(rng, path)
    if path == "/" and rng.random() < 0.5:
        await conversation.answer(good)  # which of the clients it is
    try:
        answer = await conversation.answer(bad)
    except DamagedFrame:  # ends the connection
        raise
    except Exception as error:
        raise AssertionError(f"a defect in the server: {type(error).__name__}: {error}") from error
    assert answer is None or isinstance(answer, bytes | str)
    if path != "/" or await conversation.answer(good) is not None:
        assert await conversation.answer(good)
    if isinstance(answer, str) or (answer and b"error" in answer):
        raise ValueError("answered with a sentence")


def _good_frame(path: str) -> Frame:
    if path.endswith("native"):
        return join_request(PredictRequest(1, True, *_SHAPE[:2], 5, "pick", (1.0, 2.0), np.eye(4), 0), _PIXELS)
    return bytes(msgpack.packb(_filled(_tree("openpi" if path == "/openpi" else "vla-eval", "raw"))))


def _bad_frame(rng: Random, path: str) -> Frame:
    if path.endswith("native"):
        frame = bytes(_good_frame(path))  # type: ignore[arg-type]
        return damaged(rng, frame) if rng.random() < 0.2 else seal(damaged(rng, frame[4:]))
    kind = rng.choice(("openpi", "vla-eval", "vla-eval", "hello"))
    tree = distorted(rng, _tree(kind, rng.choice(("raw", "png", "image"))))
    if rng.random() < 0.3:  # an array where nobody expects one
        owner = tree if isinstance(tree, dict) and tree else {"type": "observation"}
        tree = owner | {rng.choice(sorted(map(str, owner))): _array([rng.choice((0, 1, 2))] * rng.choice((1, 2)))}
    try:
        frame = bytes(msgpack.packb(_filled(tree)))
    except (OverflowError, ValueError):  # whole numbers of more than 64 bits, or nested too deep for the writer
        frame = msgpack.packb(_filled(_tree(kind, "raw")))
    frame = damaged(rng, frame) if rng.random() < 0.3 else frame
    return frame.decode("latin-1") if rng.random() < 0.02 else frame


def _tree(kind: str, form: str) -> dict[str, Any]:
    image: Any = {"__ndarray__": True, "data": "@raw", "dtype": "|u1", "shape": list(_SHAPE)}
    if form != "raw":
        image = {"__image__": True, "format": "png", "data": "@png"} if form == "png" else image | {"format": "raw"}
    if kind == "openpi":
        image = {(_BYTES + key if key in _KEYS else key): value for key, value in image.items()}
        return {"observation/image": image, "observation/state": _STATE, "prompt": "pick"}
    if kind == "hello":
        return {"type": "hello", "payload": {"protocol_version": 1}, "seq": 1, "timestamp": 0.0}
    payload = {"images": {"agentview": image}, "task_description": "pick", "states": _STATE}
    return {"type": "observation", "payload": payload, "seq": 3, "timestamp": 0.5}


def _array(values: list[int]) -> dict[str, Any]:
    return {"__ndarray__": True, "data": np.array(values, np.int64), "dtype": "<i8", "shape": [len(values)]}


def _filled(tree: Any) -> Any:
    """Put bytes where the tree has a name for them."""
    if isinstance(tree, dict):
        return {_filled(key): _filled(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_filled(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return tree.tobytes()
    if isinstance(tree, str) and tree.startswith(_BYTES):
        return tree.removeprefix(_BYTES).encode()
    return {"@raw": _PIXELS.tobytes(), "@png": _png()}.get(tree, tree) if isinstance(tree, str) else tree


@cache
def _png() -> bytes:
    file = io.BytesIO()
    Picture.fromarray(_PIXELS).save(file, "png")
    return file.getvalue()


def _request(rng: Random) -> bytes:
    """Return a POST whose form, headers or bytes are distorted."""
    query: Any = {"task_description": "pick", "state": _STATE}
    picture = _png()
    if rng.random() < 0.6:
        query = distorted(rng, query)
    if rng.random() < 0.3:
        picture = damaged(rng, picture)
    parts = [("images", picture), ("json", json.dumps(query).encode())]
    rng.shuffle(parts)
    body = bytearray()
    for name, content in parts:
        coding = rng.choice(("", "", "", "Content-Transfer-Encoding: base64\r\n", "Content-Type: message/rfc822\r\n"))
        body += f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n{coding}\r\n'.encode() + content + b"\r\n"
    body += b"--XX--\r\n"
    kind = rng.choice(
        (
            *("multipart/form-data; boundary=XX",) * 6,
            *(
                "multipart/form-data",
                "multipart/form-data; boundary=",
                "multipart/form-data; boundary*0=X; boundary*1=X",
            ),
            *("multipart/form-data; boundary=XX; charset=x\x80\nA: b", "text/plain", "multipart/form-data\nX: \xff"),
        )
    )
    content = damaged(rng, bytes(body)) if rng.random() < 0.3 else bytes(body)
    length = rng.choice((len(content),) * 8 + (0, len(content) - 1, 10**9, "x", "²"))  # type: ignore[operator]
    head = f"POST /act HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    data = head.encode("latin-1", "replace") + content
    return damaged(rng, data) if rng.random() < 0.2 else data


def _chunk() -> ActionChunk:
    selection = TokenSelection(np.arange(4, dtype=np.int32), np.ones(4, np.uint8), (16, 16), "sqap", 2, (3, 4))
    return ActionChunk(5, np.full((4, 7), 0.1), 0.1, np.full((4, 7), 0.1), selection, {"total": 1.5}, seed=0)


@cache
def _answers() -> tuple[wire.Message, ...]:
    return (
        *(LoadProgress("é"), Ready(_INFO, 0.5), Result(7, _chunk(), 0.25), PredictFailed(7, "no")),
        PredictRequest(1, True, 12, 16, 5, "pick", (1.0, 2.0), np.eye(4), 0),
    )
