"""`check --camera` with a camera on the tool that looks at a point which lies still."""

from dataclasses import replace

import numpy as np
from hand_eye.on_hand import TOOL_FROM_OPTICAL, pairs_on_hand
from hand_eye.scene import motion

from sqap_vla_ros.nodes.check.finding import Level
from sqap_vla_ros.nodes.check.hand_eye.on_hand import judge_on_hand
from sqap_vla_ros.nodes.check.hand_eye.policy_view import assumed_view
from sqap_vla_ros.nodes.check.hand_eye.sights import Survey
from sqap_vla_ros.robot.conventions import invert_pose, pose_distance

ERROR = motion((0.04, -0.05, 0.06), (0.015, -0.02, 0.025))
SURVEY = Survey("/image", "base_link", "tool0", "camera_optical")
SURVEY.mounts["camera_optical"] = ("tool0", TOOL_FROM_OPTICAL)


def found(judgement, check):
    return [row.finding for row in judgement.rows if row.check == check]


def test_the_transform_to_publish_is_that_of_the_true_camera():
    judgement = judge_on_hand(SURVEY, pairs_on_hand(error=ERROR), assumed_view())
    (pose,) = found(judgement, "camera pose")
    assert pose.level is Level.WARNING
    assert "--frame-id tool0 --child-frame-id camera_optical" in pose.remedy
    assert "tool_frame" not in pose.remedy
    true = TOOL_FROM_OPTICAL @ invert_pose(ERROR)
    assert pose_distance(np.array(judgement.numbers["parent_from_child"]), true) < (0.01, 0.01)
    assert judgement.numbers["held_out_rms_px"] < 1.5
    assert "px right and down of the point on average" in found(judgement, "offset")[0].text
    assert "a point that lies still, at (0.4" in found(judgement, "pairs")[0].text
    assert judgement.on_hand
    assert len(judgement.pairs) == len(judgement.fit.residuals)


def test_a_camera_that_is_where_tf_has_it_needs_no_correction():
    judgement = judge_on_hand(SURVEY, pairs_on_hand(), assumed_view())
    assert {row.finding.level for row in judgement.rows} <= {Level.OK, Level.SKIPPED}
    assert "as well as these pairs can tell" in found(judgement, "camera pose")[0].text


def test_the_ring_is_judged_where_the_tool_stands_in_the_image():
    seen = replace(assumed_view(), name="sqap")
    ahead = motion((0.0, 0.0, 0.0), (0.0, 0.0, 0.2))  # a tool frame in front of the lens
    for error, level in ((motion(), Level.OK), (motion((0.0, 0.3, 0.0)), Level.FAIL)):
        of = pairs_on_hand(error=error)
        tool_from_frame = TOOL_FROM_OPTICAL @ ahead
        judgement = judge_on_hand(SURVEY, replace(of, point_in_tool=tool_from_frame[:3, 3]), seen)
        assert [finding.level for finding in found(judgement, "ring")] == [level]


def test_what_moves_in_the_room_fits_to_no_camera_on_the_tool():
    of = pairs_on_hand()
    moving = replace(of, seen=of.seen + np.random.default_rng(0).uniform(-60.0, 60.0, of.seen.shape))
    judgement = judge_on_hand(SURVEY, moving, assumed_view())
    (mistake,) = found(judgement, "mistake")
    assert "no place of the camera on tool0 explains the pairs" in mistake.text
    assert not judgement.fitted
