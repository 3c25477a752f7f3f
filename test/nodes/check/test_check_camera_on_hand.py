"""`check --camera` with a camera on the tool that looks at a point which lies still."""

import json
from dataclasses import replace

import numpy as np
from hand_eye.on_hand import POINT, TOOL_FROM_OPTICAL, looking_poses, pairs_on_hand
from hand_eye.scene import BASE_FROM_OPTICAL, motion, write_bag

from sqap_vla_ros.nodes.check.finding import Level
from sqap_vla_ros.nodes.check.hand_eye.on_hand import judge_on_hand
from sqap_vla_ros.nodes.check.hand_eye.policy_view import assumed_view
from sqap_vla_ros.nodes.check.hand_eye.sights import Survey
from sqap_vla_ros.nodes.check.main import main
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


def test_a_recording_of_a_tag_on_the_table_finds_the_error_of_the_camera(capsys, tmp_path):
    poses = looking_poses(14)
    optical_from_tag = np.stack([invert_pose(pose @ TOOL_FROM_OPTICAL) @ motion(metres=POINT) for pose in poses])
    seen_by_fixed = BASE_FROM_OPTICAL @ optical_from_tag  # the same pictures, by the scene's own camera
    bag = write_bag(tmp_path / "bag", seen_by_fixed, ERROR, tf=poses, mount=("tool0", TOOL_FROM_OPTICAL))
    board = ("--board", "tag:apriltag_36h11:7", "--picture", str(tmp_path / "check.png"))
    assert main(["--camera", "--json", "--without-policy", "--bag", str(bag), *board]) == 0
    found = json.loads(capsys.readouterr().out)["hand_eye"]
    assert (found["parent"], found["child"]) == ("tool0", "camera_link")
    assert found["held_out_rms_px"] < 1.5 < 5.0 < found["rms_px"]
    link_from_optical = motion((0.0, 0.3, 0.0), (0.01, 0.02, 0.0))
    corrected = np.array(found["parent_from_child"]) @ link_from_optical
    metres, radians = pose_distance(corrected, TOOL_FROM_OPTICAL @ invert_pose(ERROR))
    assert metres < 0.02
    assert np.degrees(radians) < 1.5
    assert (tmp_path / "check.png").is_file()
