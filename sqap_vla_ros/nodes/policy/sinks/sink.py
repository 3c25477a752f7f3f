"""The interface of an output mode, and what the modes share.

`start` takes over a trajectory that passed every check, `tick` is called at the command rate, `hold` brings the arm to
rest. Until the first `start` nothing is ever sent. Every motion ends at rest, with or without a hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.qos import QoSProfile

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.joint_monitor import JointMonitor
from sqap_vla_ros.control.motion import UnsafeChunk
from sqap_vla_ros.robot.braking import brought_to_rest
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.gripper.joint_path import GripperJointPath
from sqap_vla_ros.robot.holding import Evidence, HoldReason, hold_tool, motion_limits
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import PoseTrajectory, hold, interrupted, since, under_way

COMMAND_QOS = QoSProfile(depth=1)  # reliable: a command must arrive, and only the newest matters
REPEAT_NS = 200_000_000  # the end of a motion is said again for this long
UNDELIVERED_NS = 1_000_000_000  # and so much longer while a subscriber does not acknowledge it
SEAM_M, SEAM_RAD = 0.01, 0.05  # two poses no further apart than this are the same place
REMEMBERED_NS = 2 * NS_PER_S  # of a stream's paths before the newest, for measurements come late


@dataclass(frozen=True)
class Measured:
    """The measured arm. base_from_tool: [4, 4]; joints: [n] rad in the order of the kinematics. None: not known."""

    base_from_tool: NDArray[np.float64] | None
    joints: NDArray[np.float64] | None


@dataclass(frozen=True)
class MeasuredTool:
    """base_from_tool: [4, 4] as TF last had it. shows_ns: time of the command it shows, earlier by the arm's lag."""

    base_from_tool: NDArray[np.float64]
    shows_ns: int


@dataclass(frozen=True)
class SinkParts:
    """Parts of a sink. arm: joint states and kinematics; limits: of all motion; base_frame: of poses."""

    arm: JointMonitor
    limits: SafetyLimits
    base_frame: str


@dataclass(frozen=True)
class HoldOrder:
    """An order to come to rest.

    at_ns: moment of the commanded path that is left; stamp_ns: ROS time now. They differ only where ROS time jumped.
    evidence, reason, measured: see `robot.holding`.
    """

    at_ns: int
    stamp_ns: int
    evidence: Evidence
    reason: HoldReason
    measured: Measured


class Sink(ABC):
    """One output mode. A new one is a subclass and a row of `table.SINKS`.

    SUMMARY: a sentence for the documentation of the parameter output_mode.
    TOPIC, MESSAGE: name and type of the topic that it commands on.
    STREAMS: commands are sent at the command rate, so that a node that pauses leaves the arm without any.
    NEEDS_JOINTS: the mode commands joints, so that nothing may move without fresh joint_states and a robot_description.
    KEEPS_POSE: at rest the controller keeps the arm at the last command, so that the next motion may start there;
        False where commands are velocities, which keep it nowhere. Every sink states it.
    CARRIES_GRIPPER: a joint of the gripper can go along in its messages.
    """

    SUMMARY: ClassVar[str]
    TOPIC: ClassVar[str]
    MESSAGE: ClassVar[type]
    STREAMS: ClassVar[bool] = False
    NEEDS_JOINTS: ClassVar[bool] = False
    KEEPS_POSE: ClassVar[bool]
    CARRIES_GRIPPER: ClassVar[bool] = False

    publisher: Any
    # [3] rad: the most that the motion started last leaves to turn about the tool's axes; None: it meets every pose.
    residual_rad: NDArray[np.float64] | None = None

    @abstractmethod
    def __init__(self, node: Any, parts: SinkParts) -> None:
        """Create the publisher on the node."""

    @abstractmethod
    def start(self, trajectory: PoseTrajectory, measured: Measured, latest_ns: int) -> PoseTrajectory:
        """Execute this from its anchor on; return it as it is executed, slower or shorter where it has to be.

        latest_ns: it is at rest by then, also after slowing down. Raises KinematicsError or UnsafeChunk, and sends
        nothing, when the arm cannot.
        """

    @abstractmethod
    def hold(self, order: HoldOrder) -> str:
        """Bring the arm to rest, from the commanded state on; return what is done and why. Sends the first command."""

    @abstractmethod
    def tick(self, now_ns: int, tool: MeasuredTool | None) -> None:
        """Send what is due. tool: where it was last measured, None when unknown."""

    @abstractmethod
    def at_rest(self, now_ns: int) -> bool:
        """Return whether the commanded motion is over and its end has been sent."""

    @abstractmethod
    def forget(self) -> None:
        """Forget what was commanded: the next motion starts where the arm is measured."""

    @abstractmethod
    def rest_since(self, now_ns: int) -> None:
        """Keep the end of the last motion as where the arm rests, in a new time that is `now_ns`; send nothing."""

    @abstractmethod
    def commanded_tool(self, at_ns: int) -> NDArray[np.float64] | None:
        """Return base_from_tool [4, 4] as commanded for a moment; None before the first command."""

    def go_on(self, now_ns: int, longest_ns: int) -> tuple[int, int] | None:
        """Lead no further than `longest_ns` of the path on from what was sent last, however late the next sample is.

        Return when the path was left, and for how long (ns): less than nothing where the clock was set back a little.
        None where nothing is late; always, where the controller has the whole path and goes on by itself.
        """
        return None

    def left_rest(self, now_ns: int, measured: Measured) -> bool:
        """Return whether the joints say that the arm was moved from where it was told to rest."""
        return False

    def carry(self, gripper: GripperJointPath) -> None:
        """Let a joint of the gripper go along in every message from now on. Only where CARRIES_GRIPPER."""
        raise NotImplementedError(f"{type(self).__name__} carries no gripper")

    def send_again(self, now_ns: int) -> None:
        """Send the rest of what is under way, because the gripper's joint goes another way now."""
        raise NotImplementedError(f"{type(self).__name__} carries no gripper")

    def delivered(self) -> bool:
        """Return whether every reliable subscriber has acknowledged the newest command; never waits."""
        return bool(self.publisher.wait_for_all_acked(Duration(nanoseconds=0)))


