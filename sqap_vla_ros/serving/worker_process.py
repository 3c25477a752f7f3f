"""The policy in a process of its own: the worker's side; see `worker.py` for the protocol.

The only module under nodes/ that loads a model. It ends when the parent's end of the socket closes, also in the middle
of a prediction: a receiver thread watches for it.
"""

from __future__ import annotations

import importlib
import mmap
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, Observation, Policy
from sqap_vla_ros.serving.worker import (
    LoadFailed,
    PredictFailed,
    PredictRequest,
    Progress,
    Ready,
    ResetRequest,
    Result,
    WorkerConfig,
)


def main(arguments: Sequence[str]) -> None:
    """arguments: descriptors of the socket and of the shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(arguments[0]))
    memory_fd = int(arguments[1])
    config: WorkerConfig = connection.recv()
    requests: queue.SimpleQueue[PredictRequest | ResetRequest] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    try:
        policy = _load(config, connection)
        latency_s = _warm_up(policy, config.warmup)
    except Exception as error:
        traceback.print_exc()
        connection.send(LoadFailed(_one_line(error)))
        sys.exit(1)
    connection.send(Ready(policy.info, latency_s))
    memory: mmap.mmap | None = None
    while True:
        request = requests.get()
        if isinstance(request, ResetRequest):
            policy.reset()
            continue
        size = request.height * request.width * 3
        if memory is None or len(memory) < size:
            memory = mmap.mmap(memory_fd, size, prot=mmap.PROT_READ)
        # A copy, because a policy may keep the image and the parent writes the next one into the same memory.
        image = np.frombuffer(memory, np.uint8, size).reshape(request.height, request.width, 3).copy()
        try:
            begin = time.perf_counter()
            observation = Observation(
                image, request.stamp_ns, request.instruction, request.gripper_pixel, request.base_from_tool
            )
            chunk = policy.predict(observation, seed=request.seed)
            policy_s = time.perf_counter() - begin
            if not isinstance(chunk, ActionChunk):
                raise TypeError(f"the policy returned {type(chunk).__name__} and no ActionChunk")
        except Exception as error:
            traceback.print_exc()
            connection.send(PredictFailed(request.request, _one_line(error)))
        else:
            connection.send(Result(request.request, chunk, policy_s))


def _receive(connection: Connection, requests: queue.SimpleQueue[PredictRequest | ResetRequest]) -> None:
    while True:
        try:
            requests.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent closed or died: nothing is left to do, even if a prediction is under way


def _load(config: WorkerConfig, connection: Connection) -> Policy:
    begin = time.perf_counter()
    if config.factory:
        module, _, function = config.factory.partition(":")
        policy: Policy = getattr(importlib.import_module(module), function)()
        return policy
    import torch

    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.shipped import SHIPPED

    if config.threads:
        torch.set_num_threads(config.threads)
    connection.send(Progress(f"loading {config.checkpoint} with recipe {config.recipe} on {config.device}"))
    loaded = load_policy(
        config.checkpoint,
        config.recipe,
        shipped=SHIPPED,
        device=config.device,
        dtype=getattr(torch, config.dtype) if config.dtype else None,
        unnorm_key=config.unnorm_key or None,
        seed=config.seed,
    )
    connection.send(Progress(f"loaded in {time.perf_counter() - begin:.1f} s, warming up"))
    return loaded


def _warm_up(policy: Policy, predictions: int) -> float:
    """Latency in seconds of the last of them; the first pay for allocation, kernel selection and page faults."""
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
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
