from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.conventions import invert_pose, pose_distance, pose_matrix, rotation_from_rpy
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.robot.safety import Code, Decision, SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

STAMP_NS = 1_763_000_000_000_000_000
READY = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])

# Origins (xyz, rpy) of the Panda's joints and of the grasp point behind the last, from its public description.
PANDA = [
    ([0, 0, 0.333], [0, 0, 0]),
    ([0, 0, 0], [-np.pi / 2, 0, 0]),
    ([0, -0.316, 0], [np.pi / 2, 0, 0]),
    ([0.0825, 0, 0], [np.pi / 2, 0, 0]),
    ([-0.0825, 0.384, 0], [-np.pi / 2, 0, 0]),
    ([0, 0, 0], [np.pi / 2, 0, 0]),
    ([0.088, 0, 0], [np.pi / 2, 0, 0]),
]
PANDA_TOOL = [([0, 0, 0.107], [0, 0, -np.pi / 4]), ([0, 0, 0.1034], [0, 0, 0])]


def transform(xyz, rpy) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_from_rpy(rpy), xyz
    return matrix


def joint(name: str, kind: str, parent: str, child: str, xyz="0 0 0", extra='<axis xyz="0 0 1"/>') -> str:
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{xyz}"/>{extra}</joint>'
    )


def robot(*joints: str) -> str:
    text = "".join(joints)
    links = {part.split('"')[0] for part in text.split('link="')[1:]}
    return (
        f'<robot name="r">{"".join(f"<link name={chr(34)}{link}{chr(34)}/>" for link in sorted(links))}{text}</robot>'
    )


LIMIT = '<axis xyz="0 0 1"/><limit lower="-2" upper="2" effort="1" velocity="1.5"/>'


@pytest.fixture(scope="module")
def arm() -> ArmKinematics:
    return ArmKinematics.from_urdf(share_path("config/robots/tabletop_arm.urdf").read_text(), "base_link", "tool0")


def test_only_the_joints_between_base_and_tool_are_the_arms(arm):
    assert arm.joint_names == tuple(f"joint{k}" for k in range(1, 8))
    assert arm.lower[3] == -3.0718
    assert arm.upper[5] == 3.7525
    np.testing.assert_array_equal(arm.velocity_limit, [2.175] * 4 + [2.61] * 3)


def test_forward_is_the_product_of_the_joint_transforms(arm):
    rng = np.random.default_rng(0)
    for _ in range(10):
        q = rng.uniform(arm.lower, arm.upper)
        pose = np.eye(4)
        for (xyz, rpy), angle in zip(PANDA, q, strict=True):
            pose = pose @ transform(xyz, rpy) @ transform([0, 0, 0], [0, 0, angle])
        for xyz, rpy in PANDA_TOOL:
            pose = pose @ transform(xyz, rpy)
        np.testing.assert_allclose(arm.forward(q), pose, atol=1e-12)


def test_inverse_arrives_from_nearby_within_tolerance_and_limits(arm):
    rng = np.random.default_rng(1)
    margin = 0.1 * (arm.upper - arm.lower)
    for _ in range(100):
        q = rng.uniform(arm.lower + margin, arm.upper - margin)
        seed = np.clip(q + rng.uniform(-0.3, 0.3, 7), arm.lower, arm.upper)
        found = arm.inverse(arm.forward(q), seed)
        away_m, away_rad = pose_distance(arm.forward(found), arm.forward(q))
        assert away_m < 1e-4
        assert away_rad < 1e-3
        assert (found >= arm.lower).all()
        assert (found <= arm.upper).all()


def test_the_solution_is_the_one_next_to_the_seed(arm):
    np.testing.assert_allclose(arm.inverse(arm.forward(READY), READY), READY, atol=1e-9)


