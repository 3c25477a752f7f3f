"""Judges the measured pose of the tool: finite, fresh by its stamp, and no further on than a tool can move."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.refusals import Refusals
from sqap_vla_ros.robot.conventions import pose_distance

REMEMBERED_NS = 2 * NS_PER_S


@dataclass(frozen=True)
class ToolMonitorConfig:
    """Bounds of what is believed.

    max_age_s: of the newest sample's stamp; max_future_s: it may lie so far ahead, by clocks that differ.
    max_linear_velocity (m/s), max_angular_velocity (rad/s): no tool is faster. slack_m, slack_rad: on top of it, for
        noise. confirmations: samples in a row that agree with each other and not with those before, after which the
        tool is believed to have been moved.
    """

    max_age_s: float = 0.5
    max_future_s: float = 0.1
    max_linear_velocity: float = 3.0
    max_angular_velocity: float = 10.0
    slack_m: float = 0.02
    slack_rad: float = 0.1
    confirmations: int = 5


@dataclass(frozen=True)
class ToolSample:
    """pose: base_from_tool [4, 4]; stamp_ns: of the transform, 0 for one that is static."""

    pose: NDArray[np.float64]
    stamp_ns: int


class ToolMonitor:
    """Keeps the poses that are believed. Time is ROS time; `forget` when it jumps."""

    def __init__(self, config: ToolMonitorConfig) -> None:
        self.config = config
        self._refusals = Refusals()
        self.forget()

    def forget(self) -> None:
        """Forget everything."""
        self._believed: deque[ToolSample] = deque()
        self._doubted: list[ToolSample] = []
        self._refusals.clear()

    @property
    def newest(self) -> ToolSample | None:
        """The newest pose that is believed."""
        return self._believed[-1] if self._believed else None

    @property
    def doubted(self) -> bool:
        """True while the newest pose is not believed: either it is wrong, or the one that is believed is."""
        return bool(self._doubted)

    def update(self, sample: ToolSample) -> bool:
        """Take a measured pose. Return whether it is new and believed."""
        newest = self.newest
        if newest is not None and sample.stamp_ns <= max(newest.stamp_ns, *(s.stamp_ns for s in self._doubted), 0):
            if sample.stamp_ns == 0:
                self._believed[-1] = sample
            return False
        if newest is None or self._reachable(newest, sample):
            self._believe([sample])
            return True
        if self._doubted and not self._reachable(self._doubted[-1], sample):
            self._doubted.clear()
        self._doubted.append(sample)
        away_m, away_rad = pose_distance(newest.pose, sample.pose)
        passed_s = (sample.stamp_ns - newest.stamp_ns) / NS_PER_S
        self._refusals.add(
            sample.stamp_ns,
            f"the tool jumped by {away_m * 1e3:.0f} mm and {away_rad:.2f} rad in {passed_s:.3f} s, faster than it can "
            "move: is there a second publisher of its transforms?",
        )
        if len(self._doubted) >= self.config.confirmations:
            self._believe(self._doubted)
            return True
        return False

    def problem(self, now_ns: int) -> str | None:
        """Return why the tool's pose is not known now, or None."""
        newest = self.newest
        if newest is None:
            return None  # not measured yet: whoever looks for it says what is missing
        if (refused := self._refusals.problem(now_ns)) is not None:
            return refused
        if newest.stamp_ns == 0:
            return None
        last_ns = max(newest.stamp_ns, self._doubted[-1].stamp_ns if self._doubted else 0)
        age_s = (now_ns - last_ns) / NS_PER_S
        if age_s > self.config.max_age_s:
            return f"the tool's transform is stale: stamped {age_s:.1f} s ago (limit {self.config.max_age_s:g} s)"
        if age_s < -self.config.max_future_s:
            return (
                f"the tool's transform is stamped {-age_s:.1f} s in the future (limit {self.config.max_future_s:g} s): "
                "synchronise the clocks"
            )
        return None

    def contradiction(self, sample: ToolSample) -> str | None:
        """Return why a pose looked up for a moment of the past does not fit to what was believed then, or None."""
        known = [s for s in self._believed if s.stamp_ns > 0]
        if not known or sample.stamp_ns == 0:
            return None
        nearest = min(known, key=lambda s: abs(s.stamp_ns - sample.stamp_ns))
        if self._reachable(nearest, sample):
            return None
        away_m, away_rad = pose_distance(nearest.pose, sample.pose)
        return (
            f"the tool's transform at the image's stamp is {away_m * 1e3:.0f} mm and {away_rad:.2f} rad from the one "
            f"{abs(sample.stamp_ns - nearest.stamp_ns) / 1e6:.0f} ms beside it: a glitch, or two publishers"
        )

    def _believe(self, samples: list[ToolSample]) -> None:
        self._believed += samples
        self._doubted = []
        while self._believed[0].stamp_ns < self._believed[-1].stamp_ns - REMEMBERED_NS:
            self._believed.popleft()

    def _reachable(self, a: ToolSample, b: ToolSample) -> bool:
        away_m, away_rad = pose_distance(a.pose, b.pose)
        passed_s = abs(b.stamp_ns - a.stamp_ns) / NS_PER_S
        config = self.config
        return (
            away_m <= config.slack_m + config.max_linear_velocity * passed_s
            and away_rad <= config.slack_rad + config.max_angular_velocity * passed_s
        )
