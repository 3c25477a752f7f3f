"""The policy's worker in an event loop: clients wait in line, and those that wait may be predicted together.

When the worker is free it is offered the first requests in line, as many as there are: nobody waits for company. It
predicts the first, with it those that can share its call, and declines the others (`serving/batching.py`).

The worker is the node's own (`serving/worker.py`), so a crash of the policy is an error to the client that waited, a
restart, and nothing more to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from bisect import insort
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from sqap_vla_ros.contracts import Observation, PolicyInfo
from sqap_vla_ros.serving import defaults
from sqap_vla_ros.serving.events import (
    Declined,
    LoadFailed,
    LoadProgress,
    Lost,
    PredictFailed,
    Ready,
    Result,
    Unanswered,
)
from sqap_vla_ros.serving.supervisor import WorkerSupervisor
from sqap_vla_ros.serving.worker import PolicyWorker

MOST_OFFERED = 2**26  # bytes of images, which are held twice; a larger one is predicted alone
POLL_S = 0.1  # between looks for a prediction that hangs or a restart that is due
_log = logging.getLogger(__name__)


class PredictionError(RuntimeError):
    """A request without an answer; the text is for the client."""


class NotPredicted(PredictionError):
    """The policy never judged the request: it waited too long, or the server stops."""


class EngineError(RuntimeError):
    """The policy cannot be loaded at all."""


@dataclass(eq=False)
class _Request:
    owner: object
    observation: Observation
    seed: int
    reset: bool
    expires_s: float
    answer: asyncio.Future[Result]
    alone: bool = False  # as the worker was lost while it was predicted with others


class Engine:
    """Owns the worker. Everything runs in one event loop."""

    def __init__(
        self,
        make: Callable[[Callable[[], None]], PolicyWorker],
        *,
        prediction_timeout_s: float,
        load_timeout_s: float,
        patience_s: float,
        max_batch: int = defaults.MAX_BATCH,
    ) -> None:
        """make: a worker, not started, that calls what it is given when it has events.

        patience_s: a request that waits longer for its turn fails, before the client gives up on its own.
        max_batch: requests that may be predicted together.
        """
        self.progress = ""  # what the loading said last
        self._patience_s = patience_s
        self._prediction_timeout_s = prediction_timeout_s
        self._max_batch = max_batch
        self._most = 1  # requests offered together to the worker that runs
        self._waiting: list[_Request] = []  # in the order in which they came
        self._running: dict[int, _Request] = {}  # by the worker's number
        self._last_owner: object = None
        self._wake, self._loaded = asyncio.Event(), asyncio.Event()
        self._changed: Callable[[], None] = self._wake.set
        self._supervisor = WorkerSupervisor(
            lambda: make(lambda: self._changed()),
            prediction_timeout_s=prediction_timeout_s,
            load_timeout_s=load_timeout_s,
        )

    @property
    def info(self) -> PolicyInfo | None:
        """Description of the loaded policy, None before it was first loaded."""
        return self._supervisor.info

    @property
    def problem(self) -> str | None:
        """The reason that nothing can be predicted now, or None."""
        return self._supervisor.problem

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._running)

    async def run(self) -> None:
        """Serve until cancelled. Raises EngineError when the policy could not be loaded the first time."""
        loop = asyncio.get_running_loop()

        def changed() -> None:  # called from the thread that watches the worker
            loop.call_soon_threadsafe(self._wake.set)

        self._changed = changed
        self._supervisor.start()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                self._wake.clear()
                self._turn(time.monotonic())
        finally:
            for request in (*self._waiting, *self._running.values()):
                _fail(request, "the server is shutting down", NotPredicted)
            await asyncio.to_thread(self._supervisor.close)

    async def loaded(self) -> PolicyInfo:
        """Wait until the policy was loaded; return its description."""
        await self._loaded.wait()
        assert self.info is not None
        return self.info

    async def loading(self) -> AsyncIterator[str]:
        """Yield what is said while the policy is loaded, until it is."""
        said = ""
        while not self._loaded.is_set():
            if self.progress != said:
                said = self.progress
                yield said
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._loaded.wait()

    async def predict(self, owner: object, observation: Observation, *, seed: int, reset: bool) -> Result:
        """Wait for the turn and the prediction. Raises PredictionError.

        owner: whose episode it is; a policy with a memory forgets when another's turn comes. reset: forget first.
        """
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        expires_s = time.monotonic() + self._patience_s
        self._waiting.append(_Request(owner, observation, seed, reset, expires_s, answer))
        self._wake.set()
        return await answer

    def _turn(self, now_s: float) -> None:
        for event in self._supervisor.poll(now_s):
            if isinstance(event, LoadProgress):
                self.progress = event.text
                _log.info(event.text)
            elif isinstance(event, Ready):
                self._loaded.set()
                self._most = 1 if event.info.stateful else self._most_in_time(event.warm_latency_s)
                _log.info(event.in_words())
            elif isinstance(event, Result):
                request = self._running.pop(event.request)
                if not request.answer.done():  # else its client has left
                    request.answer.set_result(event)
            elif isinstance(event, PredictFailed):
                kind = NotPredicted if isinstance(event, Unanswered) else PredictionError
                _fail(self._running.pop(event.request), f"the policy failed: {event.text}", kind)
            elif isinstance(event, Declined):
                self._put_back(self._running.pop(event.request))
                if event.text and self._most > 1:
                    _log.info("clients that wait together are predicted one at a time: %s", event.text)
                    self._most = 1
            elif isinstance(event, (Lost, LoadFailed)):
                _log.error(event.text)
                self._lose(event.text)
                if self.info is None:
                    raise EngineError(event.text)
        self._expire(now_s)
        if self._waiting and self._supervisor.idle:
            self._submit(now_s)

    def _most_in_time(self, latency_s: float) -> int:
        """Return how many rows a batch may have that takes no longer than they do one by one, and never seems hung."""
        in_time = int(self._prediction_timeout_s / 2 / max(latency_s, 1e-3))
        return max(1, min(self._max_batch, in_time))

    def _lose(self, why: str) -> None:
        """Fail the request that ran; of several, which share the blame of one, each gets another try by itself."""
        running, self._running = list(self._running.values()), {}
        for request in running:
            if len(running) == 1:
                _fail(request, why)
            else:
                request.alone = True
                self._put_back(request)

    def _put_back(self, request: _Request) -> None:
        insort(self._waiting, request, key=lambda waiting: waiting.expires_s)

    def _expire(self, now_s: float) -> None:
        """Drop requests whose clients left, and fail those that waited too long; they arrived in order."""
        self._waiting = [request for request in self._waiting if not request.answer.done()]
        while self._waiting and self._waiting[0].expires_s < now_s:
            why = self.problem or f"{self.load} requests are in line"
            _fail(self._waiting.pop(0), f"no answer within {self._patience_s:g} s: {why}", NotPredicted)

    def _submit(self, now_s: float) -> None:
        offered = self._offered()
        del self._waiting[: len(offered)]
        for request in offered:
            if request.reset or request.owner is not self._last_owner:
                self._supervisor.reset_policy()
            self._last_owner = request.owner
        numbers = self._supervisor.offer([(one.observation, one.seed) for one in offered], now_s=now_s)
        if numbers:
            self._running = dict(zip(numbers, offered, strict=True))
        else:
            for request in offered:
                _fail(request, self.problem or "the policy does not take the request", NotPredicted)

    def _offered(self) -> list[_Request]:
        """Return the first in line, and those behind it that may be predicted with it."""
        first, *others = self._waiting[: self._most]
        offered, size = [first], first.observation.image.nbytes
        for request in others:
            size += request.observation.image.nbytes
            if first.alone or request.alone or size > MOST_OFFERED:
                break
            offered.append(request)
        return offered


def _fail(request: _Request, why: str, kind: type[PredictionError] = PredictionError) -> None:
    if not request.answer.done():
        request.answer.set_exception(kind(why))
