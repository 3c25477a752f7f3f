"""Dry predictions in a worker process, as policy_node would make them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from sqap_vla_ros.contracts import ActionChunk, Observation
from sqap_vla_ros.nodes.check.snapshot import PolicyTrial
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.serving.events import Event, LoadFailed, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.worker import PolicyWorker

PREDICTIONS = 10


def try_policy(
    values: Mapping[str, Any], observation: Observation | None, factory: str = "", *, predictions: int = PREDICTIONS
) -> PolicyTrial:
    """Load the policy of these parameters, predict from one observation again and again, and end it.

    observation: None only loads it. factory: as in WorkerConfig.
    """
    woken = threading.Event()
    worker = PolicyWorker(configuration.worker_config(values, factory), woken.set)
    begin_s = time.monotonic()
    latencies_s: list[float] = []
    chunk: ActionChunk | None = None
    try:
        worker.start()
        event = _next(worker, woken, values["load_timeout_s"])
        if not isinstance(event, Ready):
            return PolicyTrial(_failure(event, f"not loaded within load_timeout_s = {values['load_timeout_s']:g} s"))
        loaded_s = time.monotonic() - begin_s
        for _ in range(predictions if observation is not None else 0):
            assert observation is not None
            asked_s = time.monotonic()
            worker.submit(observation, seed=values["seed"])
            answer = _next(worker, woken, values["prediction_timeout_s"])
            latencies_s.append(time.monotonic() - asked_s)
            if not isinstance(answer, Result):
                timeout = f"no prediction within prediction_timeout_s = {values['prediction_timeout_s']:g} s"
                return PolicyTrial(_failure(answer, timeout), tuple(latencies_s), event.info, None, loaded_s)
            chunk = answer.chunk
        return PolicyTrial(None, tuple(latencies_s), event.info, chunk, loaded_s)
    finally:
        worker.close()


def _next(worker: PolicyWorker, woken: threading.Event, timeout_s: float) -> Event | None:
    """Return the next event that ends a wait, None when none came in time."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0.0:
        woken.wait(left_s)
        woken.clear()
        for event in worker.events():
            if isinstance(event, Ready | LoadFailed | Lost | Result | PredictFailed):
                return event
    return None


def _failure(event: Event | None, timeout: str) -> str:
    return event.text if isinstance(event, LoadFailed | Lost | PredictFailed) else timeout
