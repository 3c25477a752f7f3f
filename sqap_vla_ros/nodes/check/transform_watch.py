"""Remembers of /tf and /tf_static what a buffer does not tell: who says what of a frame, and bad rotations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.nodes.messages import time_ns
from sqap_vla_ros.nodes.policy.inputs import TF_QOS, TF_STATIC_QOS
from sqap_vla_ros.nodes.policy.publishers import node_name
from sqap_vla_ros.robot.conventions import pose_matrix

TOLERANCE = 0.01  # of a squared norm, as tf2 has it: it ignores a transform that is further off
KEPT = 1000  # newest stamps of a frame
UNKNOWN = "a publisher without a name"


@dataclass(frozen=True)
class StaticClaim:
    """One publisher's word on a static frame. parent_from_frame: [4, 4]."""

    publisher: str
    parent: str
    parent_from_frame: NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Origin:
    """Whoever places a frame in a parent. static: on /tf_static."""

    publisher: str
    parent: str
    static: bool = False


@dataclass(frozen=True)
class Frames:
    """The tree of frames. parents: frame -> its newest parent. statics: frame -> the newest claim of each publisher.

    norms: frame -> norm of its newest quaternion, where that is not 1. infinite: frame -> a transform with numbers that
    are not finite. stamps: frame on /tf -> the stamps of its transforms, rising, ns. origins: frame -> who places it.
    """

    parents: Mapping[str, str]
    statics: Mapping[str, tuple[StaticClaim, ...]]
    norms: Mapping[str, float]
    infinite: Mapping[str, str] = field(default_factory=dict)
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    origins: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)

    def between(self, *ends: str) -> set[str]:
        """Return the frames whose place in their parents decides how these frames lie to each other."""
        paths = [self._above(end) for end in ends]
        return {frame for path in paths for frame in path if not all(frame in other for other in paths)}

    def _above(self, frame: str) -> set[str]:
        """Return the frames from this one up to the root, which is left out, by every parent that any of them has."""
        found: set[str] = set()
        open_ends = [frame]
        while open_ends:
            frame = open_ends.pop()
            if (parent := self.parents.get(frame)) is not None and frame not in found:
                found.add(frame)
                open_ends += {parent, *(origin.parent for origin in self.origins.get(frame, ()))}
        return found


class TransformWatch:
    """Listens beside the listener of the buffer."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._parents: dict[str, str] = {}
        self._norms: dict[str, float] = {}
        self._infinite: dict[str, str] = {}
        self._stamps: dict[str, deque[int]] = {}
        self._claims: dict[str, dict[bytes, tuple[str, NDArray[np.float64]]]] = {}
        self._origins: dict[str, set[tuple[bytes, str, bool]]] = {}
        node.create_subscription(TFMessage, "/tf", self._on_transforms, TF_QOS)
        node.create_subscription(TFMessage, "/tf_static", self._on_static, TF_STATIC_QOS)

    def frames(self) -> Frames:
        """Return what was heard until now."""
        names = {
            bytes(endpoint.endpoint_gid): node_name(endpoint)
            for topic in ("/tf", "/tf_static")
            for endpoint in self._node.get_publishers_info_by_topic(topic)
        }
        statics = {
            frame: tuple(
                StaticClaim(names.get(publisher, UNKNOWN), parent, pose) for publisher, (parent, pose) in claims.items()
            )
            for frame, claims in self._claims.items()
        }
        stamps = {frame: tuple(found) for frame, found in self._stamps.items()}
        origins = {
            frame: tuple(sorted(Origin(names.get(gid, UNKNOWN), parent, static) for gid, parent, static in found))
            for frame, found in self._origins.items()
        }
        return Frames(dict(self._parents), statics, dict(self._norms), dict(self._infinite), stamps, origins)

    def _on_transforms(self, message: TFMessage, info: Mapping[str, Any]) -> None:
        for transform in message.transforms:
            _, frame = self._note(transform, _publisher(info), static=False)
            stamps = self._stamps.setdefault(frame, deque(maxlen=KEPT))
            if (stamp_ns := time_ns(transform.header.stamp)) > (stamps[-1] if stamps else 0):
                stamps.append(stamp_ns)

    def _on_static(self, message: TFMessage, info: Mapping[str, Any]) -> None:
        publisher = _publisher(info)
        for transform in message.transforms:
            parent, frame = self._note(transform, publisher, static=True)
            t, q = transform.transform.translation, transform.transform.rotation
            try:
                pose = pose_matrix((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
            except ValueError:
                continue  # its norm is named
            self._claims.setdefault(frame, {})[publisher] = parent, pose

    def _note(self, transform: Any, publisher: bytes, *, static: bool) -> tuple[str, str]:
        parent, frame = (name.removeprefix("/") for name in (transform.header.frame_id, transform.child_frame_id))
        self._parents[frame] = parent
        self._origins.setdefault(frame, set()).add((publisher, parent, static))
        t, q = transform.transform.translation, transform.transform.rotation
        numbers = (t.x, t.y, t.z, q.x, q.y, q.z, q.w)
        norm = math.hypot(*numbers[3:])
        if not all(map(math.isfinite, numbers)):
            x, y, z, *rotation = (f"{number:.3g}" for number in numbers)
            self._infinite[frame] = f"translation ({x}, {y}, {z}), rotation ({', '.join(rotation)})"
        elif abs(norm * norm - 1.0) <= TOLERANCE:
            self._norms.pop(frame, None)
        else:
            self._norms[frame] = norm
        return parent, frame


def _publisher(info: Mapping[str, Any]) -> bytes:
    """Return the identity of a message's publisher, b"" where the middleware does not tell it apart."""
    gid = info.get("publisher_gid")  # not in every ROS distribution
    return b"" if gid is None else bytes(gid["data"])
