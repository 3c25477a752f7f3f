"""Stand-in for `tf2_ros.Buffer` where tf2_ros is not installed (PyPI has none). Import it from `nodes.tf.api`.

Names, signatures, exceptions and results are those of the real one:

- a moving frame keeps `cache_time` (10 s) of stamped transforms; between two of them translation is interpolated
  linearly and rotation along the shortest arc; outside them a lookup raises `ExtrapolationException`;
- a static frame is valid at every time;
- time zero means the newest time at which every link of the chain is known;
- a chain may be walked in both directions through the closest common ancestor.

The `lookup_transform_full` family, `Buffer.transform` and the `tf2_frames` service are left out: no node of this
package needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import rclpy.logging
from builtin_interfaces.msg import Time as TimeMessage
from geometry_msgs.msg import TransformStamped
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.task import Future
from rclpy.time import Time

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.tf.transform_tree import (
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TransformException,
    TransformTree,
)

__all__ = [
    "Buffer",
    "ConnectivityException",
    "ExtrapolationException",
    "InvalidArgumentException",
    "LookupException",
    "TransformException",
]

LOG_PERIOD_S = 5.0  # between two words about transforms that are ignored
_NO_WAIT = Duration()


class Buffer:
    """Hold frames by time: `TransformListener` fills it, the nodes look up. Any thread may call any method.

    cache_time: how much of the past to keep, 10 s unless given.
    node: where its clock jumps back (a bag that loops, a simulation that restarts), the buffer is cleared.
    """

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self._tree = TransformTree(cache_time.nanoseconds) if cache_time is not None else TransformTree()
        self._changed = threading.Condition()
        self._waiting: list[Callable[[], None]] = []
        self._logger = rclpy.logging.get_logger("tf2_buffer")
        self._jump_handle = None
        if node is not None:
            threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=True)
            self._jump_handle = node.get_clock().create_jump_callback(threshold, post_callback=self._on_time_jump)

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Store a moving transform. An invalid one is reported in the log and ignored."""
        self._insert(transform, authority, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Store a transform that is valid at every time. An invalid one is reported in the log and ignored."""
        self._insert(transform, authority, static=True)

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Time | TimeMessage, timeout: Duration = _NO_WAIT
    ) -> TransformStamped:
        """Return what maps coordinates in `source_frame` to coordinates in `target_frame` at `time` (0: the latest).

        Waits for at most `timeout`; another thread must be filling the buffer for that to help.
        Raises LookupException, ConnectivityException, ExtrapolationException or InvalidArgumentException.
        """
        self.can_transform(target_frame, source_frame, time, timeout)
        return self.lookup_transform_core(target_frame, source_frame, time)

    def lookup_transform_core(self, target_frame: str, source_frame: str, time: Time | TimeMessage) -> TransformStamped:
        """Do `lookup_transform` without waiting."""
        with self._changed:
            time_ns, translation, rotation = self._tree.lookup(target_frame, source_frame, _nanoseconds(time))
        message = TransformStamped()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time_ns, NS_PER_S)
        message.header.frame_id = target_frame
        message.child_frame_id = source_frame
        t, q = message.transform.translation, message.transform.rotation
        t.x, t.y, t.z = translation
        q.x, q.y, q.z, q.w = rotation
        return message

    def can_transform(
        self,
        target_frame: str,
        source_frame: str,
        time: Time | TimeMessage,
        timeout: Duration = _NO_WAIT,
        return_debug_tuple: bool = False,
    ) -> Any:
        """Return whether `lookup_transform` would succeed within `timeout`; with `return_debug_tuple` also why."""
        if timeout.nanoseconds > 0:
            with self._changed:
                self._changed.wait_for(
                    lambda: self.can_transform_core(target_frame, source_frame, time)[0], timeout.nanoseconds / NS_PER_S
                )
        result = self.can_transform_core(target_frame, source_frame, time)
        return result if return_debug_tuple else result[0]

    def can_transform_core(self, target_frame: str, source_frame: str, time: Time | TimeMessage) -> tuple[bool, str]:
        """Return (success, reason) without waiting."""
        try:
            with self._changed:
                self._tree.lookup(target_frame, source_frame, _nanoseconds(time))
        except TransformException as error:
            return False, str(error)
        return True, ""

    def wait_for_transform_async(self, target_frame: str, source_frame: str, time: Time | TimeMessage) -> Future:
        """Return a future of the transform; the thread that brings the missing piece sets it."""
        future: Future = Future()

        def try_again() -> None:
            if not future.done() and self.can_transform_core(target_frame, source_frame, time)[0]:
                future.set_result(self.lookup_transform_core(target_frame, source_frame, time))

        def forget(_future: Future) -> None:
            with self._changed:
                if try_again in self._waiting:
                    self._waiting.remove(try_again)

        future.add_done_callback(forget)
        with self._changed:
            self._waiting.append(try_again)
        try_again()
        return future

    def get_latest_common_time(self, target_frame: str, source_frame: str) -> Time:
        """Return the newest time at which the two frames are related; zero when every link between them is static."""
        with self._changed:
            return Time(nanoseconds=self._tree.latest_common_ns(target_frame, source_frame))

    def clear(self) -> None:
        """Forget the moving transforms."""
        with self._changed:
            self._tree.clear()

    def _on_time_jump(self, _jump: Any) -> None:
        self._logger.warning("time jumped back: clearing the tf buffer")
        self.clear()

    def _insert(self, message: TransformStamped, authority: str, *, static: bool) -> None:
        parent, child = message.header.frame_id, message.child_frame_id
        t, q = message.transform.translation, message.transform.rotation
        translation, rotation = (t.x, t.y, t.z), (q.x, q.y, q.z, q.w)
        stamp_ns = _nanoseconds(message.header.stamp)
        with self._changed:
            try:
                self._tree.insert(parent, child, stamp_ns, translation, rotation, static=static)
            except ValueError as fault:
                self._logger.error(
                    f"ignoring a transform from '{parent}' to '{child}' ({authority}): {fault}",
                    throttle_duration_sec=LOG_PERIOD_S,
                )
                return
            self._changed.notify_all()
            waiting = list(self._waiting)
        for callback in waiting:
            callback()


def _nanoseconds(time: Time | TimeMessage) -> int:
    if isinstance(time, Time):
        return time.nanoseconds
    return time.sec * NS_PER_S + time.nanosec
