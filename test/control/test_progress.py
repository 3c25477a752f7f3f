"""An arm that stands still although it is told to move, told apart from one that is asked for nothing."""

from collections.abc import Callable

import numpy as np
import pytest

from sqap_vla_ros.control.arm.progress import ProgressBounds, ProgressWatch
from sqap_vla_ros.robot.conventions import rotation_from_rotvec

PERIOD_S = 0.02


def pose(x: float, turn: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = x
    matrix[:3, :3] = rotation_from_rotvec(np.array([0.0, 0.0, turn]))
    return matrix


def first_named(told: Callable[[float], np.ndarray | None], tool: Callable[[float], np.ndarray]) -> float | None:
    """Return when (s) an arm is named within ten seconds, with a lead of 20 mm and 0.3 rad allowed."""
    watch = ProgressWatch(ProgressBounds.of(1.5, 0.02, 0.3))
    for step in range(1, round(10.0 / PERIOD_S)):
        t_s = step * PERIOD_S
        if watch.note(round(t_s * 1e9), tool(t_s), told(t_s)) is not None:
            return t_s
    return None


def test_an_arm_that_ignores_its_commands_is_named_after_the_time_and_the_lead():
    assert first_named(lambda t: pose(min(0.04 * t, 0.03)), lambda _: pose(0.0)) == pytest.approx(1.52)
    assert first_named(lambda t: pose(min(0.004 * t, 0.03)), lambda _: pose(0.0)) == pytest.approx(2.52, abs=0.03)
    assert first_named(lambda t: pose(0.0, min(0.2 * t, 0.4)), lambda _: pose(0.0)) == pytest.approx(1.52)


@pytest.mark.parametrize(
    ("told", "tool"),
    [
        (lambda t: pose(0.04 * t), lambda t: pose(0.04 * (t - 0.4))),  # it lags
        (lambda t: pose(0.004 * t), lambda t: pose(0.004 * t - 0.012)),  # slowly, and lags
        (lambda _: pose(0.03), lambda _: pose(0.0)),  # it sags, and is asked for nothing
        (lambda t: pose(0.002 * np.sin(9.0 * t)), lambda _: pose(0.0)),  # the noise of a policy that waits
        (lambda _: None, lambda _: pose(0.0)),  # no motion
    ],
)
def test_an_arm_that_follows_or_is_asked_for_nothing_is_not_named(told, tool):
    assert first_named(told, tool) is None


def test_time_without_a_motion_does_not_count():
    told = lambda t: pose(min(0.04 * t, 0.03)) if t % 1.0 < 0.5 else None  # noqa: E731
    assert 2.9 < first_named(told, lambda _: pose(0.0)) < 3.5


def test_noise_tells_a_measurement_that_lives_from_one_that_stands():
    watch = ProgressWatch(ProgressBounds.of(1.5, 0.02, 0.3))
    for noise, lives in ((1e-6, True), (0.0, False)):
        watch.forget()
        for step in range(1, 100):
            watch.note(step * 20_000_000, pose(noise * (step % 3)), pose(0.0005 * step))
        assert watch.lives == lives
