"""A policy on another computer: the `Policy` protocol over the websocket of `sqap-vla serve`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import ssl
import struct
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo, UnfitObservation, checked_seed, unreadable
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.defaults import LOAD_TIMEOUT_S, PREDICTION_TIMEOUT_S, REACH_TIMEOUT_S
from sqap_vla_ros.serving.events import LoadProgress, PredictFailed, PredictRequest, Ready, Result, Unanswered
from sqap_vla_ros.serving.frames import (
    NATIVE_PATH,
    SCHEMES,
    NoAnswer,
    RemoteError,
    host_and_port,
    is_remote,
    join_request,
    token_of,
    unseal,
    uses_proxy,
)
from sqap_vla_ros.serving.validation import chunk_problem, info_problem

__all__ = ["NoAnswer", "RemoteError", "RemotePolicy", "RoundTrip"]
_LOG = logging.getLogger(__name__)
_LIBRARY_LOG = _LOG.getChild("websockets")  # it prints a traceback for each ping without an answer
_LIBRARY_LOG.setLevel(logging.CRITICAL)

OPEN_S = 5.0  # that a server has to take a connection; then it is tried again
PING_S, PONG_S = 2.0, 5.0  # between pings, and that a server has to answer one: it does while it loads or predicts
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
CLOSE_S = 0.2  # that a server has to say goodbye
PATHS = (NATIVE_PATH, "/vla-eval", "/openpi", "/act", "/api/inference", "/health", "/healthz", "/config")  # of a server
REFUSALS = (401, 403, 404)  # HTTP statuses that waiting does not change
UNANSWERED_PING = "keepalive ping timeout"  # the websocket library's reason, of either end
# Reasons to close a connection that the same request meets again on the next one. A frame that was damaged on the way
# (1002, 1007) and a server that restarts (1001, 1012, 1013) are none.
LASTING = (
    CloseCode.UNSUPPORTED_DATA,
    CloseCode.POLICY_VIOLATION,
    CloseCode.MESSAGE_TOO_BIG,
    CloseCode.MANDATORY_EXTENSION,
    CloseCode.INTERNAL_ERROR,
)


@dataclass(frozen=True)
class RoundTrip:
    """Latency of one prediction, seconds: as the client saw it, and inside the server's policy."""

    total_s: float
    policy_s: float