class StreamSink(Sink):
    """A sink that sends samples of a path of poses at the command rate."""

    STREAMS = True
    TWIST: ClassVar[bool] = False  # the commands are velocities

    def __init__(self, node: Any, parts: SinkParts) -> None:
        self._parts = parts
        self.forget()

    def forget(self) -> None:
        # Each until the next one begins; the newest is kept after its end, for it is where the arm was told to be.
        self._paths: list[PoseTrajectory] = []
        self._sampled_ns: int | None = None  # moment of the path that was sent last
        self._silent = True  # nothing is left to be sent
        self._holding = False

    def start(self, trajectory: PoseTrajectory, measured: Measured, latest_ns: int) -> PoseTrajectory:
        path = ending_at_rest(trajectory, latest_ns, self._parts.limits)
        if self._silent:  # nothing is under way, and what was may be of another time
            self._paths, self._sampled_ns = [], None
        self._paths = self._remembered([*self._paths, path])
        self._silent = self._holding = False
        return path

    def hold(self, order: HoldOrder) -> str:
        # Of a stream the arm knows what was sent last, however long ago.
        at_ns = order.at_ns if self._sampled_ns is None else self._sampled_ns
        held = hold_tool(
            under_way(self._paths, at_ns),
            at_ns,
            order.stamp_ns,
            evidence=order.evidence,
            reason=order.reason,
            measured=order.measured.base_from_tool,
            limits=self._parts.limits,
            twist=self.TWIST,
        )
        if held.tool is not None:
            self._paths, self._silent, self._holding = [held.tool], False, True
            self.tick(order.stamp_ns, None)
        else:
            self._silent = True
        return held.text

    def tick(self, now_ns: int, tool: MeasuredTool | None) -> None:
        path = under_way(self._paths, now_ns)
        if path is None or self._silent:
            return
        said_ns = now_ns - self._paths[-1].end_ns - REPEAT_NS
        # Asked before the next one is sent: what was sent just now is never acknowledged yet.
        if said_ns >= UNDELIVERED_NS or (said_ns >= 0 and self.delivered()):
            self._silent = True
            return
        self._sampled_ns = now_ns
        self._send_sample(path, now_ns, None if self._holding else tool)

    def go_on(self, now_ns: int, longest_ns: int) -> tuple[int, int] | None:
        if self._silent or not self._paths:
            return None
        left_ns = self._paths[-1].anchor_ns if self._sampled_ns is None else self._sampled_ns
        pause_ns = now_ns - left_ns - longest_ns
        if self._sampled_ns is not None and now_ns < left_ns:
            pause_ns = now_ns - left_ns
        elif pause_ns <= 0:
            return None
        if left_ns >= self._paths[-1].end_ns:
            return None  # the end is all that is left to be sent
        self._paths = self._remembered(interrupted(self._paths, left_ns, pause_ns))
        self._sampled_ns = left_ns + pause_ns
        return left_ns, pause_ns

    def rest_since(self, now_ns: int) -> None:
        rest = self._paths[-1] if self._paths else None
        self.forget()
        if rest is not None:
            self._paths = [hold(rest.poses[-1], float(rest.gripper[-1]), now_ns)]

    def at_rest(self, now_ns: int) -> bool:
        # A hold is repeated before it is relied on; a motion that ended by itself is gone on from at once.
        repeated_ns = REPEAT_NS if self._holding else 0
        return not self._paths or self._silent or now_ns >= self._paths[-1].end_ns + repeated_ns

    def commanded_tool(self, at_ns: int) -> NDArray[np.float64] | None:
        path = under_way(self._paths, at_ns)
        return None if path is None else path.sample(at_ns)[0]

    @staticmethod
    def _remembered(paths: list[PoseTrajectory]) -> list[PoseTrajectory]:
        return list(since(paths, paths[-1].anchor_ns - REMEMBERED_NS))

    @abstractmethod
    def _send_sample(self, path: PoseTrajectory, now_ns: int, tool: MeasuredTool | None) -> None:
        """Send the command that is due on the path. tool: as measured, None where it must not be made use of."""


def ending_at_rest(trajectory: PoseTrajectory, latest_ns: int, limits: SafetyLimits) -> PoseTrajectory:
    """Return the trajectory with an end at rest, by `latest_ns`. Raises UnsafeChunk when nothing of it is left."""
    braking = motion_limits(limits)
    ended = brought_to_rest(trajectory, braking)
    if ended.end_ns <= latest_ns:
        return ended
    shorter = trajectory.until(latest_ns - (ended.end_ns - trajectory.end_ns))
    if shorter is not None and (ended := brought_to_rest(shorter, braking)).end_ns <= latest_ns:
        return ended
    raise UnsafeChunk("nothing of the chunk is executed and at rest within max_open_loop_s of its image")


def same_place(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Return whether two poses [4, 4] are so near that a motion may begin at either."""
    away_m, away_rad = pose_distance(a, b)
    return away_m <= SEAM_M and away_rad <= SEAM_RAD
