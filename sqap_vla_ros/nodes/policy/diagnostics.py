"""/diagnostics: one entry for each thing that can be wrong, with the numbers one looks for first."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile

from sqap_vla_ros.control.executive import Input, State
from sqap_vla_ros.nodes import messages

if TYPE_CHECKING:
    from sqap_vla_ros.nodes.policy.control_loop import ControlLoop
    from sqap_vla_ros.nodes.policy.status import Prediction

PERIOD_S = 1.0
WINDOW = 200  # predictions that the percentiles are of

_LEVELS = {
    State.RUNNING: DiagnosticStatus.OK,
    State.DISABLED: DiagnosticStatus.OK,
    State.WAITING: DiagnosticStatus.WARN,
    State.HOLDING: DiagnosticStatus.WARN,
    State.STOPPED: DiagnosticStatus.WARN,
    State.FAULT: DiagnosticStatus.ERROR,
}


class Diagnostics:
    """Collects and publishes once a second."""

    def __init__(self, node: Any, loop: ControlLoop) -> None:
        self._node = node
        self._loop = loop
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

    def tick(self, now_s: float) -> None:
        """Publish when it is time."""
        if now_s - self._published_s < PERIOD_S:
            return
        self._published_s = now_s
        loop = self._loop
        executive = loop.executive
        state, reason = executive.state()
        sync = loop.sync.counters
        counters = executive.counters
        info = loop.supervisor.info
        entries = [
            self._entry("state", _LEVELS[state], f"{state.name} {reason}".strip(), {"dry_run": executive.dry_run}),
            self._input(
                Input.IMAGE,
                {
                    "topic": loop.image_subscription.topic_name,
                    "received": sync.images,
                    "paired with camera_info": sync.paired,
                    "without camera_info": sync.images_without_info,
                    "late or repeated": sync.images_late + loop.gate.dropped,
                    "superseded by a newer one": loop.superseded,
                },
            ),
            self._input(Input.CAMERA_INFO, {"topic": loop.info_subscription.topic_name, "received": sync.camera_infos}),
            self._input(Input.TF, {"base_frame": loop.values["base_frame"], "tool_frame": loop.values["tool_frame"]}),
            self._input(Input.JOINT_STATES, {"output_mode": loop.values["output_mode"]}),
            self._input(
                Input.WORKER,
                {
                    "pid": loop.supervisor.pid,
                    "restarts": counters.worker_restarts,
                    **_percentiles("inference", self._policy_ms),
                    **_percentiles("overhead", self._overhead_ms),
                    **_percentiles("image age at publication", self._age_ms),
                },
            ),
            self._entry(
                "compression",
                DiagnosticStatus.OK,
                f"kept {self._kept[0]} of {self._kept[1]} visual tokens",
                {"recipe": info.recipe, "checkpoint": info.checkpoint, "selector": info.selector} if info else {},
            ),
            self._input(
                Input.CHUNK,
                {
                    "published": counters.chunks_published,
                    "rejected": counters.chunks_rejected,
                    "holds": counters.holds,
                    "starved": counters.starved,
                    "tracking errors": counters.tracking_errors,
                    "slowed down or kept inside": loop.changed,
                    **({} if (lag_s := loop.motion.measured_lag_s) is None else {"arm lag": f"{1e3 * lag_s:.0f} ms"}),
                },
                name="safety",
            ),
        ]
        message = DiagnosticArray(status=entries)
        message.header = messages.header(loop.now_ns(), "")
        self._publisher.publish(message)

    def destroy(self) -> None:
        """Remove the publisher from the node."""
        self._node.destroy_publisher(self._publisher)

    def _input(self, source: Input, values: dict[str, Any], name: str = "") -> DiagnosticStatus:
        problem = self._loop.executive.problem(source)
        level = DiagnosticStatus.OK if problem is None else DiagnosticStatus.WARN
        if source is Input.WORKER and problem is not None:
            level = DiagnosticStatus.ERROR
        return self._entry(name or source.value, level, problem or "ok", values)

    def _entry(self, name: str, level: bytes, text: str, values: dict[str, Any]) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name().lstrip('/')}: {name}",
            hardware_id="sqap_vla_ros",
            message=text,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


def _percentiles(name: str, samples_ms: deque[float]) -> dict[str, str]:
    if not samples_ms:
        return {}
    values = np.percentile(np.array(samples_ms), (50, 95, 99))
    return {f"{name} p{p}": f"{value:.1f} ms" for p, value in zip((50, 95, 99), values, strict=True)}
