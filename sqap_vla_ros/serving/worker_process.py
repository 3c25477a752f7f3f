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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, Observation, Policy
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import LoadFailed, LoadProgress, PredictFailed, PredictRequest, Ready, Result
from sqap_vla_ros.serving.frames import is_remote
from sqap_vla_ros.serving.shared_image import ImageReader
from sqap_vla_ros.serving.worker import WorkerConfig

BEFORE = 0.9  # of the parent's time-outs: what is waited for is named before the parent ends this process


def main(arguments: Sequence[str]) -> None:
    """Load a policy and answer requests. arguments: descriptors of the socket and of the image, the config as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptors = [int(number) for number in arguments[:2]]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # programs that the policy starts have no part in this
    connection = socket.socket(fileno=descriptors[0])
    images = ImageReader(descriptors[1])
    config = WorkerConfig(**json.loads(arguments[2]))
    requests: queue.SimpleQueue[PredictRequest] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    try:
        policy = _load(config, connection)
        ready = wire.encode(Ready(policy.info, _warm_up(policy, config.warmup)))
    except Exception as error:
        text = _one_line(error)
        if isinstance(error, (ValueError, OSError)) and str(error):  # those say what is wrong with what was asked for
            text = text.removeprefix(f"{type(error).__name__}: ")
        else:
            traceback.print_exc()
        connection.send(wire.encode(LoadFailed(text)))
        sys.exit(1)
    connection.send(ready)
    while True:
        connection.send(_answer(policy, requests.get(), images))


def _answer(policy: Policy, request: PredictRequest, images: ImageReader) -> bytes:
    """Predict; return the packet of the `Result`, or of a `PredictFailed` that says what went wrong."""
    try:
        if request.reset:
            policy.reset()
        begin = time.perf_counter()
        observation = Observation(
            images.read(request.height, request.width),
            request.stamp_ns,
            request.instruction,
            request.gripper_pixel,
            request.base_from_tool,
        )
        chunk = policy.predict(observation, seed=request.seed)
        policy_s = time.perf_counter() - begin
        if not isinstance(chunk, ActionChunk):
            raise TypeError(f"the policy returned {type(chunk).__name__} and no ActionChunk")
        return wire.encode(Result(request.request, chunk, policy_s))
    except wire.WireError as error:
        return wire.encode(PredictFailed(request.request, wire.clip(f"malformed answer: {error}")))
    except Exception as error:
        traceback.print_exc()
        return wire.encode(PredictFailed(request.request, _one_line(error)))


def _receive(connection: socket.socket, requests: queue.SimpleQueue[PredictRequest]) -> None:
    while True:
        try:
            packet = connection.recv(wire.MAX_PACKET + 1)
        except OSError:
            packet = b""
        if not packet:
            os._exit(0)  # the parent closed or died: nothing is left to do, even if a prediction is under way
        request = wire.decode(packet)
        assert isinstance(request, PredictRequest)
        requests.put(request)


def _load(config: WorkerConfig, connection: socket.socket) -> Policy:
    begin = time.perf_counter()
    if config.factory:
        module, _, function = config.factory.partition(":")
        policy: Policy = getattr(importlib.import_module(module), function)()
        return policy

    def say(text: str) -> None:
        connection.send(wire.encode(LoadProgress(wire.clip(text))))

    if is_remote(config.checkpoint):
        from sqap_vla_ros.serving.remote import RemotePolicy  # needs a library that nothing else here does

        return RemotePolicy(
            config.checkpoint,
            timeout_s=BEFORE * config.prediction_timeout_s,
            load_timeout_s=BEFORE * config.load_timeout_s,
            reach_timeout_s=BEFORE * config.load_timeout_s,  # the robot may be switched on first
            say=say,
        )
    import torch

    from sqap_vla_ros.compression.files.kept import KeptPolicies, default_folder
    from sqap_vla_ros.compression.load import RANDOM_WEIGHTS, load_policy
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
        dtype=getattr(torch, config.dtype) if config.dtype else None,
        settings=CheckpointSettings(
            unnorm_key=None if config.checkpoint in RANDOM_WEIGHTS else config.unnorm_key or None,
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


def _warm_up(policy: Policy, predictions: int) -> float:
    """Return the latency in seconds of the last of them; the first pay for allocation, kernels and page faults."""
    blank = np.full((480, 640, 3), 127, np.uint8)
    observation = Observation(blank, 0, "warm up", (320.0, 240.0), np.eye(4))
    latency_s = 0.0
    for _ in range(predictions):
        begin = time.perf_counter()
        policy.predict(observation, seed=0)
        latency_s = time.perf_counter() - begin
    policy.reset()
    return latency_s


def _one_line(error: BaseException) -> str:
    return wire.clip(f"{type(error).__name__}: {' '.join(str(error).split())}")
