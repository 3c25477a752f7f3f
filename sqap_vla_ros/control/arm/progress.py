"""Notices an arm that stands still although its commands ask it to move, however short its command's lead is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.holding import EvidenceBounds

LEAD_SHARE = 0.5  # of max_lead_*: a command that leads the arm by this asks it to move
LEAST_LEAD_M, LEAST_LEAD_RAD = 0.006, 0.04  # an arm at rest may miss its command by as much, whatever max_lead_* is
STEP_NS = 500_000_000  # longer between two samples is a gap, in which nobody knows what the arm did


@dataclass(frozen=True)
class ProgressBounds:
    """The standstill that is named.

    timeout_s: of commanded motion since the measured tool last moved. lead_m, lead_rad: the command leads the tool by
    this, and went as far since then: an arm that rests beside its command is asked for nothing. still_m, still_rad:
    less is noise and no motion.
    """

    timeout_s: float
    lead_m: float
    lead_rad: float
    still_m: float = EvidenceBounds.still_m
    still_rad: float = EvidenceBounds.still_rad

    @classmethod
    def of(cls, timeout_s: float, max_lead_m: float, max_lead_rad: float) -> ProgressBounds:
        """Return the bounds for a command that is kept within max_lead_* of the arm."""
        lead_m, lead_rad = LEAD_SHARE * max_lead_m, LEAD_SHARE * max_lead_rad
        return cls(timeout_s, max(lead_m, LEAST_LEAD_M), max(lead_rad, LEAST_LEAD_RAD))


class ProgressWatch:
    """Keeps where the tool last moved, and what was asked of it since."""

    def __init__(self, bounds: ProgressBounds) -> None:
        self._bounds = bounds
        self.forget()

    def forget(self) -> None:
        """Begin anew: the arm was held, or time jumped."""
        self._stood: NDArray[np.float64] | None = None  # base_from_tool [4, 4] since the tool last moved
        self._tool: NDArray[np.float64] | None = None
        self._told: NDArray[np.float64] | None = None
        self._stamp_ns: int | None = None
        self._asked_ns, self._asked_m, self._asked_rad = 0, 0.0, 0.0
        self._equal_ns = 0  # for so long the measurement has been the same to the last bit

    @property
    def lives(self) -> bool:
        """True where the measurement changes while the arm stands, if by noise alone: it comes from the arm."""
        return 2 * self._equal_ns < self._asked_ns

    def note(self, stamp_ns: int, tool: NDArray[np.float64], told: NDArray[np.float64] | None) -> str | None:
        """Take the measured tool [4, 4] and where it is told to be by now; return how it fails to move, or None.

        told: None while no motion is under way. That time does not count, and neither does a gap between samples.
        """
        if self._stamp_ns is not None and stamp_ns <= self._stamp_ns:
            return None
        passed_ns = 0 if self._stamp_ns is None else stamp_ns - self._stamp_ns
        equal = self._tool is not None and np.array_equal(self._tool, tool)
        self._equal_ns = self._equal_ns + passed_ns if equal else 0
        before, self._told, self._tool, self._stamp_ns = self._told, told, tool, stamp_ns
        bounds = self._bounds
        if self._stood is None or not _within(pose_distance(self._stood, tool), bounds.still_m, bounds.still_rad):
            self._stood = tool
            self._asked_ns, self._asked_m, self._asked_rad = 0, 0.0, 0.0
        elif before is not None and told is not None and passed_ns <= STEP_NS:
            step_m, step_rad = pose_distance(before, told)
            self._asked_ns += passed_ns
            self._asked_m, self._asked_rad = self._asked_m + step_m, self._asked_rad + step_rad
        if told is None or self._asked_ns < bounds.timeout_s * NS_PER_S:
            return None
        lead_m, lead_rad = pose_distance(tool, told)
        if min(lead_m, self._asked_m) < bounds.lead_m and min(lead_rad, self._asked_rad) < bounds.lead_rad:
            return None
        on = f"{lead_m * 1e3:.0f} mm" if min(lead_m, self._asked_m) >= bounds.lead_m else f"{lead_rad:.2f} rad"
        return f"the arm has not moved in {self._asked_ns / NS_PER_S:.1f} s of commands, which have it {on} further on"


def _within(apart: tuple[float, float], metres: float, radians: float) -> bool:
    return apart[0] <= metres and apart[1] <= radians
