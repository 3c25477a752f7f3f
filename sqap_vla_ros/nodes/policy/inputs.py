"""The sensors of the policy node: subscriptions to images, camera_info, TF, joint states and the robot's description.

Callbacks store and return. Nothing here decides: `problems` says what is wrong, `take_view` makes the observation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.joint_monitor import JointMonitor
from sqap_vla_ros.control.arm.tool_monitor import ToolMonitor, ToolMonitorConfig, ToolSample
from sqap_vla_ros.control.camera.image_gate import ImageGate, Order
from sqap_vla_ros.control.camera.time_sync import ImageInfoSync
from sqap_vla_ros.control.clock_monitor import ClockMonitor
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.description import DescriptionReader
from sqap_vla_ros.control.refusals import Refusals
from sqap_vla_ros.nodes import images, messages
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.observer import (
    Frame,
    ObservationProblem,
    Observer,
    TransformMissing,
    View,
    WaitingFrames,
)
from sqap_vla_ros.nodes.policy.publishers import HearAll, Listener, Mismatch
from sqap_vla_ros.nodes.policy.sinks.sink import Measured
from sqap_vla_ros.nodes.tf.api import Buffer, TransformListener
from sqap_vla_ros.nodes.tf.transform_gate import TransformGate
from sqap_vla_ros.robot.kinematics import ArmKinematics

JOINTS_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)  # hears reliable drivers too
TF_QOS = QoSProfile(depth=100)  # of tf2's listener
TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RETRY_S = 0.002  # between looks whether the transforms of an image have come; a look costs a tenth of that
TF_AGE_S = 0.5  # the tool's transform may be older by tf_timeout_s
TOGETHER_NS = 100_000_000  # stamps of joint_states and TF that are compared
MANY_INFOS = 20  # camera_infos without an image between them


class Inputs:
    """Images that wait for their prediction, and what is known about the arm."""

    def __init__(
        self,
        node: Any,
        values: Mapping[str, Any],
        *,
        simulated_time: bool,
        turn: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        """turn: called when an image can be looked at. wake: makes the executor turn, from any thread.

        simulated_time: the node follows /clock.
        """
        self._node = node
        self._log = node.get_logger()
        self._turn = turn
        self._tf_timeout_s: float = values["tf_timeout_s"]
        self._tool_in_base: tuple[str, str] = values["base_frame"], values["tool_frame"]
        self.gate = ImageGate(configuration.image_gate_config(values))
        self.sync = ImageInfoSync(self._on_pair)
        self.arm = JointMonitor(values["joint_states_timeout_s"], values["gripper_joint"])
        self.tool = ToolMonitor(ToolMonitorConfig(max_age_s=TF_AGE_S + self._tf_timeout_s))
        self._clock = ClockMonitor(simulated=simulated_time)
        self._descriptions = DescriptionReader(
            values["base_frame"], values["tool_frame"], wake, configuration.inverse_config(values)
        )
        if values["robot_description"]:
            self._descriptions.submit(values["robot_description"])
        self.superseded = 0
        self._waiting = WaitingFrames(self._tf_timeout_s)
        self._observation_problem: dict[Input, str] = {}  # why the newest image could not be used
        self._late: str | None = None  # how the newest image was too old, or in the future, when it came
        self._task: object | None = None
        self._tool_missing: str | None = None  # why the tool's newest pose is not known
        self._expected_since_s = time.monotonic()
        self._refusals = Refusals()  # of images whose stamps make no sense, by the steady clock
        self._infos_before = 0  # camera_infos received when the newest image came

        compressed = self._compressed = values["image_transport"] == "compressed"
        reliable = values["image_reliability"] == "reliable"
        image_qos = QoSProfile(
            depth=values["image_depth"],
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        image_type, image_topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self._mismatches = [Mismatch() for _ in range(3)]
        self._subscriptions = [
            node.create_subscription(kind, topic, callback, qos, event_callbacks=mismatch.events)
            for (kind, topic, callback, qos), mismatch in zip(
                (
                    (image_type, image_topic, self._on_image, image_qos),
                    (CameraInfo, "camera_info", self.sync.add_info, image_qos),
                    (JointState, "joint_states", self._on_joint_states, JOINTS_QOS),
                ),
                self._mismatches,
                strict=True,
            )
        ]
        image, info, _ = self._subscriptions
        self._description = HearAll(node, String, "robot_description", self._on_description)
        self.image_topic: str = image.topic_name
        self.info_topic: str = info.topic_name
        self._buffer = Buffer()
        self._transforms = TransformGate(self._buffer, self._now_ns)
        self._tf_listener = TransformListener(self._transforms, node, spin_thread=False)
        self.observer = make_observer(values, self._buffer, self.gate, (self.image_topic, self.info_topic))
        self._retry = node.create_timer(RETRY_S, self._on_retry, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._retry.cancel()

    @property
    def waiting(self) -> bool:
        """True while an image waits for its prediction."""
        return bool(self._waiting)

    def listeners(self) -> list[Listener]:
        """Return what this node listens to, for the watch over publishers that are not heard."""
        image, info, joints = self._subscriptions
        kind = "sensor_msgs/msg/CompressedImage" if self._compressed else "sensor_msgs/msg/Image"
        remedy = ": set image_reliability to 'best_effort'"
        tf = "tf2_msgs/msg/TFMessage"
        lost, no_info, no_joints = self._mismatches
        return [
            Listener(Input.IMAGE, image.topic_name, kind, image.qos_profile, remedy, lost),
            Listener(
                Input.CAMERA_INFO, info.topic_name, "sensor_msgs/msg/CameraInfo", info.qos_profile, remedy, no_info
            ),
            Listener(
                Input.JOINT_STATES, joints.topic_name, "sensor_msgs/msg/JointState", joints.qos_profile, "", no_joints
            ),
            Listener(Input.JOINT_STATES, self._description.topic, "std_msgs/msg/String"),
            Listener(Input.TF, "/tf", tf, TF_QOS),
            Listener(Input.TF, "/tf_static", tf, TF_STATIC_QOS, ": static transforms must be published latched"),
        ]

    def expect_images(self, now_s: float) -> None:
        """Count the silence of the camera from now on."""
        self._expected_since_s = now_s

    def expire(self, now_s: float) -> None:
        """Give up what waited too long; called regularly."""
        self.sync.expire(now_s)

    def forget(self) -> None:
        """Forget images and transforms: time jumped, nothing known about times is true any more."""
        self.gate.reset()
        self.sync.reset()
        self.tool.forget()
        self.arm.forget()
        self._buffer.clear()
        self._waiting.clear()
        self._late = None
        self.serve(None, moves=False)

    def problems(self, now_ns: int, now_s: float) -> dict[Input, str]:
        """Return what is wrong with clock, image, camera_info and TF.

        A clock that stands explains everything else. What is wrong with images explains why none could be used; it does
        not hide what is wrong with the tool's transform, which is looked up without them.
        """
        if (stopped := self._clock.problem(now_ns, now_s)) is not None:
            return {Input.CLOCK: stopped}
        found = self._image_problem(now_s) or dict(self._observation_problem)
        contested = self._transforms.contested(*self._tool_in_base)
        if (unknown := self._tool_missing or contested or self.tool.problem(now_ns)) is not None:
            found.setdefault(Input.TF, unknown)
        if Input.TF in found and (refused := self._transforms.problem()) is not None:
            found[Input.TF] += f"; {refused}"
        return found

    def _image_problem(self, now_s: float) -> dict[Input, str]:
        """Return what is wrong with the stream of images and camera_info.

        Images that are refused, or lack their camera_info, are no reason to keep silent about a stream that stopped.
        """
        if (unpaired := self.sync.problem(now_s)) is not None:
            found = {Input.CAMERA_INFO: f"{unpaired} ({self.image_topic}, {self.info_topic})"}
            if (silent_s := self.sync.silent_s(now_s)) >= (limit_s := self.gate.config.timeout_s):
                found[Input.IMAGE] = f"no new image for {silent_s:.1f} s (limit {limit_s:g} s) on {self.image_topic}"
            return found
        silence = self.gate.silence(now_s, self._expected_since_s)
        steady_ns = round(now_s * NS_PER_S)
        refused = self._refusals.newest(steady_ns) if silence is not None else self._refusals.problem(steady_ns)
        if refused is not None:
            return {Input.IMAGE: "; ".join(filter(None, (f"{refused} ({self.image_topic})", silence)))}
        if silence is not None:
            return {Input.IMAGE: f"{silence} on {self.image_topic}{self._large_images()}"}
        if self._late is not None:  # also where no prediction is due, which would say so
            return {Input.IMAGE: f"{self._late} ({self.image_topic})"}
        return {}

    def serve(self, task: object | None, *, moves: bool) -> None:
        """Note the task that images are used for; without one it is forgotten what was wrong, and which camera it was.

        moves: it moves the arm; then static transforms must stay as they were when it began.
        """
        if task is None:
            self._observation_problem, self._tool_missing = {}, None
            self.gate.begin()
        if task is not self._task or task is None or not moves:
            self._transforms.accept_statics()
        self._task = task

    def take_view(self, instruction: str, now_ns: int, now_s: float) -> View | None:
        """Return the observation of the newest image whose transforms have come; None when none can be used now.

        Older images are superseded. While an image still waits for its transforms, another turn follows soon.
        """
        found = None
        for frame in reversed(tuple(self._waiting)):
            try:
                found = self.observer.observe(frame, instruction, now_ns)
            except TransformMissing as error:
                if now_s - frame.arrived_s <= self._tf_timeout_s:
                    continue  # it may still come; an older image may have its transforms already
                self._observation_problem = {Input.TF: str(error)}
            except ObservationProblem as error:
                if frame is self._waiting[-1]:
                    self._observation_problem = {error.source: str(error)}
            else:
                self._observation_problem = {}
                base, tool = self._tool_in_base
                if (moved := self._transforms.moved(base, frame.frame_id, tool)) is not None:
                    self._observation_problem, found = {Input.IMAGE: moved}, None
                elif (glitch := self.tool.contradiction(ToolSample(found.base_from_tool, frame.stamp_ns))) is not None:
                    self._observation_problem, found = {Input.TF: glitch}, None
            # Used or useless: so are the older ones.
            while (first := self._waiting.popleft()) is not frame:
                self.superseded += 1
            self.superseded += first is frame and found is None
            break
        if self._waiting:
            self._retry.reset()
        return found

    def measured(self) -> Measured:
        """Return where the arm is believed to be."""
        newest = self.tool.newest
        return Measured(None if newest is None else newest.pose, self.arm.joints)

    def measure_tool(self) -> ToolSample | None:
        """Look up the newest pose of the tool; return what is believed of it, None when it is not known."""
        try:
            self.tool.update(ToolSample(*self.observer.measured_tool()))
        except ObservationProblem as error:
            self._tool_missing = str(error)
            return None
        self._tool_missing = None
        return self.tool.newest

    def tool_by_joints(self, at_ns: int) -> NDArray[np.float64] | None:
        """Return base_from_tool [4, 4] by joint_states of about that time; None without any."""
        joints, stamp_ns = self.arm.joints, self.arm.stamp_ns
        if self.arm.kinematics is None or joints is None or stamp_ns is None:
            return None
        return self.arm.kinematics.forward(joints) if abs(at_ns - stamp_ns) < TOGETHER_NS else None

    def new_description(self) -> str | None:
        """Use a robot_description that was read meanwhile. Return why what moves must stop, or None."""
        match self._descriptions.take():
            case ArmKinematics() as kinematics:
                before = self.arm.kinematics
                if before is not None and before.same_arm(kinematics):
                    return None  # comments, colours or other robots changed
                self.arm.adopt(kinematics)
                return None if before is None else "another robot_description came"
            case str(problem):
                self.arm.refuse_description(problem)
                self._log.error(f"robot_description: {problem}")
        return None

    def destroy(self) -> None:
        """Remove everything from the node."""
        self._node.destroy_timer(self._retry)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._description.destroy()
        self._tf_listener.unregister()

    def _on_pair(self, image: Any, camera_info: Any) -> None:
        now_s = time.monotonic()
        stamp_ns = messages.time_ns(image.header.stamp)
        self._infos_before = self.sync.counters.camera_infos
        if self.gate.arrive(stamp_ns, now_s) is not Order.NEW:
            return
        self._late = self.gate.age(stamp_ns, self._now_ns())
        self.superseded += self._waiting.add(Frame(image, camera_info, stamp_ns, now_s))
        self._turn()

    def _on_joint_states(self, message: JointState) -> None:
        self.arm.update(message.name, message.position, messages.time_ns(message.header.stamp), self._now_ns())

    def _on_description(self, message: String, _publisher: bytes) -> None:
        self._descriptions.submit(message.data)

    def _on_image(self, message: Any) -> None:
        unusable = self.gate.stamp_problem(messages.time_ns(message.header.stamp), self._now_ns())
        if unusable is None:
            self.sync.add_image(message)
        else:
            self._refusals.add(round(time.monotonic() * NS_PER_S), unusable)

    def _large_images(self) -> str:
        """Return the advice for images that are lost although the camera runs."""
        if self.sync.counters.camera_infos - self._infos_before < MANY_INFOS:
            return ""
        return (
            f", but {self.info_topic} comes: large images are lost where the middleware's shared memory is small "
            "(start with config/fastdds_shm.xml), and when image_reliability does not fit the driver"
        )

    def _on_retry(self) -> None:
        self._retry.cancel()
        self._turn()

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)


def make_observer(values: Mapping[str, Any], buffer: Buffer, gate: ImageGate, topics: tuple[str, str]) -> Observer:
    """Return the observer that the parameters describe. topics: resolved names of image and camera_info."""
    return Observer(
        buffer,
        gate,
        images.compressed_to_rgb if values["image_transport"] == "compressed" else images.to_rgb,
        base_frame=values["base_frame"],
        tool_frame=values["tool_frame"],
        rectified=values["image_rectified"],
        optical_frame_rectified=values["optical_frame_rectified"],
        contract=configuration.camera_contract(values),
        topics=topics,
    )
