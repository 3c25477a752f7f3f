"""The protocols of the websocket clients: a frame in, the frame to send back out.

Each conversation belongs to one connection. An observation that cannot be used is answered with a sentence, in the form
the client expects an error in, and the connection is kept. Adding a protocol is one class and one row of `PROTOCOLS`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sqap_vla_ros import __version__
from sqap_vla_ros.robot.interchange.action_space import ActionSpace
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import LoadProgress, PredictFailed, Ready, Unanswered
from sqap_vla_ros.serving.frames import NATIVE_PATH, DamagedFrame, observed, seal, split_request
from sqap_vla_ros.serving.server.engine import Engine, NotPredicted, PredictionError
from sqap_vla_ros.serving.server.episode import ChunkUse, Episode
from sqap_vla_ros.serving.server.observations import BadObservation, ObservationReader, pictures_in
from sqap_vla_ros.serving.server.packing import PackingError, pack, read_header, unpack
from sqap_vla_ros.serving.server.words import kind_of, listed, quoted

Frame = bytes | str
LONGEST_FOLDER = 200  # characters of the name of openpi's map; it is repeated before the name of each entry
PROTOCOL_VERSION = 1  # of vla-eval
LONGEST_INLINE = 4_096  # bytes; a longer frame may hold a picture, whose decoding would keep all other clients waiting


@dataclass(frozen=True)
class Service:
    """The engine and the settings that all conversations share."""

    engine: Engine
    reader: ObservationReader
    actions: ActionSpace
    chunk_use: ChunkUse


class Conversation(Protocol):
    """One client. `greetings` are sent before the client says anything; none where the client begins."""

    def greetings(self) -> AsyncIterator[Frame]: ...

    async def answer(self, frame: Frame) -> Frame | None: ...


class VlaEval:
    """vla-eval, protocol version 1: one action an observation, with the observation's number."""

    def __init__(self, service: Service, *, greeted: bool = False) -> None:
        """greeted: the hello was sent before the client's, so that it needs no answer."""
        self._service = service
        self._greeted = greeted
        self._episode = Episode(service.engine, service.chunk_use, service.actions)

    async def greetings(self) -> AsyncIterator[Frame]:
        nothing: tuple[Frame, ...] = ()  # the client begins
        for frame in nothing:
            yield frame

    async def answer(self, frame: Frame) -> bytes | None:
        number = 0
        try:
            if isinstance(frame, str):
                raise PackingError("vla-eval's frames are binary, got a text")
            try:
                message = await _unpack(frame)
            except PackingError:
                number = _number(await _header(frame))
                raise
            number = _number(message)
            if not isinstance(message, dict) or not {"type", "payload", "seq"} <= set(message):
                raise PackingError("a message needs type, payload, seq and timestamp")
            kind, payload = message["type"], message["payload"]
            if not isinstance(kind, str):
                raise PackingError(f"the type of a message must be a text, got {kind_of(kind)}")
            if not isinstance(payload, dict):
                raise PackingError(f"the payload of {quoted(kind)} must be a map, got {kind_of(payload)}")
            return await self._reply(kind, payload, number)
        except (PackingError, BadObservation, PredictionError) as error:
            return _vla_eval_message("error", {"error": str(error)}, number)

    async def _reply(self, kind: str, payload: dict[Any, Any], number: int) -> bytes | None:
        if kind == "hello":
            version = payload.get("protocol_version", PROTOCOL_VERSION)
            if not isinstance(version, int) or version != PROTOCOL_VERSION:
                asked = version if isinstance(version, int) else kind_of(version)
                raise PackingError(f"version {PROTOCOL_VERSION} of vla-eval's protocol is spoken here, got {asked}")
            return None if self._greeted else _vla_eval_message("hello", hello(self._service), number)
        if kind in ("episode_start", "episode_end"):
            self._episode.begin()
            return None
        if kind == "error":
            return None
        if kind != "observation":
            raise PackingError(f"unknown message type {quoted(kind)}")
        images = payload.get("images")
        if not isinstance(images, Mapping):
            beside = f"; pictures came as {listed(found)}" if (found := pictures_in(payload)) else ""
            raise BadObservation(f"images must be a map from camera names to pictures, got {kind_of(images)}{beside}")
        state = payload.get("states", payload.get("state"))
        observation = self._service.reader.read(images, payload.get("task_description"), state, time.time_ns())
        action = await self._episode.action(observation)
        return _vla_eval_message("action", {"actions": action.astype(np.float32)}, number)


class OpenPi:
    """openpi: metadata first, then a whole chunk for every observation. Errors are frames of text."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._episode = Episode(service.engine, service.chunk_use, service.actions)
        self._previous_ms: float | None = None

    async def greetings(self) -> AsyncIterator[Frame]:
        yield pack(metadata(self._service), keys=bytes)

    async def answer(self, frame: Frame) -> Frame:
        begin = time.perf_counter()
        try:
            if isinstance(frame, str):
                raise PackingError("openpi's frames are binary, got a text")
            message = await _unpack(frame)
            if not isinstance(message, dict):
                raise PackingError(f"an observation is a map, got {kind_of(message)}")
            message = _joined(message)
            images, key = _openpi_images(message, self._service.reader.image_key or "image")
            reader = replace(self._service.reader, image_key=key)
            observation = reader.read(images, message.get("prompt"), message.get("observation/state"), time.time_ns())
            actions, policy_s = await self._episode.chunk(observation)
        except (PackingError, BadObservation, PredictionError) as error:
            return str(error)
        timing = {"infer_ms": policy_s * 1e3}
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        answer = pack({"actions": actions, "server_timing": timing}, keys=bytes)
        self._previous_ms = (time.perf_counter() - begin) * 1e3
        return answer


def _joined(message: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return openpi's message and the entries of its maps, each named by the map's name, a slash and its own."""
    joined = dict(message)
    for name, value in message.items():
        if isinstance(name, str) and len(name) <= LONGEST_FOLDER and isinstance(value, Mapping):
            joined |= {f"{name}/{inner}": entry for inner, entry in value.items() if isinstance(inner, str)}
    return joined


