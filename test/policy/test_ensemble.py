"""The published ensemble and gripper conventions, against hand-worked values."""

import numpy as np
import pytest

from sqap_vla_ros.policy.ensemble import AdaptiveEnsemble
from sqap_vla_ros.policy.gripper import StickyGripper, widowx_command


def chunk(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((16, 7))


def test_one_chunk_gives_its_first_action():
    np.testing.assert_allclose(AdaptiveEnsemble(7).update(chunk(0)), chunk(0)[0])


def test_the_chunk_made_j_calls_ago_is_read_at_j():
    ensemble = AdaptiveEnsemble(2, alpha=0.0)  # plain mean
    for seed in range(3):
        action = ensemble.update(chunk(seed))
    np.testing.assert_allclose(action, (chunk(2)[0] + chunk(1)[1]) / 2)  # chunk 0 is forgotten


def test_weights_follow_the_cosine():
    ensemble = AdaptiveEnsemble(2, alpha=0.1)
    old, new = np.zeros((16, 7)), np.zeros((16, 7))
    old[1, 0], new[0, 0] = -1.0, 1.0  # opposite: cosine -1
    ensemble.update(old)
    heavy, light = np.exp(0.1), np.exp(-0.1)
    assert ensemble.update(new)[0] == pytest.approx((heavy - light) / (heavy + light), rel=1e-6)


def test_reset_forgets():
    ensemble = AdaptiveEnsemble(7)
    ensemble.update(chunk(0))
    ensemble.reset()
    np.testing.assert_allclose(ensemble.update(chunk(1)), chunk(1)[0])


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        AdaptiveEnsemble(0)
    with pytest.raises(ValueError, match=r"T >= 7, the window; got \(3, 7\)"):
        AdaptiveEnsemble(7).update(np.zeros((3, 7)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        StickyGripper(0)


def test_widowx():
    assert [widowx_command(opening) for opening in (0.0, 0.5, 1.0)] == [-1.0, -1.0, 1.0]


def test_sticky_gripper_holds_a_change_for_ten_calls():
    gripper = StickyGripper()
    commands = [gripper.update(opening) for opening in (1.0, 1.0, *[0.0] * 14)]
    assert commands == [0.0, 0.0, *[1.0] * 10, *[0.0] * 4]


def test_a_change_during_the_hold_waits():
    gripper = StickyGripper(repeat=3)
    commands = [gripper.update(opening) for opening in (1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert commands == [0.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0]
