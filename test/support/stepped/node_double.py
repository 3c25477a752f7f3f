"""policy_node's engine without a middleware: a node, a clock and a worker that a test drives step by step.

The engine is the real one, callbacks included. What stands in for ROS keeps what was created on it, so that a test can
call the callbacks in the order that it wants to try, in a time that only the test moves.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from rclpy.action import CancelResponse, GoalResponse

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk, Observation, PolicyInfo
from sqap_vla_ros.nodes.policy import configuration, control_loop, inputs, services
from sqap_vla_ros.nodes.policy.parameters import PARAMETERS
from sqap_vla_ros.nodes.policy.safety_stop import SafetyStop
from sqap_vla_ros.serving.events import Event, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.validation import chunk_problem

HORIZON = 16
INFO = PolicyInfo("double", "", "none", 0, HORIZON, 0.1, 224, (16, 16), "", "none")


@dataclass
class SteppedClock:
    """ROS time and the steady clock; both stand still but for `advance`. jump_callbacks: called after a jump.

    simulated: ROS time comes from /clock.
    """

    simulated: bool = False
    deaf: bool = False
    ros_ns: int = 1_763_000_000 * NS_PER_S
    steady_s: float = 1000.0
    jump_callbacks: list[Callable[[Any], None]] = field(default_factory=list)

    def advance(self, seconds: float) -> None:
        """Let both clocks run; `deaf`, simulated time stands: /clock is not heard."""
        if not (self.simulated and self.deaf):
            self.ros_ns += round(seconds * NS_PER_S)
        self.steady_s += seconds

    def set_ros(self, jump_s: float) -> None:
        """Set ROS time alone; nobody is told, as with a system clock."""
        self.ros_ns += round(jump_s * NS_PER_S)

    def jump(self, jump_s: float) -> None:
        """Let simulated time jump; who asked for it is told."""
        delta = SimpleNamespace(nanoseconds=round(jump_s * NS_PER_S))
        self.ros_ns += delta.nanoseconds
        for callback in self.jump_callbacks:
            callback(SimpleNamespace(delta=delta))

    def steady(self) -> float:
        """As time.monotonic."""
        return self.steady_s

    def now(self) -> Any:
        """As rclpy's clock."""
        return SimpleNamespace(nanoseconds=self.ros_ns)

    def create_jump_callback(self, threshold: Any, *, post_callback: Callable[[Any], None], **_: Any) -> Any:
        """As rclpy's clock; for simulated time."""
        self.jump_callbacks.append(post_callback)
        return SimpleNamespace(unregister=lambda: None)


class Log:
    """Keeps what was logged, as (severity, text)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, severity: str) -> Callable[..., None]:
        return lambda text, **_: self.lines.append((severity, text))


class Publisher:
    """Hands every message to `sent`."""

    def __init__(self, topic: str, sent: Callable[[str, Any], None]) -> None:
        self.topic, self._sent = topic, sent
        self.topic_name = topic

    def publish(self, message: Any) -> None:
        """As rclpy's."""
        self._sent(self.topic, message)

    def wait_for_all_acked(self, timeout: Any) -> bool:
        """As rclpy's; every message arrives."""
        return True

    def get_subscription_count(self) -> int:
        """As rclpy's; nobody looks."""
        return 0


