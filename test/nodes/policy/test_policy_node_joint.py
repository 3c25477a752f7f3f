"""policy_node in output mode joint: from a chunk to what joint_trajectory_controller takes."""

import numpy as np
import pytest
from policy_node_rig import DISABLED, HOLDING, HOME, RUNNING, WAITING, Rig, assert_silent
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.kinematics import ArmKinematics


class Controller:
    """Follows the newest JointTrajectory exactly, as joint_trajectory_controller would without any lag."""

    def __init__(self, rig: Rig, arm: ArmKinematics, start: np.ndarray) -> None:
        self.rig, self.arm, self.q = rig, arm, start
        self._message = None
        self._from = start

    def __call__(self, now_ns: int) -> None:
        received = self.rig.got("joint_trajectory")
        if received and received[-1] is not self._message:
            self._message, self._from, self._from_ns = received[-1], self.q, now_ns
        if self._message is not None:
            start_ns = messages.time_ns(self._message.header.stamp)
            times_ns = [start_ns + messages.time_ns(p.time_from_start) for p in self._message.points]
            points = np.array([self._from, *(p.positions for p in self._message.points)])
            knots = np.array([self._from_ns, *times_ns], dtype=np.int64) - self._from_ns
            self.q = np.array([np.interp(now_ns - self._from_ns, knots, column) for column in points.T])
        self.rig.tool = self.arm.forward(self.q)
        self.rig.joint_positions = dict(zip(self.arm.joint_names, map(float, self.q), strict=True))


@pytest.fixture(scope="module")
def joint_rig():
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    arm = ArmKinematics.from_urdf(urdf, "base_link", "tool0")
    start = arm.inverse(HOME, np.array([0.0, -0.3, 0.0, -2.2, 0.0, 2.0, 0.8]))
    with Rig(output_mode="joint") as rig:
        rig.urdf, rig.arm = urdf, arm
        rig.move_joints = rig.controller = Controller(rig, arm, start)
        rig.wait_for_state(DISABLED)
        yield rig


def test_joint_mode_waits_for_the_description_and_the_joints(joint_rig):
    rig = joint_rig
    rig.joints = False
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(WAITING, "robot_description")
    rig.description.publish(String(data="<robot name='broken'>"))
    rig.wait_for_state(WAITING, "no usable URDF")
    rig.description.publish(String(data=rig.urdf))
    rig.wait_for_state(WAITING, "joint_states")
    assert not rig.got("joint_trajectory")
    rig.joints = True
    rig.wait_for_state(RUNNING)
    rig.wait(lambda: rig.got("joint_trajectory"), "a trajectory")
    rig.enable(False)


def assert_soon_at_rest(hold: JointTrajectory) -> None:
    """A hold moves for less than 0.4 s, and goes on at rest, so that it is not past when it arrives."""
    moving_s = [messages.time_ns(p.time_from_start) / NS_PER_S for p in hold.points if any(p.velocities)]
    assert max(moving_s, default=0.0) < 0.4


def test_joint_trajectories_are_what_joint_trajectory_controller_takes(joint_rig):
    rig = joint_rig
    rig.home()
    rig.instruct("pick the cube")
    rig.enable()
    begin = rig.tool.copy()
    rig.wait(lambda: len(rig.got("joint_trajectory")) > 10)
    rig.wait(lambda: np.linalg.norm(rig.tool[:3, 3] - begin[:3, 3]) > 0.02, "2 cm of motion")
    rig.wait_for_state(RUNNING)
    for message in rig.got("joint_trajectory"):
        assert message.joint_names == list(rig.arm.joint_names)
        times_ns = [messages.time_ns(p.time_from_start) for p in message.points]
        assert times_ns[0] == 0  # the state in which the motion starts
        assert times_ns == sorted(set(times_ns))
        positions = np.array([p.positions for p in message.points])
        velocities = np.array([p.velocities for p in message.points])
        assert positions.shape == velocities.shape == (len(times_ns), 7)
        assert not velocities[-1].any()
        assert (positions >= rig.arm.lower).all()
        assert (positions <= rig.arm.upper).all()
    # The arm ends where the chunk says, as far as forward kinematics can tell.
    assert rig.tool[0, 3] > begin[0, 3]
    np.testing.assert_allclose(rig.tool[1:3, 3], begin[1:3, 3], atol=5e-3)
    rig.enable(False)
    rig.wait_for_state(DISABLED)
    rig.wait_for_silence("joint_trajectory")
    hold = rig.got("joint_trajectory")[-1]
    assert_soon_at_rest(hold)
    np.testing.assert_allclose(hold.points[-1].positions, rig.controller.q, atol=5e-3)
    assert not any(hold.points[-1].velocities)


def test_lost_joint_states_hold_at_once(joint_rig):
    rig = joint_rig
    rig.home()
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait(lambda: rig.got("joint_trajectory"), "a trajectory")
    rig.joints = False
    rig.wait_for_state(HOLDING, "joint_states are stale")
    assert_silent(rig, "joint_trajectory")
    hold = rig.got("joint_trajectory")[-1]
    assert_soon_at_rest(hold)
    assert not any(hold.points[-1].velocities)
    rig.joints = True
    rig.wait_for_state(RUNNING)
