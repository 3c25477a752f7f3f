"""Keeps a policy worker alive: starts it again with growing pauses when it dies, ends it when it hangs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqap_vla_ros.contracts import Observation, PolicyInfo
from sqap_vla_ros.serving.events import Event, LoadFailed, LoadProgress, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class _Deadline:
    """The worker is treated as hung after at_s."""

    at_s: float
    text: str


class WorkerSupervisor:
    """Owns the current worker. Only `close` blocks. Times are those of a steady clock, and come from the caller."""

    def __init__(
        self,
        make: Callable[[], PolicyWorker],
        *,
        prediction_timeout_s: float,
        load_timeout_s: float,
        policy: str = "the policy",
    ) -> None:
        """make: a new worker, not started. After the time-outs, a prediction and the loading count as hung.

        policy: what predicts, as a sentence names it.
        """
        self.info: PolicyInfo | None = None
        self.restarts = 0
        self.progress = ""  # what the worker said last while it loads
        self._make = make
        self._policy = policy
        self._prediction_timeout_s = prediction_timeout_s
        self._load_timeout_s = load_timeout_s
        self._worker: PolicyWorker | None = None
        self._pause_s = FIRST_PAUSE_S
        self._restart_at_s: float | None = None
        self._loading = False
        self._deadline: _Deadline | None = None
        self._problem: str | None = "the policy was not loaded yet"

    @property
    def problem(self) -> str | None:
        """The reason that nothing can be predicted, or None."""
        return self._problem

    @property
    def idle(self) -> bool:
        """Return True if a request would be accepted."""
        return self._worker is not None and self._worker.ready and not self._worker.busy

    @property
    def pid(self) -> int | None:
        """Return the process id of the worker, None when there is none."""
        return self._worker.pid if self._worker is not None else None

    def start(self) -> None:
        """Start the first worker; its `Ready` or `LoadFailed` comes from `poll`."""
        self._worker = self._make()
        self._worker.start()
        self._loading, self.progress = True, ""
        self._problem = "the policy is being loaded"

    def submit(self, observation: Observation, *, seed: int, now_s: float) -> int | None:
        """Return the request's number, or None when the worker does not take it (`poll` will say why)."""
        assert self._worker is not None
        try:
            request = self._worker.submit(observation, seed=seed)
        except WorkerError as error:
            self._problem = str(error)
            return None
        self._deadline = self._prediction_deadline(now_s)
        return request

    def offer(self, observations: Sequence[tuple[Observation, int]], *, now_s: float) -> list[int]:
        """Return the requests' numbers, see `PolicyWorker.offer`; none when the worker does not take them.

        The time-out holds for each answer, counted from the one before.
        """
        assert self._worker is not None
        try:
            requests = self._worker.offer(observations)
        except WorkerError as error:
            self._problem = str(error)
            return []
        self._deadline = self._prediction_deadline(now_s)
        return requests

    def reset_policy(self) -> None:
        """Let the policy forget what it keeps between observations, before the next request."""
        if self._worker is not None:
            self._worker.reset()

    def poll(self, now_s: float) -> list[Event]:
        """Return what happened, and start or end the worker when due. Call it when notified, and regularly."""
        if self._worker is None and self._restart_at_s is not None and now_s >= self._restart_at_s:
            self._restart_at_s = None
            self.restarts += 1
            self.start()
        if self._worker is None:
            return []
        self._end_if_hung(self._worker, now_s)
        events = self._worker.events()
        for position, event in enumerate(events):
            if isinstance(event, Ready):
                if self.info is not None and event.info != self.info:  # a server can have been replaced meanwhile
                    changed = event.info.differences(self.info)
                    why = f"another policy answers now ({changed}): bring the first back, or configure again"
                    self._schedule_restart(self._worker, why, now_s)
                    return events[:position]
                self.info = event.info
                self._problem = self._deadline = None
                self._loading, self.progress = False, ""
            elif isinstance(event, LoadProgress):  # of a server that was lost, also while it is to predict
                self._problem = event.text
                if self._loading:
                    self.progress, self._problem = event.text, f"the policy is being loaded: {event.text}"
            elif isinstance(event, (Result, PredictFailed)):
                self._problem = None
                self._deadline = self._prediction_deadline(now_s) if self._worker.busy else None
                self._pause_s = FIRST_PAUSE_S
            elif isinstance(event, (Lost, LoadFailed)):
                self._schedule_restart(self._worker, event.text, now_s)
                break
        return events

    def close(self) -> None:
        """End the worker, wait for it, and do not start another."""
        self._restart_at_s = None
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _prediction_deadline(self, now_s: float) -> _Deadline:
        timeout_s = self._prediction_timeout_s
        return _Deadline(
            now_s + timeout_s, f"a prediction took longer than {timeout_s:g} s: {self._policy} does not answer"
        )

    def _end_if_hung(self, worker: PolicyWorker, now_s: float) -> None:
        if self._loading and self._deadline is None:
            timeout_s = self._load_timeout_s
            self._deadline = _Deadline(now_s + timeout_s, f"the policy was not loaded within {timeout_s:g} s")
        if self._deadline is not None and now_s > self._deadline.at_s:
            worker.kill(self._deadline.text)
            self._loading, self._deadline = False, None

    def _schedule_restart(self, worker: PolicyWorker, why: str, now_s: float) -> None:
        worker.discard()
        self._worker = self._deadline = None
        self._loading = False
        self._problem = f"{why}; starting it again in {self._pause_s:g} s"
        self._restart_at_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
