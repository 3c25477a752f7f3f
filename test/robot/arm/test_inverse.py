"""Inverse kinematics that lets a rotation remain: an arm of five joints, whose tool cannot turn every way."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.policy import configuration, parameters
from sqap_vla_ros.nodes.policy.sinks.joint import JointSink
from sqap_vla_ros.nodes.policy.sinks.sink import Measured, SinkParts
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.arm.inverse import InverseConfig
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

READY = np.array([0.2, -0.4, 1.1, 0.5, 0.3])
RELAXED = InverseConfig(orientation_residual_rad=(0.05, 0.5, 0.5))


def five_joints() -> str:
    """Return the URDF of a pan, three pitches and a roll, as in most small arms; the tool points along its x axis."""
    links = "".join(f'<link name="link{i}"/>' for i in range(6)) + '<link name="tool"/>'
    parts = [("0 0 1", 0.1), ("0 1 0", 0.05), ("0 1 0", 0.25), ("0 1 0", 0.25), ("1 0 0", 0.08)]
    joints = "".join(
        f'<joint name="j{i}" type="revolute"><parent link="link{i}"/><child link="link{i + 1}"/>'
        f'<origin xyz="{0 if i < 2 else along} 0 {along if i < 2 else 0}"/><axis xyz="{axis}"/>'
        '<limit lower="-2.5" upper="2.5" effort="5" velocity="3"/></joint>'
        for i, (axis, along) in enumerate(parts)
    )
    fixed = (
        '<joint name="mount" type="fixed"><parent link="link5"/><child link="tool"/><origin xyz="0.06 0 0"/></joint>'
    )
    return f'<robot name="five">{links}{joints}{fixed}</robot>'


def arm(config: InverseConfig = RELAXED) -> ArmKinematics:
    return ArmKinematics.from_urdf(five_joints(), "link0", "tool", config)


def remaining(arm: ArmKinematics, q: np.ndarray, pose: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(arm.forward(q)[:3, :3].T @ pose[:3, :3]).as_rotvec()


def aside(arm: ArmKinematics, metres: float = 0.1, steps: int = 16):
    """Return a chunk that moves the tool sideways and does not turn it, which five joints cannot do."""
    deltas = np.zeros((steps, 7))
    deltas[:, 1] = metres / steps
    return anchor_chunk(deltas, arm.forward(READY), 0, 0.2)


def test_the_tool_stays_on_its_path_and_turns_as_little_as_it_can():
    five = arm()
    path = aside(five)
    joints = five.joint_trajectory(path, READY)
    for time_ns, pose in zip(path.times_ns, path.poses, strict=True):
        q = joints.state(int(time_ns)).position
        assert np.linalg.norm(five.forward(q)[:3, 3] - pose[:3, 3]) < 1e-4
        left = remaining(five, q, pose)
        assert (np.abs(left) <= RELAXED.orientation_residual_rad).all()
    # An optimiser that knows nothing of the solver finds no smaller rotation at the end of the path.
    best = minimize(
        lambda q: float(np.sum(remaining(five, q, pose) ** 2)),
        q + 0.05,
        method="SLSQP",
        constraints={"type": "eq", "fun": lambda q: 10.0 * (five.forward(q)[:3, 3] - pose[:3, 3])},
        options={"maxiter": 300, "ftol": 1e-12},
    )
    assert np.linalg.norm(left) > 0.05
    assert np.linalg.norm(left) < np.sqrt(best.fun) + 1e-3


def test_a_pose_that_can_be_met_is_met():
    five = arm()
    rng = np.random.default_rng(0)
    for _ in range(20):
        q = rng.uniform(-0.8, 0.8, 5)
        found = five.inverse(five.forward(q), q + rng.uniform(-0.05, 0.05, 5))
        np.testing.assert_allclose(five.forward(found), five.forward(q), atol=2e-4)


def test_more_rotation_than_is_allowed_is_refused_with_the_numbers():
    strict = arm(InverseConfig(orientation_residual_rad=(0.05, 0.1, 0.1)))
    with pytest.raises(KinematicsError, match=r"step \d+ of 16.*about the tool's axes .* allows 2\.9, 5\.7, 5\.7"):
        strict.joint_trajectory(aside(strict, 0.2), READY)


def test_five_joints_that_must_meet_poses_exactly_are_told_what_to_set():
    exact = arm(InverseConfig())
    with pytest.raises(KinematicsError, match="5 joints meets few poses exactly: set orientation_residual_rad"):
        exact.joint_trajectory(aside(exact), READY)


def test_a_position_out_of_reach_is_refused_however_much_may_turn():
    free = arm(InverseConfig(orientation_residual_rad=(1.5, 1.5, 1.5)))
    with pytest.raises(KinematicsError, match=r"[0-9.]+ mm and"):
        free.joint_trajectory(aside(free, 0.9), READY)


def test_what_costs_more_turns_less():
    """A wanted rotation about an axis between two of the tool's, of which it can follow one combination only."""
    pose = arm().forward(READY)
    pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec([0.0, 0.2, 0.2]).as_matrix()
    free = (1.5, 1.5, 1.5)
    about_z = []
    for weight in (0.2, 1.0, 5.0):
        weighted = arm(InverseConfig(free, orientation_weights=(1.0, 1.0, weight)))
        about_z.append(abs(remaining(weighted, weighted.inverse(pose, READY), pose)[2]))
    assert about_z[0] > about_z[1] > about_z[2]


