"""Judges joint_states: complete, fresh by their stamps, unambiguous, and no further on than the joints can move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.refusals import Refusals
from sqap_vla_ros.robot.kinematics import ArmKinematics

FUTURE_S = 0.1  # a stamp may lie so far ahead, by clocks that differ
FASTEST = 5.0  # rad/s or m/s of a joint whose URDF states no limit
HASTE, SLACK = 2.0, 0.05  # times the limit, and rad or m on top, that a measured joint may move: noise and late stamps
MOST_NAMES = 8  # in a sentence
CONFIRMATIONS = 5  # samples in a row that agree with each other and not with those before: the arm was moved


@dataclass
class _Joint:
    """One joint as it is believed, and the newest value that is not."""

    value: float
    stamp_ns: int
    doubted: float = 0.0
    doubted_ns: int = 0
    doubts: int = 0


class JointMonitor:
    """Keeps the kinematic chain from base_frame to tool_frame and the values of its joints.

    Joints may come in several messages, in any order and among others. Values count on beyond pi for continuous joints,
    whatever the driver wraps at. Times are ROS time, those of the messages' stamps.
    """

    def __init__(self, timeout_s: float, gripper_joint: str = "") -> None:
        """timeout_s: joints whose stamps are older are not known any more. gripper_joint: one more to keep; "" none."""
        self.kinematics: ArmKinematics | None = None
        self.gripper: float | None = None  # the newest finite position of gripper_joint (rad or m)
        self.gripper_count = 0  # finite positions of it so far
        self._gripper_joint = gripper_joint
        self._timeout_s = timeout_s
        self._description_problem = "no robot_description was received yet: publish the URDF or set the parameter"
        self._message_problem: str | None = None
        self._others: dict[str, None] = {}  # joints of messages that have none of the arm's, in order
        self._joints: dict[str, _Joint] = {}
        self._refusals = Refusals()
        self._heard_ns: int | None = None  # when the last message with the arm's joints came

    def adopt(self, kinematics: ArmKinematics) -> None:
        """Use this chain from now on; its joints are not known before the next message."""
        self.kinematics = kinematics
        self.forget()

    def refuse_description(self, problem: str) -> None:
        """Note why a description cannot be used. The last usable one stays in use."""
        self._description_problem = f"robot_description: {problem}"

    def forget(self) -> None:
        """Forget all values: time jumped, or the chain is another one."""
        self._joints.clear()
        self.gripper = None
        self._others = {}
        self._refusals.clear()
        self._message_problem = None
        self._heard_ns = None

    @property
    def joints(self) -> NDArray[np.float64] | None:
        """Joint values [n] (rad or m) in the order of kinematics.joint_names; None until every joint is known."""
        arm = self.kinematics
        if arm is None or any(name not in self._joints for name in arm.joint_names):
            return None
        return np.array([self._joints[name].value for name in arm.joint_names])

    @property
    def stamp_ns(self) -> int | None:
        """Stamp of the oldest value among the joints; None until every joint is known."""
        arm = self.kinematics
        if arm is None or any(name not in self._joints for name in arm.joint_names):
            return None
        return min(self._joints[name].stamp_ns for name in arm.joint_names)

    def update(self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int) -> None:
        """Take a JointState's names and positions. One without any of the arm's joints is passed over.

        One from the future is refused: all that follow would count as older than it.
        """
        if self._gripper_joint in names and len(names) == len(positions):
            position = float(positions[list(names).index(self._gripper_joint)])
            if math.isfinite(position):
                self.gripper, self.gripper_count = position, self.gripper_count + 1
        arm = self.kinematics
        if arm is None or not set(arm.joint_names) & set(names):
            if len(self._others) <= MOST_NAMES:
                self._others |= dict.fromkeys(names)
            return
        self._heard_ns = now_ns
        self._message_problem = self._malformed(arm, names, positions, stamp_ns, now_ns)
        if self._message_problem is not None:
            return
        by_name = dict(zip(names, positions, strict=True))
        for index, name in enumerate(arm.joint_names):
            if name in by_name:
                self._take(arm, index, name, float(by_name[name]), stamp_ns)

    def problem(self, now_ns: int) -> str | None:
        """Return why the joints are not known now, or None."""
        arm = self.kinematics
        if arm is None:
            return self._description_problem
        # What was wrong with the last messages is no longer the reason once no more come.
        silent = self._heard_ns is not None and now_ns - self._heard_ns > self._timeout_s * NS_PER_S
        if self._message_problem is not None and not (silent and self._joints):
            return self._message_problem
        if not self._joints:
            come = f"; those that come are of {_listed(list(self._others))}" if self._others else ""
            return f"no joint_states of the arm ({_listed(arm.joint_names)}) were received yet{come}"
        if missing := [name for name in arm.joint_names if name not in self._joints]:
            return f"joint_states lack {', '.join(missing)}; they have {', '.join(self._joints)}"
        refused = None if silent else self._refusals.problem(now_ns)
        # What leapt a moment ago does not hide that what comes now is old.
        return "; ".join(filter(None, (refused, self._stale(arm, now_ns)))) or None

    def _stale(self, arm: ArmKinematics, now_ns: int) -> str | None:
        for name in arm.joint_names:
            joint = self._joints[name]
            age_s = (now_ns - joint.stamp_ns) / NS_PER_S
            if age_s > self._timeout_s:
                return (
                    f"joint_states are stale: {name} is stamped {age_s:.1f} s ago (limit {self._timeout_s:g} s); do "
                    "they still come, and are the clocks synchronised?"
                )
        return None

    def _malformed(
        self, arm: ArmKinematics, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int
    ) -> str | None:
        if len(names) != len(positions):
            return f"joint_states have {len(names)} names and {len(positions)} positions"
        if stamp_ns <= 0:
            return "joint_states are stamped zero: the driver must set header.stamp"
        if (ahead_s := (stamp_ns - now_ns) / NS_PER_S) > FUTURE_S:
            return f"joint_states are stamped {ahead_s:.1f} s in the future: synchronise the clocks"
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            return f"joint_states name {', '.join(twice)} twice"
        for name, position in zip(names, positions, strict=True):
            if name in arm.joint_names and not np.isfinite(position):
                return f"joint_states have a non-finite position: {name} is {position}"
        return None

    def _take(self, arm: ArmKinematics, index: int, name: str, value: float, stamp_ns: int) -> None:
        joint = self._joints.get(name)
        if joint is None:
            self._joints[name] = _Joint(value, stamp_ns)
            return
        if arm.is_continuous[index]:
            value += 2.0 * np.pi * round((joint.value - value) / (2.0 * np.pi))
        if stamp_ns <= max(joint.stamp_ns, joint.doubted_ns):
            return  # out of order, or of a second publisher
        if _reachable(arm, index, value - joint.value, stamp_ns - joint.stamp_ns):
            self._joints[name] = _Joint(value, stamp_ns)
            return
        passed_s = (stamp_ns - joint.stamp_ns) / NS_PER_S
        self._refusals.add(
            stamp_ns,
            f"joint_states: {name} leapt from {joint.value:.2f} to {value:.2f} in {passed_s:.3f} s, faster than it can "
            "move: is there a second publisher?",
        )
        again = joint.doubts > 0 and _reachable(arm, index, value - joint.doubted, stamp_ns - joint.doubted_ns)
        joint.doubted, joint.doubted_ns, joint.doubts = value, stamp_ns, joint.doubts + 1 if again else 1
        if joint.doubts >= CONFIRMATIONS:
            self._joints[name] = _Joint(value, stamp_ns)


def _reachable(arm: ArmKinematics, index: int, moved: float, passed_ns: int) -> bool:
    fastest = min(float(arm.velocity_limit[index]), FASTEST)
    return abs(moved) <= SLACK + HASTE * fastest * passed_ns / NS_PER_S


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
