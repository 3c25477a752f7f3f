"""Commands for the arm: one sink class for each output mode, one row of `SINKS` each, and the gripper's.

Common to all: `start` takes over a trajectory that passed every check, `tick` is called at the command rate while it is
executed, `hold` commands the measured pose once. Until the first `start` nothing is ever sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from rclpy.qos import QoSProfile
from scipy.spatial.transform import Rotation
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sqap_vla_ros.control.joint_monitor import JointMonitor
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.gripper import CLOSE_BELOW, OPEN_ABOVE, GripperCommand, GripperHysteresis
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays, preceded_by, standing
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.robot.safety import Decision, SafetyLimits
from sqap_vla_ros.robot.trajectory import PoseTrajectory

COMMAND_QOS = QoSProfile(depth=1)  # reliable: a command must arrive, and only the newest matters
HOLD_DURATION_NS = 100_000_000  # a trajectory controller needs a point in the future
MAX_SLOWINGS = 5
# A controller draws the way to a first point that lies in its future from the measured arm, which lags: a message
# begins so far in the past, on the motion under way, that it has begun when it arrives.
HEAD_NS = 30_000_000
SEAM_M, SEAM_RAD = 0.01, 0.05  # between the tool on the joint path under way and where the next motion begins
TWIST_GAIN_HZ = 2.0  # a lag is made up for in half a second
TWIST_CORRECTION_LIMITS = (0.05, 0.25)  # m/s and rad/s that a correction may add


@dataclass(frozen=True)
class Measured:
    """Where the arm is. joints: [n] rad in the order of the kinematics' joint names; None where they are not known."""

    base_from_tool: NDArray[np.float64] | None
    joints: NDArray[np.float64] | None


@dataclass(frozen=True)
class MeasuredTool:
    """base_from_tool: [4, 4] as TF last had it. shows_ns: time of the command it shows, earlier by the arm's lag."""

    base_from_tool: NDArray[np.float64]
    shows_ns: int


@dataclass(frozen=True)
class SinkParts:
    """What sinks are made of. arm: joint states and kinematics; limits: those of the joints; base_frame: of poses."""

    arm: JointMonitor
    limits: SafetyLimits
    base_frame: str


class Sink(ABC):
    """One output mode. A new one is a subclass and a row of `SINKS`.

    SUMMARY: a sentence for the documentation of the parameter output_mode.
    NEEDS_JOINTS: the mode commands joints, so that nothing may move without fresh joint_states and a robot_description.
    """

    SUMMARY: ClassVar[str]
    NEEDS_JOINTS: ClassVar[bool] = False

    publisher: Any

    @abstractmethod
    def __init__(self, node: Any, parts: SinkParts) -> None:
        """Create the publisher on the node."""

    @abstractmethod
    def start(self, trajectory: PoseTrajectory, measured: Measured) -> PoseTrajectory:
        """Execute this from its anchor on; return it as it is executed, slower where a joint needs it.

        Raises KinematicsError, and sends nothing, when the arm cannot.
        """

    @abstractmethod
    def tick(self, now_ns: int, tool: MeasuredTool | None) -> None:
        """Send what is due. tool: where it was last measured, None when unknown."""

    @abstractmethod
    def hold(self, measured: Measured, now_ns: int) -> None:
        """Command the measured pose once, and forget the trajectory."""