def _openpi_images(message: Mapping[Any, Any], key: str) -> tuple[dict[Any, Any], str]:
    """Return what may be pictures by name, and the name among these of the picture that the key means.

    Names are without their folder, except where they differ in nothing else; the key may be with or without it.
    """
    pictures = pictures_in(message)
    pictures |= {
        name: value
        for name, value in message.items()
        if isinstance(name, str) and (name.endswith("image") or key in (name, _short(name)))
    }
    count = Counter(map(_short, pictures))
    names = {name: short if count[short := _short(name)] == 1 else name for name in pictures}
    return {names[name]: value for name, value in pictures.items()}, names.get(key, key)


def _short(name: Any) -> Any:
    """Return a name of openpi's message without the folders that pictures lie in."""
    return name.removeprefix("observation/").removeprefix("images/") if isinstance(name, str) else name


class Either:
    """The path "/": a first frame that satisfies both clients, whose own first frame then decides."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._chosen: Conversation | None = None

    async def greetings(self) -> AsyncIterator[Frame]:
        head = {"type": "hello", "payload": hello(self._service), "seq": 0, "timestamp": time.time()}
        yield pack({**metadata(self._service), **head}, keys=str)

    async def answer(self, frame: Frame) -> Frame | None:
        if self._chosen is None:
            speaks_vla_eval = isinstance(frame, bytes) and "type" in await _header(frame)
            if isinstance(frame, bytes) and not speaks_vla_eval:
                try:
                    await _unpack(frame)
                except PackingError as error:
                    return str(error)  # whose it is may be seen from the next one
            self._chosen = VlaEval(self._service, greeted=True) if speaks_vla_eval else OpenPi(self._service)
        return await self._chosen.answer(frame)


class Native:
    """`RemotePolicy`: frames of `frames.py` in both directions. A damaged one ends the connection.

    The policy is given exactly the client's observation and seed, so that the chunk is the one it would compute itself.
    """

    def __init__(self, service: Service) -> None:
        self._engine = service.engine

    async def greetings(self) -> AsyncIterator[Frame]:
        async for text in self._engine.loading():
            yield seal(wire.encode(LoadProgress(wire.clip(text))))
        yield seal(wire.encode(Ready(await self._engine.loaded(), 0.0)))

    async def answer(self, frame: Frame) -> Frame:
        number = 1
        try:
            if isinstance(frame, str):
                raise wire.WireError("frames are binary, got a text")
            request, pixels = split_request(frame)
            number = request.request
            observation = observed(request, pixels)
            result = await self._engine.predict(self, observation, seed=request.seed, reset=request.reset)
            return seal(wire.encode(replace(result, request=number)))
        except DamagedFrame:  # also the number of the request may be wrong
            raise
        except NotPredicted as error:
            return seal(wire.encode(Unanswered(number, wire.clip(str(error)))))
        except (ValueError, PredictionError) as error:
            return seal(wire.encode(PredictFailed(number, wire.clip(str(error)))))


PROTOCOLS: Mapping[str, type[VlaEval | OpenPi | Either | Native]] = {
    "/": Either,
    "/vla-eval": VlaEval,
    "/openpi": OpenPi,
    NATIVE_PATH: Native,
}


def hello(service: Service) -> dict[str, Any]:
    """Return the payload of vla-eval's hello."""
    payload: dict[str, Any] = {
        "harness_version": f"sqap-vla-ros {__version__}",
        "protocol_version": PROTOCOL_VERSION,
        "model_server": "sqap_vla_ros",
        "capabilities": {},
        "action_spec": service.actions.spec(),
    }
    if service.reader.camera is not None:
        payload["observation_params"] = {"send_state": True}
    return payload


def metadata(service: Service) -> dict[str, Any]:
    """Return what openpi's client is told about the policy; of an unloaded one only the server's version."""
    info = service.engine.info
    about: dict[str, Any] = {"server": f"sqap-vla-ros {__version__}", "policy": "" if info is None else info.checkpoint}
    if info is not None:
        use = service.chunk_use
        about |= {"recipe": info.recipe, "horizon": use.length(info), "dt_s": use.step_s(info.dt_s)}
    return about


async def _unpack(frame: bytes) -> Any:
    """Return the value of a frame; long ones are unpacked in another thread. Raises PackingError."""
    return unpack(frame) if len(frame) <= LONGEST_INLINE else await asyncio.to_thread(unpack, frame)


async def _header(frame: bytes) -> dict[str, Any]:
    """Return type and number of vla-eval's message, as far as they can be read."""
    names = ("type", "seq")
    return (
        read_header(frame, *names)
        if len(frame) <= LONGEST_INLINE
        else await asyncio.to_thread(read_header, frame, *names)
    )


def _number(message: Any) -> int:
    """Return the number of vla-eval's message, 0 where it has none."""
    number = message.get("seq") if isinstance(message, dict) else None
    return number if type(number) is int else 0


def _vla_eval_message(kind: str, payload: dict[str, Any], number: int) -> bytes:
    return pack({"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}, keys=str)
