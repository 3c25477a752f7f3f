"""Plain HTTP on the port of the websockets: health, configuration, and `POST /act`.

`POST /act` is what the clients of CogACT's own server send (there it is `/api/inference`, which works too): a multipart
form with the picture as `images` and a JSON object with `task_description` as `json`. The answer is the list of the
next action's seven numbers, or of several such lists (`ChunkUse.post_actions`), or `{"error": …}`. Each request stands
by itself: it starts an episode.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidUpgrade
from websockets.http11 import Request, Response

from sqap_vla_ros.contracts import printable
from sqap_vla_ros.serving.server.access import Access
from sqap_vla_ros.serving.server.engine import PredictionError
from sqap_vla_ros.serving.server.episode import Episode
from sqap_vla_ros.serving.server.form import read_form
from sqap_vla_ros.serving.server.observations import BadObservation
from sqap_vla_ros.serving.server.packing import PackingError, decode_image
from sqap_vla_ros.serving.server.protocols import PROTOCOLS, Service, metadata
from sqap_vla_ros.serving.server.requests import HttpError, RequestReader

ACT_PATHS = ("/act", "/api/inference")
GET_PATHS = (*PROTOCOLS, "/health", "/healthz", "/config")
LINGER_S = 2.0  # that a client who was answered has to read that and close
SPARE = 100  # connections that may be open beside two for each client, before those that wait for nothing are closed
_log = logging.getLogger(__name__)


def respond(connection: HttpConnection, request: Request) -> Response | None:
    """Answer a GET; None lets a websocket be opened, whose place among the clients is taken."""
    answer = _answer(connection, urlsplit(request.path).path, request.headers)
    if answer is None:
        connection.take_place()
    return answer


def no_websocket(request: Request, status: int, error: InvalidHandshake) -> Response:
    """Say why the library opens no websocket, in place of its own page of text."""
    if isinstance(error, InvalidUpgrade):
        return _upgrade_required(urlsplit(request.path).path)
    return _error(HTTPStatus(status), f"no websocket can be opened: {printable(str(error), 200)}", Connection="close")


def _answer(connection: HttpConnection, path: str, headers: Headers) -> Response | None:
    """Return the answer to a GET, None where it may open a websocket."""
    service, access = connection.service, connection.access
    if path in ("/health", "/healthz"):
        return _health(service, in_words=path == "/healthz", in_detail=access.is_client(headers))
    if (refusal := access.refusal(headers)) is not None:
        return _error(*refusal)
    if path == "/config":
        return _response(HTTPStatus.OK, json.dumps(metadata(service) | {"actions": service.actions.spec()}))
    if path in ACT_PATHS:
        takes = f"{path} takes POST: a form with a picture as images, and as json an object with task_description"
        return _error(HTTPStatus.METHOD_NOT_ALLOWED, takes, Allow="POST")
    if path not in PROTOCOLS:
        known = ", ".join((*GET_PATHS, *ACT_PATHS))
        return _error(HTTPStatus.NOT_FOUND, f"nothing is served at {path[:100]}: use one of {known}")
    return None


def _upgrade_required(path: str) -> Response:
    refused = f"{path} takes websockets, and this request asks for none: GET /health tells whether the server is ready"
    return _error(HTTPStatus.UPGRADE_REQUIRED, refused, Upgrade="websocket", Connection="close")


def _health(service: Service, *, in_words: bool, in_detail: bool) -> Response:
    """Say whether the policy is ready. in_detail: with reasons, which may name files of this computer."""
    problem = service.engine.problem
    status = HTTPStatus.OK if problem is None else HTTPStatus.SERVICE_UNAVAILABLE
    state = "ok" if problem is None else "loading" if service.engine.info is None else "restarting"
    if in_words:
        said = "OK" if problem is None else problem if in_detail else state
        return _response(status, f"{said}\n", "text/plain; charset=utf-8")
    health = {"status": state}
    if problem is not None and in_detail:
        health |= {"reason": problem, "progress": service.engine.progress}
    return _response(status, json.dumps(health))


class HttpConnection(ServerConnection):
    """A connection whose request is read here: `POST` and `HEAD` are answered, a sound `GET` is left to the library.

    service, access, max_body, request_s, pending and ending are set on a subclass made for each server.
    pending: connections whose request is read here, the oldest first: without an answer, or about to close after it.
    """

    service: Service
    access: Access
    max_body: int
    request_s: float
    pending: dict[HttpConnection, None]
    ending = False
    _reader: RequestReader | None  # None once the websocket library reads
    _counted = False  # among the clients
    _lost = False
    _answered = False
    _ended = False  # the client sends no more
    _heard_s = 0.0  # when bytes came last
    _timer: asyncio.TimerHandle
    _act_task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._reader = RequestReader(self.max_body)
        self._timer = self.loop.call_later(self.request_s, self._expire, f"within {self.request_s:g} s")
        self.pending[self] = None
        if self.ending:  # accepted in the same moment
            self.transport.abort()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        if self._reader is None:
            super().data_received(data)
        elif not self._answered and self._act_task is None:
            try:
                self._read(self._reader, data)
            except HttpError as error:
                self._refuse(error)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's: whether to keep the connection open
        if self._reader is None:
            super().eof_received()
            return False
        self._ended = True
        if self._act_task is not None:
            return not self._answered  # it may have closed its side only
        if self._reader.received and not self._answered:
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, f"the request is cut off: {self._reader.missing()}"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self.pending.pop(self, None)
        self._lost = True
        self.leave()
        if self._act_task is not None:
            self._act_task.cancel()
        super().connection_lost(exc)

    def take_place(self) -> None:
        """Count this connection among the clients, until it is closed."""
        if not self._lost:  # its request may be read after it was closed
            self.access.clients += 1 - self._counted
            self._counted = True

    def leave(self) -> None:
        """Give the place to others, if it was taken."""
        self.access.clients -= self._counted
        self._counted = False

    def reset(self) -> None:
        """Close the connection at once, and drop what its client did not read.

        After a plain close the kernel would go on delivering that, for minutes, to a client that sees an open one.
        """
        sock = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def reset_when_silent(self, silent_s: float) -> None:
        """Reset the connection, from now on, whenever no byte came for so long; pings count."""
        left_s = self._heard_s + silent_s - self.loop.time()
        if not self.transport.is_reading():  # bytes may wait to be read
            left_s = silent_s
        if left_s <= 0.0:
            self.reset()
        else:
            self._timer = self.loop.call_later(left_s, self.reset_when_silent, silent_s)

    def _make_room(self) -> None:
        """Close the oldest connections where there are too many: those that were answered before those to be refused.

        One that is refused here may read why until the next one comes.
        """
        while len(self.pending) > 2 * self.access.most_clients + SPARE:
            lingering = next((one for one in self.pending if one._answered), None)
            if lingering is None:
                next(one for one in self.pending if one._act_task is None)._expire("while others wait")
                return
            del self.pending[lingering]
            lingering.transport.abort()

    def _read(self, reader: RequestReader, data: bytes) -> None:
        head_before = reader.headers
        complete = reader.feed(data)
        if reader.headers is None:
            return
        if reader.method == "GET":
            self._timer.cancel()
            del self.pending[self]
            self._reader = None
            super().data_received(reader.received)
            return
        if reader.method == "HEAD":
            answer = _answer(self, reader.path, reader.headers) or _upgrade_required(reader.path)
            answer.body = b""  # of which the headers tell all the same
            self._finish(answer)
            return
        if head_before is None:
            if reader.path in GET_PATHS:
                raise HttpError(
                    HTTPStatus.METHOD_NOT_ALLOWED, f"{reader.path} takes GET; POST goes to {ACT_PATHS[0]}", allow="GET"
                )
            if reader.path not in ACT_PATHS:
                raise HttpError(HTTPStatus.NOT_FOUND, f"POST goes to {ACT_PATHS[0]}, got {reader.path[:100]}")
            if (refusal := self.access.refusal(reader.headers)) is not None:
                raise HttpError(*refusal)
            self.take_place()
            if not complete and reader.headers.get_all("Expect"):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # curl waits a second for it
        if complete:
            self._timer.cancel()
            self._act_task = self.loop.create_task(self._act(reader))

    def _expire(self, when: str) -> None:
        """Refuse a request that has not come whole; close a connection that said nothing."""
        assert self._reader is not None
        if self._reader.received:
            late = f"the request did not come {when}: {self._reader.missing()}"
            self._refuse(HttpError(HTTPStatus.REQUEST_TIMEOUT, late))
        else:
            self._answered = True
            self.transport.abort()

    async def _act(self, reader: RequestReader) -> None:
        service = self.service
        try:
            query, image = await asyncio.to_thread(_query_and_image, reader)
            observation = service.reader.read(
                {service.reader.image_key or "image": image},
                query.get("task_description", query.get("instruction")),
                query.get("state"),
                0,
            )
            actions, _ = await Episode(service.engine, service.chunk_use, service.actions).chunk(observation)
            wanted = service.chunk_use.post_actions
            answer = actions[0] if wanted is None else actions[:wanted]
            self._finish(_response(HTTPStatus.OK, json.dumps(answer.tolist())))
        except (PackingError, BadObservation) as error:
            self._finish(_error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))
        except PredictionError as error:
            self._finish(_error(HTTPStatus.SERVICE_UNAVAILABLE, str(error)))
        except HttpError as error:
            self._refuse(error)
        except Exception:
            _log.exception("a defect in the server, met by a POST")
            self._finish(_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the server has a defect; its log says more"))

    def _refuse(self, error: HttpError) -> None:
        self._finish(_error(error.status, str(error), **({"Allow": error.allow} if error.allow else {})))

    def _finish(self, response: Response) -> None:
        """Send the answer and its end. What the client still sends is read for a moment and dropped.

        A connection that is closed with bytes unread is reset, and the client may never see why.
        """
        self._answered = True
        self.leave()
        self._timer.cancel()
        if self.transport.is_closing():
            return
        if "Connection" not in response.headers:
            response.headers["Connection"] = "close"
        self.transport.write(response.serialize())
        if self._ended:
            self.transport.close()
            return
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)


def _query_and_image(reader: RequestReader) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Return what a complete request asks. Raises HttpError and PackingError."""
    assert reader.headers is not None
    kinds = reader.headers.get_all("Content-Type")
    if len(kinds) > 1:
        raise HttpError(HTTPStatus.BAD_REQUEST, "the request has more than one Content-Type")
    query, picture = read_form("".join(kinds), reader.body)
    return query, decode_image(picture)


def _response(status: HTTPStatus, text: str, kind: str = "application/json") -> Response:
    body = text.encode()
    headers = Headers({"Content-Type": kind, "Content-Length": str(len(body))})
    return Response(status.value, status.phrase, headers, body)


def _error(status: HTTPStatus, text: str, **headers: str) -> Response:
    response = _response(status, json.dumps({"error": text}))
    response.headers.update(headers)
    return response