class JointSink(Sink):
    """trajectory_msgs/JointTrajectory with positions and velocities, one a chunk; the controller interpolates."""

    SUMMARY = "trajectory_msgs/JointTrajectory for joint_trajectory_controller, by inverse kinematics."
    NEEDS_JOINTS = True

    def __init__(self, node: Any, parts: SinkParts) -> None:
        self._monitor = parts.arm
        self._limits = parts.limits
        self._sent: JointTrajectoryArrays | None = None  # what the controller executes
        self.publisher = node.create_lifecycle_publisher(JointTrajectory, "joint_trajectory", COMMAND_QOS)

    def start(self, trajectory: PoseTrajectory, measured: Measured) -> PoseTrajectory:
        arm = self._monitor.kinematics
        if arm is None or measured.joints is None:
            raise KinematicsError("the arm's joints are not known")
        under_way = self._under_way(trajectory, measured.joints, arm)
        start = under_way.state(trajectory.anchor_ns)
        for _ in range(MAX_SLOWINGS + 1):
            arrays = arm.joint_trajectory(trajectory, start.position, start.velocity, start.acceleration)
            verdict = self._limits.check_joints(arrays, arm)
            if verdict.decision is Decision.ACCEPT:
                whole = preceded_by(under_way, arrays, trajectory.anchor_ns - HEAD_NS)
                self.publisher.publish(messages.joint_trajectory_message(whole))
                self._sent = whole
                return trajectory
            if verdict.decision is Decision.REJECT:
                break
            # a motion that starts at speed needs more than the first guess; and a redundant arm's slower motion is not
            # quite the same one
            trajectory = trajectory.slowed(verdict.time_scale)
        raise KinematicsError(verdict.text)

    def _under_way(
        self, trajectory: PoseTrajectory, measured: NDArray[np.float64], arm: ArmKinematics
    ) -> JointTrajectoryArrays:
        """The joint path that the next motion leaves: what was sent last, or rest where the motion begins.

        Not from the measured joints: these lag behind, and the first segment, a few hundredths of a second long, would
        make up for the lag at once.
        """
        if self._sent is not None and self._sent.joint_names == arm.joint_names:
            tool = arm.forward(self._sent.state(trajectory.anchor_ns).position)
            away_m, away_rad = pose_distance(tool, trajectory.anchor)
            if away_m <= SEAM_M and away_rad <= SEAM_RAD:
                return self._sent
        at_rest = arm.inverse(trajectory.anchor, measured)
        return standing(arm.joint_names, at_rest, trajectory.anchor_ns - HEAD_NS, HEAD_NS)

    def tick(self, now_ns: int, tool: MeasuredTool | None) -> None:
        pass  # the whole trajectory was sent

    def hold(self, measured: Measured, now_ns: int) -> None:
        self._sent = None
        arm = self._monitor.kinematics
        if arm is None or measured.joints is None:
            return
        message = JointTrajectory(joint_names=list(arm.joint_names))
        message.header.stamp = messages.time_message(now_ns)
        point = JointTrajectoryPoint(positions=measured.joints.tolist(), velocities=[0.0] * len(measured.joints))
        point.time_from_start.nanosec = HOLD_DURATION_NS
        message.points = [point]
        self.publisher.publish(message)


class SampledSink(Sink):
    """Base of the modes that sample the trajectory at the command rate; the controller need not know it."""

    MESSAGE: ClassVar[type]
    TOPIC: ClassVar[str]

    def __init__(self, node: Any, parts: SinkParts) -> None:
        self._base_frame = parts.base_frame
        self._trajectory: PoseTrajectory | None = None
        self.publisher = node.create_lifecycle_publisher(self.MESSAGE, self.TOPIC, COMMAND_QOS)

    def start(self, trajectory: PoseTrajectory, measured: Measured) -> PoseTrajectory:
        self._trajectory = trajectory
        return trajectory

    def tick(self, now_ns: int, tool: MeasuredTool | None) -> None:
        if self._trajectory is None:
            return
        self.send_sample(self._trajectory, now_ns, tool)
        if now_ns >= self._trajectory.end_ns:
            self._trajectory = None  # the end has been sent, and stays commanded

    def hold(self, measured: Measured, now_ns: int) -> None:
        self._trajectory = None
        self.send_rest(measured, now_ns)

    @abstractmethod
    def send_sample(self, trajectory: PoseTrajectory, now_ns: int, tool: MeasuredTool | None) -> None:
        """Send what the trajectory says of this moment."""

    @abstractmethod
    def send_rest(self, measured: Measured, now_ns: int) -> None:
        """Command the arm to stay where it is."""


class PoseSink(SampledSink):
    """geometry_msgs/PoseStamped samples of the trajectory, for a Cartesian controller."""

    SUMMARY = "PoseStamped samples for Cartesian controllers."
    MESSAGE, TOPIC = PoseStamped, "target_pose"

    def send_sample(self, trajectory: PoseTrajectory, now_ns: int, tool: MeasuredTool | None) -> None:
        self._send(trajectory.sample(now_ns)[0], now_ns)

    def send_rest(self, measured: Measured, now_ns: int) -> None:
        if measured.base_from_tool is not None:
            self._send(measured.base_from_tool, now_ns)

    def _send(self, base_from_tool: NDArray[np.float64], now_ns: int) -> None:
        header = messages.header(now_ns, self._base_frame)
        self.publisher.publish(PoseStamped(header=header, pose=messages.pose_message(base_from_tool)))


