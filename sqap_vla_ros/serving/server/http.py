"""Plain HTTP on the port of the websockets: health, configuration, and `POST /act`.

`POST /act` is what the clients of CogACT's own server send (there it is `/api/inference`, which works too): a multipart
form with the picture as `images` and a JSON object with `task_description` as `json`. The answer is the list of the
next action's seven numbers, or of several such lists (`ChunkUse.post_actions`), or `{"error": …}`. Each request stands
by itself: it starts an episode.
"""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from urllib.parse import urlsplit
from weakref import WeakSet

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from sqap_vla_ros.serving.server.access import Access
from sqap_vla_ros.serving.server.engine import PredictionError
from sqap_vla_ros.serving.server.episode import Episode
from sqap_vla_ros.serving.server.observations import BadObservation
from sqap_vla_ros.serving.server.packing import PackingError, decode_image
from sqap_vla_ros.serving.server.post import HttpError, PostReader
from sqap_vla_ros.serving.server.protocols import PROTOCOLS, Service, metadata

ACT_PATHS = ("/act", "/api/inference")
_POST = b"POST "
_log = logging.getLogger(__name__)


def respond(service: Service, access: Access, request: Request) -> Response | None:
    """Answer a GET; None lets a websocket be opened."""
    path = urlsplit(request.path).path
    if path in ("/health", "/healthz"):
        problem = service.engine.problem
        status = HTTPStatus.OK if problem is None else HTTPStatus.SERVICE_UNAVAILABLE
        if path == "/healthz":
            return _response(status, "OK\n" if problem is None else f"{problem}\n", "text/plain; charset=utf-8")
        loading = service.engine.info is None
        health = {"status": "ok" if problem is None else "loading" if loading else "restarting"}
        if problem is not None:
            health |= {"reason": problem, "progress": service.engine.progress}
        return _response(status, json.dumps(health))
    if (refusal := access.refusal(request.headers)) is not None:
        return _error(*refusal)
    if path == "/config":
        return _response(HTTPStatus.OK, json.dumps(metadata(service) | {"actions": service.actions.spec()}))
    if path not in PROTOCOLS:
        known = ", ".join((*PROTOCOLS, "/health", "/healthz", "/config"))
        return _error(HTTPStatus.NOT_FOUND, f"nothing is served at {path[:100]}: use one of {known}")
    return None


class HttpConnection(ServerConnection):
    """A connection that may begin with `POST`, which the websocket library does not read.

    service, access, max_body, opened (its connections) and ending are set on a subclass made for each server.
    """

    service: Service
    access: Access
    max_body: int
    opened: WeakSet[HttpConnection]
    ending = False
    _decided = False
    _first = b""  # what came before it was clear what this is
    _post: PostReader | None = None
    _act_task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.opened.add(self)
        if self.ending:  # accepted in the same moment
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._decided:
            data = self._first = self._first + data
            if len(data) < len(_POST) and _POST.startswith(data):
                return
            self._decided = True
            if data.startswith(_POST):
                self._post = PostReader(self.max_body)
                self.access.clients += 1
        if self._post is None:
            super().data_received(data)
        elif self._act_task is None:
            self._read(self._post, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._post is not None:
            self.access.clients -= 1
            self._post = None
        if self._act_task is not None:
            self._act_task.cancel()
        super().connection_lost(exc)

    def _read(self, post: PostReader, data: bytes) -> None:
        try:
            head_before = post.headers
            complete = post.feed(data)
            if head_before is None and post.headers is not None:
                if post.path not in ACT_PATHS:
                    raise HttpError(HTTPStatus.NOT_FOUND, f"POST goes to {ACT_PATHS[0]}, got {post.path[:100]}")
                if (refusal := self.access.refusal(post.headers, connected=True)) is not None:
                    raise HttpError(*refusal)
                if not complete and post.headers.get_all("Expect"):
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # curl waits a second for it
            if complete:
                self._act_task = asyncio.get_running_loop().create_task(self._act(post))
        except HttpError as error:
            self._finish(_error(error.status, str(error)))

    async def _act(self, post: PostReader) -> None:
        service = self.service
        try:
            query, picture = post.form()
            observation = service.reader.read(
                {service.reader.image_key or "image": await asyncio.to_thread(decode_image, picture)},
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
            self._finish(_error(error.status, str(error)))
        except Exception:
            _log.exception("a defect in the server, met by a POST")
            self._finish(_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the server has a defect; its log says more"))

    def _finish(self, response: Response) -> None:
        response.headers["Connection"] = "close"
        self.transport.write(response.serialize())
        self.transport.close()


def _response(status: HTTPStatus, text: str, kind: str = "application/json") -> Response:
    body = text.encode()
    headers = Headers({"Content-Type": kind, "Content-Length": str(len(body))})
    return Response(status.value, status.phrase, headers, body)


def _error(status: HTTPStatus, text: str) -> Response:
    return _response(status, json.dumps({"error": text}))
