"""A camera on the tool: its pose and the place of the point that it looks at are fitted together."""

from dataclasses import replace

import numpy as np
import pytest
from hand_eye.on_hand import POINT, looking_poses, pairs_on_hand
from hand_eye.scene import motion, pairs

from sqap_vla_ros.robot.conventions import invert_pose, pose_distance
from sqap_vla_ros.robot.hand_eye.fit import fit_point, held_out_px
from sqap_vla_ros.robot.hand_eye.on_hand import degenerate_on_hand, fit_on_hand, from_tool, sees_the_room

TRUTH = motion((0.04, -0.05, 0.06), (0.015, -0.02, 0.025))


def test_exact_pairs_give_the_pose_and_the_point_exactly():
    fit = fit_on_hand(pairs_on_hand(error=TRUTH, noise_px=0.0))
    assert pose_distance(fit.correction, TRUTH) < (1e-6, 1e-6)
    np.testing.assert_allclose(fit.point_in_tool, POINT, atol=1e-6)
    assert fit.rms_px < 1e-3


def test_the_uncertainty_that_is_told_is_that_of_repeated_measurements():
    poses = looking_poses()
    fits = [fit_on_hand(pairs_on_hand(poses, error=TRUTH, seed=seed)) for seed in range(12)]
    apart = np.array([pose_distance(invert_pose(fit.correction), invert_pose(TRUTH)) for fit in fits])
    metres, radians = np.sqrt(np.square(apart).mean(axis=0))
    assert 0.4 < metres / np.mean([fit.position_m for fit in fits]) < 2.0
    assert 0.4 < radians / np.mean([fit.rotation_rad for fit in fits]) < 2.0
    assert metres < 0.01
    assert all(fit.inliers.all() for fit in fits)


def test_the_correction_holds_in_pairs_that_took_no_part():
    of = pairs_on_hand(error=TRUTH)
    before = fit_point(from_tool(of)).rms_px
    after = held_out_px(from_tool(of), fit_on_hand(of), any_point=True)
    assert after < 1.5
    assert before > 4.0 * after


def test_a_camera_turned_by_quarter_turns_is_found():
    quarter = np.eye(4)
    quarter[:3, :3] = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    true = pairs_on_hand(error=TRUTH, noise_px=0.0)
    turned = replace(true, optical_from_base=invert_pose(quarter) @ true.optical_from_base)
    fit = fit_on_hand(turned)
    assert pose_distance(fit.correction, TRUTH @ quarter) < (1e-5, 1e-5)


def test_a_pair_that_fits_to_nothing_is_left_out():
    of = pairs_on_hand(error=TRUTH)
    wrong = of.seen.copy()
    wrong[3] += (60.0, -40.0)
    fit = fit_on_hand(replace(of, seen=wrong))
    assert np.flatnonzero(~fit.inliers).tolist() == [3]
    assert pose_distance(fit.correction, TRUTH) < (0.01, 0.02)


def test_it_is_told_from_a_fixed_camera_and_from_one_that_sees_its_tool():
    of = pairs_on_hand()
    assert sees_the_room(of)
    assert not sees_the_room(pairs())
    assert not sees_the_room(replace(of, seen=np.repeat(of.seen[:1], len(of), 0)))


@pytest.mark.parametrize(
    ("poses", "text"),
    [
        (looking_poses(5), "5 pairs, at least 6 are needed"),
        (looking_poses(turn_rad=1e-3), "turns about a second axis by 0.1 degrees only"),
    ],
)
def test_worthless_pairs_are_named(poses, text):
    (fault,) = degenerate_on_hand(pairs_on_hand(poses), "tool0")
    assert text in fault.text
    assert fault.remedy
    assert list(degenerate_on_hand(pairs_on_hand(), "tool0")) == []
