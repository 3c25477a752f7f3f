"""A client's observation → the policy's `Observation`; what is missing or wrong goes back as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Observation, unreadable
from sqap_vla_ros.robot.interchange.fixed_camera import FixedCamera
from sqap_vla_ros.robot.interchange.tool_state import STATES, tool_pose
from sqap_vla_ros.serving.server.packing import MAX_SIDE
from sqap_vla_ros.serving.server.words import kind_of, listed, quoted
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
        if instruction is None:
            raise BadObservation("the instruction is missing: send what to do as a text")
        if not isinstance(instruction, str):
            raise BadObservation(f"the instruction must be a text that says what to do, got {kind_of(instruction)}")
        if problem := unreadable(instruction):
            raise BadObservation(problem)
        if (size := len(instruction.encode())) > MAX_INSTRUCTION:
            raise BadObservation(
                f"the instruction is longer than {MAX_INSTRUCTION} bytes: shorten it, it has {size} bytes"
            )
        image = self._image(images)
        pose = None if state is None else _pose(state, self.state)
        pixel = None
        if self.camera is not None:
            if pose is None:
                raise BadObservation("the state is missing: the configured camera projects the tool's pose")
            pixel = self.camera.pixel(pose, *image.shape[:2])
        return Observation(image, stamp_ns, instruction, pixel, pose)

    def _image(self, images: Mapping[Any, Any]) -> NDArray[np.uint8]:
        key = self._key(images)
        image = images[key]
        if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[0] == 3 != image.shape[2]:
            image = np.moveaxis(image, 0, 2)  # colours first, as openpi's clients of ALOHA send it
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{list(image.shape)} of {image.dtype}" if isinstance(image, np.ndarray) else kind_of(image)
            raise BadObservation(f"image {quoted(key)} must be [height, width, 3] of uint8, RGB; got {got}")
        if 0 in image.shape or max(image.shape[:2]) > MAX_SIDE:
            raise BadObservation(
                f"image {quoted(key)} must have 1 to {MAX_SIDE} pixels a side, got {list(image.shape)}"
            )
        return np.ascontiguousarray(image)

    def _key(self, images: Mapping[Any, Any]) -> str:
        """Return the name of the picture that the policy sees. Raises BadObservation where none can be told."""
        names = sorted(name for name in images if isinstance(name, str))
        names += [name for name in images if not isinstance(name, str)]
        if self.image_key in names:
            return self.image_key
        if self.image_key:
            raise BadObservation(
                f"the image is missing: got {listed(names)}, expected {quoted(self.image_key, 200)}; send it under "
                "that name, or start the server with --image-key and the name it has"
            )
        if not names:
            raise BadObservation("the image is missing: got none; send one picture")
        if len(names) > 1:
            raise BadObservation(
                f"which of several images to use was not chosen: got {listed(names)}; start the server with "
                "--image-key and one of these names"
            )
        if not isinstance(names[0], str):
            raise BadObservation(f"the name of an image must be a text, got {kind_of(names[0])}")
        return names[0]


def pictures_in(message: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the entries of a message that may be pictures: arrays of several axes, and bytes."""
    return {
        name: value
        for name, value in message.items()
        if isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.ndim > 1)
    }


def _pose(state: Any, form: str) -> NDArray[np.float64]:
    try:
        return tool_pose(state, form)
    except ValueError as error:
        raise BadObservation(str(error)) from error
