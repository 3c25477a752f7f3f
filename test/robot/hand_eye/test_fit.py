"""The camera's pose from pairs, in closed form: a known error of the extrinsic calibration comes back."""

from dataclasses import replace

import numpy as np
import pytest
from hand_eye.scene import ERROR, motion, pairs, tool_poses
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose, pose_distance
from sqap_vla_ros.robot.hand_eye.fit import fit_camera, fit_point, held_out_px, unfitted

TRUTH = motion(*ERROR)


def test_a_planted_error_is_recovered_exactly_from_exact_pairs():
    found = fit_camera(pairs(error=TRUTH, noise_px=0.0))
    metres, radians = pose_distance(found.correction, TRUTH)
    assert metres < 1e-4
    assert radians < 1e-4
    assert found.rms_px < 0.01
    assert found.metres == pytest.approx(np.linalg.norm(invert_pose(TRUTH)[:3, 3]), abs=1e-4)
    assert found.angle_rad == pytest.approx(np.linalg.norm(ERROR[0]), abs=1e-4)


def test_the_uncertainty_that_is_told_is_that_of_repeated_measurements():
    fits = [fit_camera(pairs(error=TRUTH, noise_px=0.5, seed=seed)) for seed in range(30)]
    away = [pose_distance(invert_pose(fit.correction), invert_pose(TRUTH)) for fit in fits]
    position_m, rotation_rad = np.sqrt(np.mean(np.square(away), axis=0))
    assert position_m < 0.006
    assert fits[0].position_m == pytest.approx(position_m, rel=0.5)
    assert fits[0].rotation_rad == pytest.approx(rotation_rad, rel=0.5)


def test_pairs_that_fit_to_nothing_are_left_out_and_named():
    true = pairs(error=TRUTH)
    seen = true.seen.copy()
    seen[3] += 60.0
    seen[11] -= (80.0, 0.0)
    found = fit_camera(replace(true, seen=seen))
    assert np.flatnonzero(~found.inliers).tolist() == [3, 11]
    assert pose_distance(found.correction, TRUTH)[0] < 0.012


def test_an_error_of_half_a_turn_is_found_from_any_start():
    large = motion((0.0, 0.0, 2.5), (0.1, 0.1, 0.1))
    assert pose_distance(fit_camera(pairs(error=large, noise_px=0.0)).correction, large)[0] < 1e-3


def test_a_correction_without_an_error_is_worth_nothing_in_other_pairs():
    true, wrong = pairs(), pairs(error=TRUTH)
    assert held_out_px(true, fit_camera(true)) > 0.9 * unfitted(true).rms_px
    assert held_out_px(wrong, fit_camera(wrong)) < 0.2 * unfitted(wrong).rms_px


def test_the_point_is_found_where_the_tool_turns():
    found = fit_point(pairs(point=(0.01, -0.02, 0.12), noise_px=0.0))
    np.testing.assert_allclose(found.point_in_tool, (0.01, -0.02, 0.12), atol=1e-4)


def test_a_camera_whose_intrinsics_belong_to_a_turned_frame():
    """A rectified image of which TF knows the physical camera's frame."""
    true = pairs(noise_px=0.0)
    turned = Rotation.from_rotvec((0.0, 0.1, 0.0)).as_matrix()
    camera = replace(true.camera, rotation=turned, translation=np.array([-0.05, 0.0, 0.0]))
    shown = replace(true, camera=camera)
    moved = TRUTH[:3, :3] @ shown.in_optical.T + TRUTH[:3, 3:]
    found = fit_camera(replace(shown, seen=camera.project(moved.T).pixels))
    assert pose_distance(found.correction, TRUTH)[0] < 1e-4


def test_a_fisheye_camera():
    matrix = np.array([[200.0, 0, 160], [0, 200.0, 120], [0, 0, 1]])
    camera = CameraModel(320, 240, matrix, np.array([0.1, 0.01, 0, 0]), True, np.eye(3), np.zeros(3), np.inf)
    shown = replace(pairs(tool_poses(), noise_px=0.0), camera=camera)
    moved = TRUTH[:3, :3] @ shown.in_optical.T + TRUTH[:3, 3:]
    found = fit_camera(replace(shown, seen=camera.project(moved.T).pixels))
    assert pose_distance(found.correction, TRUTH)[0] < 1e-3