def test_a_joint_at_its_limit_leaves_the_work_to_the_others(arm):
    """Goals that need joint 6 at its upper limit, from seeds on it and just below: the free step would go beyond."""
    rng = np.random.default_rng(2)
    for offset in (0.0, 0.01, 0.05):
        for _ in range(10):
            at_limit = READY + rng.uniform(-0.3, 0.3, 7)
            at_limit[5] = arm.upper[5]
            seed = at_limit + rng.uniform(-0.08, 0.08, 7)
            seed[5] = arm.upper[5] - offset
            found = arm.inverse(arm.forward(at_limit), seed)
            assert found[5] <= arm.upper[5]
            assert pose_distance(arm.forward(found), arm.forward(at_limit)) == pytest.approx((0, 0), abs=1e-3)


def test_out_of_reach_is_refused_with_the_residual(arm):
    with pytest.raises(
        KinematicsError, match=r"no joint values bring tool0 to \(2\.000, 0\.000, 0\.500\) m: \d+\.\d mm"
    ):
        arm.inverse(pose_matrix([2.0, 0.0, 0.5], [0, 1, 0, 0]), READY)


def test_bad_input_is_refused(arm):
    pose = arm.forward(READY)
    with pytest.raises(KinematicsError, match="finite"):
        arm.inverse(np.where(np.eye(4) == 1, np.nan, pose), READY)
    with pytest.raises(KinematicsError, match="7 finite joint values"):
        arm.inverse(pose, READY[:6])
    beyond = READY.copy()
    beyond[3] = 0.2
    with pytest.raises(KinematicsError, match=r"joint4 is at 0\.200, outside its limits"):
        arm.inverse(pose, beyond)


def test_an_encoder_slightly_beyond_a_limit_is_no_obstacle(arm):
    seed = READY.copy()
    seed[3] = arm.upper[3] + 1e-3
    target = arm.forward(np.where(np.arange(7) == 3, arm.upper[3] - 0.05, READY))
    assert arm.inverse(target, seed)[3] <= arm.upper[3]


def test_joint_states_in_any_order_with_others_among_them(arm):
    names = ["finger_joint1", *reversed(arm.joint_names)]
    np.testing.assert_array_equal(arm.configuration(names, [0.04, *READY[::-1]]), READY)
    with pytest.raises(KinematicsError, match="lacks joint7"):
        arm.configuration(arm.joint_names[:6], READY[:6])
    with pytest.raises(KinematicsError, match="names joint2 2 times"):
        arm.configuration([*arm.joint_names, "joint2"], [*READY, 0.0])
    with pytest.raises(KinematicsError, match="7 names and 6 positions"):
        arm.configuration(arm.joint_names, READY[:6])
    with pytest.raises(KinematicsError, match="non-finite"):
        arm.configuration(arm.joint_names, np.where(np.arange(7) == 2, np.nan, READY))


def curved_chunk(seed: int, size_m: float = 0.01, size_rad: float = 0.03) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drift = rng.uniform(-1, 1, 6) * ([size_m] * 3 + [size_rad] * 3)
    noise = rng.uniform(-0.3, 0.3, (16, 6)) * ([size_m] * 3 + [size_rad] * 3)
    return np.concatenate([drift + noise, np.ones((16, 1))], axis=1)


