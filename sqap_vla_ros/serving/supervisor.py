"""Keeps a policy worker alive: starts it again with growing pauses when it dies, ends it when it hangs."""

from __future__ import annotations

from collections.abc import Callable

from sqap_vla_ros.contracts import Observation, PolicyInfo
from sqap_vla_ros.serving.worker import (
    Event,
    LoadFailed,
    Lost,
    PolicyWorker,
    PredictFailed,
    Ready,
    Result,
    WorkerError,
)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class WorkerSupervisor:
    """Owns the current worker. Times are those of a steady clock, and come from the caller."""

    def __init__(self, make: Callable[[], PolicyWorker], prediction_timeout_s: float) -> None:
        """make: a new worker, not started. prediction_timeout_s: after this a prediction counts as hung."""
        self.info: PolicyInfo | None = None
        self.restarts = 0
        self._make = make
        self._timeout_s = prediction_timeout_s
        self._worker: PolicyWorker | None = None
        self._pause_s = FIRST_PAUSE_S
        self._restart_at_s: float | None = None
        self._submitted_s: float | None = None
        self._problem: str | None = "the policy was not loaded yet"

    @property
    def problem(self) -> str | None:
        """Why nothing can be predicted, or None."""
        return self._problem

    @property
    def idle(self) -> bool:
        """A request would be taken."""
        return self._worker is not None and self._worker.ready and not self._worker.busy

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None when there is none."""
        return self._worker.pid if self._worker is not None else None

    def start(self) -> None:
        """Start the first worker; its `Ready` or `LoadFailed` comes from `poll`."""
        self._worker = self._make()
        self._worker.start()
        self._problem = "the policy is being loaded"

    def submit(self, observation: Observation, *, seed: int, now_s: float) -> int | None:
        """The request's number, or None when the worker turns out to be gone (`poll` will say so)."""
        assert self._worker is not None
        try:
            request = self._worker.submit(observation, seed=seed)
        except WorkerError as error:
            self._problem = str(error)
            return None
        self._submitted_s = now_s
        return request

    def reset_policy(self) -> None:
        """The policy forgets what it keeps between observations."""
        if self._worker is not None and self._worker.ready:
            try:
                self._worker.reset()
            except WorkerError as error:
                self._problem = str(error)

    def poll(self, now_s: float) -> list[Event]:
        """What happened; restarts and time-outs are taken care of. Call it at every notification and regularly."""
        if self._worker is None:
            if self._restart_at_s is not None and now_s >= self._restart_at_s:
                self._restart_at_s = None
                self.restarts += 1
                self.start()
            return []
        if self._submitted_s is not None and now_s - self._submitted_s > self._timeout_s:
            self._submitted_s = None
            self._worker.kill(f"a prediction took longer than {self._timeout_s:g} s")
        events = self._worker.events()
        for event in events:
            if isinstance(event, Ready):
                self.info = event.info
                self._problem = None
            elif isinstance(event, (Result, PredictFailed)):
                self._submitted_s = None
                self._pause_s = FIRST_PAUSE_S
            elif isinstance(event, (Lost, LoadFailed)):
                self._schedule_restart(event.text, now_s)
                break
        return events

    def close(self) -> None:
        """End the worker and do not start another."""
        self._restart_at_s = None
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _schedule_restart(self, why: str, now_s: float) -> None:
        assert self._worker is not None
        self._worker.close()
        self._worker = None
        self._submitted_s = None
        self._problem = f"{why}; starting it again in {self._pause_s:g} s"
        self._restart_at_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
