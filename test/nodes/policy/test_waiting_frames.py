"""Images that wait for late transforms: one whose transforms come next is always among the few that are kept."""

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.policy.observer import Frame, WaitingFrames

LONGEST_S = 0.2


@pytest.mark.parametrize("rate_hz", [5, 30, 60, 90, 500])
@pytest.mark.parametrize("late_s", [0.05, 0.12, 0.19])
def test_transforms_that_come_late_find_an_image_at_any_rate(rate_hz, late_s):
    """Images become old enough for transforms that are `late_s` behind before they are given up, again and again."""
    waiting, arrived, given_up, seen_s = WaitingFrames(LONGEST_S), 0, 0, LONGEST_S
    for now_s in np.arange(0.0, 1.5, 0.002):  # looks for transforms
        if now_s * rate_hz >= arrived:
            given_up += waiting.add(Frame(None, None, round(now_s * NS_PER_S), now_s))
            arrived += 1
            assert len(waiting) == arrived - given_up <= WaitingFrames.PARTS + 2
            assert waiting[-1].arrived_s == now_s
        if any(late_s <= now_s - frame.arrived_s <= LONGEST_S for frame in waiting):
            seen_s = now_s
        assert now_s - seen_s <= max(LONGEST_S / WaitingFrames.PARTS, 1 / rate_hz) + 0.004 + 1 / rate_hz
