"""What is known about the arm's joints: measured positions, and the kinematics from robot_description."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError


class JointMonitor:
    """Keeps the kinematic chain from base_frame to tool_frame and its newest measured joint values."""

    def __init__(self, base_frame: str, tool_frame: str, timeout_s: float) -> None:
        """timeout_s: measured joints older than this (steady clock) are not known any more."""
        self.kinematics: ArmKinematics | None = None
        self.joints: NDArray[np.float64] | None = None  # [n] rad or m, in the order of kinematics.joint_names
        self._frames = (base_frame, tool_frame)
        self._timeout_s = timeout_s
        self._description_problem = "no robot_description was received yet: publish the URDF or set the parameter"
        self._message_problem: str | None = None
        self._arrived_s: float | None = None

    def set_description(self, urdf: str) -> str | None:
        """Build the kinematics; returns what is wrong with the URDF, or None. The last usable one stays in use."""
        try:
            self.kinematics = ArmKinematics.from_urdf(urdf, *self._frames)
        except KinematicsError as error:
            self._description_problem = f"robot_description: {error}"
            return self._description_problem
        self.joints = self._arrived_s = None
        return None

    def update(self, message: Any, now_s: float) -> None:
        """Take a sensor_msgs/JointState. One without any of the arm's joints (of the gripper alone) is passed over."""
        if self.kinematics is None or not set(self.kinematics.joint_names) & set(message.name):
            return
        try:
            self.joints = self.kinematics.configuration(message.name, message.position)
        except KinematicsError as error:
            self._message_problem = str(error)
            return
        self._message_problem = None
        self._arrived_s = now_s

    def problem(self, now_s: float) -> str | None:
        """Why the joints are not known now, or None."""
        if self.kinematics is None:
            return self._description_problem
        if self._message_problem is not None:
            return self._message_problem
        if self._arrived_s is None:
            return "no joint_states of the arm were received yet"
        age_s = now_s - self._arrived_s
        if age_s > self._timeout_s:
            return f"joint_states are stale: the last came {age_s:.1f} s ago (limit {self._timeout_s:g} s)"
        return None