@pytest.mark.parametrize("seed", range(8))
def test_a_chunk_becomes_joint_positions_that_put_the_tool_on_it(arm, seed):
    trajectory = anchor_chunk(curved_chunk(seed), arm.forward(READY), STAMP_NS, 0.2)
    joints = arm.joint_trajectory(trajectory, READY)
    assert joints.joint_names == arm.joint_names
    assert joints.stamp_ns == STAMP_NS
    np.testing.assert_array_equal(joints.times_from_stamp_ns[1:], trajectory.times_ns - STAMP_NS)
    np.testing.assert_array_equal(joints.positions[0], READY)
    np.testing.assert_array_equal(joints.velocities[[0, -1]], 0.0)
    for pose, q in zip(trajectory.poses, joints.positions[1:], strict=True):
        away_m, away_rad = pose_distance(arm.forward(q), pose)
        assert away_m < 1e-4
        assert away_rad < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_velocities_fit_the_positions_and_a_controllers_cubic_stays_between_them(arm, seed):
    trajectory = anchor_chunk(curved_chunk(seed), arm.forward(READY), STAMP_NS, 0.2)
    joints = arm.joint_trajectory(trajectory, READY)
    times_s = joints.times_from_stamp_ns / NS_PER_S
    slopes = np.diff(joints.positions, axis=0) / np.diff(times_s)[:, None]
    np.testing.assert_array_equal(joints.velocities[-1], 0.0)
    between_low = np.minimum(slopes[:-1], slopes[1:])
    between_high = np.maximum(slopes[:-1], slopes[1:])
    inner = joints.velocities[1:-1]
    same_sign = slopes[:-1] * slopes[1:] > 0
    assert (inner[same_sign] >= between_low[same_sign] - 1e-9).all()
    assert (inner[same_sign] <= between_high[same_sign] + 1e-9).all()
    np.testing.assert_array_equal(inner[~same_sign], 0.0)
    # joint_trajectory_controller draws this cubic when points have positions and velocities.
    cubic = CubicHermiteSpline(times_s, joints.positions, joints.velocities)
    for k in range(len(times_s) - 1):
        inside = cubic(np.linspace(times_s[k], times_s[k + 1], 20))
        low = np.minimum(joints.positions[k], joints.positions[k + 1]) - 1e-12
        high = np.maximum(joints.positions[k], joints.positions[k + 1]) + 1e-12
        assert (inside >= low).all()
        assert (inside <= high).all()


def test_an_unreachable_step_is_named(arm):
    deltas = np.zeros((16, 7))
    deltas[:, 0] = 0.05
    trajectory = anchor_chunk(deltas, arm.forward(READY), STAMP_NS, 0.2)
    with pytest.raises(KinematicsError, match=r"step \d+ of 16: no joint values bring tool0"):
        arm.joint_trajectory(trajectory, READY)


def test_a_joint_that_would_jump_is_refused(arm):
    trajectory = anchor_chunk(np.zeros((16, 7)), arm.forward(READY + 0.9 * np.eye(7)[0]), STAMP_NS, 0.2)
    with pytest.raises(KinematicsError, match=r"step 0 of 16: joint\d would leap"):
        arm.joint_trajectory(trajectory, READY, max_joint_step=0.2)


# Only what the URDF says.
URDF_LIMITS = SafetyLimits(
    max_joint_velocity=np.inf,
    joint_margin=0.0,
    max_linear_velocity=np.inf,
    max_angular_velocity=np.inf,
    workspace_min_m=(-np.inf,) * 3,
    workspace_max_m=(np.inf,) * 3,
)


def test_near_a_singular_wrist_poses_on_the_way_keep_the_tool_on_its_path(arm):
    rng = np.random.default_rng(0)
    divided = 0
    for _ in range(80):
        start = READY + rng.uniform(-0.3, 0.3, 7)
        start[5] = rng.uniform(0.0, 0.35)  # the axes of joints 5 and 7 nearly coincide
        deltas = np.concatenate([rng.uniform(-0.015, 0.015, 3), rng.uniform(-0.1, 0.1, 3), [1.0]])
        trajectory = anchor_chunk(np.tile(deltas, (8, 1)), arm.forward(start), STAMP_NS, 0.2)
        try:
            joints = arm.joint_trajectory(trajectory, start)
        except KinematicsError:
            continue
        times_ns = STAMP_NS + joints.times_from_stamp_ns
        assert set(trajectory.times_ns) <= set(times_ns)
        assert (np.diff(times_ns) > 0).all()
        assert np.abs(np.diff(joints.positions, axis=0)).max() <= 0.5
        for time_ns, q in zip(times_ns, joints.positions, strict=True):
            away_m, away_rad = pose_distance(arm.forward(q), trajectory.sample(int(time_ns))[0])
            assert away_m < 1e-4
            assert away_rad < 1e-3
        if len(times_ns) > len(trajectory) + 1:
            divided += 1
            verdict = URDF_LIMITS.check_joints(joints, arm)
            assert verdict.decision is Decision.SLOW_DOWN
            slowed = arm.joint_trajectory(trajectory.slowed(verdict.time_scale), start)
            assert URDF_LIMITS.check_joints(slowed, arm).time_scale < 1.05
    assert divided >= 3


