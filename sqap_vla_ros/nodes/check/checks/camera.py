"""Checks of the camera: camera_info, the picture, and the gripper's place in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.control.camera.time_sync import ImageInfoSync
from sqap_vla_ros.control.camera.visibility import nothing_visible
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.nodes.check.checks.intrinsics import doubts, fields_of_view, whole_camera
from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.policy.observer import ObservationProblem, View
from sqap_vla_ros.robot.camera import CameraModel, project_tool
from sqap_vla_ros.robot.conventions import invert_pose

Pose = NDArray[np.float64]  # [4, 4]
BESIDE = 0.5  # of the image's size that the tool may be outside of it before the first motion
# A frame of a camera's body looks along x, with y to the left and z up; an optical one along z, with x to the right.
OPTICAL_FROM_BODY = np.array([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


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
            remedy = "give camera_info of this image and resolution; camera_calibration makes it where there is none"
            yield fail(str(view), remedy)
        else:
            yield skipped(f"the {view.source.value} is at fault")
        return
    assert isinstance(view, View)
    camera, judged = view.camera, judged_by_ring(snapshot)
    if camera is None:
        yield judged("the camera is not calibrated", "calibrate the camera (camera_calibration)")
        return
    across, down = fields_of_view(camera)
    size = f"{camera.width}x{camera.height}, field of view {across:.0f} x {down:.0f} degrees"
    confirmed = any(snapshot.values["training_camera"])  # another statement of the same, which the observer compared
    found = [] if confirmed else doubts(_whole(snapshot, view))
    if not any(doubt.serious for doubt in found):
        yield ok(f"{size}, as the image")
    for doubt in found:
        remedy = f"{doubt.remedy}. If it is right, say so in training_camera"
        yield (judged if doubt.serious else warning)(doubt.text, remedy)
    names = {str(message.header.frame_id) for message in (view.frame.image, view.frame.camera_info)}
    if len(names) > 1:
        yield warning(f"image and camera_info name different frames: {', '.join(sorted(names))}", "see the driver")
    for name, what in (("base_frame", "base"), ("tool_frame", "tool")):
        if view.frame.frame_id == snapshot.values[name]:
            yield judged(
                f"the images' frame is {view.frame.frame_id}, which is the arm's {what} and no camera",
                "have the driver stamp them with its optical frame, and publish where that is",
            )
    if not confirmed:
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
        problem = nothing_visible(image)
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
    if not isinstance(view, View) or view.camera is None or view.optical_from_base is None:
        yield skipped("needs an image with camera_info and transforms")
    elif view.tool.pixel is None:
        near = _nearly_seen(view.camera, view.optical_from_base @ view.base_from_tool)
        yield (warning if near else judged_by_ring(snapshot))(
            f"the tool is {view.tool.reason}{_explanation(view.camera, view.optical_from_base, view.base_from_tool)}",
            "no tokens are protected around it: turn the camera, correct its place in TF, or move the arm into view",
        )
    else:
        u, v = view.tool.pixel
        yield ok(f"{snapshot.values['tool_frame']} at ({u:.0f}, {v:.0f}): look whether the picture has it there")


def judged_by_ring(snapshot: Snapshot) -> Callable[[str, str], Finding]:
    """Return the severity of a wrong place of the tool in the image: without tokens around it nothing depends on it."""
    return fail if snapshot.protects_gripper else warning


def _whole(snapshot: Snapshot, view: View) -> CameraModel:
    return whole_camera(view.frame.camera_info, rectified=snapshot.values["image_rectified"])


def _nearly_seen(camera: CameraModel, optical_from_tool: Pose) -> bool:
    """Return whether the tool is at most BESIDE of the image's size outside of it, as that of a parked arm may be."""
    u, v = camera.project(optical_from_tool[None, :3, 3]).pixels[0]
    return bool(
        -BESIDE * camera.width <= u <= (1.0 + BESIDE) * camera.width
        and -BESIDE * camera.height <= v <= (1.0 + BESIDE) * camera.height
    )


def _explanation(camera: CameraModel, optical_from_base: Pose, base_from_tool: Pose) -> str:
    """Return the common mistake with which the tool would be in the image; "" where there is none."""
    if project_tool(camera, invert_pose(optical_from_base), base_from_tool).pixel is not None:
        return "; with the camera's transform the other way round it would be in the image"
    if project_tool(camera, OPTICAL_FROM_BODY @ optical_from_base, base_from_tool).pixel is not None:
        return "; in a frame that looks along x instead of z it would be in the image: is the frame an optical one?"
    return ""