class RemotePolicy:
    """Predicts on a server. One connection, opened again when it is lost; threads that share it wait for one another.

    A child of a fork leaves its parent's connection alone and makes one of its own.
    A connection on which an answer did not come in time is closed, so that the answer cannot be taken for a later one.
    So is one whose other end answers no pings: a computer without power, or a cable that was drawn, ends nothing else.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = PREDICTION_TIMEOUT_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        reach_timeout_s: float = REACH_TIMEOUT_S,
        say: Callable[[str], None] = _LOG.warning,
    ) -> None:
        """Connect and wait until the server's policy is loaded.

        address: "ws://host:port"; the token, if one is needed, comes from the environment variable SQAP_VLA_TOKEN.
        timeout_s: of a prediction, connecting included.
        load_timeout_s, reach_timeout_s: of the whole, and until a server takes the connection: it does while it loads.
        say: told why the server cannot be reached, and how far it is with loading.
        Raises RemoteError.
        """
        if not is_remote(address):
            raise ValueError(f"a server's address begins with {' or '.join(SCHEMES)}, got {address!r}")
        try:
            host_and_port(address)
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from error
        if (path := urllib.parse.urlsplit(address).path.rstrip("/")).endswith(PATHS):
            raise ValueError(f"{address}: give the address without {path}, as in ws://HOST:PORT")
        self._address = address.rstrip("/") + NATIVE_PATH
        self._timeout_s = timeout_s
        self._say = say
        self._said = ""
        self._token = token_of(os.environ)
        self._connection: ClientConnection | None = None
        self._leave = contextlib.ExitStack()  # closes the connection
        self._info: PolicyInfo | None = None
        self._request = secrets.randbelow(2**31)  # another client's answer has another number
        self._one_at_a_time = threading.Lock()
        _LIVING.add(self)
        self._reset_wanted = True
        self.round_trip: RoundTrip | None = None  # of the last prediction
        self.reconnections = -1
        self._reached = False
        self._reach_by_s = time.monotonic() + reach_timeout_s
        self._connect(time.monotonic() + load_timeout_s)

    @property
    def info(self) -> PolicyInfo:
        """Description of the server's policy."""
        assert self._info is not None
        return self._info

    def reset(self) -> None:
        """Let the server's policy forget what it keeps between observations, before the next one."""
        with self._one_at_a_time:  # a prediction under way ends by taking the wish for fulfilled
            self._reset_wanted = True

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        """Return the server's chunk; the stage `network` of its timings is all but the time inside the server's policy.

        Raises ValueError for a seed that is none, UnfitObservation for an observation that cannot be sent, as one with
        too large an image, or that says nothing, NoAnswer where the server did not judge it (not reached, too late),
        and RemoteError where it refused it, or its answer is malformed.
        """
        seed = checked_seed(seed)
        if problem := unreadable(observation.instruction):
            raise UnfitObservation(problem)
        with self._one_at_a_time:
            return self._predict(observation, seed)

    def _predict(self, observation: Observation, seed: int) -> ActionChunk:
        begin_s = time.monotonic()
        deadline_s = begin_s + self._timeout_s
        while True:
            if self._connection is None:
                self._connect(deadline_s)
            try:
                result = self._exchange(observation, seed, deadline_s)
                break
            except (OSError, EOFError) as error:
                self._disconnect()
                if time.monotonic() >= deadline_s:
                    raise NoAnswer(f"{self._address} gave no answer within {self._timeout_s:g} s") from error
            except wire.WireError as error:
                self._disconnect()
                raise NoAnswer(f"{self._address} sent what is no message: {error}") from error
        self._reset_wanted = False
        self.round_trip = RoundTrip(time.monotonic() - begin_s, result.policy_s)
        return _with_network_time(result.chunk, self.round_trip)

    def close(self) -> None:
        """Disconnect; the next prediction connects again."""
        with self._one_at_a_time:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._reset_wanted = True  # what the server's policy kept was this connection's
        self._connection = None
        self._leave.close()

    def leave_to_parent(self) -> None:
        """In a child of a fork, forget the connection without closing it: its socket is the parent's too."""
        self._one_at_a_time = threading.Lock()  # another thread of the parent may have held it
        self._connection, self._reset_wanted = None, True
        self._leave.pop_all()

    def __getstate__(self) -> object:
        raise TypeError("a connection to a server cannot be pickled: make a RemotePolicy in each process")

    def _exchange(self, observation: Observation, seed: int, deadline_s: float) -> Result:
        assert self._connection is not None
        self._request += 1
        request = PredictRequest.of(self._request, observation, seed=seed, reset=self._reset_wanted)
        try:
            frame = join_request(request, observation.image)
        except wire.WireError as error:
            raise UnfitObservation(f"the observation cannot be sent: {error}") from error
        try:
            self._connection.send(frame)
            while True:
                answer = self._message(self._connection, deadline_s)
                if not isinstance(answer, (Result, PredictFailed)):
                    raise wire.WireError(f"a {type(answer).__name__} in place of a result")
                if answer.request == request.request:
                    break
        except ConnectionClosed as error:
            if (problem := _lasting_problem(error, len(frame))) is not None:
                self._disconnect()
                raise RemoteError(f"{self._address} closed the connection: {problem}") from error
            raise EOFError(str(error)) from error
        if isinstance(answer, Unanswered):
            raise NoAnswer(f"{self._address}: {answer.text}")
        if isinstance(answer, PredictFailed):
            raise RemoteError(f"{self._address}: {answer.text}")
        problem = chunk_problem(answer.chunk, info=self.info, stamp_ns=observation.stamp_ns, seed=seed)
        if problem is not None:
            raise RemoteError(f"{self._address} gave a malformed answer: {problem}")
        return answer

    def _connect(self, deadline_s: float) -> None:
        """Connect until the deadline. Raises NoAnswer."""
        problem = "it was not tried"
        for pause_s in _pauses():
            given_up_s = deadline_s if self._reached else min(deadline_s, self._reach_by_s)
            if time.monotonic() >= given_up_s:
                raise NoAnswer(f"{self._address} cannot be reached in time: {problem}")
            try:
                self._connection = self._open(deadline_s)
                self._said = ""
                return
            except InvalidStatus as error:
                problem = f"HTTP {error.response.status_code} {_said(error.response.body or b'')}"
                if error.response.status_code in REFUSALS:
                    raise NoAnswer(f"{self._address} refuses: {problem}") from error
            except ImportError as error:  # of a library for the kind of proxy
                raise NoAnswer(f"{self._address} cannot be reached through the environment's proxy: {error}") from error
            except ssl.SSLError as error:
                raise NoAnswer(f"{self._address} cannot be spoken to: {_tls_problem(error)}") from error
            except (OSError, WebSocketException, wire.WireError) as error:
                if isinstance(error, ConnectionClosed) and (lasting := _lasting_problem(error)) is not None:
                    raise NoAnswer(f"{self._address} closed the connection: {lasting}") from error
                silent = isinstance(error, ConnectionClosed) and UNANSWERED_PING in str(error)
                reason = error.strerror if isinstance(error, OSError) else None  # without its number
                problem = "it answers no pings" if silent else reason or str(error) or type(error).__name__
            given_up_s = deadline_s if self._reached else min(deadline_s, self._reach_by_s)
            left_s = max(given_up_s - time.monotonic(), 0.0)
            self._tell(problem, f"waiting up to {left_s:.0f} s for the server at {self._address}: {problem}")
            time.sleep(min(pause_s, max(given_up_s - time.monotonic(), 0.0)))

    def _tell(self, news: str, text: str) -> None:
        """Say the text where the news in it are new."""
        if news != self._said:
            self._said = news
            self._say(text)

    def _open(self, deadline_s: float) -> ClientConnection:
        """Connect once, and wait for the server to say what its policy is: it does when that is loaded."""
        connection = self._leave.enter_context(
            connect(
                self._address,
                additional_headers={"Authorization": f"Api-Key {self._token}"} if self._token else None,
                compression=None,
                max_size=2 * wire.MAX_PACKET,
                open_timeout=min(OPEN_S, max(deadline_s - time.monotonic(), 0.0)),
                close_timeout=CLOSE_S,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
                logger=_LIBRARY_LOG,
                proxy=True if uses_proxy(self._address) else None,
            )
        )
        self._reached = True
        try:
            # A server that does not read must not hold us in `send` either.
            limit = struct.pack("@ll", int(self._timeout_s), int(self._timeout_s % 1 * 1e6))
            try:
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            except OSError:  # it was closed already, and only the connection knows why
                self._message(connection, deadline_s)
                raise
            try:
                ready = self._message(connection, deadline_s)
                while isinstance(ready, LoadProgress):
                    self._tell(ready.text, f"the server at {self._address} is loading: {ready.text}")
                    ready = self._message(connection, deadline_s)
            except TimeoutError as error:
                raise TimeoutError("its policy is still being loaded") from error
            if not isinstance(ready, Ready) or info_problem(ready.info) is not None:
                raise wire.WireError("it does not say what its policy is")
            if self._info is not None and ready.info != self._info:
                changed = ready.info.differences(self._info)
                raise NoAnswer(
                    f"{self._address} serves another policy now ({changed}): serve the first one again, or configure "
                    "again to accept this one"
                )
        except BaseException:
            self._leave.close()
            raise
        self._info = ready.info
        self.reconnections += 1
        return connection

    @staticmethod
    def _message(connection: ClientConnection, deadline_s: float) -> wire.Message:
        frame = _binary(connection.recv(max(deadline_s - time.monotonic(), 0.0)))
        return wire.decode(bytes(unseal(frame)))


