"""A recorder of the policy node, the camera and the arm during a run of one or more episodes; for demo and reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.msg import ActionChunk, PolicyStatus, TokenSelection
from sqap_vla_ros.nodes import images, messages
from sqap_vla_ros.nodes.recorder.recording import JointCommand, RecordedChunk, RecordedEpisode, RecordedImage, Recording
from sqap_vla_ros.nodes.recorder.run_control import RunControl
from sqap_vla_ros.nodes.spinning import SpinThread
from sqap_vla_ros.nodes.tf.api import Buffer, TransformException, TransformListener
from sqap_vla_ros.robot.camera import CameraError, CameraModel, ToolProjection, project_tool
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError

STATES = {
    getattr(PolicyStatus, name): name for name in ("DISABLED", "WAITING", "RUNNING", "HOLDING", "STOPPED", "FAULT")
}
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_TOOL_RATE_HZ = 50
_JPEG_QUALITY = 95


class RunRecorder:
    """Records from the moment it is made; use it in a `with`. A thread of its own receives; `finish` gives the result.

    The run is kept in memory (images as JPEG), so it is meant for minutes. cache_s: longest run.
    """

    def __init__(self, *, base_frame: str = "base_link", tool_frame: str = "tool0", cache_s: float = 3600.0) -> None:
        self.status: PolicyStatus | None = None
        self._base_frame, self._tool_frame = base_frame, tool_frame
        self._images: list[tuple[int, str, bytes]] = []
        self._camera_info: CameraInfo | None = None
        self._chunks: dict[int, ActionChunk] = {}
        self._selections: dict[int, TokenSelection] = {}
        self._statuses: dict[int, PolicyStatus] = {}
        self._states: list[tuple[int, str, str]] = []
        self._joints: list[JointState] = []
        self._commands: list[JointTrajectory] = []
        self._model = "{}"
        self._description = ""
        self._episodes: list[RecordedEpisode] = []
        self._start_ns: int | None = None  # of the episode that is being recorded
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C is the caller's
        self._node = Node("run_recorder", context=self._context)
        self._buffer = Buffer(cache_time=Duration(seconds=cache_s))
        self._listener = TransformListener(self._buffer, self._node, spin_thread=False)
        self._subscribe()
        self.control = RunControl(self._node)
        self._spinning = SpinThread(self._node, "run_recorder")

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinning.close()
        self._context.try_shutdown()

    @property
    def chunks(self) -> int:
        """Number of chunks so far."""
        return len(self._chunks)

    @property
    def images(self) -> int:
        """Number of images so far."""
        return len(self._images)

    def begin(self, timeout_s: float, *, check: Callable[[], None] = lambda: None) -> None:
        """Enable the policy: an episode begins. Raises TimeoutError; check as in RunControl."""
        self.control.enable(True, timeout_s, check=check)
        self._start_ns = self._now_ns()

    def end(self, timeout_s: float, *, check: Callable[[], None] = lambda: None) -> None:
        """Disable the policy, which holds the arm: the episode is over. Raises TimeoutError."""
        self._close_episode()
        self.control.enable(False, timeout_s, check=check)

    def finish(self) -> Recording:
        """Return the run so far."""
        self._close_episode()
        episodes = self._episodes or [RecordedEpisode(self._now_ns(), self._now_ns(), self.control.instruction)]
        camera = self._camera()
        joint_names = tuple(self._joints[0].name) if self._joints else ()
        joints = [state for state in self._joints if tuple(state.name) == joint_names]
        tool_times_ns, tool_poses = self._tool_motion(episodes)
        last = self.status
        return Recording(
            episodes=episodes,
            model=json.loads(self._model),
            camera=camera,
            images=[
                self._image(camera, *image)
                for image in self._images
                if any(episode.start_ns <= image[0] <= episode.end_ns for episode in episodes)
            ],
            chunks=[self._chunk(stamp_ns) for stamp_ns in sorted(self._chunks)],
            joint_names=joint_names,
            joint_times_ns=np.array([messages.time_ns(state.header.stamp) for state in joints], dtype=np.int64),
            joint_positions=np.array([state.position for state in joints]).reshape(len(joints), len(joint_names)),
            tool_times_ns=tool_times_ns,
            tool_poses=tool_poses,
            commands=self._joint_commands(),
            states=list(self._states),
            counters={
                name: int(getattr(last, name))
                for name in ("images_received", "images_superseded", "chunks_published", "chunks_rejected")
                if last is not None
            },
        )

    def _subscribe(self) -> None:
        subscribe = self._node.create_subscription
        many = QoSProfile(depth=100)
        subscribe(Image, "image", self._on_image, qos_profile_sensor_data)
        subscribe(CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data)
        subscribe(JointState, "joint_states", self._joints.append, many)
        subscribe(JointTrajectory, "joint_trajectory", self._commands.append, many)
        subscribe(ActionChunk, "policy_node/action_chunk", self._on_chunk, many)
        subscribe(TokenSelection, "policy_node/token_selection", self._on_selection, many)
        subscribe(PolicyStatus, "policy_node/status", self._on_status, QoSProfile(depth=100))
        subscribe(String, "policy_node/model_info", self._on_model, _LATCHED)
        subscribe(String, "robot_description", self._on_description, _LATCHED)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_image(self, message: Image) -> None:
        rgb = images.to_rgb(message)
        _, jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        frame_id = message.header.frame_id.removeprefix("/")
        self._images.append((messages.time_ns(message.header.stamp), frame_id, jpeg.tobytes()))

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    def _on_model(self, message: String) -> None:
        self._model = message.data

    def _on_description(self, message: String) -> None:
        self._description = message.data

    def _on_chunk(self, message: ActionChunk) -> None:
        self._chunks[messages.time_ns(message.header.stamp)] = message

    def _on_selection(self, message: TokenSelection) -> None:
        self._selections[messages.time_ns(message.header.stamp)] = message

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message
        if message.stage_names:
            self._statuses.setdefault(messages.time_ns(message.observation_stamp), message)
        entry = STATES[message.state], message.reason
        if not self._states or self._states[-1][1:] != entry:
            self._states.append((messages.time_ns(message.header.stamp), *entry))

    def _camera(self) -> CameraModel | None:
        try:
            return CameraModel.from_camera_info(self._camera_info) if self._camera_info is not None else None
        except CameraError:
            return None  # the policy node reports it; the video then has no gripper and no path

    def _pose(self, target: str, source: str, stamp_ns: int) -> Any:
        message = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns))
        return messages.transform_from_message(message)

    def _image(self, camera: CameraModel | None, stamp_ns: int, frame_id: str, jpeg: bytes) -> RecordedImage:
        try:
            optical_from_base = self._pose(frame_id, self._base_frame, stamp_ns)
            base_from_tool = self._pose(self._base_frame, self._tool_frame, stamp_ns)
        except TransformException as error:
            return RecordedImage(stamp_ns, jpeg, None, ToolProjection(None, str(error)))
        if camera is None:
            return RecordedImage(stamp_ns, jpeg, optical_from_base, ToolProjection(None, "the camera is uncalibrated"))
        return RecordedImage(stamp_ns, jpeg, optical_from_base, project_tool(camera, optical_from_base, base_from_tool))

    def _chunk(self, stamp_ns: int) -> RecordedChunk:
        chunk, trajectory = messages.chunk_from_message(self._chunks[stamp_ns])
        selection, status = self._selections.get(stamp_ns), self._statuses.get(stamp_ns)
        return RecordedChunk(
            chunk,
            trajectory,
            messages.selection_from_message(selection) if selection is not None else None,
            dict(zip(status.stage_names, status.stage_ms, strict=True)) if status is not None else {},
            status.overhead_ms if status is not None else float("nan"),
            status.observation_age_s if status is not None else float("nan"),
        )

    def _joint_commands(self) -> list[JointCommand]:
        try:
            arm = ArmKinematics.from_urdf(self._description, self._base_frame, self._tool_frame)
        except KinematicsError:
            arm = None  # the policy node reports it; the film then has no path
        return [_joint_command(message, arm) for message in self._commands if message.points]

    def _tool_motion(self, episodes: list[RecordedEpisode]) -> tuple[Any, Any]:
        times, poses = [], []
        for episode in episodes:
            for stamp_ns in range(episode.start_ns, episode.end_ns, NS_PER_S // _TOOL_RATE_HZ):
                try:
                    poses.append(self._pose(self._base_frame, self._tool_frame, stamp_ns))
                except TransformException:
                    continue
                times.append(stamp_ns)
        return np.array(times, dtype=np.int64), np.array(poses).reshape(len(times), 4, 4)

    def _close_episode(self) -> None:
        if self._start_ns is not None:
            done_ns = self.control.done_ns
            self._episodes.append(RecordedEpisode(self._start_ns, self._now_ns(), self.control.instruction, done_ns))
            self._start_ns = None


def _joint_command(message: JointTrajectory, arm: ArmKinematics | None) -> JointCommand:
    stamp_ns = messages.time_ns(message.header.stamp)
    positions = np.array([point.positions for point in message.points], dtype=np.float64)
    tool_positions = None
    if arm is not None:
        joints = [arm.configuration(message.joint_names, values.tolist()) for values in positions]
        tool_positions = np.array([arm.forward(q)[:3, 3] for q in joints])
    times_ns = [stamp_ns + messages.time_ns(point.time_from_start) for point in message.points]
    return JointCommand(
        tuple(message.joint_names), stamp_ns, np.array(times_ns, dtype=np.int64), positions, tool_positions
    )
