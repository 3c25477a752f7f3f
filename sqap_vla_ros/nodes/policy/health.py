"""The state of the whole node as one value, filled by the control loop every turn and read by all that report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqap_vla_ros.contracts import PolicyInfo
from sqap_vla_ros.control.camera.time_sync import SyncCounters
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.executive import Counters, State
from sqap_vla_ros.control.mission import Mission
from sqap_vla_ros.robot.gripper.state import GripperReport


@dataclass(frozen=True)
class Health:
    """A snapshot; nothing in it changes later.

    stamp_ns: ROS time of the turn; steady_s: the same by the steady clock.
    reason: of the state, for a person. problems: what is wrong with each input; empty when nothing is.
    mission_elapsed_s, mission_chunks: time passed and predictions made for the mission.
    images_dropped: late or repeated ones; images_superseded: replaced by a newer one while the policy was busy.
    chunks_changed: executed, but slowed down or kept inside the workspace.
    arm_lag_s: measured delay of the arm behind its commands; None before it moved enough.
    residual_rad: the most that the newest motion leaves to turn about the tool's x, y and z axis, on an arm that cannot
        take every orientation; None on another arm, and before the first motion.
    gripper: what became of its last command.
    worker_pid: None while there is no worker; policy: what it loaded, None before it did.
    """

    stamp_ns: int
    steady_s: float
    state: State
    reason: str
    enabled: bool
    dry_run: bool
    mission: Mission | None
    mission_elapsed_s: float
    mission_chunks: int
    problems: Mapping[Input, str]
    counters: Counters
    pairing: SyncCounters
    images_dropped: int
    images_superseded: int
    chunks_changed: int
    arm_lag_s: float | None
    residual_rad: tuple[float, ...] | None
    gripper: GripperReport
    worker_pid: int | None
    policy: PolicyInfo | None