_LIVING: weakref.WeakSet[RemotePolicy] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for policy in _LIVING:
        policy.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)  # while the child has one thread only


def _with_network_time(chunk: ActionChunk, taken: RoundTrip) -> ActionChunk:
    stages = {stage: ms for stage, ms in chunk.timings_ms.items() if stage != "total"}
    network_ms = max(taken.total_s - taken.policy_s, 0.0) * 1e3
    return replace(chunk, timings_ms={**stages, "network": network_ms, "total": taken.total_s * 1e3})


def _lasting_problem(closed: ConnectionClosed, size: int = 0) -> str | None:
    """Return why the server closed the connection, where the same request would end the next one too; else None.

    size: bytes of the frame that was sent.
    """
    if closed.rcvd is None or closed.rcvd_then_sent is False or closed.rcvd.code not in LASTING:
        return None
    if closed.rcvd.reason == UNANSWERED_PING:  # it says so with the code of an internal error
        return None
    if closed.rcvd.code == CloseCode.MESSAGE_TOO_BIG:
        return f"a frame of {size / 2**20:.1f} MiB is longer than it takes: send a smaller image"
    said = f" ({closed.rcvd.reason})" if closed.rcvd.reason else ""
    return f"code {closed.rcvd.code}{said}, which trying again does not change: the server's log may say more"


def _said(body: bytes | bytearray) -> str:
    """Return the sentence in the body of a refusal."""
    text = body.decode(errors="replace").strip()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"])
    return text


def _tls_problem(error: ssl.SSLError) -> str:
    """Return what is wrong with the encryption of wss://, which trying again does not change."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "it does not speak TLS: use ws://, or put a proxy that does in front of it"
    return f"TLS failed ({error.reason})"


def _binary(frame: str | bytes) -> bytes:
    if isinstance(frame, str):
        raise wire.WireError("a text in place of a message")
    return frame


def _pauses() -> Iterator[float]:
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
