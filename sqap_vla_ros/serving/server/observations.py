"""A client's observation → the policy's `Observation`; what is missing or wrong goes back as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import Observation, unreadable
from sqap_vla_ros.robot.camera import CameraModel, project_tool
from sqap_vla_ros.serving.server.packing import MAX_SIDE
from sqap_vla_ros.serving.wire import MAX_INSTRUCTION

# What follows the tool's position in a client's state -> how many numbers, and the rotation they mean.
STATES: Mapping[str, tuple[int, Callable[[NDArray[np.float64]], Rotation]]] = {
    "axis_angle": (3, Rotation.from_rotvec),  # LIBERO, in vla-eval's form and in openpi's
    "quat_wxyz": (4, lambda quat: Rotation.from_quat(quat[[1, 2, 3, 0]])),  # SimplerEnv in vla-eval's form
    "quat_xyzw": (4, Rotation.from_quat),
}
FARTHEST_M = 100.0  # of a tool from its base: beyond it the state is in other units or not the tool's
LARGEST_ROTATION = 10.0  # rad


class BadObservation(ValueError):
    """An observation that nothing can be predicted from; the text tells the client what to change."""


@dataclass(frozen=True)
class FixedCamera:
    """A camera that does not move, so that the tool's pixel follows from the tool's pose.

    optical_from_base: [4, 4]. mirrored: the client sends the image mirrored left to right, so u' = width − 1 − u.
    """

    model: CameraModel
    optical_from_base: NDArray[np.float64]
    mirrored: bool = False

    def pixel(self, base_from_tool: NDArray[np.float64], height: int, width: int) -> tuple[float, float] | None:
        """Return (u, v) of the tool's origin in an image of this size; None when it is not in view."""
        found = project_tool(self.model, self.optical_from_base, base_from_tool).pixel
        if found is None:
            return None
        # Pixel centres are whole numbers, so an image that was resized maps its corners at -0.5.
        u = (found[0] + 0.5) * width / self.model.width - 0.5
        v = (found[1] + 0.5) * height / self.model.height - 0.5
        return (width - 1.0 - u, v) if self.mirrored else (u, v)


@dataclass(frozen=True)
class ObservationReader:
    """Reads what clients send.

    image_key: name of the picture the policy sees, "" where only one is sent.
    camera: projects the tool's pose, which the client sends as its state; None where selectors get no gripper pixel.
    state: a name of `STATES`.
    """

    image_key: str = ""
    camera: FixedCamera | None = None
    state: str = "axis_angle"

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"the state must be one of {', '.join(STATES)}, got {self.state!r}")

    def read(self, images: Mapping[Any, Any], instruction: Any, state: Any, stamp_ns: int) -> Observation:
        """Return the observation. state: begins with tool position (m) and rotation; None where it was not sent.

        Raises BadObservation.
        """
        if not isinstance(instruction, str):
            raise BadObservation("the instruction is missing: send what to do as a text")
        if problem := unreadable(instruction):
            raise BadObservation(problem)
        if len(instruction.encode(errors="replace")) > MAX_INSTRUCTION:
            raise BadObservation(f"the instruction is longer than {MAX_INSTRUCTION} bytes: shorten it")
        image = self._image(images)
        pose = None if state is None else tool_pose(state, self.state)
        pixel = None
        if self.camera is not None:
            if pose is None:
                raise BadObservation("the state is missing: the configured camera projects the tool's pose")
            pixel = self.camera.pixel(pose, *image.shape[:2])
        return Observation(image, stamp_ns, instruction, pixel, pose)

    def _image(self, images: Mapping[Any, Any]) -> NDArray[np.uint8]:
        names = sorted(str(name) for name in images)
        key = self.image_key or (names[0] if len(names) == 1 else "")
        if key not in images:
            wanted = repr(key) if key else "one of them (choose with --image-key)"
            raise BadObservation(f"the image is missing: got {', '.join(names)[:200] or 'none'}, expected {wanted}")
        image = images[key]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{list(image.shape)} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise BadObservation(f"image {key!r} must be [height, width, 3] of uint8, RGB; got {got}")
        if 0 in image.shape or max(image.shape[:2]) > MAX_SIDE:
            raise BadObservation(f"image {key!r} must have 1 to {MAX_SIDE} pixels a side, got {list(image.shape)}")
        return np.ascontiguousarray(image)


def tool_pose(state: ArrayLike, form: str = "axis_angle") -> NDArray[np.float64]:
    """Return base_from_tool [4, 4] of a state that begins with position (m) and rotation (form: a name of `STATES`).

    Raises BadObservation.
    """
    count, rotation = STATES[form]
    try:
        values = np.array(state, dtype=np.float64).ravel()  # a copy: arrays of messages are read-only
    except (TypeError, ValueError) as error:
        raise BadObservation(f"the state must be numbers: {error}") from error
    if not 3 + count <= len(values) <= 64:
        raise BadObservation(f"the state must begin with position and {form}, {3 + count} numbers; got {len(values)}")
    xyz, turned = values[:3], values[3 : 3 + count]
    if not np.isfinite(values).all() or np.abs(xyz).max() > FARTHEST_M or np.abs(turned).max() > LARGEST_ROTATION:
        raise BadObservation(
            f"the state must be finite, within {FARTHEST_M:g} m and {LARGEST_ROTATION:g} rad; "
            f"got {np.round(values[: 3 + count], 4).tolist()}"
        )
    if count == 4 and not abs(np.linalg.norm(turned) - 1.0) < 0.01:
        raise BadObservation(f"the state's quaternion ({form}) must have norm 1, got {np.round(turned, 4).tolist()}")
    pose = np.eye(4)
    pose[:3, :3] = rotation(turned).as_matrix()
    pose[:3, 3] = xyz
    return pose