class TwistSink(SampledSink):
    """geometry_msgs/TwistStamped samples in the base frame, for moveit_servo. Holding is a zero twist here.

    The trajectory's velocity and a bounded correction towards where the trajectory has the tool: a velocity alone never
    makes up for what was lost on the way.
    """

    SUMMARY = "TwistStamped samples for moveit_servo."
    MESSAGE, TOPIC = TwistStamped, "delta_twist_cmds"

    def send_sample(self, trajectory: PoseTrajectory, now_ns: int, tool: MeasuredTool | None) -> None:
        twist = trajectory.twist(now_ns)
        if tool is not None and now_ns < trajectory.end_ns:
            twist = twist + tracking_twist(trajectory.sample(tool.shows_ns)[0], tool.base_from_tool)
        self._send(twist, now_ns)

    def send_rest(self, measured: Measured, now_ns: int) -> None:
        self._send(np.zeros(6), now_ns)

    def _send(self, twist: NDArray[np.float64], now_ns: int) -> None:
        message = TwistStamped(header=messages.header(now_ns, self._base_frame))
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, twist)
        self.publisher.publish(message)


def tracking_twist(commanded: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twist [6] from the measured towards the commanded pose, both [4, 4]; bounded in m/s and rad/s."""
    linear = TWIST_GAIN_HZ * (commanded[:3, 3] - measured[:3, 3])
    angular = TWIST_GAIN_HZ * Rotation.from_matrix(commanded[:3, :3] @ measured[:3, :3].T).as_rotvec()
    parts = zip((linear, angular), TWIST_CORRECTION_LIMITS, strict=True)
    return np.concatenate([part * min(1.0, limit / max(float(np.linalg.norm(part)), 1e-12)) for part, limit in parts])


@dataclass(frozen=True)
class GripperConfig:
    """Commands of the gripper and the decision between them.

    closed_m, open_m: opening of one finger that is commanded. open_above, close_below: see GripperHysteresis.
    """

    closed_m: float = 0.0
    open_m: float = 0.04
    open_above: float = OPEN_ABOVE
    close_below: float = CLOSE_BELOW


class GripperSink(ABC):
    """The gripper's commands, sent on a decided change only. A new kind is a subclass and a row of `GRIPPER_SINKS`.

    A hold leaves the gripper as it is: opening it would drop what it carries.
    """

    publisher: Any

    @abstractmethod
    def __init__(self, node: Any, config: GripperConfig) -> None:
        """Create the publisher on the node."""
        self._hysteresis = GripperHysteresis(open_above=config.open_above, close_below=config.close_below)

    @abstractmethod
    def _send(self, command: GripperCommand) -> None:
        """Command the gripper to open or to close."""

    def update(self, opening: float) -> None:
        """Command what changed. opening: what the trajectory asks for now, 0 closed to 1 open."""
        if (decided := self._hysteresis.update(opening)) is not None:
            self._send(decided)

    def reset(self) -> None:
        """Forget the last command, so that a new mission sends it again."""
        self._hysteresis.reset()


class FingerOpening(GripperSink):
    """std_msgs/Float64MultiArray for a forward_command_controller: one value, the opening of a finger in metres."""

    def __init__(self, node: Any, config: GripperConfig) -> None:
        super().__init__(node, config)
        self._opening_m = {"close": config.closed_m, "open": config.open_m}
        self.publisher = node.create_lifecycle_publisher(Float64MultiArray, "gripper_command", COMMAND_QOS)

    def _send(self, command: GripperCommand) -> None:
        self.publisher.publish(Float64MultiArray(data=[self._opening_m[command]]))


SINKS: dict[str, type[Sink]] = {"joint": JointSink, "pose": PoseSink, "twist": TwistSink}
GRIPPER_SINKS: dict[str, type[GripperSink]] = {"finger_opening": FingerOpening}
