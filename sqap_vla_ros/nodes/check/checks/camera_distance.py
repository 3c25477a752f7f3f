"""Check of the camera's distance: can the gripper be seen from there, at this focal length and resolution?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqap_vla_ros.nodes.check.checks.camera import judged_by_ring
from sqap_vla_ros.nodes.check.finding import Finding, ok, skipped, warning
from sqap_vla_ros.nodes.check.hand_eye.policy_view import assumed_view
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.policy.observer import View
from sqap_vla_ros.robot.conventions import invert_pose

HAND_M = 0.1  # size of a gripper
# Distances of the tool from the lens: no camera is as near, a housing alone is as large, no camera is as far.
NEAREST_M, NEAR_M, FARTHEST_M = 0.01, 0.03, 10.0
# Patches that a gripper spans. Below one, its patch shows more of what is beside it. Below a quarter, the ring of two
# patches to each side is two metres wide: it protects the whole arm and the table.
SMALL, SMALLEST = 1.0, 0.25
PLACEHOLDER_M = 0.01  # of the camera from the base's origin, where the arm stands
MILLI = 1e-3
METRES = "TF is in metres: look at the units of the camera's transform (a hand-eye calibration in millimetres?)"


def check_camera_distance(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare the tool's distance and size in patches with what a camera that sees a gripper has."""
    view = snapshot.view
    if not isinstance(view, View) or view.camera is None or view.optical_from_base is None:
        yield skipped("needs an image with camera_info and transforms")
        return
    tool = snapshot.values["tool_frame"]
    judged = judged_by_ring(snapshot)
    distance_m = float(np.linalg.norm((view.optical_from_base @ view.base_from_tool)[:3, 3]))
    camera = view.camera
    policy = assumed_view(snapshot.trial.info if snapshot.trial is not None else None)
    patch_px = np.array(policy.patch_px(camera.width, camera.height))
    focal_px = camera.matrix[[0, 1], [0, 1]]
    patches = float(np.sqrt(np.prod(focal_px * HAND_M / max(distance_m, NEAREST_M) / patch_px)))
    text = f"{tool} is {_metres(distance_m)} from the camera"
    small = f"{text}: a gripper of {100.0 * HAND_M:.0f} cm spans {patches:.2g} patches of the policy's image"
    if distance_m > FARTHEST_M:
        yield judged(f"{text}{_in_millimetres(distance_m)}: no camera that shows a gripper is as far", METRES)
    elif distance_m < NEAREST_M:
        yield judged(f"{text}: no lens is as near", METRES)
    elif patches < SMALLEST:
        yield judged(small, f"{METRES}, or stand the camera nearer, as in training")
    elif patches < SMALL:
        yield warning(small, f"stand the camera nearer, as in training. {METRES}")
    elif distance_m < NEAR_M:
        yield warning(f"{text}: a lens is hardly as near", METRES)
    else:
        yield ok(small)
    from_base_m = float(np.linalg.norm(invert_pose(view.optical_from_base)[:3, 3]))
    base = snapshot.values["base_frame"]
    if from_base_m < PLACEHOLDER_M and view.frame.frame_id != base:
        yield warning(
            f"the camera lies {1e3 * from_base_m:.0f} mm from the origin of {base}, inside the arm's foot",
            f"calibrate its place (hand-eye) where the transform is a placeholder. {METRES}",
        )


def _metres(distance_m: float) -> str:
    if distance_m < NEAR_M:
        return f"{1e3 * distance_m:.0f} mm"
    return f"{distance_m:.2f} m" if distance_m < 100.0 else f"{distance_m:.0f} m"


def _in_millimetres(distance_m: float) -> str:
    """Return the distance that would have been meant in millimetres; "" where that is none of a camera either."""
    meant_m = MILLI * distance_m
    return f" (in millimetres it would be {meant_m:.2f} m)" if HAND_M <= meant_m <= FARTHEST_M else ""