def test_the_next_chunk_starts_from_what_the_joints_reached():
    five = arm()
    sent: list = []
    node = SimpleNamespace(create_lifecycle_publisher=lambda *_: SimpleNamespace(publish=sent.append))
    sink = JointSink(node, SinkParts(SimpleNamespace(kinematics=five), SafetyLimits(), "link0"))
    wanted = aside(five)
    executed = sink.start(wanted, Measured(wanted.anchor, READY), 10 * NS_PER_S)
    np.testing.assert_allclose(executed.poses[:, :3, 3], wanted.poses[:, :3, 3], atol=1e-4)
    for time_ns, pose in zip(executed.times_ns, executed.poses, strict=True):
        np.testing.assert_allclose(pose, sink.commanded_tool(int(time_ns)), atol=1e-9)
    middle_ns = int(executed.times_ns[7])
    following = anchor_chunk(np.zeros((8, 7)), executed.poses[7], middle_ns, 0.2)
    sink.start(following, Measured(executed.poses[7], sink._sent.state(middle_ns).position), 10 * NS_PER_S)
    assert len(sent) == 2


def test_a_redundant_arm_drifts_to_the_posture_that_it_is_given():
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    ready = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
    posture = (0.6, -0.5, -0.4, -2.2, 0.0, 1.7, 0.8)
    seven = ArmKinematics.from_urdf(urdf, "base_link", "tool0", InverseConfig(posture=posture))
    joints = seven.joint_trajectory(anchor_chunk(np.zeros((16, 7)), seven.forward(ready), 0, 0.2), ready)
    assert np.linalg.norm(joints.positions[-1] - posture) < np.linalg.norm(ready - posture) - 0.02
    np.testing.assert_allclose(seven.forward(joints.positions[-1]), seven.forward(ready), atol=1e-3)
    with pytest.raises(KinematicsError, match="joint_posture must be 7 finite values"):
        ArmKinematics.from_urdf(urdf, "base_link", "tool0", InverseConfig(posture=(0.0, 1.0)))


def test_parameters_fill_the_configuration_and_wrong_ones_are_named():
    values = parameters.defaults()
    assert not configuration.inverse_config(values).is_relaxed
    assert configuration.inverse_config(values | {"orientation_residual_rad": [0.1, 0.2, 0.3]}).is_relaxed
    for wrong in ({"orientation_residual_rad": [0.1, 2.0, 0.0]}, {"orientation_weights": [1.0, 0.0, 1.0]}):
        assert any(next(iter(wrong)) in text for text in configuration.problems(values | wrong))
    with pytest.raises(ValueError, match="orientation_weights must be positive"):
        InverseConfig(orientation_weights=(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="orientation_residual_rad must be 3 finite numbers"):
        InverseConfig(orientation_residual_rad=(0.1, -0.1, 0.0))


def test_a_stretched_arm_gives_up_orientation_and_does_not_swing_its_elbow():
    """With the elbow straight it moves far without moving the tool; the wrist has to reach out instead."""
    five = arm()
    stretched = np.array([0.0, -0.02, 0.02, -0.9, 0.0])
    deltas = np.zeros((8, 7))
    deltas[:, 0] = 0.004
    path = anchor_chunk(deltas, five.forward(stretched), 0, 0.2)
    joints = five.joint_trajectory(path, stretched)
    assert np.abs(np.diff(joints.positions, axis=0)).max() < 0.3
    reached = five.followed(path, joints)
    np.testing.assert_allclose(reached.poses[:, :3, 3], path.poses[:, :3, 3], atol=1e-4)
    assert 0.02 < np.linalg.norm(remaining(five, joints.positions[-1], path.poses[-1])) < 0.5


def test_a_margin_is_kept_from_the_limits_and_a_joint_inside_it_does_not_go_on():
    five = arm(InverseConfig((0.05, 0.5, 0.5), joint_margin=0.1))
    near = np.array([0.0, -0.4, 1.1, 2.35, 0.0])
    deltas = np.zeros((8, 7))
    deltas[:, 2], deltas[:, 4] = -0.004, 0.03  # the wrist would bend on
    path = anchor_chunk(deltas, five.forward(near), 0, 0.2)
    assert five.joint_trajectory(path, near).positions[:, 3].max() <= 2.4
    inside = near + np.array([0.0, 0.0, 0.0, 0.1, 0.0])
    path = anchor_chunk(deltas, five.forward(inside), 0, 0.2)
    assert five.joint_trajectory(path, inside).positions[:, 3].max() <= 2.45 + 1e-9
