"""The policy in a process of its own: the parent's side.

The model must never run in the process that spins ROS callbacks: a prediction competes for the GIL for hundreds of
milliseconds, and a crash in a GPU library would take the safety logic with it. So the node starts a worker process,
hands it one observation at a time and gets one chunk back. This module imports neither torch nor rclpy.

How the two talk:
- a socket pair carries small pickled messages (the dataclasses below);
- the image travels through anonymous shared memory (memfd), written by the parent only while no request is in flight;
- the worker exits when the socket closes, which the kernel does however the parent dies, so there are no orphans;
- the parent sees the same end of file when the worker dies, and reports `Lost` with the exit status.

Thread ownership: every method of `PolicyWorker` is called from one thread (the node's executor). A reader thread turns
messages into events and calls `notify`, which only has to wake that executor up.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo

_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(sys.argv[2:])"


class WorkerError(RuntimeError):
    """The worker cannot take a request: it is not loaded, busy or gone."""


@dataclass(frozen=True)
class WorkerConfig:
    """What the worker loads.

    checkpoint, recipe, device, unnorm_key, seed: as `compression.load.load_policy` takes them.
    dtype: torch dtype name ("float32", "bfloat16"), "" leaves the choice to the loader.
    threads: torch's intra-op threads, 0 leaves its default.
    warmup: predictions made on a blank image before the worker says it is ready; the first ones are slow.
    factory: "module:function" returning a `Policy`, instead of `load_policy`.
    """

    checkpoint: str
    recipe: str = "fp32"
    device: str = "cpu"
    dtype: str = ""
    unnorm_key: str = ""
    seed: int = 0
    threads: int = 0
    warmup: int = 2
    factory: str = ""


@dataclass(frozen=True)
class PredictRequest:
    """Parent to worker: the image is in the shared memory, [height, width, 3] uint8."""

    request: int
    height: int
    width: int
    stamp_ns: int
    instruction: str
    gripper_pixel: tuple[float, float] | None
    base_from_tool: NDArray[np.float64] | None
    seed: int


@dataclass(frozen=True)
class ResetRequest:
    """Parent to worker: forget what the policy keeps between observations."""


@dataclass(frozen=True)
class Progress:
    """Worker to parent: a line for the log while loading."""

    text: str


@dataclass(frozen=True)
class Ready:
    """Worker to parent: loaded and warm. warm_latency_s is that of the last warm-up prediction."""

    info: PolicyInfo
    warm_latency_s: float


@dataclass(frozen=True)
class LoadFailed:
    """Worker to parent: the policy cannot be loaded; the worker exits."""

    text: str


@dataclass(frozen=True)
class Result:
    """Worker to parent: policy_s is the time inside `Policy.predict`."""

    request: int
    chunk: ActionChunk
    policy_s: float


@dataclass(frozen=True)
class PredictFailed:
    """Worker to parent: `Policy.predict` raised."""

    request: int
    text: str


@dataclass(frozen=True)
class Lost:
    """The worker process ended without being asked to."""

    text: str


Event = Progress | Ready | LoadFailed | Result | PredictFailed | Lost


class PolicyWorker:
    """Handle of one worker process; see the module's docstring for the protocol and the thread ownership."""

    def __init__(self, config: WorkerConfig, notify: Callable[[], None]) -> None:
        """notify: called from the reader thread whenever `events` has something new."""
        self.config = config
        self.ready = False
        self._notify = notify
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._reader: threading.Thread | None = None
        self._memory_fd = -1
        self._memory: mmap.mmap | None = None
        self._requests = 0
        self._pending: int | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def busy(self) -> bool:
        """A request is in flight."""
        return self._pending is not None

    def start(self) -> None:
        """Start the process and return at once; `Progress` events and then `Ready` or `LoadFailed` follow."""
        if self._process is not None:
            raise WorkerError("the worker was already started: close it and make a new one")
        ours, theirs = socket.socketpair()
        self._memory_fd = os.memfd_create("sqap_vla_image")
        # -c and not -m: the child gets exactly our sys.path, whatever its working directory holds.
        bootstrap = _BOOTSTRAP.format(module="sqap_vla_ros.serving.worker_process")
        arguments = [json.dumps(sys.path), str(theirs.fileno()), str(self._memory_fd)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", bootstrap, *arguments],
            pass_fds=(theirs.fileno(), self._memory_fd),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to handle: it holds first, then stops us
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send(self.config)
        self._reader = threading.Thread(target=self._read, name="policy_worker_reader", daemon=True)
        self._reader.start()

    def events(self) -> list[Event]:
        """What has happened since the last call, in order; never blocks."""
        events: list[Event] = []
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return events
            if isinstance(event, Ready):
                self.ready = True
            elif isinstance(event, (Result, PredictFailed)):
                self._pending = None
            elif isinstance(event, (Lost, LoadFailed)):
                self._pending = None
                self.ready = False
            events.append(event)

    def wait(self, timeout_s: float) -> list[Event]:
        """Like `events`, but waits up to timeout_s for the first one. For configuring, where nothing else runs."""
        deadline = time.monotonic() + timeout_s
        while not (events := self.events()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return events

    def submit(self, observation: Observation, *, seed: int = 0) -> int:
        """Hand over one observation; returns the request's number, found again in its `Result`.

        Raises WorkerError when the worker is not ready, busy or gone.
        """
        if self._connection is None or not self.ready:
            raise WorkerError("the policy worker is not ready: wait for its Ready event")
        if self._pending is not None:
            raise WorkerError(f"the policy worker still computes request {self._pending}: one at a time")
        image = observation.image
        height, width = image.shape[:2]
        np.frombuffer(self._shared(image.nbytes), np.uint8, image.nbytes).reshape(image.shape)[...] = image
        self._requests += 1
        request = PredictRequest(
            self._requests,
            height,
            width,
            observation.stamp_ns,
            observation.instruction,
            observation.gripper_pixel,
            observation.base_from_tool,
            seed,
        )
        self._send(request)
        self._pending = request.request
        return request.request

    def reset(self) -> None:
        """Ask the policy to forget what it keeps between observations; done before the next request."""
        if self.ready:
            self._send(ResetRequest())

    def kill(self, why: str) -> None:
        """End a worker that hangs; a `Lost` event follows."""
        if self._process is not None and self._process.poll() is None:
            self._events.put(Progress(f"ending the policy worker: {why}"))
            self._process.kill()

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop the process and wait for it; a worker that computes is killed after timeout_s. Safe to call twice."""
        self._closing = True
        self.ready = False
        if self._connection is not None:
            # Wakes the blocked reader thread too, which closing the descriptor under it would not.
            with socket.socket(fileno=os.dup(self._connection.fileno())) as ours, contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)  # OSError: the worker is gone already
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._reader is not None:
            self._reader.join()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1
        self._memory = None

    def _shared(self, size: int) -> mmap.mmap:
        if self._memory is None or len(self._memory) < size:
            os.ftruncate(self._memory_fd, size)
            self._memory = mmap.mmap(self._memory_fd, size)
        return self._memory

    def _send(self, message: PredictRequest | ResetRequest) -> None:
        assert self._connection is not None
        try:
            self._connection.send(message)
        except OSError as error:
            raise WorkerError(f"the policy worker does not listen any more: {error}") from error

    def _read(self) -> None:
        assert self._connection is not None
        assert self._process is not None
        while True:
            try:
                event = self._connection.recv()
            except (EOFError, OSError):
                break
            self._events.put(event)
            self._notify()
        if not self._closing:
            self._events.put(Lost(_describe_exit(self._process.wait())))
            self._notify()


def _describe_exit(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory? see dmesg)" if name == "SIGKILL" else ""
        return f"the policy worker was ended by {name}{hint}"
    return f"the policy worker exited with status {status}"
