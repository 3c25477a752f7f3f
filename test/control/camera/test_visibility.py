"""In which pictures something can be seen, and which camera matrices can be one."""

import cv2
import numpy as np
import pytest

from sqap_vla_ros.control.camera.visibility import LEAST_CONTRAST, contrast, lens_problem, nothing_visible
from sqap_vla_ros.pictures import read_picture


def noise(seed=0, shape=(48, 64, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def grey(level: int, spread: int = 0) -> np.ndarray:
    """One grey level with noise of up to `spread` levels, as of a sensor under its cap."""
    return np.clip(level + np.random.default_rng(1).integers(-spread, spread + 1, (120, 160, 3)), 0, 255).astype(
        np.uint8
    )


def captioned(image: np.ndarray) -> np.ndarray:
    image[:6, :60] = 255  # a date that the driver writes over the picture
    return image


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((48, 64, 3), np.uint8), "the image is black"),
        (noise(0) % 8, "the image is black"),
        (noise(0, (1, 1, 3)), "1x1 pixels"),
        (grey(255), "one colour (255, 255, 255)"),
        (grey(255, 2), "check the exposure, the lens cap and the driver"),
        (grey(128), "one colour (128, 128, 128)"),
        (grey(128, 2), "nothing can be seen"),
        (grey(12, 2), "nothing can be seen"),
        (captioned(grey(128, 2)), "nothing can be seen"),
        (np.full((480, 640, 3), (0, 0, 255), np.uint8), "one colour (0, 0, 255)"),
        (np.full((16, 16, 3), 77, np.uint8), "one colour (77, 77, 77)"),
    ],
)
def test_images_in_which_nothing_can_be_seen_are_named(image, text):
    assert text in nothing_visible(image)
    assert len(nothing_visible(image)) < 200
    assert nothing_visible(noise()) is None


def table(shade: int, spread: int = 1) -> np.ndarray:
    noise_of = np.random.default_rng(0).integers(-spread, spread + 1, (480, 640, 3))
    return np.clip(shade + noise_of, 0, 255).astype(np.uint8)


def with_gripper(share: float) -> np.ndarray:
    """A white table, and a dark gripper on so much of the picture."""
    image = table(235)
    width = round((share * 480 * 640 / 1.5) ** 0.5)
    image[100 : 100 + width * 3 // 2, 300 : 300 + width] = (40, 40, 60)
    return image


def with_stick_figure(contrast_share: float) -> np.ndarray:
    """An arm of thin lines, at a share of its contrast."""
    image = table(205, 0)
    for a, b in (((100, 400), (200, 150)), ((200, 150), (420, 120)), ((420, 120), (440, 260))):
        cv2.line(image, a, b, (225, 120, 40), 14)
    return np.clip(128 + (image.astype(int) - 128) * contrast_share, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "image", [with_gripper(0.03), with_gripper(0.015), with_stick_figure(1.0), with_stick_figure(0.1)]
)
def test_what_stands_out_from_a_picture_of_one_colour_is_seen(image):
    assert contrast(image) < 5.0
    assert nothing_visible(image) is None


def test_a_caption_or_dead_pixels_are_no_picture():
    lines = table(128)
    for row, text in enumerate(("CAM 1  2026-01-01 12:00:00", "EXPOSURE AUTO  GAIN 12 dB")):
        cv2.putText(lines, text, (10, 30 + 30 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2)
    boxed = table(128)
    boxed[:28, :300] = 0
    dead = table(128)
    dead[200], dead[:, 300:302] = 255, dead[:, 300:302]
    for image in (lines, boxed, dead):
        assert "nothing can be seen" in nothing_visible(image)


def test_no_recorded_picture_is_refused_for_its_contrast(real_data):
    """The limit is at most a tenth of any of them, and they stay usable an eighth as bright, and eight times as."""
    for folder in ("industrial_calibration/images", "real2sim"):
        for file in sorted(real_data(folder).glob("*.png")):
            image = read_picture(file)
            assert contrast(image) > 10 * LEAST_CONTRAST, file
            assert nothing_visible(image // 8) is None, file
            assert nothing_visible(np.minimum(image.astype(int) * 8, 255).astype(np.uint8)) is None, file


@pytest.mark.parametrize(("fx", "fy"), [(1.0, 1.0), (0.9, 1.2), (1e6, 1e6), (600.0, 1.0)])
def test_a_camera_matrix_that_is_not_in_pixels_is_named(fx, fy):
    assert "fx and fy must be in pixels" in lens_problem(640, 480, fx, fy)
    assert lens_problem(640, 480, 600.0, 600.0) is None
