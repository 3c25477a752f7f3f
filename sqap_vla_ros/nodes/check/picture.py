"""The camera's image with the projected tool, and the tokens that the policy keeps around it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.policy.observer import View
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning.overlay import draw_overlay


def draw(snapshot: Snapshot) -> NDArray[np.uint8] | None:
    """Return the picture [H, W, 3] in RGB; None without an image that can be used."""
    view, trial = snapshot.view, snapshot.trial
    if not isinstance(view, View):
        return None
    image = view.observation.image
    if trial is not None and trial.info is not None and trial.chunk is not None and trial.chunk.selection is not None:
        transform = ImageTransform.of(trial.info)
        return draw_overlay(image, trial.chunk.selection, transform, gripper_pixel=view.tool.pixel)
    image = image.copy()
    if view.tool.pixel is not None:
        centre = (round(view.tool.pixel[0]), round(view.tool.pixel[1]))
        size = max(10, image.shape[0] // 24)
        for colour, thickness in (((0, 0, 0), 5), ((255, 255, 255), 2)):
            cv2.drawMarker(image, centre, colour, cv2.MARKER_CROSS, size, thickness)
    return image


def save(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture in RGB to a file. Raises OSError when that is impossible."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    try:
        written = cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise OSError(f"{path} cannot be written: {error}; its name must end with .png or .jpg") from error
    if not written:
        raise OSError(f"{path} cannot be written")
