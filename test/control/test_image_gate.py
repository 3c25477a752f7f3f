"""Which images may be used."""

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.image_gate import (
    LEAST_CONTRAST,
    ImageGate,
    ImageGateConfig,
    Order,
    contrast,
    lens_problem,
    nothing_visible,
)
from sqap_vla_ros.policy.pictures import read_picture

HERE = np.zeros(3)


@pytest.fixture
def gate() -> ImageGate:
    return ImageGate(ImageGateConfig(timeout_s=0.5, max_age_s=0.4, max_future_s=0.1, jump_back_s=1.0))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)


def test_stamps_must_advance(gate):
    second = NS_PER_S
    assert gate.arrive(10 * second, 0.0) is Order.NEW
    assert gate.arrive(10 * second, 0.1) is Order.REPEATED
    assert gate.arrive(10 * second - second // 2, 0.1) is Order.OUT_OF_ORDER
    assert gate.arrive(10 * second + 1, 0.2) is Order.NEW
    assert (gate.received, gate.dropped) == (4, 2)


def test_a_stamp_far_back_is_a_new_beginning(gate):
    gate.arrive(10 * NS_PER_S, 0.0)
    assert gate.arrive(9 * NS_PER_S, 0.1) is Order.NEW
    assert gate.arrive(9 * NS_PER_S, 0.2) is Order.REPEATED
    assert gate.arrive(10 * NS_PER_S, 0.3) is Order.NEW


def test_a_stamp_that_makes_no_sense_is_not_taken_in(gate):
    assert "stamped zero" in gate.stamp_problem(0, NS_PER_S)
    assert "in the future" in gate.stamp_problem(12 * NS_PER_S, 10 * NS_PER_S)
    assert gate.stamp_problem(10 * NS_PER_S + NS_PER_S // 2, 10 * NS_PER_S) is None
    assert gate.stamp_problem(5 * NS_PER_S, 10 * NS_PER_S) is None


def test_silence_is_measured_on_the_steady_clock_and_repeated_stamps_are_silence(gate):
    assert gate.silence(100.4, waiting_since_s=100.0) is None
    assert gate.silence(100.6, waiting_since_s=100.0) == "no image was received yet"
    gate.arrive(NS_PER_S, 101.0)
    assert gate.silence(101.4, 100.0) is None
    gate.arrive(NS_PER_S, 101.4)  # a driver that sends the same image again and again
    assert gate.silence(101.6, 100.0) == "no new image for 0.6 s (limit 0.5 s)"


def test_age(gate):
    now_ns = 50 * NS_PER_S
    assert gate.age(now_ns - NS_PER_S // 5, now_ns) is None
    assert "stale: stamped 0.50 s ago (limit 0.4 s)" in gate.age(now_ns - NS_PER_S // 2, now_ns)
    assert gate.age(now_ns + NS_PER_S // 20, now_ns) is None
    assert "0.50 s in the future" in gate.age(now_ns + NS_PER_S // 2, now_ns)


def feed(gate: ImageGate, image: np.ndarray, times_s, positions) -> list[str | None]:
    return [gate.frozen(image.copy(), round(t * NS_PER_S), p) for t, p in zip(times_s, positions, strict=True)]


def test_equal_pixels_while_the_tool_moves_are_a_frozen_camera(gate):
    times_s = np.arange(0.0, 2.0, 0.1)
    moving = [np.array([0.05 * t, 0.0, 0.0]) for t in times_s]
    verdicts = feed(gate, picture(0), times_s, moving)
    first = next(t for t, v in zip(times_s, verdicts, strict=True) if v is not None)
    assert first == pytest.approx(1.0)
    assert verdicts[10] == "the camera is frozen: 1.0 s of equal images while the tool moved 50 mm"
    assert gate.frozen(picture(1), 3 * NS_PER_S, HERE) is None


def test_a_still_scene_is_not_frozen(gate):
    assert not any(feed(gate, picture(0), np.arange(0.0, 20.0, 0.1), [HERE] * 200))


def test_one_changed_pixel_is_enough(gate):
    image = picture(0)
    for i in range(40):
        image[i % 4, i % 6, 0] += 1
        assert gate.frozen(image.copy(), i * NS_PER_S // 10, np.array([0.01 * i, 0.0, 0.0])) is None


def test_bad_configuration_names_itself():
    with pytest.raises(ValueError, match=r"max_age_s must be positive, got 0"):
        ImageGateConfig(max_age_s=0.0)


def noise(seed=0, shape=(48, 64, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_images_that_repeat_in_turn_are_frozen_too():
    gate = ImageGate(ImageGateConfig(frozen_s=1.0, frozen_motion_m=0.02))
    found = [gate.frozen(noise(step % 3), step * NS_PER_S // 10, np.array([0.01 * step, 0, 0])) for step in range(30)]
    assert found[:12] == [None] * 12
    assert "the camera is frozen" in found[-1]
    gate.reset()
    assert all(
        gate.frozen(noise(step), step * NS_PER_S // 10, np.array([0.01 * step, 0, 0])) is None for step in range(30)
    )


def seen(gate: ImageGate, picture_at, pixel_at, seconds: float = 3.0) -> list[str | None]:
    """Verdicts at 10 Hz while the tool moves 10 mm an image."""
    return [
        gate.frozen(picture_at(step), step * NS_PER_S // 10, np.array([0.01 * step, 0, 0]), pixel_at(step))
        for step in range(round(seconds * 10))
    ]


def a_level_of_noise(step: int, levels: int = 1) -> np.ndarray:
    one = noise(7).astype(int) // 2 + 64
    return (one + np.random.default_rng(step).integers(-levels, levels + 1, one.shape)).astype(np.uint8)


def test_a_frozen_picture_with_a_level_of_noise_is_frozen_too(gate):
    found = seen(gate, a_level_of_noise, lambda step: (20.0 + step, 30.0))
    assert found[:10] == [None] * 10
    assert found[10] == "the camera is frozen: 1.0 s of equal images but for noise while the tool moved 100 mm"
    # A picture that changes is not frozen any more.
    assert gate.frozen(noise(1), 4 * NS_PER_S, HERE, (5.0, 5.0)) is None


@pytest.mark.parametrize(
    ("picture_at", "pixel_at"),
    [
        (a_level_of_noise, lambda step: None),  # the tool is not seen: a still scene looks like this
        (a_level_of_noise, lambda step: (20.0, 30.0)),  # it moves along the line of sight, or with the camera
        (a_level_of_noise, lambda step: (20.0 + step, 30.0) if step % 5 else None),
        (lambda step: a_level_of_noise(step, 3), lambda step: (20.0 + step, 30.0)),  # a sensor's noise
        (lambda step: np.roll(a_level_of_noise(0), step, axis=1), lambda step: (20.0 + step, 30.0)),
    ],
)
def test_a_still_scene_with_noise_or_a_tool_that_is_not_seen_to_move_is_not_frozen(gate, picture_at, pixel_at):
    assert seen(gate, picture_at, pixel_at) == [None] * 30


def test_a_small_tool_that_moves_before_a_still_scene_is_not_frozen(gate):
    def moving_tool(step: int) -> np.ndarray:
        image = a_level_of_noise(step)
        image[30:32, 20 + step : 22 + step] = 255 * (step % 2)
        return image

    assert seen(gate, moving_tool, lambda step: (20.0 + step, 30.0)) == [None] * 30


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


def test_no_recorded_picture_is_refused_for_its_contrast(real_data):
    """The limit is at most a tenth of any of them, and they stay usable an eighth as bright, and eight times as."""
    for folder in ("industrial_calibration/images", "real2sim"):
        for file in sorted(real_data(folder).glob("*.png")):
            image = read_picture(file)
            assert contrast(image) > 10 * LEAST_CONTRAST, file
            assert nothing_visible(image // 8) is None, file
            assert nothing_visible(np.minimum(image.astype(int) * 8, 255).astype(np.uint8)) is None, file


def test_a_camera_that_changes_during_a_mission_is_named_until_the_next():
    gate = ImageGate(ImageGateConfig())
    gate.begin()
    assert gate.changed("camera", noise()) is None
    assert "from 64x48 pixels in 'camera' to 64x48 pixels in 'other'" in gate.changed("other", noise())
    assert "to 32x24 pixels in 'camera'" in gate.changed("camera", noise(0, (24, 32, 3)))
    assert gate.changed("camera", noise()) is None
    gate.begin()
    assert gate.changed("other", noise()) is None


def test_a_camera_whose_calibration_changes_during_a_mission_is_named_until_the_next():
    gate = ImageGate(ImageGateConfig())
    assert gate.changed("camera", noise(), 600.0) is None
    assert gate.changed("camera", noise(), 610.0) is None  # autofocus
    assert "from a focal length of 600.0 pixels to a focal length of 800.0" in gate.changed("camera", noise(), 800.0)
    gate.begin()
    assert gate.changed("camera", noise(), 800.0) is None


@pytest.mark.parametrize(("fx", "fy"), [(1.0, 1.0), (0.9, 1.2), (1e6, 1e6), (600.0, 1.0)])
def test_a_camera_matrix_that_is_not_in_pixels_is_named(fx, fy):
    assert "fx and fy must be in pixels" in lens_problem(640, 480, fx, fy)
    assert lens_problem(640, 480, 600.0, 600.0) is None
