"""Dry predictions in a worker process, as policy_node would make them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from sqap_vla_ros.contracts import ActionChunk, Observation
from sqap_vla_ros.nodes.check.snapshot import PolicyTrial
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.serving.events import Event, LoadFailed, LoadProgress, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.frames import is_remote, uses_proxy
from sqap_vla_ros.serving.worker import PolicyWorker

PREDICTIONS = 10
SERVER_WAIT_S = 30.0  # for a server that answers to say that its policy is loaded
HEALTH_S = 3.0  # for a server to answer at all


def _ignore(_text: str) -> None:
    """Say nothing."""


def try_policy(
    values: Mapping[str, Any],
    observation: Observation | None,
    factory: str = "",
    *,
    predictions: int = PREDICTIONS,
    wait_s: float | None = None,
    say: Callable[[str], None] = _ignore,
) -> PolicyTrial:
    """Load the policy of these parameters, predict from one observation again and again, and end it.

    observation: None only loads it. factory: as in WorkerConfig. wait_s: for the policy to load; None is
    `load_timeout_s`, and SERVER_WAIT_S for a server. say: is told what happens while it loads.
    """
    checkpoint, limit = values["checkpoint"], "load_timeout_s"
    limit_s = values["load_timeout_s"]
    if is_remote(checkpoint) and not factory:
        say(f"asking {checkpoint}")
        if (problem := server_problem(checkpoint, say)) is not None:
            return PolicyTrial(problem)
        limit, limit_s = "--wait", SERVER_WAIT_S
    if wait_s is not None:
        limit, limit_s = "--wait", wait_s
    worker = PolicyWorker(configuration.worker_config(values, factory))
    begin_s = time.monotonic()
    latencies_s: list[float] = []
    chunk: ActionChunk | None = None
    try:
        worker.start()
        event = _next(worker, limit_s, say)
        if not isinstance(event, Ready):
            return PolicyTrial(_failure(event, f"{checkpoint} was not loaded within {limit} = {limit_s:g} s"))
        loaded_s = time.monotonic() - begin_s
        for _ in range(predictions if observation is not None else 0):
            assert observation is not None
            asked_s = time.monotonic()
            worker.submit(observation, seed=values["seed"])
            answer = _next(worker, values["prediction_timeout_s"], say)
            latencies_s.append(time.monotonic() - asked_s)
            if not isinstance(answer, Result):
                timeout = f"no prediction within prediction_timeout_s = {values['prediction_timeout_s']:g} s"
                return PolicyTrial(_failure(answer, timeout), tuple(latencies_s), event.info, None, loaded_s)
            chunk = answer.chunk
        return PolicyTrial(None, tuple(latencies_s), event.info, chunk, loaded_s)
    finally:
        worker.close()


def server_problem(address: str, say: Callable[[str], None] = _ignore) -> str | None:
    """Return why nobody answers at the address of a server, within some seconds; None where somebody does.

    say: is told how far a server of `sqap-vla serve` has loaded its policy.
    """
    try:
        if uses_proxy(address):
            return None  # it may be reached through one only, as opening the websocket tells
        parts = urlsplit(address)
        kind = http.client.HTTPSConnection if parts.scheme == "wss" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=HEALTH_S)
        try:
            connection.request("GET", "/health")
            answer = json.loads(connection.getresponse().read(10_000))
        finally:
            connection.close()
    except OSError as error:
        return f"{address} cannot be reached: {error}"
    except http.client.HTTPException as error:
        return f"{address} is no server of `sqap-vla serve`: {type(error).__name__}: {error}"
    except ValueError:
        return None  # an answer that is no JSON, or an address that is none: opening the websocket tells
    if isinstance(answer, dict) and answer.get("status") not in ("ok", None):
        say(f"{address}: {answer.get('reason')}, {answer.get('progress')}")
    return None


def _next(worker: PolicyWorker, timeout_s: float, say: Callable[[str], None]) -> Event | None:
    """Return the next event that ends a wait, None when none came in time."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0.0:
        for event in worker.wait(left_s):
            if isinstance(event, LoadProgress):
                say(event.text)
            if isinstance(event, Ready | LoadFailed | Lost | Result | PredictFailed):
                return event
    return None


def _failure(event: Event | None, timeout: str) -> str:
    return event.text if isinstance(event, LoadFailed | Lost | PredictFailed) else timeout
