"""Times and limits of the state machine that decides when the policy node moves."""

from __future__ import annotations

from dataclasses import dataclass

from sqap_vla_ros.control.motion import MotionConfig


@dataclass(frozen=True)
class ExecutiveConfig:
    """Times and limits of the state machine.

    replan: "continuous" predicts whenever the policy is free, while moving at most once an action; "horizon" only when
        the remaining motion gets short.
    request_margin_s: with "horizon", a chunk is requested when less than the p95 latency plus this remains.
    task_deadline_s: a task without a deadline of its own ends after this; a policy of this kind never ends by itself.
    input_lost_s: a task ends when it could not predict for this long.
    malformed_limit: this many non-finite or misshapen chunks in a row latch a fault.
    tracking_limit: this many tracking errors, each within TRACKING_MEMORY_S of the one before, latch a fault.
    max_open_loop_s: with an input missing for this long by the steady clock, the arm is held whatever ROS time says.
    policy: what computes the chunks, as a sentence names it.
    deadlines_in_ros_time: task_deadline_s, goals' durations and input_lost_s count ROS time; for simulated time.
    """

    replan: str = "continuous"
    request_margin_s: float = 0.1
    task_deadline_s: float = 60.0
    input_lost_s: float = 10.0
    malformed_limit: int = 3
    tracking_limit: int = 3
    max_open_loop_s: float = MotionConfig.max_open_loop_s
    policy: str = "the policy"
    deadlines_in_ros_time: bool = False

    def __post_init__(self) -> None:
        if self.replan not in ("continuous", "horizon"):
            raise ValueError(f"replan must be 'continuous' or 'horizon', got {self.replan!r}")
        if self.request_margin_s < 0:
            raise ValueError(f"request_margin_s must not be negative, got {self.request_margin_s}")
        for name in ("task_deadline_s", "input_lost_s", "malformed_limit", "tracking_limit", "max_open_loop_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
