"""Hand-eye checks on recordings of real arms: an industrial one that is exact, and a hobby arm with play."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from hand_eye.scene import ERROR, motion

from benchmarks import camera_projection
from sqap_vla_ros.robot.calibration_file import read_camera_info
from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose, pose_distance, pose_matrix
from sqap_vla_ros.robot.hand_eye.faults import degenerate, mistakes
from sqap_vla_ros.robot.hand_eye.fit import fit_camera, held_out_px, unfitted
from sqap_vla_ros.robot.hand_eye.pairs import ToolPairs

PATCH_PX = 30.0  # of 16 x 16 in 640 x 480
TRUTH = motion(*ERROR)


def invert(poses):
    return np.stack([invert_pose(pose) for pose in poses])


@pytest.fixture(scope="module")
def industrial(real_data):
    """A camera on the wrist of an arm that sees a grid of dots: in the wrist's frame, the grid moves like a tool.

    The seen point is the large dot in a corner of the grid.
    """
    dots, wrist, size = camera_projection.load(real_data("industrial_calibration"))
    _, camera, extrinsics = camera_projection.calibrate(dots, size)
    wrist_from_optical, base_from_grid = camera_projection.fit_hand_eye(camera, dots, wrist, extrinsics)
    count = len(dots)
    return ToolPairs(
        camera,
        np.arange(count),
        invert(wrist) @ base_from_grid,
        np.repeat(invert_pose(wrist_from_optical)[None], count, axis=0),
        np.stack([seen[0] for seen in dots]),
        np.zeros(3),
    )


def misplaced(of):
    return replace(of, optical_from_base=invert_pose(TRUTH) @ of.optical_from_base)


def test_a_calibrated_industrial_arm_needs_no_correction(industrial):
    fit = fit_camera(industrial)
    assert list(degenerate(industrial, "tool", "base")) == list(mistakes(industrial, fit, PATCH_PX, "tool")) == []
    assert unfitted(industrial).rms_px < 3.0
    assert held_out_px(industrial, fit) > unfitted(industrial).rms_px / 2.0


def test_a_planted_error_of_an_industrial_arms_camera_is_recovered(industrial):
    wrong = misplaced(industrial)
    fit = fit_camera(wrong)
    metres, radians = pose_distance(invert_pose(fit.correction), invert_pose(TRUTH))
    assert metres < 0.01  # of 5 cm
    assert np.degrees(radians) < 0.3  # of 3 degrees
    assert unfitted(wrong).rms_px > 10.0
    assert held_out_px(wrong, fit) < 2.5


def test_a_mirrored_picture_of_an_industrial_arm_is_named(industrial):
    seen = industrial.seen * (-1, 1) + (industrial.camera.width - 1, 0)
    wrong = replace(industrial, seen=seen)
    (fault,) = mistakes(wrong, fit_camera(wrong), PATCH_PX, "tool")
    assert "mirrored left to right" in fault.text


@pytest.fixture(scope="module")
def hobby_arm(real_data):
    """An SO-101 with a marker on its gripper, seen by a camera above it. The file's `robot` is gripper_from_base."""
    eye = yaml.safe_load(real_data("so101/so101_eye_on_base.yaml").read_text())["transform"]
    samples = yaml.safe_load(real_data("so101/so101_eye_on_base.samples.yaml").read_text())
    camera = CameraModel.from_camera_info(read_camera_info(real_data("so101/cam_overhead.yaml")))
    base_from_optical = pose_matrix([eye["translation"][c] for c in "xyz"], [eye["rotation"][c] for c in "xyzw"])
    gripper_from_base, markers = (np.array([sample[name] for sample in samples]) for name in ("robot", "tracking"))
    placed = gripper_from_base @ base_from_optical @ markers
    return ToolPairs(
        camera,
        np.arange(len(samples)),
        invert(gripper_from_base),
        np.repeat(invert_pose(base_from_optical)[None], len(samples), axis=0),
        np.stack([camera.project(marker[None, :3, 3]).pixels[0] for marker in markers]),
        np.median(placed[:, :3, 3], axis=0),
    )


def test_what_remains_of_a_hobby_arm_is_its_own_and_not_the_cameras(hobby_arm):
    fit = fit_camera(hobby_arm)
    assert list(degenerate(hobby_arm, "tool", "base")) == list(mistakes(hobby_arm, fit, PATCH_PX, "tool")) == []
    assert 10.0 < fit.rms_px < PATCH_PX
    assert held_out_px(hobby_arm, fit) > unfitted(hobby_arm.take(np.flatnonzero(fit.inliers))).rms_px / 1.5


def test_a_planted_error_of_a_hobby_arms_camera_is_seen_through_its_play(hobby_arm):
    wrong = misplaced(hobby_arm)
    fit, right = fit_camera(wrong), fit_camera(hobby_arm)
    metres, radians = pose_distance(fit.correction, right.correction @ TRUTH)
    assert metres < 1e-3
    assert radians < 1e-3


def test_the_wrong_direction_of_a_hobby_arms_poses_is_named(hobby_arm):
    wrong = replace(hobby_arm, base_from_tool=invert(hobby_arm.base_from_tool))
    (fault,) = mistakes(wrong, fit_camera(wrong), PATCH_PX, "tool")
    assert "between base and tool is published the wrong way round" in fault.text
