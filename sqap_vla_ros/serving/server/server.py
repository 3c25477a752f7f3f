"""The server itself: accepts connections, limits them, and hands each to its conversation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from sqap_vla_ros.serving import defaults
from sqap_vla_ros.serving.frames import MOST_FRAME, NATIVE_PATH, TOKEN_VARIABLE, DamagedFrame, is_loopback
from sqap_vla_ros.serving.server.access import Access
from sqap_vla_ros.serving.server.http import HttpConnection, no_websocket, respond
from sqap_vla_ros.serving.server.protocols import PROTOCOLS, Conversation, Frame, Service

# Answers have a few kilobytes, so a client that reads leaves this buffer empty. Left to itself, the kernel would take
# megabytes of answers that nobody reads before `send_s` begins to count.
SEND_BUFFER = 65_536
# A client that vanished, without power or behind a drawn cable, closes nothing: the kernel asks its computer, which
# answers also for a program that says nothing for hours. Names that this system may not have.
VANISHED_S = 15  # until such a client gives its place to others
_KEEPALIVE = {
    "TCP_KEEPIDLE": VANISHED_S // 3,  # seconds without a byte before the first question
    "TCP_KEEPINTVL": VANISHED_S // 3,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": VANISHED_S * 1_000,  # ms, where an answer is under way, and no questions are asked
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """Address and limits of the server.

    port: 0 takes a free one. token: required of every client where it is not "", and for any host but loopback.
    max_frame: bytes of one message. idle_s: a client that says nothing for so long is disconnected.
    send_s: a client that does not read its answer for so long is disconnected.
    silent_s: so is one of `RemotePolicy`, which pings every two seconds, that sends no byte for so long.
    request_s: a request that has not come whole after so long is refused.
    """

    host: str = defaults.HOST
    port: int = defaults.PORT
    token: str = ""
    most_clients: int = defaults.MOST_CLIENTS
    max_frame: int = MOST_FRAME
    idle_s: float = 3_600.0
    send_s: float = 10.0
    silent_s: float = 15.0
    request_s: float = 60.0

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise ValueError(
                f"{self.host} can be reached from outside: set a token in the environment ({TOKEN_VARIABLE}), "
                "or bind to 127.0.0.1 and forward the port"
            )


@contextlib.asynccontextmanager
async def listening(service: Service, config: ServerConfig) -> AsyncIterator[int]:
    """Serve inside the block; gives the port."""

    class Connection(HttpConnection):
        pass

    Connection.service, Connection.max_body = service, config.max_frame
    Connection.access = Access(config.token, config.most_clients)
    Connection.request_s, Connection.pending = config.request_s, {}

    async def handle(connection: ServerConnection) -> None:
        assert isinstance(connection, HttpConnection)
        try:
            await _converse(service, config, connection)
        except ConnectionClosed:
            connection.transport.abort()
        except TimeoutError:
            connection.reset()  # it fell silent or does not read; it may connect again
        except DamagedFrame as error:
            await connection.close(CloseCode.INVALID_DATA, str(error))
        except Exception:
            _log.exception("a defect in the server, met by %s", connection.remote_address)
            raise  # the client is told 1011, internal error
        finally:
            connection.leave()

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        assert isinstance(connection, HttpConnection)
        return respond(connection, request)

    def answered(connection: ServerConnection, request: Request, response: Response) -> Response | None:
        assert isinstance(connection, HttpConnection)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:  # it asked for no websocket
            connection.leave()
        refused = connection.protocol.handshake_exc
        return no_websocket(request, response.status_code, refused) if isinstance(refused, InvalidHandshake) else None

    async with serve(
        handle,
        config.host,
        config.port,
        process_request=answer,
        process_response=answered,
        create_connection=Connection,
        compression=None,  # pictures do not shrink, and the time is the robot's
        max_size=config.max_frame,
        max_queue=2,
        ping_interval=None,  # clients step a simulator for longer than any patience with pings
        open_timeout=None,  # the connection itself sees to it
        close_timeout=1.0,
        server_header=None,
    ) as server:
        for listener in server.sockets:
            _limit(listener)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            Connection.ending = True
            for connection in list(Connection.pending):
                connection.transport.abort()  # the end would wait for it


def _limit(listener: socket.socket) -> None:
    """Set what the connections of a listening socket inherit."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _converse(service: Service, config: ServerConfig, connection: HttpConnection) -> None:
    assert connection.request is not None
    path = urlsplit(connection.request.path).path
    conversation: Conversation = PROTOCOLS[path](service)
    if path == NATIVE_PATH:
        connection.reset_when_silent(config.silent_s)
    greetings = conversation.greetings()
    while (greeting := await _unless_closed(connection, anext(greetings, None))) is not None:
        await asyncio.wait_for(connection.send(greeting), config.send_s)
    while True:
        frame = await asyncio.wait_for(connection.recv(), config.idle_s)
        answer = await _unless_closed(connection, conversation.answer(frame))
        if answer is not None:
            await asyncio.wait_for(connection.send(answer), config.send_s)


async def _unless_closed(connection: ServerConnection, answer: Awaitable[Frame | None]) -> Frame | None:
    """Wait for an answer; cancel it when the client leaves or the server closes, so that its turn goes to the next."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(connection.wait_closed())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        leaving.cancel()
