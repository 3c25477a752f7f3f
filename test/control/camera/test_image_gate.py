"""Which images may be used."""

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.camera.image_gate import (
    ImageGate,
    ImageGateConfig,
    Order,
)

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
    watched = [gate.frozen(picture(step), (30 + step) * NS_PER_S // 10, HERE) for step in range(1, 13)]
    assert all("was frozen a moment ago, and is watched" in text for text in watched[:10])
    assert watched[10:] == [None, None]


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
