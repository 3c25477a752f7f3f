"""Tells when two publishers send the same transform: its poses alternate, faster than anything can move."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

from geometry_msgs.msg import TransformStamped

from sqap_vla_ros.contracts import NS_PER_S

# No link moves further between two stamps than this, noise included.
SLACK_M, SLACK_RAD, LINEAR_M_S, ANGULAR_RAD_S = 0.02, 0.1, 3.0, 10.0
COUNT, WITHIN_S = 3, 1.0  # so many alternations are no glitch


@dataclass(frozen=True)
class _Sample:
    stamp_ns: int
    position: tuple[float, float, float]
    rotation: tuple[float, float, float, float]  # x, y, z, w

    def reaches(self, other: _Sample) -> bool:
        """Return whether something can be at both; numbers that are none are near to nothing."""
        passed_s = abs(other.stamp_ns - self.stamp_ns) / NS_PER_S
        cosine = abs(sum(a * b for a, b in zip(self.rotation, other.rotation, strict=True)))
        return (
            math.dist(self.position, other.position) <= SLACK_M + LINEAR_M_S * passed_s
            and 2.0 * math.acos(min(1.0, cosine)) <= SLACK_RAD + ANGULAR_RAD_S * passed_s
        )


@dataclass
class _Link:
    """A frame in its parent: the newest two samples, where it moves, and when these alternated."""

    parent: str
    newest: deque[_Sample] = field(default_factory=lambda: deque(maxlen=2))
    alternations: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=COUNT))  # steady time, text


class RivalPublishers:
    """Looks at each moving transform as it comes, and remembers which ones alternate between two poses.

    A lookup of the newest transform shows only the publisher that stamps last, so that its pose looks steady.
    """

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}  # by child

    def note(self, parent: str, child: str, transform: TransformStamped) -> None:
        """Take a moving transform. A single glitch is one alternation; several within a second are two publishers."""
        link = self.note_parent(parent, child)
        stamp, p, q = transform.header.stamp, transform.transform.translation, transform.transform.rotation
        sample = _Sample(stamp.sec * NS_PER_S + stamp.nanosec, (p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        if len(link.newest) == 2:
            before, last = link.newest
            if sample.reaches(before) and not sample.reaches(last):
                apart_m = math.dist(sample.position, last.position)
                text = (
                    f"the transform from {parent} to {child} alternates between two poses {apart_m * 1e3:.0f} mm "
                    "apart: is there a second publisher of it?"
                )
                link.alternations.append((time.monotonic(), text))
        link.newest.append(sample)

    def note_parent(self, parent: str, child: str) -> _Link:
        """Take the place of a frame, also of one that does not move."""
        link = self._links.get(child)
        if link is None or link.parent != parent:
            link = self._links[child] = _Link(parent)
        return link

    def problem(self, base: str, tool: str) -> str | None:
        """Return which moving transform between two frames is sent by two publishers, or None."""
        for child in self.between(base, tool):
            seen = self._links[child].alternations
            if len(seen) == COUNT and time.monotonic() - seen[0][0] <= WITHIN_S:
                return seen[-1][1]
        return None

    def between(self, one: str, other: str) -> set[str]:
        """Return the children of the transforms that lead from one frame to another."""
        return set(self._above(one)) ^ set(self._above(other))

    def _above(self, frame: str) -> list[str]:
        """Return the frames from this one up to the root, which is left out."""
        found: list[str] = []
        while (link := self._links.get(frame)) is not None and frame not in found:
            found.append(frame)
            frame = link.parent
        return found
