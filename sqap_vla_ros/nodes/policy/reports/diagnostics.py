"""/diagnostics: one entry for each thing that can be wrong, with its most telling numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile

from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.executive import State
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.health import Health
from sqap_vla_ros.nodes.policy.prediction import Prediction

PERIOD_S = 1.0
WINDOW = 200  # predictions that the percentiles are taken over
RESIDUAL = "orientation left about the tool's x, y, z"

_LEVELS = {
    State.RUNNING: DiagnosticStatus.OK,
    State.DISABLED: DiagnosticStatus.OK,
    State.WAITING: DiagnosticStatus.WARN,
    State.HOLDING: DiagnosticStatus.WARN,
    State.STOPPED: DiagnosticStatus.WARN,
    State.FAULT: DiagnosticStatus.ERROR,
}


class Diagnostics:
    """Collects the times of predictions and publishes once a second."""

    def __init__(self, node: Any, setup: Mapping[Input, Mapping[str, str]]) -> None:
        """setup: what stays the same about each input, such as its topic; published with its entry."""
        self._name = node.get_fully_qualified_name().lstrip("/")
        self._node = node
        self._setup = setup
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", QoSProfile(depth=10))
        self._published_s = 0.0
        self._policy_ms: deque[float] = deque(maxlen=WINDOW)
        self._overhead_ms: deque[float] = deque(maxlen=WINDOW)
        self._age_ms: deque[float] = deque(maxlen=WINDOW)
        self._kept = (0, 0)

    def add(self, prediction: Prediction) -> None:
        """Note the times of a prediction."""
        self._policy_ms.append(float(prediction.chunk.timings_ms.get("total", 0.0)))
        self._overhead_ms.append(prediction.overhead_s * 1e3)
        self._age_ms.append(prediction.age_s * 1e3)
        if (selection := prediction.chunk.selection) is not None:
            self._kept = (len(selection.indices), selection.grid[0] * selection.grid[1])

    def tick(self, health: Health) -> None:
        """Publish when it is time."""
        if health.steady_s - self._published_s < PERIOD_S:
            return
        self._published_s = health.steady_s
        pairing, counters, info = health.pairing, health.counters, health.policy
        images = {
            "received": pairing.images,
            "paired with camera_info": pairing.paired,
            "without camera_info": pairing.images_without_info,
            "late or repeated": pairing.images_late + health.images_dropped,
            "superseded by a newer one": health.images_superseded,
        }
        worker = {
            "pid": health.worker_pid,
            "restarts": counters.worker_restarts,
            **_percentiles("inference", self._policy_ms),
            **_percentiles("overhead", self._overhead_ms),
            **_percentiles("image age at publication", self._age_ms),
        }
        policy = {"recipe": info.recipe, "checkpoint": info.checkpoint, "selector": info.selector} if info else {}
        lag = {} if health.arm_lag_s is None else {"arm lag": f"{1e3 * health.arm_lag_s:.0f} ms"}
        residual = {} if health.residual_rad is None else {RESIDUAL: _degrees(health.residual_rad)}
        safety = {
            "published": counters.chunks_published,
            "rejected": counters.chunks_rejected,
            "holds": counters.holds,
            "starved": counters.starved,
            "tracking errors": counters.tracking_errors,
            "slowed down or kept inside": health.chunks_changed,
            **lag,
            **residual,
        }
        state = f"{health.state.name} {health.reason}".strip()
        gripper = health.gripper
        gripper_level = DiagnosticStatus.WARN if gripper.problem else DiagnosticStatus.OK
        position = {"state": gripper.state.name.lower(), "position": gripper.position}
        kept = f"kept {self._kept[0]} of {self._kept[1]} visual tokens"
        entries = [
            self._entry("state", _LEVELS[health.state], state, {"dry_run": health.dry_run}),
            self._input(health, Input.IMAGE, images),
            self._input(health, Input.CAMERA_INFO, {"received": pairing.camera_infos}),
            self._input(health, Input.TF, {}),
            self._input(health, Input.JOINT_STATES, {}),
            self._input(health, Input.CLOCK, {}, DiagnosticStatus.ERROR),
            self._input(health, Input.SAFETY_STOP, {}, DiagnosticStatus.ERROR),
            self._input(health, Input.COMMANDS, {}, DiagnosticStatus.ERROR),
            self._input(health, Input.WORKER, worker, DiagnosticStatus.ERROR),
            self._entry("gripper", gripper_level, gripper.text, position),
            self._entry("compression", DiagnosticStatus.OK, kept, policy),
            self._input(health, Input.CHUNK, safety, name="safety"),
        ]
        message = DiagnosticArray(status=entries)
        message.header = messages.header(health.stamp_ns, "")
        self._publisher.publish(message)

    def destroy(self) -> None:
        """Remove the publisher from the node."""
        self._node.destroy_publisher(self._publisher)

    def _input(
        self,
        health: Health,
        source: Input,
        values: Mapping[str, Any],
        level: bytes = DiagnosticStatus.WARN,
        *,
        name: str = "",
    ) -> DiagnosticStatus:
        """Return the entry of an input. level: of its problem, if it has one."""
        problem = health.problems.get(source)
        level = DiagnosticStatus.OK if problem is None else level
        return self._entry(name or source.value, level, problem or "ok", {**self._setup.get(source, {}), **values})

    def _entry(self, name: str, level: bytes, text: str, values: Mapping[str, Any]) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level,
            name=f"{self._name}: {name}",
            hardware_id="sqap_vla_ros",
            message=text,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


def _degrees(turn_rad: tuple[float, ...]) -> str:
    return ", ".join(f"{degrees:.1f}" for degrees in np.degrees(turn_rad)) + " degrees"


def _percentiles(name: str, samples_ms: deque[float]) -> dict[str, str]:
    if not samples_ms:
        return {}
    values = np.percentile(np.array(samples_ms), (50, 95, 99))
    return {f"{name} p{p}": f"{value:.1f} ms" for p, value in zip((50, 95, 99), values, strict=True)}
