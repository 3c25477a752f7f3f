"""The verdict of `check --camera` about the ring, and what it reads from the loaded policy."""

from dataclasses import replace

import numpy as np
import pytest
from hand_eye.scene import CAMERA, HEIGHT, WIDTH, motion, pairs, picture, tool_poses

from sqap_vla_ros.contracts import ActionChunk, PolicyInfo, SelectionContext, TokenSelection
from sqap_vla_ros.nodes.check.finding import Level
from sqap_vla_ros.nodes.check.hand_eye import policy_view
from sqap_vla_ros.nodes.check.hand_eye.judgement import judge
from sqap_vla_ros.nodes.check.hand_eye.mounts import correct_mount
from sqap_vla_ros.nodes.check.hand_eye.picture import draw_pairs
from sqap_vla_ros.nodes.check.hand_eye.policy_view import PolicyView, assumed_view, loaded_view
from sqap_vla_ros.nodes.check.hand_eye.sights import Sight, Survey
from sqap_vla_ros.nodes.check.snapshot import PolicyTrial
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning.registry import make_selector
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.hand_eye.fit import unfitted

SURVEY = Survey("a bag", "base_link", "tool0", "camera_optical")
PATCH = np.array([WIDTH / 16, HEIGHT / 16])


def ring(of, view=None):
    (found,) = [row.finding for row in judge(SURVEY, of, view or assumed_view()).rows if row.check == "ring"]
    return found


def beside(patches):
    """Pairs whose tool is seen so many patches (right, down) beside its projection."""
    true = pairs(noise_px=0.0)
    return replace(true, seen=true.projected + PATCH * patches)


@pytest.mark.parametrize(
    ("patches", "level", "text"),
    [
        ((0.0, 0.0), Level.OK, "will lie on the gripper: the projected patch and the tool's are at most 0 apart"),
        ((1.0, -1.0), Level.OK, "are at most 1 apart"),
        ((2.0, 0.0), Level.WARNING, "on the edge of the gripper"),
        ((0.0, 3.0), Level.FAIL, "will not lie on the gripper"),
    ],
)
def test_the_verdict_follows_the_distance_in_patches(patches, level, text):
    found = ring(beside(patches))
    assert found.level is level
    assert text in found.text


def test_a_policy_without_a_ring_needs_no_projection():
    found = ring(beside((5.0, 5.0)), replace(assumed_view(), radius=None, name="fp32"))
    assert found.level is Level.OK
    assert "recipe fp32 protects no ring" in found.text


def test_a_tool_at_the_border_is_another_matter():
    """Three of fifteen tools are just inside the image, and projected just outside."""
    true = pairs(tool_poses(15), noise_px=0.0)
    seen = true.projected.copy()
    matrix = CAMERA.matrix
    poses = true.base_from_tool.copy()
    for k in range(3):
        ray = np.array([(-6.0 - matrix[0, 2]) / matrix[0, 0], 0.02 * k, 1.0])
        poses[k] = invert_pose(true.optical_from_base[k]) @ motion(metres=0.8 * ray)
        seen[k] = (3.0, matrix[1, 2] + 0.02 * k * matrix[1, 1])
    found = ring(replace(true, base_from_tool=poses, seen=seen))
    assert found.level is Level.WARNING
    assert "in 3 of 15 images the tool is seen there and projected outside" in found.text


@pytest.mark.parametrize("radius", [None, 0, 2, 3])
def test_the_ring_is_measured_in_the_policys_own_tokens(radius, monkeypatch):
    grid = (16, 16)

    def answer(_values, observation, _factory, *, predictions, wait_s):
        assert predictions == 1
        transform = ImageTransform()
        patch = policy_view.patch_of(transform.map_pixel(observation.gripper_pixel, WIDTH, HEIGHT), 224, grid)
        selector = make_selector("sqap", attention_share=0.0, ring_radius=radius, ratio=0.5)
        tokens = selector.select(SelectionContext(grid, [patch]))
        selection = TokenSelection(tokens.indices[0].numpy(), tokens.reasons[0].numpy(), grid, "sqap", 3, patch)
        chunk = ActionChunk(0, np.zeros((1, 7)), 0.1, np.zeros((1, 7)), selection)
        info = PolicyInfo("c", "", "mine", 1, 1, 0.1, 224, grid, "k", "sqap", crop="deployment")
        return PolicyTrial(None, (0.1,), info, chunk)

    monkeypatch.setattr(policy_view, "try_policy", answer)
    pose = tool_poses(1)[0]
    view = loaded_view({}, Sight(1, picture(pose), CAMERA, pose, np.eye(4)))
    assert view == PolicyView(ImageTransform(224, "deployment"), grid, radius, "mine")


def test_a_policy_that_does_not_load_is_told(monkeypatch):
    monkeypatch.setattr(policy_view, "try_policy", lambda *_, **__: PolicyTrial("no such file"))
    pose = tool_poses(1)[0]
    assert loaded_view({}, Sight(1, picture(pose), CAMERA, pose, np.eye(4))) == "no such file"


def test_a_camera_on_the_wrist_is_judged_and_not_fitted():
    turns = np.stack([motion((0.0, 0.0, 0.1 * k)) for k in range(12)])
    true = pairs(np.repeat(tool_poses(1), 12, axis=0))
    back = np.stack([invert_pose(turn) for turn in turns])
    of = replace(true, base_from_tool=turns @ true.base_from_tool, optical_from_base=true.optical_from_base @ back)
    judgement = judge(SURVEY, of, assumed_view())
    assert {row.finding.level for row in judgement.rows} == {Level.OK, Level.SKIPPED}
    assert "the camera rides with the tool" in judgement.rows[-1].finding.text
    assert "let it look at a board, or click on a point, that lies still" in judgement.rows[-1].finding.text


def test_the_picture_shows_the_ring_around_the_projection():
    true = beside((1.0, 0.0))
    sights = [
        Sight(int(stamp), np.full((HEIGHT, WIDTH, 3), 90, np.uint8), CAMERA, *poses)
        for stamp, *poses in zip(true.stamps_ns, true.base_from_tool, true.optical_from_base, strict=True)
    ]
    with_ring = draw_pairs(true, sights, assumed_view(), unfitted(true), corrected=False)
    without = draw_pairs(true, sights, replace(assumed_view(), radius=None), unfitted(true), corrected=False)
    rows, columns = np.nonzero((with_ring != without).any(axis=2))
    assert 4 * PATCH[0] <= np.ptp(columns) + 1 <= 5 * PATCH[0]
    assert 4 * PATCH[1] <= np.ptp(rows) + 1 <= 5 * PATCH[1]


def test_the_mount_to_correct_is_the_topmost_below_the_robot():
    link, optical, base = (
        motion((0.1, 0.2, 0.0), (0.3, 0.0, 1.0)),
        motion(metres=(0.01, 0.0, 0.0)),
        motion(metres=(1, 0, 0)),
    )
    mounts = {"camera_link": ("world", link), "optical": ("camera_link", optical), "base_link": ("world", base)}
    moved = motion((0.0, 0.1, 0.0), (0.0, 0.02, 0.0)) @ invert_pose(base) @ link @ optical
    parent, child, pose = correct_mount(mounts, "base_link", "optical", moved)
    assert (parent, child) == ("world", "camera_link")
    np.testing.assert_allclose(invert_pose(base) @ pose @ optical, moved, atol=1e-12)
    parent, child, pose = correct_mount({}, "base_link", "optical", moved)
    assert (parent, child) == ("base_link", "optical")
    np.testing.assert_array_equal(pose, moved)