def test_a_standing_tool_lets_the_arm_drift_to_its_posture_slowly(arm):
    away = READY.copy()
    away[[0, 2]] = [0.6, -0.5]
    trajectory = anchor_chunk(np.zeros((50, 7)), arm.forward(away), STAMP_NS, 0.2)
    joints = arm.joint_trajectory(trajectory, away)
    before, after = (np.linalg.norm(q - arm.posture) for q in (away, joints.positions[-1]))
    assert after < before
    assert np.abs(joints.velocities).max() < 0.1
    for q in joints.positions:
        assert pose_distance(arm.forward(q), arm.forward(away))[0] < 1e-4


def test_joint_limits_and_speeds_are_judged(arm):
    trajectory = anchor_chunk(curved_chunk(0), arm.forward(READY), STAMP_NS, 0.2)
    joints = arm.joint_trajectory(trajectory, READY)
    assert URDF_LIMITS.check_joints(joints, arm).decision is Decision.ACCEPT
    slow = replace(URDF_LIMITS, max_joint_velocity=0.15)
    fast = slow.check_joints(joints, arm)
    assert fast.decision is Decision.SLOW_DOWN
    slowed = arm.joint_trajectory(trajectory.slowed(fast.time_scale * 1.01), READY)
    assert slow.check_joints(slowed, arm).decision is Decision.ACCEPT
    assert SafetyLimits(max_joint_velocity=0.01).check_joints(joints, arm).decision is Decision.REJECT
    outside = replace(joints, positions=joints.positions.copy())
    outside.positions[1:] += 3.0 * np.eye(7)[3]
    verdict = URDF_LIMITS.check_joints(outside, arm)
    assert verdict.reasons[0][0] is Code.JOINT_LIMIT
    assert "joint4" in verdict.text
    broken = replace(joints, velocities=np.full_like(joints.velocities, np.nan))
    assert URDF_LIMITS.check_joints(broken, arm).reasons[0][0] is Code.NON_FINITE


def test_an_arm_inside_its_margin_may_come_out_but_not_go_deeper(arm):
    inside = READY.copy()
    inside[3] = arm.upper[3] - 0.01
    limits = SafetyLimits(joint_margin=0.05)
    moving = arm.joint_trajectory(anchor_chunk(np.zeros((2, 7)), arm.forward(inside), STAMP_NS, 0.2), inside)
    out = replace(moving, positions=np.stack([inside, inside - 0.005, inside - 0.01]), velocities=np.zeros((3, 7)))
    deeper = replace(out, positions=np.stack([inside, inside, np.where(np.arange(7) == 3, inside + 0.005, inside)]))
    assert limits.check_joints(out, arm).decision is Decision.ACCEPT
    assert limits.check_joints(deeper, arm).reasons[0][0] is Code.JOINT_LIMIT


def test_a_continuous_joint_counts_on_beyond_half_a_turn():
    urdf = robot(
        joint("turn", "continuous", "base", "a"),
        joint(
            "lift",
            "prismatic",
            "a",
            "b",
            "0.2 0 0",
            '<axis xyz="0 0 1"/><limit lower="0" upper="1" effort="1" velocity="1"/>',
        ),
        joint("wrist", "revolute", "b", "c", "0.3 0 0", LIMIT),
        joint("flange", "fixed", "c", "tool", "0.1 0 0"),
    )
    arm = ArmKinematics.from_urdf(urdf, "base", "tool")
    assert arm.joint_names == ("turn", "lift", "wrist")
    assert arm.lower[0] == -np.inf
    q = np.array([3.1, 0.5, 0.2])
    np.testing.assert_allclose(arm.forward(q), arm.forward(q + 2 * np.pi * np.eye(3)[0]), atol=1e-12)
    expected = (
        transform([0, 0, 0], [0, 0, 3.1]) @ transform([0.2, 0, 0.5], [0, 0, 0]) @ transform([0.3, 0, 0], [0, 0, 0.2])
    )
    np.testing.assert_allclose(arm.forward(q), expected @ transform([0.1, 0, 0], [0, 0, 0]), atol=1e-12)
    further = q + 0.2 * np.eye(3)[0]  # 3.3 rad, past pi
    np.testing.assert_allclose(arm.inverse(arm.forward(further), q), further, atol=1e-3)


