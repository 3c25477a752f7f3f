import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.conventions import (
    compose_delta,
    invert_pose,
    largest_turn,
    pose_distance,
    pose_matrix,
    rotation_from_rotvec,
    rotation_from_rpy,
    split_pose,
)


def about(axis: str, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def random_pose(rng: np.random.Generator) -> np.ndarray:
    return pose_matrix(rng.normal(size=3), Rotation.random(rng=rng).as_quat())


def test_roll_pitch_yaw_is_extrinsic_xyz():
    roll, pitch, yaw = 0.3, -0.7, 1.1
    closed_form = about("z", yaw) @ about("y", pitch) @ about("x", roll)
    np.testing.assert_allclose(rotation_from_rpy([roll, pitch, yaw]), closed_form, atol=1e-15)


def test_a_delta_turns_about_the_base_axes_and_not_about_the_tools():
    flange_down = pose_matrix([0.5, 0.0, 0.3], Rotation.from_euler("y", 90, degrees=True).as_quat())
    delta = np.array([0.01, 0.02, 0.03, 0.0, 0.0, np.pi / 2, 1.0])
    following = compose_delta(flange_down, delta)
    # The tool's z axis points along base x. A yaw about base z turns it to base y; about the tool's z it would stay.
    np.testing.assert_allclose(following[:3, 2], [0.0, 1.0, 0.0], atol=1e-12)
    right_composed = flange_down[:3, :3] @ rotation_from_rpy(delta[3:6])
    np.testing.assert_allclose(right_composed[:, 2], [1.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(following[:3, 3], [0.51, 0.02, 0.33])


def test_composing_does_not_change_the_pose_given():
    pose = np.eye(4)
    compose_delta(pose, [0.1] * 7)
    np.testing.assert_array_equal(pose, np.eye(4))


def test_a_pose_survives_the_way_through_translation_and_quaternion():
    rng = np.random.default_rng(1)
    for _ in range(20):
        pose = random_pose(rng)
        xyz, quat = split_pose(pose)
        assert quat[3] >= 0
        np.testing.assert_allclose(pose_matrix(xyz, quat), pose, atol=1e-12)


def test_inverse_maps_back():
    rng = np.random.default_rng(2)
    base_from_tool = random_pose(rng)
    point = np.array([0.1, -0.2, 0.3, 1.0])
    np.testing.assert_allclose(invert_pose(base_from_tool) @ (base_from_tool @ point), point, atol=1e-12)


def test_distance_between_poses():
    a = np.eye(4)
    b = pose_matrix([0.3, 0.0, 0.4], Rotation.from_rotvec([0.0, 0.25, 0.0]).as_quat())
    assert pose_distance(a, b) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("quat", [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.1], [0.0, 0.0, 0.0, np.nan], [0.0, 0.0, 1.0]])
def test_a_quaternion_that_is_none_is_refused(quat):
    with pytest.raises(ValueError, match="quaternion must be 4 numbers"):
        pose_matrix([0.0, 0.0, 0.0], quat)


def test_a_translation_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="translation must be 3 finite numbers"):
        pose_matrix([0.0, np.inf, 0.0], [0.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-7, 1e-3, 1.0, np.pi - 1e-7, np.pi, 4.0])
def test_rotation_vectors_and_distances_are_those_of_scipy(size):
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(20, 3))
    rotvecs = size * axes / np.linalg.norm(axes, axis=1)[:, None]
    wanted = Rotation.from_rotvec(rotvecs)
    np.testing.assert_allclose(rotation_from_rotvec(rotvecs), wanted.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(rotation_from_rotvec(rotvecs[0]), wanted[0].as_matrix(), atol=1e-14)
    for rotation, angle in zip(wanted, wanted.magnitude(), strict=True):
        pose, other = np.eye(4), np.eye(4)
        pose[:3, :3] = Rotation.from_rotvec(axes[0]).as_matrix()
        other[:3, :3] = pose[:3, :3] @ rotation.as_matrix()
        other[:3, 3] = 0.3, 0.0, 0.4
        assert pose_distance(pose, other) == pytest.approx((0.5, angle), abs=3e-8 if size > 3.1 else 1e-14)


@pytest.mark.parametrize("index", [(0, 3), (1, 1), (2, 0)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pose_that_is_not_finite_is_near_to_nothing(index, value):
    broken = np.eye(4)
    broken[index] = value
    assert pose_distance(np.eye(4), broken) == (np.inf, np.inf)
    assert pose_distance(broken, np.eye(4)) == (np.inf, np.inf)


def test_quaternions_are_those_of_scipy():
    rng = np.random.default_rng(1)
    halves = [np.eye(4)[k] for k in range(4)] + [np.array([0.5, -0.5, 0.5, -0.5]), np.array([0.0, 0.6, 0.8, 0.0])]
    for quat in [*halves, *rng.normal(size=(200, 4))]:
        rotation = Rotation.from_quat(quat)
        pose = pose_matrix([1.0, 2.0, 3.0], quat / np.linalg.norm(quat))
        np.testing.assert_allclose(pose[:3, :3], rotation.as_matrix(), atol=1e-15)
        translation, found = split_pose(pose)
        np.testing.assert_array_equal(translation, [1.0, 2.0, 3.0])
        assert found[3] >= 0.0
        assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-15)
        np.testing.assert_allclose(Rotation.from_quat(found).as_matrix(), rotation.as_matrix(), atol=1e-14)
        if abs(found[3]) > 1e-9:
            np.testing.assert_allclose(found, rotation.as_quat(canonical=True), atol=1e-14)


def test_the_largest_turn_is_about_the_axes_of_the_tool():
    reached, wanted = np.stack([np.eye(4)] * 3), np.stack([np.eye(4)] * 3)
    reached[:, :3, :3] = wanted[:, :3, :3] = about("x", np.pi / 2)
    wanted[1, :3, :3] = reached[1, :3, :3] @ about("z", -0.2)
    wanted[2, :3, :3] = about("z", 0.1) @ reached[2, :3, :3]  # the base's z is the tool's y
    np.testing.assert_allclose(largest_turn(reached, wanted), [0.0, 0.1, 0.2], atol=1e-12)
