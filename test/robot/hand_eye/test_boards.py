"""Tags and ChArUco boards are found to a fraction of a pixel."""

import cv2
import numpy as np
import pytest
from hand_eye.scene import picture, pixels, tool_poses

from sqap_vla_ros.robot.hand_eye.boards import read_board


def gray(rgb):
    return np.ascontiguousarray(rgb[..., 0])


@pytest.mark.parametrize("pose", tool_poses(6), ids=range(6))
def test_the_middle_of_a_tag(pose):
    found = read_board("tag:apriltag_36h11:7").middle(gray(picture(pose)))
    np.testing.assert_allclose(found, pixels(pose[None])[0], atol=0.6)


def test_another_tag_and_a_mirrored_one_are_not_taken_for_it():
    image = gray(picture(tool_poses(1)[0]))
    assert read_board("tag:apriltag_36h11:8").middle(image) is None
    assert read_board("tag:apriltag_36h11:7").middle(np.ascontiguousarray(image[:, ::-1])) is None


def test_a_tag_that_is_there_twice_is_not_taken():
    image = gray(picture(tool_poses(1)[0]))
    assert read_board("tag:apriltag_36h11:7").middle(np.hstack([image, image])) is None


@pytest.mark.parametrize("legacy", [False, True])
def test_the_middle_of_a_charuco_board_half_of_which_is_hidden(legacy):
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_100)
    board = cv2.aruco.CharucoBoard((6, 4), 0.03, 0.022, dictionary)
    board.setLegacyPattern(legacy)
    flat = np.pad(board.generateImage((360, 240)), 60, constant_values=255)
    seen = np.array([[1.0, 0.2, 10.0], [-0.1, 1.1, 40.0], [0.0002, 0.0003, 1.0]])
    image = cv2.warpPerspective(flat, seen, (640, 480), borderValue=128)
    middle = cv2.perspectiveTransform(np.array([[[239.5, 179.5]]]), seen).ravel()
    image[:, int(middle[0]) + 60 :] = 128
    found = read_board("charuco:5x5_100:6x4:0.03:0.022").middle(image)
    np.testing.assert_allclose(found, middle, atol=1.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tag", "must be tag:DICTIONARY:ID or charuco"),
        ("tag:apriltag_36h11:9999", "has the tags 0 to 586"),
        ("tag:qr:1", "knows no dictionary 'qr'"),
        ("charuco:5x5_100:7x5:0.02:0.03", "markers smaller than its squares"),
        ("charuco:5x5_100:7x5:0.0.2:0.03", "a length must be a number"),
        ("charuco:4x4_50:40x40:0.03:0.02", "has too few markers"),
    ],
)
def test_a_board_that_does_not_exist_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        read_board(text)
