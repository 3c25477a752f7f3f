"""Conversions between the package's types and ROS messages. Numbers are cast: generated messages refuse numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, TransformStamped, Twist, Vector3
from nav_msgs.msg import Path
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from trajectory_msgs.msg import (
    JointTrajectory,
    JointTrajectoryPoint,
    MultiDOFJointTrajectory,
    MultiDOFJointTrajectoryPoint,
)

from sqap_vla_ros.contracts import ACTION_DIM, NS_PER_S, ActionChunk, TokenSelection
from sqap_vla_ros.msg import ActionChunk as ActionChunkMessage
from sqap_vla_ros.msg import TokenSelection as TokenSelectionMessage
from sqap_vla_ros.robot.camera import ToolProjection
from sqap_vla_ros.robot.conventions import pose_matrix, split_pose
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays
from sqap_vla_ros.robot.trajectory import PoseTrajectory


class MessageError(ValueError):
    """A message whose fields contradict each other: says which and how."""


def time_ns(stamp: Time | Duration) -> int:
    """Return the nanoseconds of a stamp or a duration."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def time_message(stamp_ns: int) -> Time:
    """Return the stamp of nanoseconds since the epoch."""
    sec, nanosec = divmod(int(stamp_ns), NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def duration_message(duration_ns: int) -> Duration:
    """Return the duration of nanoseconds; a negative one has negative seconds and positive nanoseconds, as in ROS."""
    sec, nanosec = divmod(int(duration_ns), NS_PER_S)
    return Duration(sec=sec, nanosec=nanosec)


def header(stamp_ns: int, frame_id: str) -> Header:
    """Return the header of a stamp and a frame."""
    return Header(stamp=time_message(stamp_ns), frame_id=frame_id)


def pose_message(pose: NDArray[np.float64]) -> Pose:
    """Return the Pose of a matrix [4, 4]."""
    (x, y, z), (qx, qy, qz, qw) = (values.tolist() for values in split_pose(pose))
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def pose_from_message(message: Pose) -> NDArray[np.float64]:
    """Return the matrix [4, 4] of a Pose. Raises ValueError for a quaternion that is none."""
    p, q = message.position, message.orientation
    return pose_matrix((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def transform_message(parent_from_child: NDArray[np.float64], stamp_ns: int, parent: str, child: str) -> Any:
    """Return the TransformStamped of the pose [4, 4] of the child frame in the parent frame."""
    message = TransformStamped(header=header(stamp_ns, parent), child_frame_id=child)
    message.transform = _transform(parent_from_child)
    return message


def transform_from_message(message: TransformStamped) -> NDArray[np.float64]:
    """Return the pose [4, 4] of the child frame in the header's frame."""
    t, q = message.transform.translation, message.transform.rotation
    return pose_matrix((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def chunk_message(
    chunk: ActionChunk, trajectory: PoseTrajectory, *, base_frame: str, tool_frame: str, instruction: str
) -> ActionChunkMessage:
    """Return the ActionChunk of a prediction; `trajectory` is the whole chunk anchored at the image's stamp."""
    message = ActionChunkMessage()
    message.header = header(chunk.stamp_ns, base_frame)
    message.tool_frame = tool_frame
    message.instruction = instruction
    message.seed = int(chunk.seed)
    message.step = duration_message(round(chunk.dt_s * NS_PER_S))
    message.horizon = len(chunk.deltas)
    message.deltas = chunk.deltas.ravel().tolist()
    message.normalized = chunk.normalized.ravel().tolist()
    message.anchor = pose_message(trajectory.anchor)
    message.poses = _pose_messages(trajectory.poses)
    message.gripper = trajectory.gripper.tolist()
    return message


def chunk_from_message(message: ActionChunkMessage) -> tuple[ActionChunk, PoseTrajectory]:
    """Return the chunk and its poses in the base frame. Raises MessageError for a message that contradicts itself."""
    horizon = message.horizon
    for name, expected in (
        ("deltas", horizon * ACTION_DIM),
        ("normalized", horizon * ACTION_DIM),
        ("poses", horizon),
        ("gripper", horizon),
    ):
        if len(getattr(message, name)) != expected:
            raise MessageError(f"action chunk: {name} has {len(getattr(message, name))} entries, expected {expected}")
    stamp_ns, step_ns = time_ns(message.header.stamp), time_ns(message.step)
    chunk = ActionChunk(
        stamp_ns=stamp_ns,
        deltas=np.array(message.deltas, dtype=np.float64).reshape(horizon, ACTION_DIM),
        dt_s=step_ns / NS_PER_S,
        normalized=np.array(message.normalized, dtype=np.float64).reshape(horizon, ACTION_DIM),
        seed=message.seed,
    )
    trajectory = PoseTrajectory(
        times_ns=stamp_ns + step_ns * np.arange(1, horizon + 1, dtype=np.int64),
        poses=np.stack([pose_from_message(pose) for pose in message.poses]),
        gripper=np.array(message.gripper, dtype=np.float64),
        anchor=pose_from_message(message.anchor),
        stamp_ns=stamp_ns,
        anchor_ns=stamp_ns,
    )
    return chunk, trajectory


def selection_message(
    selection: TokenSelection, tool: ToolProjection | None, *, stamp_ns: int, frame_id: str
) -> TokenSelectionMessage:
    """Return the TokenSelection of one prediction. tool: where the tool frame is in the image, or why it is not."""
    message = TokenSelectionMessage()
    message.header = header(stamp_ns, frame_id)
    message.method = selection.method
    message.prune_layer = int(selection.prune_layer)
    message.grid_rows, message.grid_cols = (int(n) for n in selection.grid)
    message.indices = selection.indices.tolist()
    message.reasons = selection.reasons.tolist()
    message.gripper_in_view = selection.gripper_patch is not None
    if selection.gripper_patch is not None:
        message.gripper_row, message.gripper_col = (int(n) for n in selection.gripper_patch)
    if tool is not None:
        message.gripper_note = tool.reason
        if tool.pixel is not None:
            message.gripper_u, message.gripper_v = (float(n) for n in tool.pixel)
    return message


def selection_from_message(message: TokenSelectionMessage) -> TokenSelection:
    """Return the selection. Raises MessageError for a message that contradicts itself."""
    indices = np.array(message.indices, dtype=np.int32)
    tokens = message.grid_rows * message.grid_cols
    if len(message.reasons) != len(indices):
        raise MessageError(f"token selection: {len(indices)} indices but {len(message.reasons)} reasons")
    if len(indices) and not (indices.max() < tokens and (np.diff(indices) > 0).all()):
        raise MessageError(f"token selection: indices must ascend below {tokens}, got {indices.tolist()}")
    return TokenSelection(
        indices=indices,
        reasons=np.array(message.reasons, dtype=np.uint8),
        grid=(message.grid_rows, message.grid_cols),
        method=message.method,
        prune_layer=message.prune_layer,
        gripper_patch=(message.gripper_row, message.gripper_col) if message.gripper_in_view else None,
    )


def joint_trajectory_message(trajectory: JointTrajectoryArrays) -> JointTrajectory:
    """Return a JointTrajectory with positions and velocities and a stamped start."""
    message = JointTrajectory(header=header(trajectory.stamp_ns, ""), joint_names=list(trajectory.joint_names))
    message.points = [
        JointTrajectoryPoint(
            positions=positions.tolist(),
            velocities=velocities.tolist(),
            time_from_start=duration_message(due_ns),
        )
        for due_ns, positions, velocities in zip(
            trajectory.times_from_stamp_ns, trajectory.positions, trajectory.velocities, strict=True
        )
    ]
    return message


def multi_dof_message(trajectory: PoseTrajectory, *, base_frame: str, tool_frame: str) -> MultiDOFJointTrajectory:
    """Return the poses of the tool in the base frame with the velocity over the step that leads to each."""
    message = MultiDOFJointTrajectory(header=header(trajectory.stamp_ns, base_frame), joint_names=[tool_frame])
    linear, angular = trajectory.segment_velocities()
    for due_ns, pose, v, w in zip(
        trajectory.times_ns, trajectory.poses, linear.tolist(), angular.tolist(), strict=True
    ):
        point = MultiDOFJointTrajectoryPoint(time_from_start=duration_message(due_ns - trajectory.stamp_ns))
        point.transforms = [_transform(pose)]
        point.velocities = [Twist(linear=Vector3(x=v[0], y=v[1], z=v[2]), angular=Vector3(x=w[0], y=w[1], z=w[2]))]
        message.points.append(point)
    return message


def path_message(trajectory: PoseTrajectory, base_frame: str) -> Path:
    """Return the Path of the tool, each pose stamped with the time it is due."""
    return Path(
        header=header(trajectory.stamp_ns, base_frame),
        poses=[
            PoseStamped(header=header(due_ns, base_frame), pose=pose)
            for due_ns, pose in zip(trajectory.times_ns, _pose_messages(trajectory.poses), strict=True)
        ],
    )


def _pose_messages(poses: NDArray[np.float64]) -> list[Pose]:
    """Return poses [T, 4, 4] as messages; all rotations in one call, because every chunk passes here."""
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat(canonical=True)
    return [
        Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))
        for (x, y, z), (qx, qy, qz, qw) in zip(poses[:, :3, 3].tolist(), quaternions.tolist(), strict=True)
    ]


def _transform(pose: NDArray[np.float64]) -> Transform:
    (x, y, z), (qx, qy, qz, qw) = (values.tolist() for values in split_pose(pose))
    return Transform(translation=Vector3(x=x, y=y, z=z), rotation=Quaternion(x=qx, y=qy, z=qz, w=qw))
