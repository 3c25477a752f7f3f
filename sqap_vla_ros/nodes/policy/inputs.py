"""The sensors of the policy node: subscriptions to images, camera_info, TF, joint states and the robot's description.

Callbacks store and return. Nothing here decides: `problems` says what is wrong, `take_view` makes the observation.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.executive import Input
from sqap_vla_ros.control.image_gate import ImageGate, Order
from sqap_vla_ros.control.joint_monitor import JointMonitor
from sqap_vla_ros.control.time_sync import ImageInfoSync
from sqap_vla_ros.nodes import images, messages
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.observer import Frame, ObservationProblem, Observer, TransformMissing, View
from sqap_vla_ros.nodes.policy.sinks import Measured
from sqap_vla_ros.nodes.tf.api import Buffer, TransformListener

LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RETRY_S = 0.002  # between looks whether the transforms of an image have come; a look costs a tenth of that
WAITING_IMAGES = 8  # images that may wait for their transforms at the same time


class Inputs:
    """Images that wait for their prediction, and what is known about the arm."""

    def __init__(
        self, node: Any, values: Mapping[str, Any], *, turn: Callable[[], None], time_jumped: Callable[[str], None]
    ) -> None:
        """turn: called when an image can be looked at. time_jumped: called, with the reason, when stamps go back."""
        self._node = node
        self._log = node.get_logger()
        self._turn = turn
        self._time_jumped = time_jumped
        self._tf_timeout_s: float = values["tf_timeout_s"]
        self.gate = ImageGate(configuration.image_gate_config(values))
        self.sync = ImageInfoSync(self._on_pair)
        self.arm = JointMonitor(values["base_frame"], values["tool_frame"], values["joint_states_timeout_s"])
        if values["robot_description"]:
            self._on_description(String(data=values["robot_description"]))
        self.superseded = 0
        self._waiting: deque[Frame] = deque(maxlen=WAITING_IMAGES)
        self._observation_problem: dict[Input, str] = {}  # why the newest image could not be used
        self._expected_since_s = time.monotonic()

        compressed = values["image_transport"] == "compressed"
        reliable = values["image_reliability"] == "reliable"
        image_qos = QoSProfile(
            depth=values["image_depth"],
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        image_type, image_topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        image = node.create_subscription(image_type, image_topic, self.sync.add_image, image_qos)
        info = node.create_subscription(CameraInfo, "camera_info", self.sync.add_info, image_qos)
        self._subscriptions = [
            image,
            info,
            node.create_subscription(JointState, "joint_states", self._on_joint_states, QoSProfile(depth=5)),
            node.create_subscription(String, "robot_description", self._on_description, LATCHED_QOS),
        ]
        self.image_topic: str = image.topic_name
        self.info_topic: str = info.topic_name
        self._buffer = Buffer()
        self._tf_listener = TransformListener(self._buffer, node, spin_thread=False)
        self.observer = Observer(
            self._buffer,
            self.gate,
            images.compressed_to_rgb if compressed else images.to_rgb,
            base_frame=values["base_frame"],
            tool_frame=values["tool_frame"],
            rectified=values["image_rectified"],
            optical_frame_rectified=values["optical_frame_rectified"],
            contract=configuration.camera_contract(values),
            topics=(self.image_topic, self.info_topic),
        )
        self._retry = node.create_timer(RETRY_S, self._on_retry, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._retry.cancel()

    @property
    def waiting(self) -> bool:
        """An image waits for its prediction."""
        return bool(self._waiting)

    def expect_images(self, now_s: float) -> None:
        """Count the silence of the camera from now on."""
        self._expected_since_s = now_s

    def expire(self, now_ns: int, now_s: float) -> None:
        """Give up what waited too long; called regularly."""
        self.sync.expire(now_s)
        self._forget_future_transforms(now_ns)

    def forget(self) -> None:
        """Forget images and transforms: time jumped, nothing known about times is true any more."""
        self.gate.reset()
        self.sync.reset()
        self._buffer.clear()
        self._waiting.clear()
        self._observation_problem = {}

    def problems(self, now_s: float) -> dict[Input, str]:
        """Return what is wrong with image, camera_info and TF: of several problems the one that explains the others."""
        if (unpaired := self.sync.problem(now_s)) is not None:
            return {Input.CAMERA_INFO: f"{unpaired} ({self.image_topic}, {self.info_topic})"}
        if (silence := self.gate.silence(now_s, self._expected_since_s)) is not None:
            return {Input.IMAGE: f"{silence} on {self.image_topic}"}
        return dict(self._observation_problem)

    def forget_problems(self) -> None:
        """Forget why the newest image could not be used: nothing is looked at while there is no mission."""
        self._observation_problem = {}

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
            # Used or useless: so are the older ones.
            while self._waiting and self._waiting[0].stamp_ns <= frame.stamp_ns:
                useless = self._waiting.popleft() is not frame or found is None
                self.superseded += useless
            break
        if self._waiting:
            self._retry.reset()
        return found

    def measured(self) -> Measured:
        """Return where the arm was last measured."""
        try:
            base_from_tool = self.observer.measured_tool()[0]
        except TransformMissing:
            base_from_tool = None
        return Measured(base_from_tool, self.arm.joints)

    def transform_missing(self, error: TransformMissing) -> None:
        """Note that the tool cannot be measured."""
        self._observation_problem = {Input.TF: str(error)}

    def destroy(self) -> None:
        """Remove everything from the node."""
        self._node.destroy_timer(self._retry)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._tf_listener.unregister()

    def _on_pair(self, image: Any, camera_info: Any) -> None:
        now_s = time.monotonic()
        stamp_ns = messages.time_ns(image.header.stamp)
        order = self.gate.arrive(stamp_ns, now_s)
        if order is Order.JUMPED_BACK:
            self._time_jumped("the images' stamps went backwards")
            order = self.gate.arrive(stamp_ns, now_s)
        if order is not Order.NEW:
            return
        while self._waiting and now_s - self._waiting[0].arrived_s > self._tf_timeout_s:
            self._waiting.popleft()
            self.superseded += 1
        self._waiting.append(Frame(image, camera_info, stamp_ns, now_s))
        self._turn()

    def _on_joint_states(self, message: JointState) -> None:
        self.arm.update(message, time.monotonic())

    def _on_description(self, message: String) -> None:
        if (problem := self.arm.set_description(message.data)) is not None:
            self._log.error(problem)

    def _on_retry(self) -> None:
        self._retry.cancel()
        self._turn()

    def _forget_future_transforms(self, now_ns: int) -> None:
        """After a jump back a transform of the old time may come last; the buffer then refuses all of the new."""
        if Input.TF not in self._observation_problem:
            return
        try:
            _, stamp_ns = self.observer.measured_tool()
        except TransformMissing:
            return
        if stamp_ns - now_ns > self.gate.config.jump_back_s * NS_PER_S:
            self._log.warning("forgetting transforms from the future, of before the time jumped")
            self._buffer.clear()
