"""Admits transforms to a tf2 buffer, and refuses those that would spoil it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from geometry_msgs.msg import TransformStamped

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.tf.rival_publishers import RivalPublishers
from sqap_vla_ros.nodes.tf.static_transforms import StaticTransforms

AHEAD_S = 1.0  # a stamp further ahead of ROS time than this is of another time
FRAMES = 2000  # that are kept
NAMED_S = 2.0  # a refusal is named for so long


class TransformStore(Protocol):
    """Takes what a listener hears: a tf2 buffer, or a gate before one."""

    def set_transform(self, transform: TransformStamped, authority: str) -> Any: ...

    def set_transform_static(self, transform: TransformStamped, authority: str) -> Any: ...


class TransformGate:
    """Stands between a TransformListener and its buffer.

    A buffer that has taken a transform from the future refuses every later one that is older by more than its cache.
    One glitch, or one transform of before ROS time jumped back, would blind the node for as long.
    """

    def __init__(self, buffer: TransformStore, now_ns: Callable[[], int]) -> None:
        """now_ns: tells ROS time."""
        self._buffer = buffer
        self._now_ns = now_ns
        self._frames: set[str] = set()
        self._refusal: tuple[float, str] | None = None  # when (steady clock), and why
        self._rivals = RivalPublishers()
        self._statics = StaticTransforms()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Store a moving transform, unless it is from the future or of one frame too many."""
        stamp = transform.header.stamp
        ahead_s = (stamp.sec * NS_PER_S + stamp.nanosec - self._now_ns()) / NS_PER_S
        if ahead_s > AHEAD_S:
            self._refuse(transform, f"is stamped {ahead_s:.1f} s in the future: synchronise the clocks")
        elif self._has_room(transform):
            self._rivals.note(*_frames(transform), transform)
            self._buffer.set_transform(transform, authority)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Store a transform that is valid at every time, unless it is of one frame too many."""
        if self._has_room(transform):
            self._rivals.note_parent(*_frames(transform))
            self._statics.note(*_frames(transform), transform)
            self._buffer.set_transform_static(transform, authority)

    def problem(self) -> str | None:
        """Return why a transform was refused lately, or None."""
        if self._refusal is None or time.monotonic() - self._refusal[0] > NAMED_S:
            return None
        return self._refusal[1]

    def contested(self, base_frame: str, tool_frame: str) -> str | None:
        """Return which transform between two frames several publishers send with different poses, or None."""
        return self._rivals.problem(base_frame.removeprefix("/"), tool_frame.removeprefix("/"))

    def moved(self, base_frame: str, *frames: str) -> str | None:
        """Return which static transform between the base and one of the frames moved since `accept_statics`."""
        base = base_frame.removeprefix("/")
        between = (self._rivals.between(base, frame.removeprefix("/")) for frame in frames)
        return next((text for text in map(self._statics.moved, between) if text is not None), None)

    def accept_statics(self) -> None:
        """Take static transforms as they are from now on: there is no task that began with others."""
        self._statics.accept()

    def _has_room(self, transform: TransformStamped) -> bool:
        new = {*_frames(transform)} - self._frames
        if new and len(self._frames) + len(new) > FRAMES:
            self._refuse(transform, f"is not kept: there are more than {FRAMES} frames")
            return False
        self._frames |= new
        return True

    def _refuse(self, transform: TransformStamped, why: str) -> None:
        parent, child = _frames(transform)
        self._refusal = time.monotonic(), f"the transform from {parent} to {child} {why}"


def _frames(transform: TransformStamped) -> tuple[str, str]:
    """Return parent and child, without the slash that ROS 1 wrote, as tf2 takes them."""
    return transform.header.frame_id.removeprefix("/"), transform.child_frame_id.removeprefix("/")