def test_fingers_other_branches_and_what_lies_below_the_base_are_left_out():
    urdf = robot(
        joint(
            "rail",
            "prismatic",
            "world",
            "base",
            "0 0 1",
            '<axis xyz="1 0 0"/><limit lower="-5" upper="5" effort="1" velocity="1"/>',
        ),
        joint("shoulder", "revolute", "base", "arm", "0 0 0.4", LIMIT),
        joint("pan", "revolute", "base", "camera", "0 0 2", LIMIT),
        joint(
            "finger",
            "prismatic",
            "arm",
            "finger_link",
            "0.5 0 0",
            '<axis xyz="0 1 0"/><limit lower="0" upper="0.1" effort="1" velocity="1"/>',
        ),
        joint(
            "finger2",
            "prismatic",
            "arm",
            "finger2_link",
            "0.5 0 0",
            '<axis xyz="0 -1 0"/><limit lower="0" upper="0.1" effort="1" velocity="1"/><mimic joint="finger"/>',
        ),
        joint("tip", "fixed", "arm", "tool", "0.6 0 0"),
    )
    arm = ArmKinematics.from_urdf(urdf, "base", "tool")
    assert arm.joint_names == ("shoulder",)
    np.testing.assert_allclose(arm.forward([0.0])[:3, 3], [0.6, 0.0, 0.4], atol=1e-12)


def test_a_base_frame_within_the_tree_is_where_poses_are_given(arm):
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    from_link2 = ArmKinematics.from_urdf(urdf, "link2", "tool0")
    assert from_link2.joint_names == arm.joint_names[2:]
    below = ArmKinematics.from_urdf(urdf, "base_link", "link2")
    zeros = np.concatenate([np.zeros(2), READY[2:]])
    np.testing.assert_allclose(
        from_link2.forward(READY[2:]), invert_pose(below.forward([0.0, 0.0])) @ arm.forward(zeros), atol=1e-12
    )


@pytest.mark.parametrize(
    ("urdf", "base", "tool", "message"),
    [
        ("", "base", "tool", "no usable URDF"),
        ("<robot", "base", "tool", "no usable URDF"),
        (
            robot(joint("a", "revolute", "base", "tool", extra=LIMIT)),
            "base",
            "gripper",
            "no link 'gripper'; its links are",
        ),
        (robot(joint("a", "revolute", "base", "tool", extra=LIMIT)), "tool", "base", "'base' is not beyond 'tool'"),
        (robot(joint("a", "fixed", "base", "tool")), "base", "tool", "no movable joint"),
        (robot(joint("a", "floating", "base", "tool")), "base", "tool", "not supported"),
        (
            robot(
                joint("a", "revolute", "base", "l", extra=LIMIT),
                joint("b", "revolute", "l", "tool", extra=LIMIT + '<mimic joint="a"/>'),
            ),
            "base",
            "tool",
            "joint 'b'.*mimic.*not supported",
        ),
    ],
)
def test_a_urdf_without_the_chain_is_refused(urdf, base, tool, message):
    with pytest.raises(KinematicsError, match=message):
        ArmKinematics.from_urdf(urdf, base, tool)


def test_random_orientations_are_reached_from_ready(arm):
    """Not only near the seed: poses within 25 cm and 40 degrees of the ready pose."""
    rng = np.random.default_rng(5)
    ready = arm.forward(READY)
    reached = 0
    for _ in range(50):
        pose = ready.copy()
        pose[:3, 3] += rng.uniform(-0.14, 0.14, 3)
        pose[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.4, 0.4, 3)).as_matrix() @ pose[:3, :3]
        reached += pose_distance(arm.forward(arm.inverse(pose, READY)), pose)[0] < 1e-4
    assert reached == 50
