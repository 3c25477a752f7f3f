"""A camera that does not move, given by its calibration and its pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.camera import CameraModel, project_tool


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