class NodeDouble:
    """What policy_node's engine needs of a node."""

    def __init__(self, clock: SteppedClock, sent: Callable[[str, Any], None]) -> None:
        self.clock, self._sent = clock, sent
        self.log = Log()
        self.subscriptions: dict[str, Callable[[Any], None]] = {}
        self.services: dict[str, Callable[[Any, Any], Any]] = {}
        self.timers: list[Any] = []
        self.guards: list[Any] = []
        self.action: Any = None  # the action's server
        self.transforms: Any = None  # takes what comes on /tf and /tf_static

    def get_logger(self) -> Log:
        """As rclpy's."""
        return self.log

    def get_clock(self) -> SteppedClock:
        """As rclpy's."""
        return self.clock

    def get_parameter(self, name: str) -> Any:
        """As rclpy's; only use_sim_time is asked of the node itself."""
        return SimpleNamespace(value=self.clock.simulated)

    def get_fully_qualified_name(self) -> str:
        """As rclpy's."""
        return "/policy_node"

    def create_subscription(self, kind: Any, topic: str, callback: Callable[..., None], qos: Any, **_: Any) -> Any:
        """As rclpy's; a callback of two arguments is told when the message was sent, here that nobody knows."""
        told = len(inspect.signature(callback).parameters) == 2
        self.subscriptions[topic] = (lambda message: callback(message, {"source_timestamp": 0})) if told else callback
        return SimpleNamespace(topic_name=f"/{topic}", qos_profile=qos)

    def get_publishers_info_by_topic(self, topic: str) -> list[Any]:
        """As rclpy's; nobody but the test is there."""
        return []

    def create_publisher(self, kind: Any, topic: str, qos: Any, **_: Any) -> Publisher:
        """As rclpy's."""
        return Publisher(topic, self._sent)

    create_lifecycle_publisher = create_publisher

    def create_service(self, kind: Any, name: str, callback: Callable[[Any, Any], Any]) -> Any:
        """As rclpy's."""
        self.services[name] = callback
        return SimpleNamespace()

    def create_timer(self, period_s: float, callback: Callable[[], None], clock: Any = None) -> Any:
        """As rclpy's."""
        timer = SimpleNamespace(period_s=period_s, callback=callback, running=True)
        timer.cancel = lambda: setattr(timer, "running", False)
        timer.reset = lambda: setattr(timer, "running", True)
        self.timers.append(timer)
        return timer

    def create_guard_condition(self, callback: Callable[[], None]) -> Any:
        """As rclpy's."""
        guard = SimpleNamespace(callback=callback, triggered=False)
        guard.trigger = lambda: setattr(guard, "triggered", True)
        self.guards.append(guard)
        return guard

    def __getattr__(self, name: str) -> Any:
        if name.startswith("destroy_"):
            return lambda *_: None
        raise AttributeError(name)


class WorkerDouble:
    """A policy worker in stepped time. predict: the answer to an observation, or a fault."""

    def __init__(self, clock: SteppedClock, notify: Callable[[], None], predict: Callable[[Observation], Any]) -> None:
        self._clock, self._notify, self._predict = clock, notify, predict
        self._pending: list[tuple[float, Event]] = [(clock.steady_s, Ready(INFO, 0.1))]
        self._request = 0
        self.ready, self.busy, self.pid = False, False, 1
        self.dead = False

    def start(self) -> None:
        """As PolicyWorker."""

    def submit(self, observation: Observation, *, seed: int = 0) -> int:
        """As PolicyWorker."""
        self._request += 1
        self.busy = True
        latency_s, answer = self._predict(observation)
        if isinstance(answer, ActionChunk):  # judged as PolicyWorker does
            answer = chunk_problem(answer, info=INFO, stamp_ns=observation.stamp_ns, seed=seed) or answer
        if isinstance(answer, ActionChunk):
            self._pending.append((self._clock.steady_s + latency_s, Result(self._request, answer, latency_s)))
        elif isinstance(answer, str):
            self._pending.append((self._clock.steady_s + latency_s, PredictFailed(self._request, answer)))
        return self._request  # None: it never answers

    def die(self, why: str = "the worker process ended with status -9") -> None:
        """The process is gone."""
        self._pending.append((self._clock.steady_s, Lost(why)))
        self._notify()

    def events(self) -> list[Event]:
        """As PolicyWorker."""
        due = [event for at_s, event in self._pending if at_s <= self._clock.steady_s and not self.dead]
        self._pending = [(at_s, event) for at_s, event in self._pending if at_s > self._clock.steady_s]
        for event in due:
            self.ready = self.ready or isinstance(event, Ready)
            self.busy = self.busy and not isinstance(event, (Result, PredictFailed))
            self.dead = self.dead or isinstance(event, Lost)
        return due

    def kill(self, why: str) -> None:
        """As PolicyWorker."""
        self._pending = [(self._clock.steady_s, Lost(why))]

    def reset(self) -> None:
        """As PolicyWorker."""

    def close(self, timeout_s: float = 2.0) -> None:
        """As PolicyWorker."""

    discard = close


class GoalDouble:
    """A goal of the action, from its client's end. ends: how the server ended it, once or more often."""

    def __init__(self, number: int, request: Any) -> None:
        self.goal_id = SimpleNamespace(uuid=number.to_bytes(16, "big"))
        self.request = request
        self.is_active, self.is_cancel_requested = True, False
        self.ends: list[str] = []
        self.results: list[Any] = []
        self.running = False

    def execute(self) -> None:
        """As rclpy's."""
        self.running = True

    def publish_feedback(self, feedback: Any) -> None:
        """As rclpy's."""

    def _end(self, how: str) -> None:
        self.is_active = False
        self.ends.append(how)

    def succeed(self) -> None:
        """As rclpy's."""
        self._end("succeeded")

    def abort(self) -> None:
        """As rclpy's."""
        self._end("aborted")

    def canceled(self) -> None:
        """As rclpy's."""
        self._end("canceled")


