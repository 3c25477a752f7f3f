"""Observations for the policy, with the gripper's place in the image, from an image, its camera_info and TF."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S, Observation
from sqap_vla_ros.control.camera.image_gate import ImageGate
from sqap_vla_ros.control.camera.pictures import ToolView
from sqap_vla_ros.control.camera.visibility import lens_problem, nothing_visible
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.nodes.messages import time_ns
from sqap_vla_ros.nodes.tf.api import Buffer, TransformException
from sqap_vla_ros.robot.camera import CameraError, CameraModel, ToolProjection, project_tool
from sqap_vla_ros.robot.camera_contract import CameraContract
from sqap_vla_ros.robot.conventions import pose_matrix

TWIST_S = 0.05  # long beside the noise and the period of TF, short beside an action


class ObservationProblem(Exception):
    """No observation can be made. source: the input at fault; the text says what to do."""

    def __init__(self, source: Input, text: str) -> None:
        super().__init__(text)
        self.source = source


class TransformMissing(ObservationProblem):
    """TF does not cover the image's stamp: it may still come."""

    def __init__(self, text: str) -> None:
        super().__init__(Input.TF, text)


@dataclass(frozen=True)
class Frame:
    """An image with the camera_info of the same stamp. arrived_s: steady clock at the image's callback."""

    image: Any
    camera_info: Any
    stamp_ns: int
    arrived_s: float

    @property
    def frame_id(self) -> str:
        return str(self.image.header.frame_id).removeprefix("/")  # ROS 1 drivers write it, tf2 refuses it


class WaitingFrames(deque[Frame]):
    """Images that wait for their transforms, oldest first: never more than `PARTS + 2`, over the whole time of waiting.

    A camera may bring more than can be kept until a late transform comes. Kept is the newest, and of the others one
    in each of `PARTS` parts of that time, so that there is always one whose transforms come next.
    """

    PARTS = 8

    def __init__(self, longest_s: float) -> None:
        """longest_s: an image that waited longer is given up when the next one comes."""
        super().__init__()
        self._longest_s = longest_s

    def add(self, frame: Frame) -> int:
        """Add the newest image. Return how many were given up for it."""
        before = len(self)
        while self and frame.arrived_s - self[0].arrived_s > self._longest_s:
            self.popleft()
        if len(self) > 1 and self[-1].arrived_s - self[-2].arrived_s < self._longest_s / self.PARTS:
            self.pop()
        self.append(frame)
        return before + 1 - len(self)


@dataclass(frozen=True)
class View:
    """An observation with the geometry it was made with. optical_from_base: [4, 4]; camera None: uncalibrated."""

    observation: Observation
    frame: Frame
    base_from_tool: NDArray[np.float64]
    optical_from_base: NDArray[np.float64] | None
    camera: CameraModel | None
    tool: ToolProjection


