"""What clients send, read or refused with a sentence."""

import numpy as np
import pytest

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.interchange.fixed_camera import FixedCamera
from sqap_vla_ros.serving.server.observations import BadObservation, ObservationReader

IMAGE = np.zeros((48, 64, 3), np.uint8)
C, S = np.cos(0.25), np.sin(0.25)
STATE = np.array([0.1, -0.05, 0.0, 0.0, 0.0, 0.0, 0.04, -0.04])
MODEL = CameraModel(
    64, 48, np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]]), np.zeros(0), False, np.eye(3), np.zeros(3), np.inf
)
BELOW = np.eye(4)
BELOW[2, 3] = 1.0  # the base's origin is a metre in front of the camera


def read(images=None, instruction="pick", state=None, reader=None):
    images = {"agentview": IMAGE} if images is None else images
    return (reader or ObservationReader()).read(images, instruction, state, 5)


def test_the_only_picture_is_taken_and_of_several_the_one_that_was_chosen():
    assert read().image is not None
    other = np.ones_like(IMAGE)
    images = {"agentview": IMAGE, "wrist": other}
    with pytest.raises(BadObservation) as refused:
        read(images)
    assert str(refused.value) == (
        "which of several images to use was not chosen: got agentview, wrist; start the server with --image-key and "
        "one of these names"
    )
    assert read(images, reader=ObservationReader("wrist")).image.all()


def test_colours_may_come_first_and_the_last_axis_decides():
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    np.testing.assert_array_equal(read({"cam_high": np.moveaxis(picture, 2, 0)}).image, picture)
    np.testing.assert_array_equal(read({"three rows": picture[:3]}).image, picture[:3])
    np.testing.assert_array_equal(read({"one row": np.moveaxis(picture[:1], 2, 0)}).image, picture[:1])
    seen = read(
        {"a": np.moveaxis(IMAGE, 2, 0)}, state=STATE, reader=ObservationReader(camera=FixedCamera(MODEL, BELOW))
    )
    assert (
        seen.gripper_pixel
        == read(state=STATE, reader=ObservationReader(camera=FixedCamera(MODEL, BELOW))).gripper_pixel
    )
    for wrong in (np.zeros((3, 48), np.uint8), np.zeros((3, 48, 64)), np.zeros((3, 0, 64), np.uint8)):
        with pytest.raises(BadObservation, match="image 'a' must "):
            read({"a": wrong})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"images": {}}, "the image is missing: got none"),
        ({"images": {"a": None}}, "image 'a' must be .* got nothing"),
        ({"images": {"a": IMAGE.astype(float)}}, "got \\[48, 64, 3\\] of float64"),
        ({"images": {"a": IMAGE[..., :1]}}, "got \\[48, 64, 1\\]"),
        ({"images": {"a": IMAGE[:0]}}, "1 to 4096 pixels a side"),
        ({"images": {"a": np.zeros((1, 5000, 3), np.uint8)}}, "1 to 4096 pixels a side"),
        ({"instruction": None}, "the instruction is missing"),
        ({"instruction": "  "}, "the instruction is empty"),
        ({"instruction": "\0"}, "the instruction has no visible character"),
        ({"instruction": "x" * 5000}, "longer than 4096 bytes: shorten it, it has 5000 bytes"),
        ({"instruction": 5}, "the instruction must be a text that says what to do, got a number"),
        ({"instruction": ["pick"]}, "the instruction must be a text that says what to do, got a list"),
        ({"images": {b"agentview": IMAGE}}, "the name of an image must be a text, got bytes"),
        ({"images": {"a": IMAGE}, "reader": ObservationReader("b")}, "got a, expected 'b'; send it .* --image-key"),
        ({"state": [10**400] * 8}, "the state must be numbers in a flat list"),
        ({"instruction": "pick \ud800"}, "no Unicode text"),
        ({"state": "x"}, "the state must be numbers"),
        ({"state": [1.0, 2.0]}, "6 numbers; got 2"),
        (
            {"state": np.zeros(100)},
            "has 100 numbers, at most 64 are allowed: its first 6, position and axis_angle, are",
        ),
        ({"state": np.full(8, np.nan)}, "the state must be finite"),
        ({"state": np.full(8, 1e6)}, "within 100 m"),
    ],
)
def test_what_is_wrong_is_said(arguments, text):
    with pytest.raises(BadObservation, match=text):
        read(**arguments)


def test_of_names_without_end_a_few_are_listed_with_escapes():
    images = {f"{number:03}\x1b[31m" + "x" * 10_000: IMAGE for number in range(1_000)}
    with pytest.raises(BadObservation, match=r"got 000\\x1b\[31mx.* \.\.\. x.*, 007.* and 992 more; start") as refused:
        read(images)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1_000


def test_a_state_may_be_as_long_as_is_said():
    assert read(state=np.zeros(64)).base_from_tool is not None


def test_the_state_gives_the_pose_and_the_camera_the_pixel():
    seen = read(state=STATE, reader=ObservationReader(camera=FixedCamera(MODEL, BELOW)))
    np.testing.assert_allclose(seen.base_from_tool[:3, 3], [0.1, -0.05, 0.0])
    np.testing.assert_allclose(seen.gripper_pixel, (31.5 + 5.0, 23.5 - 2.5))


@pytest.mark.parametrize(
    ("form", "turned"), [("axis_angle", [0, 0, 0.5]), ("quat_wxyz", [C, 0, 0, S]), ("quat_xyzw", [0, 0, S, C])]
)
def test_a_state_may_turn_the_tool_in_several_forms(form, turned):
    seen = read(state=np.array([0.1, 0.2, 0.3, *turned, 0.04]), reader=ObservationReader(state=form))
    np.testing.assert_allclose(seen.base_from_tool[0, :2], [np.cos(0.5), -np.sin(0.5)])
    np.testing.assert_allclose(seen.base_from_tool[:3, 3], [0.1, 0.2, 0.3])


def test_a_quaternion_that_is_none_is_refused_and_an_unknown_form_too():
    with pytest.raises(BadObservation, match=r"quaternion .* must have norm 1"):
        read(state=np.zeros(8), reader=ObservationReader(state="quat_wxyz"))
    with pytest.raises(ValueError, match="one of axis_angle, quat_wxyz, quat_xyzw, rpy, got 'euler'"):
        ObservationReader(state="euler")


def test_a_mirrored_image_mirrors_the_pixel_and_a_resized_one_scales_it():
    reader = ObservationReader(camera=FixedCamera(MODEL, BELOW, mirrored=True))
    np.testing.assert_allclose(read(state=STATE, reader=reader).gripper_pixel, (63 - 36.5, 21.0))
    double = {"a": np.zeros((96, 128, 3), np.uint8)}
    reader = ObservationReader(camera=FixedCamera(MODEL, BELOW))
    np.testing.assert_allclose(read(double, state=STATE, reader=reader).gripper_pixel, (2 * 37 - 0.5, 2 * 21.5 - 0.5))


def test_a_configured_camera_needs_the_state():
    with pytest.raises(BadObservation, match="the state is missing"):
        read(reader=ObservationReader(camera=FixedCamera(MODEL, BELOW)))


def test_a_tool_out_of_view_has_no_pixel():
    reader = ObservationReader(camera=FixedCamera(MODEL, BELOW))
    assert read(state=np.array([5.0, 0, 0, 0, 0, 0]), reader=reader).gripper_pixel is None
