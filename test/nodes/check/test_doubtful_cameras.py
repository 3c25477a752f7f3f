"""A camera that cannot be right is a no-go where tokens are protected around the gripper, and else a warning."""

import numpy as np
import pytest
from planted.robot import (
    OPTICAL,
    URDF,
    endpoint,
    frames,
    healthy,
    images,
    infos,
    looking_down,
    stamps,
    transforms,
    trial,
    values,
)

from sqap_vla_ros.nodes.check.finding import Level
from sqap_vla_ros.nodes.check.report import Report, examine
from sqap_vla_ros.nodes.check.table import CHECKS
from sqap_vla_ros.robot.conventions import invert_pose

CAMERA = stamps(10.0)
HALF = [71.0, 0.0, 40.0, 0.0, 71.0, 30.0, 0.0, 0.0, 1.0]
SWAPPED = [142.0, 0.0, 60.0, 0.0, 142.0, 80.0, 0.0, 0.0, 1.0]
CORNER = [142.0, 0.0, 0.0, 0.0, 142.0, 0.0, 0.0, 0.0, 1.0]
FLAT = [142.0, 0.0, 79.5, 0.0, 56.8, 59.5, 0.0, 0.0, 1.0]
FAR = [1420.0, 0.0, 79.5, 0.0, 1420.0, 59.5, 0.0, 0.0, 1.0]


def pose(*, turned=None, beside_m=0.0, scale=1.0, above_m=0.0):
    found = looking_down()
    found[:3, 3] *= scale
    found[:3, 3] += (beside_m, 0.0, above_m)
    if turned is not None:
        found[:3, :3] = found[:3, :3] @ np.array(turned, dtype=float)
    return found


def images_in(frame):
    found = images(CAMERA)
    for image in found:
        image.header.frame_id = frame
    return found


AWAY = np.diag([1.0, -1.0, -1.0])
BODY = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]  # a frame that looks along x
SERIOUS = {
    "matrix of half the resolution": ("camera_info", "of about 80x60 pixels", {"infos": infos(CAMERA, k=HALF)}),
    "image in the base's frame": (
        "camera_info",
        "the images' frame is base_link, which is the arm's base and no camera",
        {"images": images_in("base_link")},
    ),
    "cx and cy swapped": ("camera_info", "with cx and cy swapped", {"infos": infos(CAMERA, k=SWAPPED)}),
    "focal length": ("camera_info", "field of view of 6 x 5 degrees", {"infos": infos(CAMERA, k=FAR)}),
    "distortion": ("camera_info", "its distortion", {"infos": infos(CAMERA, d=[50.0, -300.0, 0.0, 0.0, 0.0])}),
    "camera looks away": (
        "gripper pixel",
        "behind the camera",
        {"buffer": transforms(base_from_camera=pose(turned=AWAY))},
    ),
    "frame is not optical": (
        "gripper pixel",
        "is the frame an optical one",
        {"buffer": transforms(base_from_camera=pose(turned=BODY))},
    ),
    "transform inverted": (
        "gripper pixel",
        "the other way round",
        {"buffer": transforms(base_from_camera=invert_pose(pose()))},
    ),
    "principal point in the corner": ("camera_info", "lies at 0% and 0%", {"infos": infos(CAMERA, k=CORNER)}),
    "fy of another lens": ("camera_info", "2.50 times as high as wide", {"infos": infos(CAMERA, k=FLAT)}),
    "hand-eye calibration in millimetres": (
        "camera distance",
        "m from the camera (in millimetres it would be ",
        {"buffer": transforms(base_from_camera=pose(scale=1000.0))},
    ),
    "camera twenty times too far": (
        "camera distance",
        "no camera that shows a gripper is as far",
        {"buffer": transforms(base_from_camera=pose(scale=20.0))},
    ),
    "camera too far to see the gripper": (
        "camera distance",
        "0.21 patches",
        {"buffer": transforms(base_from_camera=pose(above_m=7.0))},
    ),
    "tool in the lens": (
        "camera distance",
        "5 mm from the camera: no lens is as near",
        {"buffer": transforms(base_from_camera=pose(above_m=-0.795))},
    ),
    "far outside": ("gripper pixel", "outside the image", {"buffer": transforms(base_from_camera=pose(beside_m=1.0))}),
}


def levels(rows, check, text):
    return [row.finding.level for row in rows if row.check == check and text in row.finding.text]