class Observer:
    """Makes observations. needs_projection: the policy's token selection looks at the gripper's pixel."""

    def __init__(
        self,
        buffer: Buffer,
        gate: ImageGate,
        to_rgb: Callable[[Any], NDArray[np.uint8]],
        *,
        base_frame: str,
        tool_frame: str,
        rectified: bool,
        topics: tuple[str, str],
        optical_frame_rectified: bool = False,
        contract: CameraContract | None = None,
    ) -> None:
        """to_rgb: image message -> [H, W, 3] uint8. topics: resolved names of image and camera_info, for messages.

        rectified, optical_frame_rectified: see CameraModel. contract: what the camera must see like.
        """
        self.needs_projection = True
        self._buffer = buffer
        self._gate = gate
        self.to_rgb = to_rgb
        self._base_frame = base_frame
        self._tool_frame = tool_frame
        self._rectification = {"rectified": rectified, "optical_frame_rectified": optical_frame_rectified}
        self._contract = contract
        self._image_topic, self._info_topic = topics
        self._camera_key: tuple[Any, ...] | None = None
        self._camera: CameraModel | None = None
        self._camera_problem = ""
        self._other_camera: str | None = None

    def transform(self, target: str, source: str, stamp_ns: int) -> NDArray[np.float64]:
        """Return the [4, 4] target_from_source at a time; 0 is the latest.

        Raises TransformMissing, and ObservationProblem for numbers that are no pose.
        """
        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns))
        except TransformException as error:
            raise TransformMissing(f"no transform {target} <- {source} at the image's stamp: {error}") from error
        return _pose(found, target, source)

    def measured_tool(self) -> tuple[NDArray[np.float64], int]:
        """Return the newest [4, 4] base_from_tool and its stamp in nanoseconds (0 if static).

        Raises TransformMissing, and ObservationProblem for numbers that are no pose.
        """
        try:
            found = self._buffer.lookup_transform(self._base_frame, self._tool_frame, Time())
        except TransformException as error:
            raise TransformMissing(f"no transform {self._base_frame} <- {self._tool_frame}: {error}") from error
        return _pose(found, self._base_frame, self._tool_frame), time_ns(found.header.stamp)

    def measured_twist(self) -> NDArray[np.float64] | None:
        """Return the tool's twist [6] (m/s, rad/s, base axes) over the last TWIST_S of TF; None where unknown."""
        try:
            after, stamp_ns = self.measured_tool()
            before = self.transform(self._base_frame, self._tool_frame, stamp_ns - round(TWIST_S * NS_PER_S))
        except (ObservationProblem, ValueError):  # ValueError: a stamp before the beginning of time
            return None
        turned = Rotation.from_matrix(after[:3, :3] @ before[:3, :3].T).as_rotvec()
        return np.concatenate([after[:3, 3] - before[:3, 3], turned]) / TWIST_S

    def observe(self, frame: Frame, instruction: str, now_ns: int) -> View:
        """Raises TransformMissing when TF may still come, ObservationProblem when waiting does not help."""
        if (stale := self._gate.age(frame.stamp_ns, now_ns)) is not None:
            raise ObservationProblem(Input.IMAGE, f"{stale} ({self._image_topic})")
        base_from_tool = self.transform(self._base_frame, self._tool_frame, frame.stamp_ns)
        if not frame.frame_id:
            raise ObservationProblem(
                Input.CAMERA_INFO, f"images on {self._image_topic} have no frame_id: set the camera driver's frame"
            )
        camera = self._camera_of(frame)
        if camera is None and (self.needs_projection or self._contract is not None):
            raise ObservationProblem(Input.CAMERA_INFO, self._camera_problem)
        optical_from_base = tool_view = None
        tool = ToolProjection(None, self._camera_problem)
        if camera is not None:
            optical_from_base = self.transform(frame.frame_id, self._base_frame, frame.stamp_ns)
            tool = project_tool(camera, optical_from_base, base_from_tool)
            tool_view = ToolView(camera, optical_from_base, base_from_tool)
        try:
            image = self.to_rgb(frame.image)
        except ValueError as error:
            raise ObservationProblem(Input.IMAGE, f"{self._image_topic}: {error}") from error
        if camera is not None:
            try:
                camera.require_size(image.shape[1], image.shape[0])
            except CameraError as error:
                raise ObservationProblem(
                    Input.CAMERA_INFO, f"{self._image_topic} and {self._info_topic} differ: {error}"
                ) from error
            if self._other_camera is not None:
                text = f"{self._info_topic} (for {self._image_topic}): {self._other_camera}"
                raise ObservationProblem(Input.CAMERA_INFO, text)
        focal = None if camera is None else float(camera.matrix[0, 0])
        unusable = nothing_visible(image) or self._gate.changed(frame.frame_id, image, focal)
        if unusable is not None:
            raise ObservationProblem(Input.IMAGE, f"{unusable} ({self._image_topic})")
        frozen = self._gate.frozen(image, frame.stamp_ns, base_from_tool[:3, 3], tool_view)
        if frozen is not None:
            raise ObservationProblem(Input.IMAGE, f"{frozen} ({self._image_topic})")
        observation = Observation(image, frame.stamp_ns, instruction, tool.pixel, base_from_tool)
        return View(observation, frame, base_from_tool, optical_from_base, camera, tool)

    def _camera_of(self, frame: Frame) -> CameraModel | None:
        """Return the camera model, computed again only when camera_info changes (it is sent with every image)."""
        info = frame.camera_info
        key = (
            info.width, info.height, info.distortion_model, info.binning_x, info.binning_y,
            info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height,
            tuple(info.d), tuple(info.k), tuple(info.r), tuple(info.p),
        )  # fmt: skip
        if key != self._camera_key:
            self._camera, self._camera_problem, self._other_camera = None, "", None
            try:
                self._camera = CameraModel.from_camera_info(info, **self._rectification)
            except CameraError as error:
                self._camera_problem = f"{self._info_topic} (for {self._image_topic}): {error}"
            if self._camera is not None:
                matrix = self._camera.matrix
                absurd = lens_problem(self._camera.width, self._camera.height, matrix[0, 0], matrix[1, 1])
                if absurd is not None:
                    self._camera, self._camera_problem = None, f"{self._info_topic}: {absurd}"
            if self._camera is not None and self._contract is not None:
                self._other_camera = self._contract.problem(self._camera)
            self._camera_key = key
        return self._camera


def _pose(transform: Any, target: str, source: str) -> NDArray[np.float64]:
    """Return the [4, 4] target_from_source of a TransformStamped. Raises ObservationProblem when it is no pose."""
    t, q = transform.transform.translation, transform.transform.rotation
    try:
        return pose_matrix((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
    except ValueError as error:
        raise ObservationProblem(Input.TF, f"the transform {target} <- {source} is no pose: {error}") from error
