"""Notices that a static transform is published again with another pose."""

from __future__ import annotations

import math
from collections.abc import Iterable

from geometry_msgs.msg import TransformStamped

_Pose = tuple[tuple[float, float, float], tuple[float, float, float, float]]  # position; quaternion x, y, z, w

SAME_M, SAME_RAD = 0.001, 0.002  # rounding in launch files


class StaticTransforms:
    """Keeps the static transforms as they first were, and those that moved since."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], _Pose] = {}
        self._newest: dict[tuple[str, str], _Pose] = {}
        self._moved: dict[str, str] = {}  # by child: how

    def note(self, parent: str, child: str, transform: TransformStamped) -> None:
        """Take a static transform."""
        t, q = transform.transform.translation, transform.transform.rotation
        pose = ((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
        self._newest[parent, child] = pose
        first = self._first.setdefault((parent, child), pose)
        moved_m = math.dist(first[0], pose[0])
        lengths = math.hypot(*first[1]) * math.hypot(*pose[1])
        cosine = abs(sum(a * b for a, b in zip(first[1], pose[1], strict=True))) / max(lengths, 1e-12)
        moved_rad = 2.0 * math.acos(min(1.0, cosine))
        self._moved.pop(child, None)
        if moved_m > SAME_M or moved_rad > SAME_RAD:
            self._moved[child] = (
                f"the static transform from {parent} to {child} moved by {moved_m * 1e3:.0f} mm and {moved_rad:.2f} "
                "rad during the task: was the camera moved, or calibrated anew? The next task begins with it as it is"
            )

    def accept(self) -> None:
        """Take them as they are from now on."""
        if self._moved:
            self._moved, self._first = {}, dict(self._newest)

    def moved(self, children: Iterable[str]) -> str | None:
        """Return which transform to one of these frames moved since it was accepted, or None."""
        return next((self._moved[child] for child in children if child in self._moved), None)
