"""Watches the measured arm against its command, and says when the measurement proves something."""

from __future__ import annotations

from collections import deque

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.holding import ArmSample, Evidence, EvidenceBounds, weigh

REMEMBERED = 100
# Samples in a row that say the arm is astray: a single one is a glitch, and a hold has to know whether it is blocked,
# which takes `EvidenceBounds.count` of them.
CONFIRMATIONS = EvidenceBounds.count + 1
CONTRADICTIONS = 5  # samples in a row in which joints and TF disagree
AGREE_M, AGREE_RAD = EvidenceBounds.agree_m, EvidenceBounds.agree_rad  # of an arm that stands: calibrations differ
# Of one that moves the two have different stamps, and one may come late: further apart by what it does meanwhile.
STAMPS_S, MOVING_M, MOVING_RAD = 0.1, 0.05, 0.25  # MOVING_*: but not further than this
SPEED_NS = 200_000_000  # the speed is taken over about this time


class ArmWatch:
    """Keeps the newest samples of the arm. near_m, near_rad: the arm follows when it is no further off than this."""

    def __init__(self, near_m: float, near_rad: float) -> None:
        self._bounds = EvidenceBounds(near_m=near_m, near_rad=near_rad)
        self._samples: deque[ArmSample] = deque(maxlen=REMEMBERED)
        self._astray = 0
        self._contradictions = 0
        self._agreed = False  # joint_states and TF once did, so they are of one arm
        self._apart = (0.0, 0.0)

    def note(self, sample: ArmSample, astray: str | None) -> str | None:
        """Take a sample, and what is wrong with it; return that once enough samples in a row say so."""
        if self._samples and sample.stamp_ns <= self._samples[-1].stamp_ns:
            return None  # nothing new was measured
        self._samples.append(sample)
        if sample.tool is not None and sample.tool_by_joints is not None:
            self._apart = pose_distance(sample.tool, sample.tool_by_joints)
            limit_m, limit_rad = self._agreement()
            apart = self._apart[0] > limit_m or self._apart[1] > limit_rad
            self._contradictions = self._contradictions + 1 if apart else 0
            self._agreed = self._agreed or not apart
        self._astray = self._astray + 1 if astray is not None else 0
        return astray if self._astray >= CONFIRMATIONS else None

    @property
    def contradiction(self) -> str | None:
        """Reason why joint_states and TF cannot both be right, or None."""
        if self._contradictions < CONTRADICTIONS:
            return None
        return (
            f"joint_states and TF contradict each other: the tool is {self._apart[0] * 1e3:.0f} mm and "
            f"{self._apart[1]:.2f} rad apart by the two; do they speak of the same arm and the same robot_description?"
        )

    @property
    def parted(self) -> str | None:
        """As `contradiction`, of joint_states and TF that have agreed before; None where they never were of one."""
        return self.contradiction if self._agreed else None

    def _agreement(self) -> tuple[float, float]:
        """Return how far apart (m, rad) the tool may be by joint_states and TF, at the speed it has by either."""
        newest = self._samples[-1]
        before = next(s for s in self._samples if newest.stamp_ns - s.stamp_ns <= SPEED_NS)
        share = STAMPS_S * NS_PER_S / max(newest.stamp_ns - before.stamp_ns, 1)
        pairs = ((before.tool, newest.tool), (before.tool_by_joints, newest.tool_by_joints))
        moved = [pose_distance(a, b) for a, b in pairs if a is not None and b is not None]
        moved_m, moved_rad = (share * max(part) for part in zip(*moved, strict=True))
        return min(AGREE_M + moved_m, MOVING_M), min(AGREE_RAD + moved_rad, MOVING_RAD)

    def evidence(self, now_ns: int) -> Evidence:
        """Return what the samples prove at `now_ns`."""
        return weigh(self._samples, now_ns, self._bounds)

    def forget(self) -> None:
        """Forget everything: time jumped."""
        self._samples.clear()
        self._astray = self._contradictions = 0
