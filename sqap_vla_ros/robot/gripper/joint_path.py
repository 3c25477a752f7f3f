"""The commanded path of a gripper joint that moves with the arm, in the arm's own trajectories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.joint_trajectory import NEAR_NS, JointTrajectoryArrays, preceded_by, standing

SHORTEST_S = 0.02  # of a motion, however small
HISTORY_NS = NS_PER_S  # trajectories begin in the past, but never further back


class GripperJointPath:
    """The commanded position of the joint over time; it goes from one position to another and stays there.

    The path outlives the arm's motions and holds, because a joint that is told to be where it was measured takes its
    force away from what it holds.
    """

    def __init__(self, joint: str, travel: float, travel_s: float) -> None:
        """travel: from open to closed, in the joint's unit; travel_s: time for it."""
        self.joint = joint
        self._travel, self._travel_s = abs(travel), travel_s
        self._path: JointTrajectoryArrays | None = None

    @property
    def known(self) -> bool:
        """True once it was told, or measured, where to begin."""
        return self._path is not None

    def begin(self, position: float, at_ns: int) -> None:
        """Rest at a position from a moment on."""
        self._path = standing((self.joint,), np.array([position]), at_ns, NS_PER_S)

    def go_to(self, target: float, at_ns: int) -> None:
        """Go to a position from a moment on, smoothly from what the joint does then. Needs a beginning."""
        assert self._path is not None
        state = self._path.state(at_ns)
        away = abs(target - float(state.position[0])) / self._travel
        length_ns = round(max(away * self._travel_s, SHORTEST_S) * NS_PER_S)
        motion = JointTrajectoryArrays(
            (self.joint,),
            at_ns,
            np.array([0, length_ns], dtype=np.int64),
            np.array([[state.position[0]], [target]]),
            np.array([[state.velocity[0]], [0.0]]),
        )
        self._path = preceded_by(self._path, motion, at_ns - HISTORY_NS)

    def shift(self, by_ns: int) -> None:
        """Take the path along into another time: ROS time jumped by so much."""
        if self._path is not None:
            self._path = replace(self._path, stamp_ns=self._path.stamp_ns + by_ns)

    def joined(self, arm: JointTrajectoryArrays) -> JointTrajectoryArrays:
        """Return the arm's trajectory with this joint as its last column, until both are at rest.

        Points that this joint needs are put between the arm's, on the arm's cubic, so that the arm's path stays as it
        was checked.
        """
        assert self._path is not None
        own_ns = self._path.times_ns[self._path.times_ns > arm.stamp_ns]
        beside = np.abs(own_ns[:, None] - arm.times_ns).min(axis=1) <= NEAR_NS
        times_ns = np.sort(np.concatenate([arm.times_ns, own_ns[~beside]]))
        arm_states = [arm.state(int(t)) for t in times_ns]
        own = [self._path.state(int(t)) for t in times_ns]
        own[-1].velocity[:] = 0.0
        return JointTrajectoryArrays(
            (*arm.joint_names, self.joint),
            arm.stamp_ns,
            times_ns - arm.stamp_ns,
            np.stack([np.append(a.position, o.position) for a, o in zip(arm_states, own, strict=True)]),
            np.stack([np.append(a.velocity, o.velocity) for a, o in zip(arm_states, own, strict=True)]),
            None if arm.start_acceleration is None else np.append(arm.start_acceleration, 0.0),
        )
