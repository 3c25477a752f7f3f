"""Checks of the camera: camera_info, the picture, and the gripper's place in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.image_gate import ImageGate
from sqap_vla_ros.control.time_sync import ImageInfoSync
from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.observer import ObservationProblem, View


def _ignore(_image: Any, _info: Any) -> None:
    """Take a pair whose existence is all that matters."""


def check_camera_info(snapshot: Snapshot) -> Iterator[Finding]:
    """Read the camera model as the node does, and compare it with the image."""
    if not snapshot.images:
        yield skipped("no image came")
        return
    if snapshot.frame is None:
        sync = ImageInfoSync(_ignore)
        for info in snapshot.infos:
            sync.add_info(info)
        for image in snapshot.images:
            sync.add_image(image)
        yield fail(
            sync.problem(math.inf) or "no camera_info fits the images",
            f"publish camera_info beside {snapshot.topics['image']}, with the image's stamp",
        )
        return
    view = snapshot.view
    if isinstance(view, ObservationProblem):
        if view.source is Input.CAMERA_INFO:
            yield fail(str(view), "calibrate the camera (camera_calibration), and give camera_info of this image")
        else:
            yield skipped(f"the {view.source.value} is at fault")
        return
    assert isinstance(view, View)
    camera = view.camera
    if camera is None:
        yield fail("the camera is not calibrated", "calibrate the camera (camera_calibration)")
        return
    across, down = (
        np.degrees(2.0 * np.arctan2(side / 2.0, f))
        for side, f in ((camera.width, camera.matrix[0, 0]), (camera.height, camera.matrix[1, 1]))
    )
    yield ok(f"{camera.width}x{camera.height}, field of view {across:.0f} x {down:.0f} degrees, as the image")
    cx, cy = camera.matrix[0, 2] / camera.width, camera.matrix[1, 2] / camera.height
    if not (0.25 < cx < 0.75 and 0.25 < cy < 0.75):
        yield warning(
            f"its principal point lies at {cx:.0%} and {cy:.0%} of the image",
            "was the image cropped or resized? Then roi, binning or the matrix must say so",
        )
    names = {str(message.header.frame_id) for message in (view.frame.image, view.frame.camera_info)}
    if len(names) > 1:
        yield warning(f"image and camera_info name different frames: {', '.join(sorted(names))}", "see the driver")
    if not any(snapshot.values["training_camera"]):
        yield warning(
            "training_camera is unknown, so that nobody compares this camera with the one of the training",
            "set it for a policy of your own data: width, height, fx, fy, cx, cy",
        )


def check_image(snapshot: Snapshot) -> Iterator[Finding]:
    """Decode the newest image and look whether anything can be seen in it."""
    if not snapshot.images:
        yield skipped("no image came")
        return
    problem, image = None, None
    try:
        image = snapshot.observer.to_rgb(snapshot.images[-1])
        problem = ImageGate(configuration.image_gate_config(snapshot.values)).worthless(image)
    except ValueError as error:
        problem = str(error)
    if problem is not None or image is None:
        yield fail(
            f"{snapshot.topics['image']}: {problem}",
            "look at the picture (rqt_image_view), and at the driver's encoding and exposure",
        )
    else:
        yield ok(f"{image.shape[1]}x{image.shape[0]}, brightness {image.mean():.0f} of 255")


def check_gripper_pixel(snapshot: Snapshot) -> Iterator[Finding]:
    """Project the tool into the image."""
    view = snapshot.view
    if not isinstance(view, View):
        yield skipped("needs an image with camera_info and transforms")
    elif view.tool.pixel is None:
        yield warning(
            f"the tool is {view.tool.reason}",
            "no tokens are protected around it: turn the camera, correct its place in TF, or move the arm into view",
        )
    else:
        u, v = view.tool.pixel
        yield ok(f"{snapshot.values['tool_frame']} at ({u:.0f}, {v:.0f}): look whether the picture has it there")
