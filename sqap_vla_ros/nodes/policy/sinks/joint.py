"""Output mode joint: trajectories for joint_trajectory_controller, by inverse kinematics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.control.motion import UnsafeChunk
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.sinks.sink import (
    COMMAND_QOS,
    HoldOrder,
    Measured,
    MeasuredTool,
    Sink,
    SinkParts,
    same_place,
)
from sqap_vla_ros.robot.conventions import largest_turn
from sqap_vla_ros.robot.gripper.joint_path import GripperJointPath
from sqap_vla_ros.robot.holding import Evidence, hold_joints
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays, lasting, preceded_by, remaining, standing
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.robot.safety import Decision
from sqap_vla_ros.robot.trajectory import PoseTrajectory

MAX_SLOWINGS = 5
LEAST_SLOWING = 1.03  # smaller steps would not get there: what happens at the start hardly changes by them
# A controller draws the way to a first point that lies in its future from the measured arm, which lags: a message
# begins so far in the past, on the motion under way, that it has begun when it arrives.
HEAD_NS = 30_000_000
RESEND_NS = 60_000_000  # a hold that is not acknowledged is sent again
RESENT_NS = 1_000_000_000  # for this long
# Rest behind a hold. A slow arm stops in 50 ms: its hold would be past, and refused, where the way to the controller or
# the difference of two clocks takes longer.
LASTS_NS = 1_000_000_000
# Of max_start_rad: between a measured joint and where a trajectory starts (rad or m). An arm may lag or be pressed
# against something as far as its tool may, and one joint may make up most of that.
START_SHARE = 0.75
# Rad or m of the same for an arm at rest. The controller steps to the start at once, for it lies a little in its past.
MAX_START_AWAY_AT_REST = 0.1


class JointSink(Sink):
    """trajectory_msgs/JointTrajectory with positions and velocities, one a chunk; the controller interpolates."""

    SUMMARY = "trajectory_msgs/JointTrajectory for joint_trajectory_controller, by inverse kinematics."
    TOPIC = "joint_trajectory"
    MESSAGE = JointTrajectory
    NEEDS_JOINTS = True
    KEEPS_POSE = True
    CARRIES_GRIPPER = True

    def __init__(self, node: Any, parts: SinkParts) -> None:
        self._monitor = parts.arm
        self._limits = parts.limits
        self._gripper: GripperJointPath | None = None  # goes along in every message
        self.publisher = node.create_lifecycle_publisher(self.MESSAGE, self.TOPIC, COMMAND_QOS)
        self.forget()

    def forget(self) -> None:
        self._sent: JointTrajectoryArrays | None = None  # what the controller executes
        self._sent_arm: ArmKinematics | None = None  # the arm that it was made for: another may have been described
        self._held: tuple[int, int] | None = None  # since when, and when it was last sent, while it is not acknowledged

    def rest_since(self, now_ns: int) -> None:
        sent, arm = self._sent, self._sent_arm
        self.forget()
        if sent is not None:
            self._sent, self._sent_arm = standing(sent.joint_names, sent.positions[-1], now_ns - HEAD_NS, HEAD_NS), arm

    def start(self, trajectory: PoseTrajectory, measured: Measured, latest_ns: int) -> PoseTrajectory:
        arm = self._monitor.kinematics
        if arm is None or measured.joints is None:
            raise KinematicsError("the arm's joints are not known")
        under_way = self._under_way(trajectory, measured.joints, arm)
        start = under_way.state(trajectory.anchor_ns)
        self._check_start(start.position, measured.joints, arm, START_SHARE * self._limits.max_start_rad)
        for _ in range(MAX_SLOWINGS + 1):
            arrays = arm.joint_trajectory(trajectory, start.position, start.velocity, start.acceleration)
            verdict = self._limits.check_joints(arrays, arm)
            if verdict.decision is Decision.ACCEPT:
                whole = preceded_by(under_way, arrays, trajectory.anchor_ns - HEAD_NS)
                verdict = replace(self._limits.check_joints(whole, arm), segment_scales=None)  # the seam, too
            if verdict.decision is Decision.ACCEPT:
                self._begin_gripper(arm, trajectory.anchor_ns)
                self._send(whole, arm)
                self._held = None
                followed = arm.followed(trajectory, arrays)
                reached, _ = followed.sample_many(trajectory.times_ns)
                self.residual_rad = largest_turn(reached, trajectory.poses) if arm.config.is_relaxed else None
                return followed
            if verdict.decision is Decision.REJECT:
                break
            # a motion that starts at speed needs more than the first guess; and a redundant arm's slower motion is not
            # quite the same one
            if verdict.segment_scales is None:
                slower = trajectory.slowed(max(verdict.time_scale, LEAST_SLOWING))
            else:
                slower = trajectory.stretched(arrays.times_ns, verdict.segment_scales)
            slowed = slower.until(latest_ns)
            if slowed is None:
                raise UnsafeChunk(
                    f"nothing of the chunk, slowed down, lies within max_open_loop_s of its image: {verdict.text}"
                )
            trajectory = slowed
        raise KinematicsError(verdict.text)

    def hold(self, order: HoldOrder) -> str:
        if self._sent is None or self._sent_arm is None:
            return "nothing was commanded"
        if order.evidence is not Evidence.BLOCKED and self.left_rest(order.at_ns, order.measured):
            return "the arm was moved from where it rests; saying that rest again would fetch it back"
        held = hold_joints(
            self._sent,
            order.at_ns,
            order.stamp_ns,
            evidence=order.evidence,
            reason=order.reason,
            # Joints of another description prove nothing about this one.
            measured=order.measured.joints if self._sent_arm is self._monitor.kinematics else None,
            limits=self._limits,
            arm=self._sent_arm,
        )
        if held.joints is not None:
            self._send(held.joints, self._sent_arm, lasts=True)
            self._held = (order.stamp_ns, order.stamp_ns)
        return held.text

    def tick(self, now_ns: int, tool: MeasuredTool | None) -> None:
        """Say a hold again until it is sure to have gone out; any other trajectory was sent whole."""
        if self._held is None or self._sent is None or self._sent_arm is None:
            return
        since_ns, last_ns = self._held
        if abs(now_ns - since_ns) > RESENT_NS or (now_ns - since_ns >= RESEND_NS and self.delivered()):
            self._held = None
        elif now_ns - last_ns >= RESEND_NS:
            again = self._sent
            if now_ns >= again.end_ns:  # controllers refuse a trajectory that is past
                again = standing(again.joint_names, again.positions[-1], now_ns, RESEND_NS)
            self._send(again, self._sent_arm, lasts=True)
            self._held = (since_ns, now_ns)

    def at_rest(self, now_ns: int) -> bool:
        return self._sent is None or (self._held is None and now_ns >= self._sent.end_ns)

    def commanded_tool(self, at_ns: int) -> NDArray[np.float64] | None:
        if self._sent is None or self._sent_arm is None:
            return None
        return self._sent_arm.forward(self._sent.state(at_ns).position)

    def left_rest(self, now_ns: int, measured: Measured) -> bool:
        return measured.joints is not None and self._joints_left_rest(now_ns, measured.joints)

    def _joints_left_rest(self, now_ns: int, joints: NDArray[np.float64]) -> bool:
        if self._sent is None or self._sent_arm is not self._monitor.kinematics or now_ns < self._sent.end_ns:
            return False
        return bool(np.max(np.abs(self._sent.positions[-1] - joints)) > MAX_START_AWAY_AT_REST)

    def carry(self, gripper: GripperJointPath) -> None:
        self._gripper = gripper

    def send_again(self, now_ns: int) -> None:
        if self._sent is not None:
            left = remaining(self._sent, now_ns - HEAD_NS)
            self._publish(lasting(left, LASTS_NS) if now_ns >= self._sent.end_ns else left)

    def _send(self, joints: JointTrajectoryArrays, arm: ArmKinematics, *, lasts: bool = False) -> None:
        self._publish(lasting(joints, LASTS_NS) if lasts else joints)
        self._sent, self._sent_arm = joints, arm

    def _publish(self, joints: JointTrajectoryArrays) -> None:
        whole = joints if self._gripper is None else self._gripper.joined(joints)
        self.publisher.publish(messages.joint_trajectory_message(whole))

    def _begin_gripper(self, arm: ArmKinematics, at_ns: int) -> None:
        """Let the gripper's joint rest where it was measured, before its first command."""
        if self._gripper is None or self._gripper.known:
            return
        if self._gripper.joint in arm.joint_names:
            raise KinematicsError(f"gripper_joint {self._gripper.joint} is a joint of the arm, before tool_frame")
        if self._monitor.gripper is None:
            raise KinematicsError(f"joint_states have no position of gripper_joint {self._gripper.joint}")
        self._gripper.begin(self._monitor.gripper, at_ns - HEAD_NS)

    def _check_start(
        self, start: NDArray[np.float64], measured: NDArray[np.float64], arm: ArmKinematics, limit: float
    ) -> None:
        away = np.abs(start - measured)
        worst = int(np.argmax(away))
        if away[worst] > limit:
            raise KinematicsError(
                f"the trajectory starts with {arm.joint_names[worst]} at {start[worst]:.2f}, but joint_states have it "
                f"at {measured[worst]:.2f}: do TF and joint_states speak of the same arm?"
            )

    def _under_way(
        self, trajectory: PoseTrajectory, measured: NDArray[np.float64], arm: ArmKinematics
    ) -> JointTrajectoryArrays:
        """Return the joint path that the next motion leaves: what was sent last, or rest where the motion begins.

        While what was sent is under way there is no rest to begin at, wherever the motion does: the limits judge it.

        Not from the measured joints: these lag behind, and the first segment, a few hundredths of a second long, would
        make up for the lag at once. But an arm that was moved while it rested would leap back.
        """
        left_rest = self._joints_left_rest(trajectory.anchor_ns, measured)
        if self._sent is not None and self._sent_arm is arm and not left_rest:
            tool = arm.forward(self._sent.state(trajectory.anchor_ns).position)
            if trajectory.anchor_ns < self._sent.end_ns or same_place(tool, trajectory.anchor):
                return self._sent
        at_rest = arm.inverse(trajectory.anchor, measured)
        self._check_start(at_rest, measured, arm, MAX_START_AWAY_AT_REST)
        return standing(arm.joint_names, at_rest, trajectory.anchor_ns - HEAD_NS, HEAD_NS)
