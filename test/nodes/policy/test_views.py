"""The pictures of the policy node, drawn without a running ROS."""

from types import SimpleNamespace

import numpy as np
import pytest

from sqap_vla_ros.contracts import PolicyInfo, Reason, TokenSelection
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning.overlay import draw_overlay

views = pytest.importorskip("sqap_vla_ros.nodes.policy.reports.views", reason="needs ROS 2 message packages")


class Publisher:
    """Has one subscriber and keeps what it is given."""

    def __init__(self):
        self.sent = []

    def get_subscription_count(self):
        return 1

    def publish(self, message):
        self.sent.append(message)


@pytest.mark.parametrize("crop", ["none", "deployment"])
def test_the_overlay_shows_the_patches_of_the_policys_own_crop(crop):
    publishers = {}
    node = SimpleNamespace(create_lifecycle_publisher=lambda _, name, __: publishers.setdefault(name, Publisher()))
    drawn = views.Views(node, "base_link")
    drawn.show_policy(PolicyInfo("c", "", "sqap", 0, 16, 0.1, 224, (16, 16), "k", "sqap", crop=crop))
    image = np.full((120, 160, 3), 128, np.uint8)
    selection = TokenSelection(np.array([0], np.int32), np.array([Reason.RING], np.uint8), (16, 16), "sqap", 3)
    picture = drawn._draw(
        SimpleNamespace(
            view=SimpleNamespace(
                camera=None,
                observation=SimpleNamespace(image=image, instruction="lift"),
                tool=SimpleNamespace(pixel=None),
            ),
            chunk=SimpleNamespace(timings_ms={"total": 7.0}, selection=selection),
        )
    )
    expected = draw_overlay(image, selection, ImageTransform(224, crop), caption="lift   7 ms")
    np.testing.assert_array_equal(picture, expected)
