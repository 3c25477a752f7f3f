"""Turns what an arm is told (a joint trajectory, a tool pose, a tool twist) into joint targets over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.conventions import compose_delta
from sqap_vla_ros.simulation.joint_path import JointPath
from sqap_vla_ros.simulation.world import TabletopWorld


class ArmCommander:
    """One source of motion at a time: the newest command replaces the one before. Not thread-safe.

    max_joint_velocity_rad_s: pose and twist commands move no joint faster than this (a trajectory has its own times).
    twist_timeout_s: a twist that is not renewed for this long stops the arm.
    interpolate_from_desired_state: as joint_trajectory_controller's parameter of that name; see `start_state`.
    """

    def __init__(
        self,
        world: TabletopWorld,
        *,
        max_joint_velocity_rad_s: float,
        twist_timeout_s: float,
        interpolate_from_desired_state: bool = False,
    ) -> None:
        self._world = world
        self._from_desired = interpolate_from_desired_state
        self._max_velocity = max_joint_velocity_rad_s
        self._twist_timeout_ns = round(twist_timeout_s * NS_PER_S)
        self.position = world.arm_position  # [7] what the arm is told now
        self.velocity = np.zeros(7)
        self._path: JointPath | None = None
        self._goal: NDArray[np.float64] | None = None  # joint angles of a commanded pose
        self._twist: tuple[NDArray[np.float64], int] | None = None  # twist in the base frame, received at (ns)
        self._pose = world.forward(self.position)  # where twists have led the tool

    def hold(self) -> None:
        """Stay where the arm is told to be now."""
        self._path = self._goal = self._twist = None
        self.velocity = np.zeros(7)

    def restart(self) -> None:
        """Forget everything and hold the measured position: the world was reset."""
        self.hold()
        self.position = self._world.arm_position

    def start_state(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the state [7], [7] from which a joint trajectory is approached whose first point is in the future.

        The measured ones, as by joint_trajectory_controller's default: an arm that lags its commands then makes up for
        the lag on the way to that point. With `interpolate_from_desired_state` those that the arm is told now.
        """
        if self._from_desired:
            return self.position, self.velocity
        return self._world.arm_position, self._world.arm_velocity

    def follow(self, path: JointPath) -> None:
        """Execute a joint path from now on; see `accept_trajectory`."""
        self.hold()
        self._path = path

    def move_to(self, pose: NDArray[np.float64]) -> None:
        """Move the tool to `pose` [4, 4], joints at limited speed. Raises ReachError where the arm cannot go."""
        goal = self._world.reach(pose, self.position)
        self.hold()
        self._goal = goal

    def move_along(self, twist: NDArray[np.float64], now_ns: int) -> None:
        """Move the tool by `twist` [6] (m/s, rad/s along the base frame's axes) until the timeout."""
        if self._twist is None:
            self.hold()
            self._pose = self._world.forward(self.position)
        self._twist = (np.asarray(twist, dtype=np.float64), now_ns)

    def update(self, now_ns: int, dt_s: float) -> NDArray[np.float64]:
        """Return the joint targets [7] at `now_ns`, `dt_s` after those of the update before."""
        if self._path is not None:
            self.position, self.velocity = self._path.sample(now_ns)
        elif self._goal is not None:
            self._approach(self._goal, dt_s)
        elif self._twist is not None:
            twist, received_ns = self._twist
            if now_ns - received_ns > self._twist_timeout_ns:
                self.hold()
            else:
                self._drift(twist, dt_s)
        return self.position

    def _drift(self, twist: NDArray[np.float64], dt_s: float) -> None:
        pose = compose_delta(self._pose, twist * dt_s)
        goal, error = self._world.inverse(pose, self.position, iterations=10)
        if error > 5e-3:  # at the edge of the arm's reach: stay, so that a twist the other way acts at once
            self.velocity = np.zeros(7)
            return
        self._pose = pose
        self._approach(goal, dt_s)

    def _approach(self, goal: NDArray[np.float64], dt_s: float) -> None:
        """Move all joints towards `goal` in proportion, none faster than allowed."""
        move = goal - self.position
        share = min(1.0, self._max_velocity * dt_s / max(float(np.abs(move).max()), 1e-12))
        self.position = self.position + share * move
        self.velocity = share * move / dt_s
