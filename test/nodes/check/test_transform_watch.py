"""The watch of TF remembers what a buffer drops."""

import math
from types import SimpleNamespace

import numpy as np
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.check.transform_watch import Origin, TransformWatch
from sqap_vla_ros.nodes.messages import transform_message

GIDS = (b"", b"1", b"2")


class NodeDouble:
    """Keeps the callbacks of its subscriptions."""

    def __init__(self):
        self.callbacks = {}

    def create_subscription(self, _kind, topic, callback, _qos):
        self.callbacks[topic] = callback

    def get_publishers_info_by_topic(self, _topic):
        names = {gid: f"driver{gid.decode()}" for gid in GIDS}
        return [SimpleNamespace(endpoint_gid=gid, node_name=name, node_namespace="/") for gid, name in names.items()]


def test_what_is_not_finite_is_kept_with_its_numbers_and_every_stamp_once():
    node = NodeDouble()
    watch = TransformWatch(node)
    for seconds, x in ((1, 0.5), (2, math.nan), (2, 0.5), (3, 0.5)):
        message = transform_message(np.eye(4), seconds * NS_PER_S, "wrist", "tool0")
        message.transform.translation.x = x
        node.callbacks["/tf"](TFMessage(transforms=[message]), {})
    frames = watch.frames()
    assert frames.infinite == {"tool0": "translation (nan, 0, 0), rotation (0, 0, 0, 1)"}
    assert frames.stamps == {"tool0": (NS_PER_S, 2 * NS_PER_S, 3 * NS_PER_S)}
    assert frames.norms == {}


def test_all_who_place_a_frame_are_kept_with_its_parents():
    node = NodeDouble()
    watch = TransformWatch(node)
    for gid, topic, parent in ((b"1", "/tf", "wrist"), (b"2", "/tf", "/elbow"), (b"2", "/tf_static", "wrist")) * 2:
        message = transform_message(np.eye(4), NS_PER_S, parent, "tool0")
        node.callbacks[topic](TFMessage(transforms=[message]), {"publisher_gid": {"data": gid}})
    frames = watch.frames()
    found = (Origin("/driver1", "wrist"), Origin("/driver2", "elbow"), Origin("/driver2", "wrist", static=True))
    assert frames.origins == {"tool0": found}
    assert frames.between("tool0", "world") == {"tool0"}
