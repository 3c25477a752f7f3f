"""The controllers of the stand-in, one for each output mode: each turns its commands into desired joint values.

The arm obeys whoever was commanded last, as a robot does whose controllers are switched.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.simulation.joint_path import JointPath

State = tuple[NDArray[np.float64], NDArray[np.float64]]  # position and velocity [n] of the joints


class Controller(Protocol):
    """A source of the joints' desired state; the arm obeys one at a time."""

    def desired(self, before: NDArray[np.float64], now_ns: int, dt_s: float) -> State:
        """Return where the joints shall be now. before: [n] where they should have been `dt_s` ago."""


class TrajectoryController:
    """joint_trajectory_controller: samples what it accepted."""

    def __init__(self, path: JointPath) -> None:
        self._path = path

    def desired(self, before: NDArray[np.float64], now_ns: int, dt_s: float) -> State:
        return self._path.sample(now_ns)


class PoseController:
    """A Cartesian controller: goes to the newest pose as fast as the joints may, and stays there."""

    def __init__(self, arm: ArmKinematics, pose: NDArray[np.float64], near: NDArray[np.float64]) -> None:
        """pose: base_from_tool [4, 4]. near: [n] joints to start from. Raises KinematicsError for one out of reach."""
        self._arm = arm
        self._goal = arm.inverse(pose, near)

    def desired(self, before: NDArray[np.float64], now_ns: int, dt_s: float) -> State:
        return _moved(before, self._goal - before, self._arm.velocity_limit, dt_s)


class TwistController:
    """moveit_servo: moves the tool with the newest twist, and stops when that is older than its time-out."""

    def __init__(self, arm: ArmKinematics, twist: NDArray[np.float64], stamp_ns: int, timeout_s: float) -> None:
        """twist: [6] m/s and rad/s in the base's axes. stamp_ns: of its header, by which Servo tells its age."""
        self._arm = arm
        self._twist = twist
        self._end_ns = stamp_ns + round(timeout_s * NS_PER_S)

    def desired(self, before: NDArray[np.float64], now_ns: int, dt_s: float) -> State:
        if now_ns >= self._end_ns or not self._twist.any():
            return before, np.zeros(len(before))
        pose = self._arm.forward(before)
        pose[:3, 3] += self._twist[:3] * dt_s
        pose[:3, :3] = Rotation.from_rotvec(self._twist[3:] * dt_s).as_matrix() @ pose[:3, :3]
        try:
            goal = self._arm.inverse(pose, before)
        except KinematicsError:  # Servo halts before singularities and limits of the joints
            return before, np.zeros(len(before))
        return _moved(before, goal - before, self._arm.velocity_limit, dt_s)


def _moved(
    before: NDArray[np.float64], step: NDArray[np.float64], velocity_limit: NDArray[np.float64], dt_s: float
) -> State:
    """Return the joints after a step, all of them slower where one would exceed its velocity limit."""
    dt_s = max(dt_s, 1e-9)
    fastest = float((np.abs(step) / (velocity_limit * dt_s)).max())
    step = step / max(1.0, fastest)
    return before + step, step / dt_s
