"""The policy's worker in an event loop: clients wait in line, one prediction at a time.

The worker is the node's own (`serving/worker.py`), so a crash of the policy is an error to the client that waited, a
restart, and nothing more to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from sqap_vla_ros.contracts import Observation, PolicyInfo
from sqap_vla_ros.serving.events import LoadFailed, LoadProgress, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.supervisor import WorkerSupervisor
from sqap_vla_ros.serving.worker import PolicyWorker

POLL_S = 0.1  # between looks for a prediction that hangs or a restart that is due
_log = logging.getLogger(__name__)


class PredictionError(RuntimeError):
    """A request without an answer; the text is for the client."""


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


class Engine:
    """Owns the worker. Everything runs in one event loop."""

    def __init__(
        self,
        make: Callable[[Callable[[], None]], PolicyWorker],
        *,
        prediction_timeout_s: float,
        load_timeout_s: float,
        patience_s: float,
    ) -> None:
        """make: a worker, not started, that calls what it is given when it has events.

        patience_s: a request that waits longer for its turn fails, before the client gives up on its own.
        """
        self.progress = ""  # what the loading said last
        self._patience_s = patience_s
        self._waiting: deque[_Request] = deque()
        self._running: _Request | None = None
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
        return len(self._waiting) + (self._running is not None)

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
            for request in (*self._waiting, *filter(None, [self._running])):
                _fail(request, "the server is shutting down")
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
                _log.info("policy ready, %.0f ms a prediction: %s", event.warm_latency_s * 1e3, event.info)
            elif isinstance(event, Result):
                request, self._running = self._running, None
                if request is not None and not request.answer.done():  # else its client has left
                    request.answer.set_result(event)
            elif isinstance(event, PredictFailed):
                request, self._running = self._running, None
                _fail(request, f"the policy failed: {event.text}")
            elif isinstance(event, (Lost, LoadFailed)):
                _log.error(event.text)
                request, self._running = self._running, None
                _fail(request, event.text)
                if self.info is None:
                    raise EngineError(event.text)
        self._expire(now_s)
        if self._waiting and self._running is None and self._supervisor.idle:
            self._submit(self._waiting.popleft(), now_s)

    def _expire(self, now_s: float) -> None:
        """Drop requests whose clients left, and fail those that waited too long; they arrived in order."""
        while self._waiting and (self._waiting[0].answer.done() or self._waiting[0].expires_s < now_s):
            why = self.problem or f"{self.load} requests are in line"
            _fail(self._waiting.popleft(), f"no answer within {self._patience_s:g} s: {why}")

    def _submit(self, request: _Request, now_s: float) -> None:
        if request.answer.done():
            self._wake.set()  # its client has left: look at the next one
            return
        if request.reset or request.owner is not self._last_owner:
            self._supervisor.reset_policy()
        self._last_owner = request.owner
        if self._supervisor.submit(request.observation, seed=request.seed, now_s=now_s) is None:
            _fail(request, self.problem or "the policy does not take the request")
        else:
            self._running = request


def _fail(request: _Request | None, why: str) -> None:
    if request is not None and not request.answer.done():
        request.answer.set_exception(PredictionError(why))
