"""The arm of the stand-in: joints that follow what its controllers want."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.nodes.messages import time_ns
from sqap_vla_ros.nodes.stand_in.controllers import Controller, PoseController, TrajectoryController, TwistController
from sqap_vla_ros.robot.arm.inverse import InverseConfig
from sqap_vla_ros.robot.arm.link_tree import LinkTree
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.simulation.joint_path import accept_trajectory

GRIPPER_SPEED = 1.0  # of its whole range in a second


class StandInArm:
    """Joints without mass. They follow what the controller tells them as a low pass with the time constant `lag_s`.

    joints: of the trajectory controller, from the base outwards; the gripper's last where it belongs to that one.
    position: [n] measured, rad or m. gripper: position of the gripper's joint, None without one.
    """

    def __init__(
        self,
        urdf: str,
        base_frame: str,
        tool_frame: str,
        *,
        start: NDArray[np.float64] | None = None,
        gripper_joint: str = "",
        gripper_open: float = 0.0,
        gripper_in_trajectory: bool = False,
        inverse: InverseConfig | None = None,
        lag_s: float = 0.05,
        interpolate_from_desired_state: bool = False,
    ) -> None:
        """start: [n] joint values of the arm; the middle of their limits where None. inverse: for poses and twists.

        gripper_joint: moves in joint_states alone where the URDF lacks it, as that of an arm without its gripper does.

        Raises ValueError for a URDF without this arm, and for a start that does not fit it.
        """
        self.kinematics = ArmKinematics.from_urdf(urdf, base_frame, tool_frame, inverse)
        self.links = LinkTree(urdf)
        arm = self.kinematics.joint_names
        at = self.kinematics.posture.copy() if start is None else np.asarray(start, dtype=np.float64)
        if at.shape != (len(arm),):
            raise ValueError(f"the arm has {len(arm)} joints ({', '.join(arm)}), and starts at {at.tolist()}")
        in_trajectory = bool(gripper_joint) and gripper_in_trajectory
        self.joints = (*arm, gripper_joint) if in_trajectory else arm
        self._gripper_joint = gripper_joint
        self._gripper_goal = self._gripper = gripper_open
        self._in_trajectory = in_trajectory
        self._arm_joints = len(arm)
        self._lag_s, self._from_desired = lag_s, interpolate_from_desired_state
        self.position: NDArray[np.float64] = np.append(at, gripper_open) if in_trajectory else at
        self.velocity = np.zeros(len(self.joints))
        self._desired, self._desired_velocity = self.position.copy(), np.zeros(len(self.joints))
        self._controller: Controller | None = None  # commanded last

    @property
    def gripper(self) -> float | None:
        """The gripper's measured position in its own unit; None without one."""
        if not self._gripper_joint:
            return None
        return float(self.position[-1]) if self._in_trajectory else self._gripper

    def follow(self, message: JointTrajectory, now_ns: int) -> None:
        """Execute a trajectory from now on. Raises TrajectoryRejectedError, as the controller would reject it."""
        start_ns = time_ns(message.header.stamp) or now_ns  # a zero stamp means now
        measured = (self.position, self.velocity)
        position, velocity = (self._desired, self._desired_velocity) if self._from_desired else measured
        path = accept_trajectory(
            self.joints,
            names=message.joint_names,
            times_ns=[start_ns + time_ns(point.time_from_start) for point in message.points],
            positions=[point.positions for point in message.points],
            velocities=[point.velocities for point in message.points],
            accelerations=[point.accelerations for point in message.points],
            efforts=[point.effort for point in message.points],
            now_ns=now_ns,
            position=position,
            velocity=velocity,
        )
        self._controller = TrajectoryController(path)

    def go_to(self, pose: NDArray[np.float64]) -> None:
        """Bring the tool to base_from_tool [4, 4] and keep it there. Raises KinematicsError for one out of reach."""
        self._controller = PoseController(self.kinematics, pose, self._desired[: self._arm_joints])

    def drive(self, twist: NDArray[np.float64], stamp_ns: int, timeout_s: float) -> None:
        """Move the tool with a twist [6] (m/s, rad/s, base's axes) until it is `timeout_s` old."""
        self._controller = TwistController(self.kinematics, twist, stamp_ns, timeout_s)

    def move_gripper(self, position: float) -> None:
        """Move the gripper there, in its own unit. One that belongs to the trajectory controller obeys that."""
        self._gripper_goal = position

    def update(self, now_ns: int, dt_s: float) -> None:
        """Let `dt_s` pass, up to `now_ns`."""
        step = GRIPPER_SPEED * dt_s
        if self._controller is not None:
            position, velocity = self._controller.desired(self._desired[: self._arm_joints], now_ns, dt_s)
            gripper = self._desired[len(position) :]  # one of the trajectory controller, under another
            gripper = gripper + np.clip(self._gripper_goal - gripper, -step, step)
            self._desired = np.concatenate([position, gripper])
            self._desired_velocity = np.concatenate([velocity, np.zeros(len(gripper))])
        share = 1.0 if self._lag_s <= 0.0 else 1.0 - math.exp(-dt_s / self._lag_s)
        move = share * (self._desired - self.position)
        self.position = self.position + move
        self.velocity = move / max(dt_s, 1e-9)
        self._gripper += min(max(self._gripper_goal - self._gripper, -step), step)

    def positions(self) -> dict[str, float]:
        """Return the measured position (rad or m) of every joint by name, as joint_states has them."""
        named = dict(zip(self.joints, self.position.tolist(), strict=True))
        if self._gripper_joint and not self._in_trajectory:
            named[self._gripper_joint] = self._gripper
        return named

    def tool(self) -> NDArray[np.float64]:
        """Return base_from_tool [4, 4] as measured."""
        return self.kinematics.forward(self.position[: self._arm_joints])

    def skeleton(self) -> NDArray[np.float64]:
        """Return the origins [n + 2, 3] of base, joints and tool in the base frame, as measured."""
        return self.kinematics.joint_origins(self.position[: self._arm_joints])
