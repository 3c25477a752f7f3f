"""Instruct, enable, stop and watch a running `policy_node` through its topics and services."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.msg import PolicyStatus
from sqap_vla_ros.nodes.launch.table import dds_environment

ANSWER_S = 10.0  # within which a node that runs is found and answers
ASK_AGAIN_S = 0.5
DISCOVERY_S = 0.5  # for a second node of the same name to be found
LOADING = "not active yet"  # in the answer of a node that has not loaded its policy
ENABLE = "call ~/enable"  # in the status of a node that is active and disabled
STATUS_S = 3.0  # a status comes at least so often from a node that runs
QUIET_S = 2.0  # a line is printed at least this often while the node is watched
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Messages that an arm or a gripper obeys; the node publishes them on no topic of its own name.
ARM_COMMANDS = (
    "trajectory_msgs/msg/JointTrajectory",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/TwistStamped",
)
COMMANDS = (*ARM_COMMANDS, "std_msgs/msg/Float64MultiArray")
HEARD_S = 5.0  # for controllers that run to be discovered, with their names
NAMELESS = "_NODE_NAME_UNKNOWN_"  # rmw's word for a node of which only the subscription was discovered
TOLD = ("output_mode", "base_frame", "tool_frame", "gripper_output", "speed_scale", "checkpoint", "recipe")
STATES = {
    getattr(PolicyStatus, name): name for name in ("DISABLED", "WAITING", "RUNNING", "HOLDING", "STOPPED", "FAULT")
}
TRANSITIONS = {
    Transition.TRANSITION_DEACTIVATE: "deactivate",
    Transition.TRANSITION_CLEANUP: "cleanup",
    Transition.TRANSITION_CONFIGURE: "configure",
    Transition.TRANSITION_ACTIVATE: "activate",
}
RELOAD = (  # transition, the state that it begins in, the state that it ends in
    (Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_INACTIVE),
    (Transition.TRANSITION_CLEANUP, State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_UNCONFIGURED),
    (Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE),
    (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE),
)
LATCHED_STATES = (PolicyStatus.STOPPED, PolicyStatus.FAULT)


@dataclass(frozen=True)
class _Heard:
    """A topic of commands: its types, and the subscriptions to it."""

    kinds: set[str]
    ends: tuple[Any, ...]

    @property
    def is_known(self) -> bool:
        """True where somebody listens, and everybody's name is known."""
        return bool(self.ends) and all(end.node_name != NAMELESS for end in self.ends)

    @property
    def names(self) -> list[str]:
        """Names of the nodes that listen."""
        named = {f"{end.node_namespace.rstrip('/')}/{end.node_name}" for end in self.ends if end.node_name != NAMELESS}
        unnamed = ["a node whose name is not known yet"] if any(end.node_name == NAMELESS for end in self.ends) else []
        return [*sorted(named), *unnamed]


