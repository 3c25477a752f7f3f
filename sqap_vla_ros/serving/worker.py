"""The policy in a process of its own: the parent's side.

The model must never run in the process that spins ROS callbacks: a prediction competes for the GIL for hundreds of
milliseconds, and a crash in a GPU library would take the safety logic with it. So the node starts a worker process,
hands it one observation at a time and gets one chunk back. This module imports neither torch nor rclpy.

How the two talk:
- a packet socket carries the messages of `events.py` in the fixed form of `wire.py`; nothing is ever unpickled;
- images travel through anonymous shared memory, written by the parent only while no request is in flight;
- one request at a time, or one offer of several, of which the worker predicts some together and declines the others
  (`batching.py`); resets travel with the next one. A worker that stands still is never owed more than that, so that no
  call here waits for it or lets anything pile up;
- what the worker returns is validated before anybody sees it (`validation.py`);
- the worker exits when the socket closes, which the kernel does however the parent dies, so there are no orphans;
- however the worker ends, hangs or breaks the protocol, the last event is `Lost` with the reason.

Thread ownership: every method of `PolicyWorker` is called from one thread (the node's executor). The thread that
watches the process turns packets into events and calls `notify`, which only has to wake that executor up.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqap_vla_ros.contracts import CONTINUATIONS, Observation, PolicyInfo
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.child_process import EXIT_S, ChildProcess
from sqap_vla_ros.serving.defaults import BATCH_TOLERANCE, LOAD_TIMEOUT_S, PREDICTION_TIMEOUT_S
from sqap_vla_ros.serving.events import (
    Declined,
    Event,
    LoadFailed,
    Lost,
    Offer,
    PredictFailed,
    PredictRequest,
    Ready,
    Result,
)
from sqap_vla_ros.serving.shared_image import ImageWriter
from sqap_vla_ros.serving.validation import chunk_problem, duration_problem, info_problem

MAX_UNREAD = 1_024  # events that may wait for the executor; a worker that talks more than that is ended


class WorkerError(RuntimeError):
    """The worker cannot take a request: it is not loaded or busy."""


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of the worker: the policy that it loads, and how.

    checkpoint, recipe, device, unnorm_key, seed: as `compression.load.load_policy` takes them. A checkpoint that is the
        address of a server (ws://host:port) is predicted there, and what says how to load it is the server's business.
        `micro` has random weights and no data set: it passes for any published one, so that robot files that name one
        can be tried with it.
    dtype: torch dtype name ("float32", "bfloat16"), "" leaves the choice to the loader.
    tokenizer, dt, crop, ema, cfg_scale, ddim_steps: see `policy.settings.CheckpointSettings`; "", 0 and False leave the
        checkpoint's own, and so does a negative cfg_scale.
    threads: torch's intra-op threads, 0 leaves its default.
    warmup: predictions made on a blank image before the worker says it is ready; the first ones are slow.
    load_timeout_s, prediction_timeout_s: a server is given up a little earlier, so that it is named in time.
    reach_timeout_s: until a server takes a connection; long, as a robot may be switched on first. It changes no result
        and so has no part in the identity of one (`repr`).
    batch_tolerance: of requests that are offered together, see `batching.Batcher`.
    continuation: of chunks, which observations will ask for (`contracts.Commitment`). One prediction with it is made
        before the worker says that it is ready: a policy that cannot is refused then.
    factory: "module:function" returning a `Policy`, instead of `load_policy`.
    """

    checkpoint: str
    recipe: str = "fp32"
    device: str = "cpu"
    dtype: str = ""
    unnorm_key: str = ""
    tokenizer: str = ""
    dt: float = 0.0
    crop: str = ""
    ema: bool = False
    cfg_scale: float = -1.0
    ddim_steps: int = 0
    seed: int = 0
    threads: int = 0
    warmup: int = 2
    load_timeout_s: float = LOAD_TIMEOUT_S
    prediction_timeout_s: float = PREDICTION_TIMEOUT_S
    reach_timeout_s: float = dataclasses.field(default=LOAD_TIMEOUT_S, repr=False)
    batch_tolerance: float = BATCH_TOLERANCE
    continuation: str = CONTINUATIONS[0]
    factory: str = ""


