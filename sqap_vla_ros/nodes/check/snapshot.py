"""A snapshot of the robot, which the checks look at: messages, the graph and a trial of the policy."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk, PolicyInfo
from sqap_vla_ros.control.arm.tool_monitor import ToolSample
from sqap_vla_ros.control.camera.image_gate import ImageGate
from sqap_vla_ros.control.description import read_description
from sqap_vla_ros.nodes.check.transform_watch import Frames
from sqap_vla_ros.nodes.messages import time_ns
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.inputs import make_observer
from sqap_vla_ros.nodes.policy.observer import Frame, ObservationProblem, Observer, View
from sqap_vla_ros.nodes.policy.publishers import Listener
from sqap_vla_ros.nodes.tf.api import Buffer
from sqap_vla_ros.robot.kinematics import ArmKinematics

FREE_SHARE, PAUSE_S = 0.1, 0.05  # less free time of the processors, or a longer pause of the check, is busy
NO_FRAMES = Frames({}, {}, {})
_STDERR = 2  # of the process


@dataclass(frozen=True)
class Arrival:
    """One message. stamp_ns: its header's; now_ns: ROS time when it came; at_s: the same by the steady clock."""

    stamp_ns: int
    now_ns: int
    at_s: float

    @property
    def age_s(self) -> float:
        """Age of the stamp when the message came, seconds; negative for one from the future."""
        return (self.now_ns - self.stamp_ns) / NS_PER_S


@dataclass(frozen=True)
class CommandTopic:
    """A topic that the node will command on. subject: of the arm or the gripper."""

    subject: str
    topic: str
    kind: str


@dataclass(frozen=True)
class PolicyTrial:
    """Dry predictions of the policy in its worker process.

    failure: why it did not load or predict, None when it did. latencies_s: one a prediction, from the observation
    handed over to the chunk received. info and chunk: of the policy and its last prediction, where there is one.
    """

    failure: str | None = None
    latencies_s: tuple[float, ...] = ()
    info: PolicyInfo | None = None
    chunk: ActionChunk | None = None
    loaded_s: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """All that is known about the robot, without a running ROS.

    values: parameters of policy_node. node: its fully qualified name. topics: resolved names of `image`, `camera_info`,
        `joint_states`, `robot_description`.
    now_ns: ROS time at the end of listening; listened_s: for how long, passed_s: how much ROS time passed meanwhile.
    free: share of the processors' time that nobody used meanwhile. paused_s: the longest time for which this process
        itself could not listen.
    clock_publishers: nodes that publish /clock.
    arrivals: resolved topic of images and camera_infos -> messages in order. images, infos, joint_states: messages, the
        newest last; joint states with their arrival.
    descriptions: publisher of robot_description -> its newest text, b"" where the middleware does not tell it apart.
    frames: the tree of frames, and who says what of them.
    tools: poses of the tool as TF had them while listening. buffer: transforms.
    publishers, subscribers: topic -> endpoints as rclpy describes them. kinds: topic of the graph -> types.
    controllers: node that listens to the arm's commands -> its parameters; None where it does not tell.
    actions: action of the graph -> types. gripper_servers: nodes that serve gripper_action.
    safety_stop: why nothing may move, None when nothing speaks against it.
    trial: None where it was not asked for.
    """

    values: Mapping[str, Any]
    node: str
    topics: Mapping[str, str]
    simulated_time: bool
    now_ns: int
    listened_s: float
    passed_s: float
    listeners: tuple[Listener, ...]
    commands: tuple[CommandTopic, ...]
    buffer: Buffer
    arrivals: Mapping[str, tuple[Arrival, ...]] = field(default_factory=dict)
    images: tuple[Any, ...] = ()
    infos: tuple[Any, ...] = ()
    joint_states: tuple[tuple[Any, Arrival], ...] = ()
    tools: tuple[tuple[ToolSample, int], ...] = ()
    description: str | None = None
    descriptions: Mapping[bytes, str] = field(default_factory=dict)
    frames: Frames = NO_FRAMES
    publishers: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    subscribers: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    controllers: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    actions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gripper_action: str = ""
    gripper_servers: tuple[str, ...] = ()
    safety_stop: str | None = None
    free: float = 1.0
    paused_s: float = 0.0
    clock_publishers: tuple[str, ...] = ()
    trial: PolicyTrial | None = None

    @property
    def busy(self) -> bool:
        """True where this computer had no time to spare, so that what came unevenly may have been sent evenly."""
        return self.free < FREE_SHARE or self.paused_s > PAUSE_S

    @property
    def timeless(self) -> bool:
        """True while simulated time has not begun: no stamp can be judged."""
        return self.simulated_time and self.now_ns == 0

    @property
    def protects_gripper(self) -> bool:
        """True unless the policy is known to select no tokens around the gripper's pixel."""
        info = None if self.trial is None else self.trial.info
        return info is None or info.looks_at_gripper

    @cached_property
    def arm_joint_states(self) -> tuple[tuple[Any, Arrival], ...]:
        """The joint states with joints of the arm, others being passed over by the node; all, where there are none."""
        if isinstance(self.arm, str):
            return self.joint_states
        names = set(self.arm.joint_names)
        return tuple(pair for pair in self.joint_states if names & set(pair[0].name)) or self.joint_states

    @cached_property
    def frame(self) -> Frame | None:
        """The newest image with the camera_info of its stamp and the transforms that it needs, or the newest without.

        None when no image has a camera_info of its stamp.
        """
        infos = {time_ns(info.header.stamp): info for info in self.infos}
        pairs = [
            Frame(image, infos[time_ns(image.header.stamp)], time_ns(image.header.stamp), 0.0)
            for image in self.images
            if time_ns(image.header.stamp) in infos
        ]
        covered = self.tools[-1][0].stamp_ns if self.tools else 0
        usable = [pair for pair in pairs if not covered or pair.stamp_ns <= covered]
        return usable[-1] if usable else pairs[-1] if pairs else None

    @cached_property
    def observer(self) -> Observer:
        """The policy node's observer, over these transforms."""
        gate = ImageGate(configuration.image_gate_config(self.values))
        observer = make_observer(self.values, self.buffer, gate, (self.topics["image"], self.topics["camera_info"]))
        observer.needs_projection = self.protects_gripper
        return observer

    @cached_property
    def view(self) -> View | ObservationProblem | None:
        """The observation of `frame`, or why there is none; None without a frame. Its age is judged elsewhere."""
        if self.frame is None:
            return None
        try:
            return self.observer.observe(self.frame, self.values["instruction"], self.frame.stamp_ns)
        except ObservationProblem as error:
            return error

    @cached_property
    def arm(self) -> ArmKinematics | str:
        """The arm of robot_description, or why there is none."""
        if not self.description:
            return f"no robot_description was received on {self.topics['robot_description']}"
        config = configuration.inverse_config(self.values)
        frames = self.values["base_frame"], self.values["tool_frame"]
        with _quiet():  # the parser of URDFs writes of its own about what `arm` says
            return read_description(self.description, *frames, config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Throw away what libraries below Python write to standard error."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
