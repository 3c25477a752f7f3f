"""A client's observation → the policy's `Observation`; what is missing or wrong goes back as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Observation, printable, unreadable
from sqap_vla_ros.robot.interchange.fixed_camera import FixedCamera
from sqap_vla_ros.robot.interchange.tool_state import STATES, tool_pose
from sqap_vla_ros.serving.server.packing import MAX_SIDE
from sqap_vla_ros.serving.server.words import kind_of, quoted
from sqap_vla_ros.serving.wire import MAX_INSTRUCTION


class BadObservation(ValueError):
    """An observation that nothing can be predicted from; the text tells the client what to change."""


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
        try:
            size = len(instruction.encode())
        except UnicodeEncodeError as error:
            raise BadObservation("the instruction holds characters that are no Unicode text") from error
        if size > MAX_INSTRUCTION:
            raise BadObservation(f"the instruction is longer than {MAX_INSTRUCTION} bytes: shorten it")
        image = self._image(images)
        pose = None if state is None else _pose(state, self.state)
        pixel = None
        if self.camera is not None:
            if pose is None:
                raise BadObservation("the state is missing: the configured camera projects the tool's pose")
            pixel = self.camera.pixel(pose, *image.shape[:2])
        return Observation(image, stamp_ns, instruction, pixel, pose)

    def _image(self, images: Mapping[Any, Any]) -> NDArray[np.uint8]:
        names = sorted(name for name in images if isinstance(name, str))
        key = self.image_key or (names[0] if len(names) == 1 else "")
        if key not in images:
            wanted = quoted(key) if key else "one of them (choose with --image-key)"
            got = printable(", ".join(names), 200) or "none"
            raise BadObservation(f"the image is missing: got {got}, expected {wanted}")
        image = images[key]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{list(image.shape)} of {image.dtype}" if isinstance(image, np.ndarray) else kind_of(image)
            raise BadObservation(f"image {quoted(key)} must be [height, width, 3] of uint8, RGB; got {got}")
        if 0 in image.shape or max(image.shape[:2]) > MAX_SIDE:
            raise BadObservation(
                f"image {quoted(key)} must have 1 to {MAX_SIDE} pixels a side, got {list(image.shape)}"
            )
        return np.ascontiguousarray(image)


def _pose(state: Any, form: str) -> NDArray[np.float64]:
    try:
        return tool_pose(state, form)
    except ValueError as error:
        raise BadObservation(str(error)) from error