class PolicyWorker:
    """Handle of one worker process; see the module's docstring for the protocol and the thread ownership."""

    def __init__(self, config: WorkerConfig, notify: Callable[[], None] = lambda: None) -> None:
        """notify: called from the watching thread whenever `events` has something new, for those who do not `wait`."""
        self.config = config
        self.info: PolicyInfo | None = None  # of the loaded policy, None until it is ready and after it is lost
        self._notify = notify
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._emitting = threading.Lock()  # guards _closing: after `close`, notify is never called again
        self._closing = False
        self._failed_to_load = False
        self._process: ChildProcess | None = None
        self._images: ImageWriter | None = None
        self._requests = 0
        self._pending: dict[int, PredictRequest] = {}  # by number, those without an answer
        self._reset_wanted = False

    @property
    def pid(self) -> int | None:
        """Return the process id of the worker, None when it is not running."""
        return self._process.pid if self._process is not None else None

    @property
    def ready(self) -> bool:
        """Return True if the policy is loaded and warm."""
        return self.info is not None

    @property
    def busy(self) -> bool:
        """Return True if a request is in flight."""
        return bool(self._pending)

    def start(self) -> None:
        """Start the process and return at once; `LoadProgress` events and then `Ready` or `LoadFailed` follow.

        `Lost` follows where the computer has no process or descriptor left to give.
        """
        if self._process is not None:
            raise WorkerError("the worker was already started: close it and make a new one")
        try:
            self._images = ImageWriter()
            self._process = ChildProcess(
                "sqap_vla_ros.serving.worker_process",
                [str(self._images.reader_fd), json.dumps(dataclasses.asdict(self.config))],
                [self._images.reader_fd],
                on_packet=self._on_packet,
                on_end=self._on_end,
            )
        except (OSError, RuntimeError) as error:
            self._emit(Lost(f"the policy worker cannot be started: {error}"))

    def events(self) -> list[Event]:
        """Return what has happened since the last call, in order; never blocks."""
        events: list[Event] = []
        while True:
            try:
                event = self._accept(self._events.get_nowait())
            except queue.Empty:
                return events
            if event is not None:
                events.append(event)

    def wait(self, timeout_s: float | None = None) -> list[Event]:
        """Wait until something happens, and return it as `events` does; nothing after timeout_s.

        Unlike `threading.Event`, what it waits on bears an exception of a signal handler at any moment.
        """
        try:
            event = self._accept(self._events.get(timeout=timeout_s))
        except queue.Empty:
            return []
        return [*([] if event is None else [event]), *self.events()]

    def submit(self, observation: Observation, *, seed: int = 0) -> int:
        """Hand over one observation; returns the request's number, found again in its `Result` or `PredictFailed`.

        Never blocks. Raises WorkerError when the worker is not ready or busy. What cannot be sent (an instruction
        above `wire.MAX_INSTRUCTION`, an image for which there is no memory) becomes a `PredictFailed`, a worker that
        takes nothing more becomes `Lost`.
        """
        return self.offer([(observation, seed)])[0]

    def offer(self, observations: Sequence[tuple[Observation, int]]) -> list[int]:
        """Hand over up to `defaults.MOST_BATCH` observations with their seeds; returns the numbers of the requests.

        The worker predicts the first, and with it those that can share its call; the others become `Declined`.
        Otherwise as `submit`.
        """
        if self._process is None or self._images is None or self.info is None:
            raise WorkerError("the policy worker is not ready: wait for its Ready event")
        if self._pending:
            raise WorkerError(f"the policy worker still computes request {min(self._pending)}: one at a time")
        packets: dict[int, bytes] = {}
        numbers = range(self._requests + 1, self._requests + 1 + len(observations))
        self._requests += len(observations)
        for number, (observation, seed) in zip(numbers, observations, strict=True):
            self._pending[number] = PredictRequest.of(number, observation, seed=seed, reset=self._reset_wanted)
            try:
                packets[number] = wire.encode(self._pending[number])
            except wire.WireError as error:
                self._emit(PredictFailed(number, f"the observation cannot be sent: {error}"))
        if not packets:
            return list(numbers)
        try:
            self._images.write([observations[number - numbers[0]][0].image for number in packets])
        except OSError as error:
            for number in packets:
                self._emit(PredictFailed(number, f"the observation cannot be sent: {error}"))
            return list(numbers)
        offer = [wire.encode(Offer(len(packets)))] if len(packets) > 1 else []
        if not all(self._process.send(packet) for packet in (*offer, *packets.values())):
            self._process.kill("the policy worker was ended: it takes no more requests")
        else:
            self._reset_wanted = False
        return list(numbers)

    def reset(self) -> None:
        """Let the policy forget what it keeps between observations, before the next request. Never blocks."""
        self._reset_wanted = True

    def kill(self, why: str) -> None:
        """End a worker that hangs; a `Lost` event with the reason follows."""
        if self._process is not None:
            self._process.kill(f"the policy worker was ended: {why}")

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop the process and wait for it; a worker that computes is killed after timeout_s. Safe to call twice."""
        self._stop(timeout_s)
        if self._process is not None:
            self._process.join(timeout_s + 3 * EXIT_S)

    def discard(self) -> None:
        """Let go of a worker that is lost, without waiting: its thread ends, reaps and closes what is left."""
        self._stop(0.0)

    def _stop(self, grace_s: float) -> None:
        with self._emitting:
            self._closing = True
        self.info = None
        self._pending = {}
        if self._images is not None:
            self._images.close()
            self._images = None
        if self._process is not None:
            self._process.stop(grace_s)

    def _accept(self, event: Event) -> Event | None:
        """Return what the executor is told about an event of the worker's, after checking it; None to ignore it."""
        if isinstance(event, (Lost, LoadFailed)):
            self.info = None
            self._pending = {}
        elif isinstance(event, Ready):
            problem = info_problem(event.info) or duration_problem("the warm-up latency", event.warm_latency_s)
            if self.info is not None or problem is not None:
                self._break_off(problem or "it said twice that it is ready")
                return None
            self.info = event.info
        elif isinstance(event, (Result, PredictFailed, Declined)):
            asked, info = self._pending.get(event.request), self.info
            if info is None or asked is None:
                self._break_off(f"it answered request {event.request}, which is not being computed")
                return None
            if isinstance(event, Declined) and event.request == min(self._pending):
                self._break_off(f"it declined request {event.request}, which it was not free to")
                return None
            del self._pending[event.request]
            if isinstance(event, Result):
                problem = chunk_problem(event.chunk, info=info, stamp_ns=asked.stamp_ns, seed=asked.seed)
                problem = problem or duration_problem("the prediction's time", event.policy_s)
                if problem is not None:
                    return PredictFailed(event.request, f"malformed answer: {problem}")
        return event

    def _break_off(self, why: str) -> None:
        """End a worker whose answers can no longer be told apart."""
        self.info = None
        self.kill(why)

    # Called from the watching thread

    def _on_packet(self, packet: bytes) -> str | None:
        try:
            message = wire.decode(packet)
        except wire.WireError as error:
            return f"the policy worker was ended: it sent what is no message ({error})"
        if isinstance(message, (PredictRequest, Offer)):
            return "the policy worker was ended: it sent a request"
        if self._events.qsize() >= MAX_UNREAD:
            return f"the policy worker was ended: it sent more than {MAX_UNREAD} messages at once"
        self._failed_to_load = self._failed_to_load or isinstance(message, LoadFailed)
        self._emit(message)
        return None

    def _on_end(self, why: str) -> None:
        if not self._failed_to_load:
            self._emit(Lost(why))

    def _emit(self, event: Event) -> None:
        with self._emitting:
            if not self._closing:
                self._events.put(event)
                self._notify()
