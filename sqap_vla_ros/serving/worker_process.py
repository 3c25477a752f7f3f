"""The policy in a process of its own: the worker's side; `worker.py` describes the protocol.

The only module of this room that loads a model. It ends when the parent's end of the socket closes, also in the middle
of a prediction: a receiver thread watches for it.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sqap_vla_ros.contracts import (
    ACTION_DIM,
    CONTINUATIONS,
    ActionChunk,
    Commitment,
    Observation,
    Policy,
    UnfitObservation,
)
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.batching import Batcher
from sqap_vla_ros.serving.events import (
    Declined,
    LoadFailed,
    LoadProgress,
    Offer,
    PredictFailed,
    PredictRequest,
    Ready,
    Result,
    Unanswered,
)
from sqap_vla_ros.serving.frames import NoAnswer, RemoteError, is_remote
from sqap_vla_ros.serving.shared_image import ImageReader
from sqap_vla_ros.serving.worker import WorkerConfig

# Products in 16 bits and integers keep what they compiled for each number of rows: by default up to 1,024 of them in
# each of two caches, hundreds of MB once prompts of all lengths came. So many hold several lengths, and cost 3 % of
# time or less (benchmarks/product_caches.py).
PRODUCT_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
BEFORE = 0.9  # of the parent's time-outs: what is waited for is named before the parent ends this process


def main(arguments: Sequence[str]) -> None:
    """Load a policy and answer requests. arguments: descriptors of the socket and of the image, the config as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name, capacity in PRODUCT_CACHES.items():
        os.environ.setdefault(name, capacity)  # read when the first product is computed
    descriptors = [int(number) for number in arguments[:2]]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # programs that the policy starts have no part in this
    connection = socket.socket(fileno=descriptors[0])
    images = ImageReader(descriptors[1])
    config = WorkerConfig(**json.loads(arguments[2]))
    requests: queue.SimpleQueue[list[PredictRequest]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    try:
        policy = _load(config, connection)
        batcher = Batcher(policy, config.batch_tolerance)
        ready = wire.encode(Ready(policy.info, _warm_up(policy, config)))
    except Exception as error:
        text = _one_line(error)
        if isinstance(error, (ValueError, OSError, RemoteError)) and str(error):  # those say what is wrong
            text = text.removeprefix(f"{type(error).__name__}: ")
        else:
            traceback.print_exc()
        _send(connection, wire.encode(LoadFailed(text)))
        sys.exit(1)
    _send(connection, ready)
    while True:
        for packet in _answers(policy, batcher, requests.get(), images):
            _send(connection, packet)


def _send(connection: socket.socket, packet: bytes) -> None:
    try:
        connection.send(packet)
    except (BrokenPipeError, ConnectionResetError):  # the parent closed or died, as `_receive` sees too, later perhaps
        os._exit(0)


def _answers(
    policy: Policy, batcher: Batcher, requests: Sequence[PredictRequest], images: ImageReader
) -> Iterator[bytes]:
    """Predict what was asked for or offered; yield the packets of what became of each request."""
    try:
        if any(request.reset for request in requests):
            policy.reset()
        pictures = images.read([(request.height, request.width) for request in requests])
        observations = [asked.observation(image) for asked, image in zip(requests, pictures, strict=True)]
        chosen = batcher.choose(observations)
    except Exception as error:
        traceback.print_exc()
        yield from (wire.encode(PredictFailed(request.request, _one_line(error))) for request in requests)
        return
    for at in set(range(len(requests))) - set(chosen):
        yield wire.encode(Declined(requests[at].request, wire.clip(batcher.off)))
    asked = [requests[at] for at in chosen]
    outcomes = batcher.predict([observations[at] for at in chosen], [request.seed for request in asked])
    for request, (chunk, policy_s) in zip(asked, outcomes, strict=True):
        yield _answer(request.request, chunk, policy_s)


def _answer(number: int, chunk: ActionChunk | Exception, policy_s: float) -> bytes:
    """Return the packet of the `Result`, or of an `Unanswered` or `PredictFailed` that says what went wrong."""
    try:
        if isinstance(chunk, Exception):
            raise chunk
        if not isinstance(chunk, ActionChunk):
            raise TypeError(f"the policy returned {type(chunk).__name__} and no ActionChunk")
        return wire.encode(Result(number, chunk, policy_s))
    except NoAnswer as error:
        return wire.encode(Unanswered(number, wire.clip(str(error))))
    except (UnfitObservation, RemoteError) as error:  # those say what is wrong
        return wire.encode(PredictFailed(number, wire.clip(str(error))))
    except wire.WireError as error:
        return wire.encode(PredictFailed(number, wire.clip(f"malformed answer: {error}")))
    except Exception as error:
        traceback.print_exc()
        return wire.encode(PredictFailed(number, _one_line(error)))


def _receive(connection: socket.socket, requests: queue.SimpleQueue[list[PredictRequest]]) -> None:
    """Put each request, or those of an offer, into the queue."""
    expected = 1
    offered: list[PredictRequest] = []
    while True:
        try:
            packet = connection.recv(wire.MAX_PACKET + 1)
        except OSError:
            packet = b""
        if not packet:
            os._exit(0)  # the parent closed or died: nothing is left to do, even if a prediction is under way
        message = wire.decode(packet)
        if isinstance(message, Offer):
            expected = message.count
            continue
        assert isinstance(message, PredictRequest)
        offered.append(message)
        if len(offered) == expected:
            requests.put(offered)
            expected, offered = 1, []


def _load(config: WorkerConfig, connection: socket.socket) -> Policy:
    begin = time.perf_counter()
    if config.factory:
        module, _, function = config.factory.partition(":")
        policy: Policy = getattr(importlib.import_module(module), function)()
        return policy

    def say(text: str) -> None:
        _send(connection, wire.encode(LoadProgress(wire.clip(text))))

    if is_remote(config.checkpoint):
        from sqap_vla_ros.serving.remote import RemotePolicy  # needs a library that nothing else here does

        return RemotePolicy(
            config.checkpoint,
            timeout_s=BEFORE * config.prediction_timeout_s,
            load_timeout_s=BEFORE * config.load_timeout_s,
            reach_timeout_s=BEFORE * min(config.reach_timeout_s, config.load_timeout_s),
            say=say,
        )
    import torch

    from sqap_vla_ros.compression.files.kept import KeptPolicies, default_folder
    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.policy.actions import require_arm_actions
    from sqap_vla_ros.policy.cogact import CogACTPolicy
    from sqap_vla_ros.policy.settings import CheckpointSettings
    from sqap_vla_ros.shipped import SHIPPED

    if config.threads:
        torch.set_num_threads(config.threads)
    say(f"loading {config.checkpoint} with recipe {config.recipe} on {config.device}")
    loaded = load_policy(
        config.checkpoint,
        config.recipe,
        shipped=SHIPPED,
        device=config.device,
        dtype=config.dtype or None,
        settings=CheckpointSettings(
            unnorm_key=_dataset(config, say),
            tokenizer=Path(config.tokenizer) if config.tokenizer else None,
            dt_s=config.dt or None,
            crop=config.crop or None,
            ema=config.ema,
            guidance=None if config.cfg_scale < 0.0 else config.cfg_scale,
            ddim_steps=config.ddim_steps or None,
        ),
        seed=config.seed,
        kept=KeptPolicies(default_folder(), lambda stage, done, total: say(f"{stage}: {done} of {total}")),
    )
    if isinstance(loaded, CogACTPolicy):
        require_arm_actions(config.checkpoint, loaded.model.config.head.channels)
    say(f"loaded in {time.perf_counter() - begin:.1f} s, warming up")
    return loaded


def _dataset(config: WorkerConfig, say: Callable[[str], None]) -> str | None:
    """Return the data set to ask for; random weights have none, and pass for those that robot files name."""
    from sqap_vla_ros.compression.load import RANDOM_WEIGHTS
    from sqap_vla_ros.policy.actions import CONTROL_PERIOD_S

    if config.checkpoint in RANDOM_WEIGHTS and config.unnorm_key in CONTROL_PERIOD_S:
        say(f"unnorm_key {config.unnorm_key} is left out: {config.checkpoint} has random weights and no data set")
        return None
    return config.unnorm_key or None


def _warm_up(policy: Policy, config: WorkerConfig) -> float:
    """Return the latency in seconds of the last prediction; the first pay for allocation, kernels and page faults."""
    blank = np.full((480, 640, 3), 127, np.uint8)
    observation = Observation(blank, 0, "warm up", (320.0, 240.0), np.eye(4))
    if config.continuation != CONTINUATIONS[0]:
        still = np.zeros((policy.info.horizon, ACTION_DIM))
        observation = replace(observation, commitment=Commitment(still, 1, config.continuation))
        policy.predict(observation, seed=0)
    latency_s = 0.0
    for _ in range(config.warmup):
        begin = time.perf_counter()
        policy.predict(observation, seed=0)
        latency_s = time.perf_counter() - begin
    policy.reset()
    return latency_s


def _one_line(error: BaseException) -> str:
    return wire.clip(f"{type(error).__name__}: {' '.join(str(error).split())}")