class Operator:
    """A node beside `policy_node`. Use as a context manager.

    name: the policy node's, with its namespace. say: prints a line.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name if name.startswith("/") else f"/{name}"
        self._say = say
        self._newest: PolicyStatus | None = None
        self._alone = False  # one node has the name, as was looked at

    def __enter__(self) -> Self:
        os.environ.update(dds_environment(os.environ))
        self._context = rclpy.Context()
        # Ctrl-C is Python's KeyboardInterrupt here, so that what was begun can be ended.
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("operator", context=self._context, enable_rosout=False, start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._node.create_subscription(PolicyStatus, f"{self._name}/status", self._on_status, LATCHED)
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def describe(self, *, anyway: bool = False) -> None:
        """Say which node this is, what it commands and whether that moves anything.

        Raises ConnectionError where no node answers or several do, and, but for a dry run and with `anyway`, where
        nobody hears the arm's commands. A controller may come while the node still loads its policy.
        """
        self._require_one_node()
        request = GetParameters.Request(names=[*TOLD, "dry_run"])
        answer = self._ask(GetParameters, "get_parameters", request)
        values = dict(zip(request.names, map(parameter_value_to_python, answer.values), strict=False))
        self._say(f"{self._name}: " + ", ".join(f"{name} {values[name]}" for name in TOLD if name in values))
        heard = self._listeners()
        if not values.get("dry_run") and not anyway:
            heard = self._await_controller(heard)
        for topic, one in heard.items():
            self._say(f"commands go to {topic}, heard by {', '.join(one.names) or 'nobody'}")
        if "dry_run" in values:
            dry = "dry_run is on: nothing is commanded"
            self._say(dry if values["dry_run"] else "dry_run is off: the arm will move")
        deaf = _unheard(heard)
        if deaf and not values.get("dry_run") and not anyway:
            raise ConnectionError(
                f"nobody hears the arm's commands on {', '.join(deaf)}, so that nothing was started: activate the "
                "arm's controller, or name its topic to the node (joint_trajectory:=…); --anyway starts the task"
            )

    def instruct(self, text: str) -> None:
        """Give the node a task in words. Raises ConnectionError where no node hears it, or several."""
        self._require_one_node()
        topic = f"{self._name.rpartition('/')[0]}/instruction"
        publisher = self._node.create_publisher(String, topic, LATCHED)
        self._wait(lambda: publisher.get_subscription_count() > 0, f"nobody listens to {topic}")
        publisher.publish(String(data=text))
        self._wait(lambda: bool(publisher.wait_for_all_acked(Duration())), f"{topic} was not received")

    def enable(self, on: bool) -> bool:
        """Call ~/enable; say what the node answers, and return whether it did so. Raises ConnectionError.

        A node that still loads its policy is asked again until it has.
        """
        if on:
            self._require_one_node()
        done, answer = self._call(SetBool, "enable", SetBool.Request(data=on))
        if not done and LOADING in answer:
            self._say("waiting: the node still loads its policy")
        while not done and LOADING in answer:
            self._spin(1.0)
            done, answer = self._call(SetBool, "enable", SetBool.Request(data=on))
        self._say(f"enable: {answer}")
        return done

    def trigger(self, service: str) -> bool:
        """Do the same with a service without a request, such as `stop` or `reset_fault`."""
        done, answer = self._call(Trigger, service, Trigger.Request())
        self._say(f"{service}: {answer}")
        return done

    def reload(self) -> bool:
        """Clean the node up, configure it and activate it, whatever it does now; return whether it is active then.

        It reads its parameters and loads its policy anew, and begins where the arm is. Raises ConnectionError.
        """
        self._require_one_node()
        now = self._lifecycle_state()
        steps = RELOAD[next((i for i, (_, begins, _) in enumerate(RELOAD) if begins == now), len(RELOAD)) :]
        if not steps:
            raise ConnectionError(f"{self._name} is in the midst of a transition: try again when it has ended")
        return all(self._transition(transition, begins, ends) for transition, begins, ends in steps)

    def tell(self) -> None:
        """Say once what the node does. Raises ConnectionError."""
        self._wait(lambda: self._newest is not None, f"there is no {self._name}/status")
        assert self._newest is not None
        self._say(line(self._newest))

    def watch(self, seconds: float | None = None) -> None:
        """Say what the node does, whenever that changes and every two seconds. seconds: None until interrupted."""
        self._wait(lambda: self._newest is not None, f"there is no {self._name}/status")
        if (count := self._node.count_publishers(f"{self._name}/status")) > 1:
            self._say(f"{count} nodes are called {self._name}: these lines are of all of them")
        end_s = math.inf if seconds is None else time.monotonic() + seconds
        self._print_until(lambda: time.monotonic() >= end_s)

    def watch_task(self) -> bool:
        """Do the same until the node is not enabled any more, and say so.

        Return whether that is the end of the task, and not a stop, a fault or a node that is gone.
        """
        self._wait(lambda: self._newest is not None, f"there is no {self._name}/status")
        begin_s, was_enabled = time.monotonic(), False

        def ended() -> bool:
            nonlocal was_enabled
            assert self._newest is not None
            was_enabled = was_enabled or self._newest.enabled
            # The status of before ~/enable may be the newest for a moment.
            return not self._newest.enabled and (was_enabled or time.monotonic() - begin_s > STATUS_S)

        gone = self._print_until(ended)
        status = self._newest
        assert status is not None
        if gone:
            self._say(f"{self._name} is gone: the arm finishes what it was told last, and rests")
        elif status.state in LATCHED_STATES:
            self._say(f"the task is over: {STATES[status.state]}. `sqap-vla operate reset` clears it")
        else:
            self._say("the task is over: the node was disabled")
        return not gone and status.state not in LATCHED_STATES

    def _print_until(self, ended: Callable[[], bool]) -> bool:
        """Say what the node does, whenever that changes and every two seconds. Return whether it went away instead."""
        said, said_s = None, 0.0
        while True:
            status = self._newest
            if status is not None:
                # Not for every digit of an age or of a position.
                state = (status.state, status.gripper_state, re.sub(r"[\d.]+", "", status.reason))
                if state != said or time.monotonic() - said_s >= QUIET_S:
                    said, said_s = state, time.monotonic()
                    self._say(line(status))
            if ended():
                return False
            if self._node.count_publishers(f"{self._name}/status") == 0:
                return True
            self._spin_once()

    def _require_one_node(self) -> None:
        """Refuse to start an arm where several nodes have the name: any of them could answer."""
        if self._alone:
            return
        topic = f"{self._name}/status"
        self._wait(lambda: self._node.count_publishers(topic) > 0, f"there is no {topic}")
        self._spin(DISCOVERY_S)
        if (count := self._node.count_publishers(topic)) > 1:
            raise ConnectionError(
                f"{count} nodes are called {self._name}, and whichever answered first would move: give each robot a "
                "ROS_DOMAIN_ID or a namespace of its own"
            )
        self._alone = True

    def _on_status(self, message: PolicyStatus) -> None:
        self._newest = message

    def _spin(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._spin_once()

    def _spin_once(self) -> None:
        with signals_wait():
            self._executor.spin_once(timeout_sec=0.1)

    def _listeners(self) -> dict[str, _Heard]:
        """Return who hears the node's commands, by topic; empty where it commands on none."""
        begin_s, found_s = time.monotonic(), None
        while True:
            heard = {
                topic: _Heard(kinds, tuple(self._node.get_subscriptions_info_by_topic(topic)))
                for topic, kinds in self._commanded().items()
            }
            found_s = time.monotonic() if heard and found_s is None else found_s
            if heard and all(one.is_known for one in heard.values()):
                return heard
            if time.monotonic() > (begin_s + ANSWER_S if found_s is None else found_s + HEARD_S):
                return heard
            self._spin_once()

    def _await_controller(self, heard: dict[str, _Heard]) -> dict[str, _Heard]:
        """Return who hears the node's commands, once somebody hears the arm's or the node is active."""
        loads = self._is_inactive()
        if loads and (deaf := _unheard(heard)):
            self._say(f"waiting: nobody hears {', '.join(deaf)} yet, and the node still loads its policy")
        while loads and _unheard(heard):
            loads = self._is_inactive()
            heard = self._listeners()
        return heard

    def _is_inactive(self) -> bool:
        status = self._newest
        return status is not None and status.state == PolicyStatus.DISABLED and ENABLE not in status.reason

    def _commanded(self) -> dict[str, set[str]]:
        """Return the topics that the node commands on, with their types."""
        namespace, _, name = self._name.rpartition("/")
        with contextlib.suppress(_rclpy.NodeNameNonExistentError):
            published = self._node.get_publisher_names_and_types_by_node(name, namespace or "/")
            own = f"{self._name}/"
            return {t: {*kinds} for t, kinds in published if not t.startswith(own) and {*kinds} & {*COMMANDS}}
        return {}

    def _lifecycle_state(self) -> int:
        return int(self._ask(GetState, "get_state", GetState.Request()).current_state.id)

    def _transition(self, transition: int, begins: int, ends: int) -> bool:
        """Ask for a transition once, and wait until the node has made it; say so, and return whether it has."""
        client = self._node.create_client(ChangeState, f"{self._name}/change_state")
        self._wait(client.service_is_ready, f"there is no service {self._name}/change_state")
        request = ChangeState.Request(transition=Transition(id=transition))
        name, answer = TRANSITIONS[transition], client.call_async(request)
        self._say(f"{name}: asked for")
        asked_s = time.monotonic()
        while (now := self._lifecycle_state()) != ends:
            refused = answer.done() and not answer.result().success
            if now == begins and (refused or time.monotonic() - asked_s > ANSWER_S):
                self._say(f"{name}: failed; the node's log says why")
                return False
            self._spin(ASK_AGAIN_S)
        self._say(f"{name}: done")
        return True

    def _call(self, kind: Any, service: str, request: Any) -> tuple[bool, str]:
        """Return whether the node did it, and its answer in words."""
        response = self._ask(kind, service, request)
        return response.success, f"{'done' if response.success else 'refused'}; {response.message}".rstrip("; ")

    def _ask(self, kind: Any, service: str, request: Any) -> Any:
        """Return the node's answer. Raises ConnectionError."""
        client = self._node.create_client(kind, f"{self._name}/{service}")
        self._wait(client.service_is_ready, f"there is no service {self._name}/{service}")
        # An answer is lost where the server has not discovered this client yet. Every request here may be repeated.
        answers: list[Any] = []
        asked_s = -math.inf

        def answered() -> bool:
            nonlocal asked_s
            if time.monotonic() - asked_s > ASK_AGAIN_S:
                asked_s = time.monotonic()
                answers.append(client.call_async(request))
            return any(answer.done() for answer in answers)

        self._wait(answered, f"{self._name}/{service} does not answer")
        return next(answer.result() for answer in answers if answer.done())

    def _wait(self, condition: Callable[[], bool], problem: str) -> None:
        end_s = time.monotonic() + ANSWER_S
        while not condition():
            if time.monotonic() > end_s:
                raise ConnectionError(
                    f"{problem}: does the node run, with the same ROS_DOMAIN_ID (here "
                    f"{os.environ.get('ROS_DOMAIN_ID', '0')})? --node names another one"
                )
            self._spin_once()


def _unheard(heard: dict[str, _Heard]) -> list[str]:
    """Return the topics with commands for the arm that nobody listens to."""
    return [topic for topic, one in heard.items() if not one.names and one.kinds & {*ARM_COMMANDS}]


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Deliver signals at the end of the block.

    One that raises while an executor takes a message leaves the callback group occupied for good: no answer would be
    heard any more, of the service that ends the task least of all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return
    caught: list[int] = []
    previous = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
    try:
        for number in previous:
            signal.signal(number, lambda number, _frame: caught.append(number))
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for one in caught:
            signal.raise_signal(one)


def line(status: PolicyStatus) -> str:
    """Return a status as one line."""
    state = STATES.get(status.state, str(status.state))
    dry = " (dry run)" if status.dry_run else ""
    gripper = f"; gripper: {status.gripper}" if status.gripper_state != PolicyStatus.GRIPPER_UNKNOWN else ""
    chunks = f"[chunks {status.chunks_published}, rejected {status.chunks_rejected}{gripper}]"
    return " ".join(filter(None, (time.strftime("%H:%M:%S"), f"{state}{dry}", chunks, status.reason)))