@pytest.mark.parametrize("fault", SERIOUS)
def test_it_is_a_no_go_where_tokens_are_protected_around_the_gripper(fault):
    check, text, fields = SERIOUS[fault]
    rows = examine(healthy(**fields), CHECKS)
    assert levels(rows, check, text) == [Level.FAIL]
    assert not Report(rows).go
    rows = examine(healthy(**fields, trial=trial(selector="none")), CHECKS)
    assert levels(rows, check, text) == [Level.WARNING]
    assert Report(rows).go


def test_without_a_selection_of_tokens_the_camera_needs_no_calibration():
    uncalibrated = {"infos": infos(CAMERA, k=[0.0] * 9)}
    assert not Report(examine(healthy(**uncalibrated), CHECKS)).go
    rows = examine(healthy(**uncalibrated, trial=trial(selector="none")), CHECKS)
    assert levels(rows, "camera_info", "not calibrated") == [Level.WARNING]
    assert Report(rows).go


def test_a_parked_arm_beside_the_picture_is_a_warning():
    rows = examine(healthy(buffer=transforms(base_from_camera=pose(beside_m=0.6))), CHECKS)
    assert levels(rows, "gripper pixel", "outside the image") == [Level.WARNING]
    assert Report(rows).go


@pytest.mark.parametrize(
    ("base_from_camera", "text"),
    [
        (pose(above_m=1.0), "a gripper of 10 cm spans 0.91 patches"),
        (pose(above_m=-0.78), "20 mm from the camera: a lens is hardly as near"),
        (pose(scale=0.001), "inside the arm's foot"),
    ],
)
def test_an_unusual_distance_is_a_warning(base_from_camera, text):
    rows = examine(healthy(buffer=transforms(base_from_camera=base_from_camera)), CHECKS)
    assert levels(rows, "camera distance", text) == [Level.WARNING]


def test_training_camera_confirms_a_camera_that_looks_wrong():
    stated = values(training_camera=[160.0, 120.0, 71.0, 71.0, 40.0, 30.0])
    rows = examine(healthy(infos=infos(CAMERA, k=HALF), values=stated), CHECKS)
    assert levels(rows, "camera_info", "") == [Level.OK]


def test_two_places_of_one_static_frame_are_a_no_go():
    rows = examine(healthy(frames=frames(pose(beside_m=0.2))), CHECKS)
    text = f"/calibration0 and /calibration1 say different things of {OPTICAL}: 200 mm and 0.0 degrees apart"
    assert levels(rows, "transforms", text) == [Level.FAIL]
    assert Report(examine(healthy(frames=frames(pose(beside_m=0.0004))), CHECKS)).go


def test_a_quaternion_of_another_norm_is_named_and_decides_only_on_the_way_to_tool_and_camera():
    rows = examine(healthy(frames=frames(norms={OPTICAL: 1.5})), CHECKS)
    assert levels(rows, "transforms", f"{OPTICAL} in base_link has a quaternion of norm 1.5") == [Level.FAIL]
    aside = frames(norms={"lamp": 1.5})
    aside.parents["lamp"] = "base_link"
    assert levels(examine(healthy(frames=aside), CHECKS), "transforms", "lamp") == [Level.WARNING]


def test_several_quaternions_of_another_norm_are_one_finding():
    rows = examine(healthy(frames=frames(norms={OPTICAL: 1.5, "tool0": 3.0})), CHECKS)
    text = f"{OPTICAL} in base_link has a quaternion of norm 1.5, tool0 in base_link has a quaternion of norm 3"
    assert levels(rows, "transforms", text) == [Level.FAIL]


def test_a_transform_that_is_not_finite_is_named_instead_of_the_tree_that_lacks_it():
    nan = frames(infinite={"tool0": "translation (nan, 0, 1), rotation (0, 0, 0, 1)"})
    rows = examine(healthy(frames=nan, buffer=type(healthy().buffer)()), CHECKS)
    found = [row.finding for row in rows if row.check == "transforms" and row.finding.level is Level.FAIL]
    assert [finding.text for finding in found] == [
        "the transform of tool0 in base_link is not finite: translation (nan, 0, 1), rotation (0, 0, 0, 1)"
    ]
    assert "robot_state_publisher" not in found[0].remedy


def test_two_descriptions_are_a_no_go():
    rows = examine(healthy(descriptions={b"one": URDF, b"two": URDF.replace("0.333", "0.433")}), CHECKS)
    assert levels(rows, "robot_description", "2 different descriptions came") == [Level.FAIL]


def test_two_cameras_on_one_topic_are_doubted():
    two = tuple(endpoint(name, "sensor_msgs/msg/Image") for name in ("left", "right"))
    rows = examine(healthy(publishers=healthy().publishers | {"/image": two}), CHECKS)
    assert levels(rows, "qos", "/image has 2 publishers: /left, /right") == [Level.WARNING]