class ActionServerDouble:
    """The action's server; the test is its client."""

    def __init__(self, node: Any, kind: Any, name: str, **callbacks: Any) -> None:
        self._kind, self._callbacks = kind, callbacks
        self.goals: list[GoalDouble] = []  # accepted
        self._coroutines: list[tuple[GoalDouble, Any]] = []
        node.action = self

    def send(self, instruction: str, duration_s: float = 0.0) -> GoalDouble | None:
        """Send a goal; None when it is rejected."""
        request = self._kind.Goal(instruction=instruction)
        request.max_duration.sec = int(duration_s)
        if self._callbacks["goal_callback"](request) is not GoalResponse.ACCEPT:
            return None
        goal = GoalDouble(len(self.goals), request)
        self.goals.append(goal)
        self._callbacks["handle_accepted_callback"](goal)
        if goal.running:
            self._coroutines.append((goal, self._callbacks["execute_callback"](goal)))
        return goal

    def cancel(self, goal: GoalDouble) -> None:
        """Ask for the goal to be cancelled."""
        if goal.is_active and self._callbacks["cancel_callback"](goal) is CancelResponse.ACCEPT:
            goal.is_cancel_requested = True

    def step(self) -> None:
        """Let the server's coroutines run on."""
        for entry in list(self._coroutines):
            goal, coroutine = entry
            try:
                coroutine.send(None)
            except StopIteration as end:
                goal.results.append(end.value)
                self._coroutines.remove(entry)

    def destroy(self) -> None:
        """As rclpy's."""
        for _, coroutine in self._coroutines:
            coroutine.close()


class ListenerDouble:
    """A listener to transforms that hears none: the test sends them to `NodeDouble.transforms`."""

    def __init__(self, buffer: Any, node: Any, **_: Any) -> None:
        node.transforms = buffer

    def unregister(self) -> None:
        """As tf2_ros'."""


class WatchdogDouble:
    """A watchdog whose thread is the test: it calls `act` while the executor stands still."""

    def __init__(self, timeout_s: float, act: Callable[[], None], again_s: float) -> None:
        self.timeout_s, self.act = timeout_s, act
        self.armed = False
        self.stalled_s: float | None = None

    def feed(self, *, armed: bool) -> float | None:
        """As Watchdog."""
        self.armed = armed
        stalled_s, self.stalled_s = self.stalled_s, None
        return stalled_s

    def close(self) -> None:
        """As Watchdog."""


@contextlib.contextmanager
def engine(
    clock: SteppedClock,
    sent: Callable[[str, Any], None],
    predict: Callable[[Observation], Any],
    sleep: Callable[[float], None],
    **changed: Any,
) -> Iterator[tuple[control_loop.ControlLoop, NodeDouble, list[WorkerDouble]]]:
    """The engine, its node and its workers. sent: gets (topic, message). sleep: lets time pass. changed: parameters."""
    node, workers = NodeDouble(clock, sent), []
    values = {p.name: p.default for p in PARAMETERS} | {"training_camera": [0.0] * 6, "dry_run": False} | changed
    assert not configuration.problems(values), configuration.problems(values)

    def worker(_: Any, notify: Callable[[], None]) -> WorkerDouble:
        workers.append(WorkerDouble(clock, notify, predict))
        return workers[-1]

    class Aside:
        """A thread that has run when it was started."""

        def __init__(self, target: Callable[[], None], **_: Any) -> None:
            self.start = target

    with (
        mock.patch("time.monotonic", clock.steady),
        mock.patch("time.sleep", sleep),
        mock.patch.object(control_loop, "PolicyWorker", worker),
        mock.patch.object(control_loop, "Watchdog", WatchdogDouble),
        mock.patch.object(inputs, "TransformListener", ListenerDouble),
        mock.patch.object(services, "ActionServer", ActionServerDouble),
        mock.patch("sqap_vla_ros.control.description.threading.Thread", Aside),
    ):
        loop = control_loop.ControlLoop(node, values, "", SafetyStop(node))
        yield loop, node, workers
        loop.destroy()
