"""Gathers a `Snapshot` from a running robot. Publishes nothing; the only services it calls read parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.action.graph import get_action_names_and_types
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.tool_monitor import ToolSample
from sqap_vla_ros.control.camera.image_gate import ImageGate
from sqap_vla_ros.control.clock_monitor import read_clocks
from sqap_vla_ros.nodes.check.processors import ProcessorTime
from sqap_vla_ros.nodes.check.snapshot import Arrival, CommandTopic, Snapshot
from sqap_vla_ros.nodes.check.transform_watch import TransformWatch
from sqap_vla_ros.nodes.messages import time_ns
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.grippers.actions import action_name
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.nodes.policy.inputs import Inputs, make_observer
from sqap_vla_ros.nodes.policy.observer import ObservationProblem
from sqap_vla_ros.nodes.policy.publishers import NAMELESS, HearAll, Listener, node_name
from sqap_vla_ros.nodes.policy.safety_stop import SafetyStop
from sqap_vla_ros.nodes.policy.sinks.table import SINKS
from sqap_vla_ros.nodes.tf.api import Buffer, TransformListener

KEPT = 60  # images, each about a megabyte; camera_infos and joint states are kept whole
TOOL_PERIOD_S = 0.02
DISCOVERY_S = 5.0  # on a busy computer, until publishers that run are heard
STATUS = "_action/status"  # of an action, published by each of its servers
ANSWER_S = 2.0  # within which a controller tells its parameters
# Parameters of controllers that decide how commands are taken, by the last part of their names.
ASKED = frozenset(
    {
        "interpolate_from_desired_state",
        "open_loop_control",
        "allow_partial_joints_goal",
        "joints",
        "command_joints",
        "command_interfaces",
        "command_in_type",
    }
)


class Collector:
    """Subscribes as policy_node does, and keeps what comes."""

    def __init__(self, node: Node, values: Mapping[str, Any]) -> None:
        """node: in the namespace and with the remappings of policy_node. values: its parameters."""
        self._node = node
        self._values = values
        self._simulated = bool(node.get_parameter("use_sim_time").value)
        self._inputs = Inputs(
            node, values, simulated_time=self._simulated, turn=lambda: None, wake=lambda: None
        )  # what is listened to, and how
        self._safety_stop = SafetyStop(node)
        self._arrivals: dict[str, list[Arrival]] = {}
        self._images: list[Any] = []
        self._infos: list[Any] = []
        self._joint_states: list[tuple[Any, Arrival]] = []
        self._tools: list[tuple[ToolSample, int]] = []
        self._description: str | None = values["robot_description"] or None
        self._descriptions: dict[bytes, str] = {}  # by publisher
        compressed = values["image_transport"] == "compressed"
        listeners = self._inputs.listeners()
        image, info, joints, description = listeners[:4]
        self._topics = {
            "image": image.topic,
            "camera_info": info.topic,
            "joint_states": joints.topic,
            "robot_description": description.topic,
        }
        for listener, kind, keep in (
            (image, CompressedImage if compressed else Image, self._keep_image),
            (info, CameraInfo, self._keep_info),
            (joints, JointState, self._keep_joints),
        ):
            self._record(listener, kind, keep)
        HearAll(node, String, "robot_description", self._keep_description)
        self._buffer = Buffer()
        self._listener = TransformListener(self._buffer, node, spin_thread=False)
        self._transforms = TransformWatch(node)
        gate = ImageGate(configuration.image_gate_config(values))
        self._observer = make_observer(values, self._buffer, gate, (image.topic, info.topic))
        self._longest_pause_s, self._measured_s = 0.0, time.monotonic()
        node.create_timer(TOOL_PERIOD_S, self._measure_tool, clock=Clock(clock_type=ClockType.STEADY_TIME))
        stop = Listener(listeners[0].source, self._safety_stop.topic, "std_msgs/msg/Bool")
        self._listeners = (*listeners, stop)
        self._commands = tuple(_command_topics(node, values))

    def collect(self, seconds: float) -> Snapshot:
        """Listen for so long, once images and joint states are heard or do not come, and return what came."""
        executor = SingleThreadedExecutor(context=self._node.context)
        executor.add_node(self._node)
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < DISCOVERY_S and not (self._images and self._infos and self._joint_states):
            executor.spin_once(timeout_sec=0.05)
        for early in (self._arrivals, self._joint_states, self._tools):  # rates count from now on
            early.clear()
        self._longest_pause_s, (begin_ns, begin_s) = 0.0, read_clocks(self._now_ns)
        processors = ProcessorTime.read()
        while time.monotonic() - begin_s < seconds:
            executor.spin_once(timeout_sec=0.05)
        now_ns, now_s = read_clocks(self._now_ns)
        graph = self._node
        commanded = {command.topic for command in self._commands}
        subscribers = {topic: tuple(graph.get_subscriptions_info_by_topic(topic)) for topic in commanded}
        heard = {listener.topic for listener in self._listeners}
        arm = [command.topic for command in self._commands if command.subject == "arm"]
        gripper = action_name(graph, self._values["gripper_action"])
        controllers = sorted({node_name(endpoint) for topic in arm for endpoint in subscribers[topic]})
        snapshot = Snapshot(
            values=self._values,
            node=f"{graph.get_namespace().rstrip('/')}/policy_node",
            topics=self._topics,
            simulated_time=self._simulated,
            now_ns=now_ns,
            listened_s=now_s - begin_s,
            passed_s=(now_ns - begin_ns) / NS_PER_S,
            free=ProcessorTime.read().free_since(processors),
            paused_s=self._longest_pause_s,
            clock_publishers=tuple(sorted({*map(node_name, _named(graph, "/clock"))})),
            listeners=self._listeners,
            commands=self._commands,
            buffer=self._buffer,
            arrivals={topic: tuple(arrivals) for topic, arrivals in self._arrivals.items()},
            images=tuple(self._images),
            infos=tuple(self._infos),
            joint_states=tuple(self._joint_states),
            tools=tuple(self._tools),
            description=self._description,
            descriptions=dict(self._descriptions),
            frames=self._transforms.frames(),
            publishers={topic: _named(graph, topic) for topic in heard | commanded},
            subscribers=subscribers,
            kinds={name: tuple(kinds) for name, kinds in graph.get_topic_names_and_types()},
            controllers={name: self._parameters_of(name, executor) for name in controllers},
            actions={name: tuple(kinds) for name, kinds in get_action_names_and_types(graph)},
            gripper_action=gripper,
            gripper_servers=tuple(sorted(map(node_name, _named(graph, f"{gripper}/{STATUS}")))),
            safety_stop=self._safety_stop.reason(time.monotonic()),
        )
        executor.remove_node(self._node)
        executor.shutdown()
        return snapshot

    def _record(self, listener: Listener, kind: type, keep: Callable[[Any, Arrival], None]) -> None:
        def on_message(message: Any) -> None:
            keep(message, Arrival(time_ns(message.header.stamp), self._now_ns(), time.monotonic()))

        assert listener.qos is not None
        self._node.create_subscription(kind, listener.topic, on_message, listener.qos)

    def _keep_image(self, message: Any, arrival: Arrival) -> None:
        self._arrivals.setdefault(self._topics["image"], []).append(arrival)
        self._images.append(message)
        del self._images[:-KEPT]

    def _keep_info(self, message: CameraInfo, arrival: Arrival) -> None:
        self._arrivals.setdefault(self._topics["camera_info"], []).append(arrival)
        self._infos.append(message)

    def _keep_joints(self, message: JointState, arrival: Arrival) -> None:
        self._joint_states.append((message, arrival))

    def _keep_description(self, message: String, publisher: bytes) -> None:
        self._description = self._descriptions[publisher] = message.data

    def _measure_tool(self) -> None:
        now_s = time.monotonic()
        self._longest_pause_s = max(self._longest_pause_s, now_s - self._measured_s - TOOL_PERIOD_S)
        self._measured_s = now_s
        try:
            sample = ToolSample(*self._observer.measured_tool())
        except ObservationProblem:
            return
        self._tools.append((sample, self._now_ns()))

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _parameters_of(self, name: str, executor: SingleThreadedExecutor) -> dict[str, Any] | None:
        """Return the parameters of a node that are asked for, by the last part of their names; None without answer."""
        listed = self._call(ListParameters, f"{name}/list_parameters", ListParameters.Request(), executor)
        if listed is None:
            return None
        wanted = [parameter for parameter in listed.result.names if parameter.rpartition(".")[2] in ASKED]
        request = GetParameters.Request(names=wanted)
        found = self._call(GetParameters, f"{name}/get_parameters", request, executor)
        if found is None:
            return None
        return {
            parameter.rpartition(".")[2]: parameter_value_to_python(value)
            for parameter, value in zip(wanted, found.values, strict=False)
        }

    def _call(self, kind: Any, name: str, request: Any, executor: SingleThreadedExecutor) -> Any:
        client = self._node.create_client(kind, name)
        deadline_s = time.monotonic() + ANSWER_S
        while not client.service_is_ready() and time.monotonic() < deadline_s:
            executor.spin_once(timeout_sec=0.05)
        answer: Future | None = client.call_async(request) if client.service_is_ready() else None
        while answer is not None and not answer.done() and time.monotonic() < deadline_s:
            executor.spin_once(timeout_sec=0.05)
        self._node.destroy_client(client)
        return answer.result() if answer is not None and answer.done() else None


def _named(graph: Node, topic: str) -> tuple[Any, ...]:
    """Return the publishers of a topic whose nodes are known."""
    return tuple(p for p in graph.get_publishers_info_by_topic(topic) if p.node_name != NAMELESS)


def _command_topics(node: Node, values: Mapping[str, Any]) -> Sequence[CommandTopic]:
    arm, gripper = SINKS[values["output_mode"]], GRIPPER_SINKS[values["gripper_output"]]
    named = [("arm", arm.TOPIC, arm.MESSAGE), ("gripper", gripper.TOPIC, gripper.MESSAGE)]
    return [
        CommandTopic(subject, node.resolve_topic_name(topic), _type_name(kind))
        for subject, topic, kind in named
        if topic and kind is not None
    ]


def _type_name(kind: type) -> str:
    """Return the name of a message type as the graph has it, such as sensor_msgs/msg/Image."""
    return f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"
