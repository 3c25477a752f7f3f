"""Every way in which pairs can be worthless, and every common mistake behind them, has a sentence of its own."""

from dataclasses import replace

import numpy as np
import pytest
from hand_eye.scene import CAMERA, ERROR, HEIGHT, WIDTH, motion, pairs, tool_poses

from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.hand_eye.faults import MIN_PAIRS, OPTICAL_FROM_BODY, degenerate, mistakes
from sqap_vla_ros.robot.hand_eye.fit import fit_camera

PATCH_PX = 20.0
TRUTH = motion(*ERROR)


def still(poses):
    return np.repeat(poses[:1], len(poses), axis=0)


def around(first, *, metres=(0.0, 0.0, 0.0), count=12):
    """Poses at random within so many metres of the first."""
    rng = np.random.default_rng(2)
    return np.stack([motion(metres=first[:3, 3] + rng.uniform(-1, 1, 3) * metres) for _ in range(count)])


def turning(of):
    """The same pairs, with the camera riding on a wrist that turns it about the tool."""
    turns = np.stack([motion((0.0, 0.0, 0.1 * k)) for k in range(len(of))])
    return replace(of, base_from_tool=turns @ of.base_from_tool, optical_from_base=of.optical_from_base @ invert(turns))


def invert(poses):
    return np.stack([invert_pose(pose) for pose in poses])


POSES = tool_poses()
DEGENERATE = {
    "few": (pairs(POSES[: MIN_PAIRS - 1]), "5 pairs, at least 6"),
    "one place": (pairs(around(POSES[0], metres=(0.02, 0.02, 0.02))), "all pairs lie within"),
    "the same place": (pairs(still(POSES)), "all pairs lie within 0.0 cm"),
    "a line": (pairs(around(POSES[0], metres=(0.2, 0.002, 0.002))), "lie on a line"),
    "TF stands still": (
        replace(pairs(POSES), base_from_tool=still(POSES)),
        "by TF tool0 stays within 0 mm, but in the",
    ),
    "images stand still": (replace(pairs(POSES), seen=np.repeat(pairs().seen[:1], len(POSES), 0)), "images it stays"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_worthless_pairs_are_told_apart(name):
    of, text = DEGENERATE[name]
    (fault,) = degenerate(of, "tool0", "base_link")
    assert text in fault.text
    assert fault.remedy


def test_good_pairs_have_no_fault():
    for of in (pairs(), pairs(error=TRUTH), pairs(tool_poses(turn_rad=0.0))):
        assert list(degenerate(of, "tool0", "base_link")) == []
        assert list(mistakes(of, fit_camera(of), PATCH_PX, "tool0")) == []


def test_a_camera_on_the_wrist_sees_the_tool_in_one_place_rightly():
    assert list(degenerate(turning(pairs(still(POSES))), "tool0", "base_link")) == []


def wrong_seen(change):
    true = pairs(error=TRUTH)
    return replace(true, seen=change(true.seen))


HALF = replace(CAMERA, matrix=np.diag([2.0, 2.0, 1.0]) @ CAMERA.matrix)
TRUE = pairs(error=TRUTH)
MISTAKES = {
    "mirrored": (wrong_seen(lambda p: p * (-1, 1) + (WIDTH - 1, 0)), "mirrored left to right"),
    "upside down": (wrong_seen(lambda p: p * (1, -1) + (0, HEIGHT - 1)), "flipped upside down"),
    "turned": (wrong_seen(lambda p: (WIDTH - 1, HEIGHT - 1) - p), "turned by 180 degrees"),
    "swapped": (wrong_seen(lambda p: p[:, ::-1].copy()), "u and v are swapped"),
    "body axes": (
        replace(TRUE, optical_from_base=invert_pose(OPTICAL_FROM_BODY) @ TRUE.optical_from_base),
        "the axes of a body",
    ),
    "camera inverted": (
        replace(TRUE, optical_from_base=invert(TRUE.optical_from_base)),
        "between base and camera is published the wrong way round",
    ),
    "tool inverted": (
        replace(TRUE, base_from_tool=invert(TRUE.base_from_tool)),
        "between base and tool is published the wrong way round",
    ),
    "another resolution": (pairs(error=TRUTH, camera=HALF), "with its numbers times 0.50"),
    "another point": (pairs(point=(0.0, 0.0, 0.12)), "at (0.000, 0.000, 0.120) m in that frame"),
    "point and camera": (
        pairs(error=TRUTH, point=(0.0, 0.0, 0.12), noise_px=0.0),
        "the pairs agree to 0.0 px with a camera that is off by 5 cm and 3 degrees",
    ),
    "noise": (
        replace(TRUE, seen=np.random.default_rng(0).uniform(0, HEIGHT, (20, 2))),
        "no pose of the camera explains",
    ),
    "turned frame": (pairs(error=motion((0.0, 0.0, 1.0))), "turned by 57 degrees"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named(name):
    of, text = MISTAKES[name]
    assert list(degenerate(of, "tool0", "base_link")) == []
    (fault,) = mistakes(of, fit_camera(of), PATCH_PX, "tool0")
    assert text in fault.text.replace("-0.000", "0.000")
    assert fault.remedy
