"""A bad network between `RemotePolicy` and its server: it delays, drops, cuts and repeats messages."""

import contextlib
import socket
import threading
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve


class BadLink:
    """A proxy on loopback. Use as a context manager; what it does to messages may change at any time.

    delay_s: added to every answer. drops: answers are lost. cuts: the connection ends in place of so many answers.
    repeats: the answer before comes once more, ahead of the right one.
    damages: "answers" or "requests" have a wrong bit in byte `damaged_byte`.
    """

    def __init__(self, upstream: str) -> None:
        self.delay_s = 0.0
        self.drops = False
        self.cuts = 0
        self.repeats = False
        self.damages = ""
        self.damaged_byte = -1
        self._upstream = upstream
        self._server = serve(self._forward, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "BadLink":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(30.0)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def _forward(self, client: ServerConnection) -> None:
        assert client.request is not None
        before: str | bytes = b""
        with (
            contextlib.suppress(ConnectionClosed),
            connect(self._upstream + client.request.path, compression=None, max_size=None) as server,
        ):
            client.send(server.recv())  # the description of the policy
            while True:
                request = client.recv()
                server.send(self._damaged(request) if self.damages == "requests" else request)
                answer = server.recv()
                time.sleep(self.delay_s)
                if self.cuts > 0:
                    self.cuts -= 1
                    client.close_socket()
                    return
                if self.drops:
                    continue
                if self.repeats and before:
                    client.send(before)
                client.send(self._damaged(answer) if self.damages == "answers" else answer)
                before = answer

    def _damaged(self, message: str | bytes) -> bytes:
        assert isinstance(message, bytes)
        damaged = bytearray(message)
        damaged[self.damaged_byte] ^= 1
        return bytes(damaged)


class DeadLink:
    """A network that may stop carrying bytes while every connection stays open, as without power at the other end.

    Use as a context manager; dead: nothing is carried any more, in either direction, and connections are still taken.
    """

    def __init__(self, port: int) -> None:
        """port: of the server on this computer."""
        self.dead = False
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []

    def __enter__(self) -> "DeadLink":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes who reads it
            end.close()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not self.dead:
                    target.sendall(data)
