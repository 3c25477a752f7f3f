"""Conversions between the package's types and ROS messages: nothing lost, nothing shifted, contradictions refused."""

import numpy as np
import pytest
from geometry_msgs.msg import Pose
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import ActionChunk, Reason, TokenSelection
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.messages import MessageError
from sqap_vla_ros.robot.camera import ToolProjection
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays
from sqap_vla_ros.robot.trajectory import anchor_chunk

STAMP_NS = 1_763_000_000_123_456_789  # of today: a float64 of seconds would lose its last digits


@pytest.fixture
def pose():
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [0.3, -0.8, 2.0]).as_matrix()
    matrix[:3, 3] = [0.4, -0.1, 0.25]
    return matrix


@pytest.fixture
def chunk():
    rng = np.random.default_rng(0)
    deltas = np.hstack([rng.uniform(-0.02, 0.02, (16, 3)), rng.uniform(-0.1, 0.1, (16, 3)), rng.random((16, 1))])
    return ActionChunk(STAMP_NS, deltas, 0.2, rng.uniform(-1, 1, (16, 7)), seed=2**63)


@pytest.fixture
def trajectory(chunk, pose):
    return anchor_chunk(chunk.deltas, pose, chunk.stamp_ns, chunk.dt_s)


@given(st.integers(-(2**31) * 10**9, (2**31 - 1) * 10**9))
def test_times_are_exact(ns):
    assert messages.time_ns(messages.time_message(ns)) == ns
    assert messages.time_ns(messages.duration_message(ns)) == ns


def test_pose_round_trip(pose):
    np.testing.assert_allclose(messages.pose_from_message(messages.pose_message(pose)), pose, atol=1e-15)


def test_transform_round_trip(pose):
    message = messages.transform_message(pose, STAMP_NS, "base_link", "tool0")
    assert (message.header.frame_id, message.child_frame_id) == ("base_link", "tool0")
    assert messages.time_ns(message.header.stamp) == STAMP_NS
    np.testing.assert_allclose(messages.transform_from_message(message), pose, atol=1e-15)


def test_an_unset_orientation_is_refused():
    message = Pose()
    message.orientation.w = 0.0
    with pytest.raises(ValueError, match="quaternion"):
        messages.pose_from_message(message)


def test_chunk_round_trip(chunk, trajectory):
    message = messages.chunk_message(
        chunk, trajectory, base_frame="base_link", tool_frame="tool0", instruction="pick up the can"
    )
    assert (message.horizon, message.tool_frame, message.instruction) == (16, "tool0", "pick up the can")
    assert message.header.frame_id == "base_link"
    back, poses = messages.chunk_from_message(message)
    assert (back.stamp_ns, back.dt_s, back.seed) == (STAMP_NS, 0.2, 2**63)
    np.testing.assert_array_equal(back.deltas, chunk.deltas)
    np.testing.assert_array_equal(back.normalized, chunk.normalized)
    np.testing.assert_array_equal(poses.times_ns, trajectory.times_ns)
    np.testing.assert_array_equal(poses.times_ns, STAMP_NS + 200_000_000 * np.arange(1, 17))
    np.testing.assert_allclose(poses.poses, trajectory.poses, atol=1e-14)
    np.testing.assert_array_equal(poses.gripper, chunk.deltas[:, 6])


@pytest.mark.parametrize(("field", "expected"), [("deltas", 112), ("normalized", 112), ("poses", 16), ("gripper", 16)])
def test_a_chunk_of_the_wrong_length_is_refused(chunk, trajectory, field, expected):
    message = messages.chunk_message(chunk, trajectory, base_frame="b", tool_frame="t", instruction="")
    setattr(message, field, getattr(message, field)[:-1])
    with pytest.raises(MessageError, match=rf"{field} has {expected - 1} entries, expected {expected}"):
        messages.chunk_from_message(message)


@pytest.fixture
def selection():
    return TokenSelection(
        indices=np.array([3, 17, 255], np.int32),
        reasons=np.array([Reason.ATTENTION, Reason.RING, Reason.SPATIAL], np.uint8),
        grid=(16, 16),
        method="sqap",
        prune_layer=2,
        gripper_patch=(1, 1),
    )


def test_selection_round_trip(selection):
    tool = ToolProjection(pixel=(30.5, 41.25), reason="")
    message = messages.selection_message(selection, tool, stamp_ns=STAMP_NS, frame_id="camera")
    assert (message.gripper_u, message.gripper_v, message.gripper_in_view) == (30.5, 41.25, True)
    back = messages.selection_from_message(message)
    np.testing.assert_array_equal(back.indices, selection.indices)
    np.testing.assert_array_equal(back.reasons, selection.reasons)
    assert (back.grid, back.method, back.prune_layer, back.gripper_patch) == ((16, 16), "sqap", 2, (1, 1))


def test_a_gripper_out_of_view_says_why(selection):
    away = TokenSelection(selection.indices, selection.reasons, (16, 16), "sqap", 2, None)
    tool = ToolProjection(pixel=None, reason="behind the camera")
    message = messages.selection_message(away, tool, stamp_ns=0, frame_id="camera")
    assert (message.gripper_in_view, message.gripper_note) == (False, "behind the camera")
    assert messages.selection_from_message(message).gripper_patch is None


@pytest.mark.parametrize(
    ("indices", "reasons", "text"),
    [([1, 2], [0], "2 indices but 1 reasons"), ([2, 1], [0, 0], "must ascend"), ([1, 256], [0, 0], "below 256")],
)
def test_a_selection_that_contradicts_itself_is_refused(selection, indices, reasons, text):
    message = messages.selection_message(selection, None, stamp_ns=0, frame_id="camera")
    message.indices, message.reasons = indices, reasons
    with pytest.raises(MessageError, match=text):
        messages.selection_from_message(message)


def test_joint_trajectory_has_positions_velocities_and_times():
    positions = np.arange(6.0).reshape(3, 2)
    times = np.array([0, 200, 3_000_000_001], np.int64)
    arrays = JointTrajectoryArrays(("joint1", "joint2"), STAMP_NS, times, positions, positions / 10)
    message = messages.joint_trajectory_message(arrays)
    assert messages.time_ns(message.header.stamp) == STAMP_NS
    assert list(message.joint_names) == ["joint1", "joint2"]
    assert [messages.time_ns(p.time_from_start) for p in message.points] == [0, 200, 3_000_000_001]
    np.testing.assert_array_equal([p.positions for p in message.points], positions)
    np.testing.assert_array_equal([p.velocities for p in message.points], positions / 10)


def test_multi_dof_trajectory_integrates_to_its_poses(trajectory):
    message = messages.multi_dof_message(trajectory, base_frame="base_link", tool_frame="tool0")
    assert list(message.joint_names) == ["tool0"]
    position = trajectory.anchor[:3, 3].copy()
    for i, point in enumerate(message.points):
        v = point.velocities[0].linear
        position += 0.2 * np.array([v.x, v.y, v.z])
        t = point.transforms[0].translation
        np.testing.assert_allclose([t.x, t.y, t.z], position, atol=1e-12)
        assert messages.time_ns(point.time_from_start) == (i + 1) * 200_000_000


def test_path_is_stamped_with_due_times(trajectory):
    message = messages.path_message(trajectory, "base_link")
    assert [messages.time_ns(p.header.stamp) for p in message.poses] == trajectory.times_ns.tolist()
    np.testing.assert_allclose(
        [messages.pose_from_message(p.pose) for p in message.poses], trajectory.poses, atol=1e-14
    )
