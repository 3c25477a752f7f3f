"""The publishers of everything that is not a command: chunk, kept tokens, status and model info."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
from trajectory_msgs.msg import MultiDOFJointTrajectory

from sqap_vla_ros.contracts import ActionChunk, PolicyInfo
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.executive import State
from sqap_vla_ros.msg import ActionChunk as ActionChunkMessage
from sqap_vla_ros.msg import PolicyStatus, TokenSelection
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.health import Health
from sqap_vla_ros.nodes.policy.observer import View
from sqap_vla_ros.nodes.policy.prediction import Prediction
from sqap_vla_ros.nodes.policy.reports.diagnostics import Diagnostics
from sqap_vla_ros.nodes.policy.reports.views import Views
from sqap_vla_ros.robot.gripper.state import GripperState
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk

HEARTBEAT_S = 1.0  # the status is published at least this often
REASON_S = 0.5  # a reason that changes (an age that grows) is published at most this often; the first one at once


class Reporter:
    """Publishes what the node perceives, predicts and is in."""

    def __init__(
        self, node: Any, *, base_frame: str, tool_frame: str, setup: Mapping[Input, Mapping[str, str]]
    ) -> None:
        """setup: see Diagnostics."""
        self._node = node
        self._base_frame = base_frame
        self._tool_frame = tool_frame
        publisher = node.create_lifecycle_publisher
        self._chunk = publisher(ActionChunkMessage, "~/action_chunk", QoSProfile(depth=5))
        self._trajectory = publisher(MultiDOFJointTrajectory, "~/action_trajectory", QoSProfile(depth=1))
        self._selection = publisher(TokenSelection, "~/token_selection", QoSProfile(depth=5))
        # These speak of the node itself, in every lifecycle state.
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._status = node.create_publisher(PolicyStatus, "~/status", latched)
        self._model_info = node.create_publisher(String, "~/model_info", latched)
        self._diagnostics = Diagnostics(node, setup)
        self._views = Views(node, self._base_frame)
        self._last: Prediction | None = None
        self._published: tuple[State, str] | None = None
        self._published_s = 0.0
        self._gripper = GripperState.UNKNOWN

    def publish_model_info(self, info: PolicyInfo) -> None:
        """Publish what was loaded, as JSON."""
        self._views.show_policy(info)
        self._model_info.publish(String(data=json.dumps(dataclasses.asdict(info))))

    def publish_chunk(self, chunk: ActionChunk, view: View) -> PoseTrajectory:
        """Publish the chunk in the base frame, anchored at its image; return that trajectory."""
        trajectory = anchor_chunk(chunk.deltas, view.base_from_tool, chunk.stamp_ns, chunk.dt_s)
        self._chunk.publish(
            messages.chunk_message(
                chunk,
                trajectory,
                base_frame=self._base_frame,
                tool_frame=self._tool_frame,
                instruction=view.observation.instruction,
            )
        )
        return trajectory

    def publish_prediction(self, prediction: Prediction, health: Health) -> None:
        """Publish what can wait until the command is out: kept tokens, status, and pictures with subscribers."""
        self._last = prediction
        chunk, view = prediction.chunk, prediction.view
        self._diagnostics.add(prediction)
        if chunk.selection is not None:
            self._selection.publish(
                messages.selection_message(
                    chunk.selection, view.tool, stamp_ns=chunk.stamp_ns, frame_id=view.frame.frame_id
                )
            )
        if self._trajectory.get_subscription_count():
            self._trajectory.publish(
                messages.multi_dof_message(
                    prediction.trajectory, base_frame=self._base_frame, tool_frame=self._tool_frame
                )
            )
        self._publish_status(health)
        self._views.publish(prediction)

    def tick(self, health: Health) -> None:
        """Publish the state when it changed, and regularly."""
        state = (health.state, health.reason)
        age_s = health.steady_s - self._published_s
        changed = self._published is None or state[0] != self._published[0]
        begun = self._published is None or bool(state[1]) != bool(self._published[1])
        if changed or begun or age_s >= HEARTBEAT_S or (state != self._published and age_s >= REASON_S):
            if changed:
                self._node.get_logger().info(f"{state[0].name}{': ' if state[1] else ''}{state[1]}")
            self._publish_status(health)
            self._published_s = health.steady_s
        if health.gripper.state != self._gripper:
            self._gripper = health.gripper.state
            if health.gripper.problem is not None:
                self._node.get_logger().warning(f"gripper: {health.gripper.problem}", throttle_duration_sec=5.0)
        self._diagnostics.tick(health)

    def destroy(self) -> None:
        """Remove the publishers from the node."""
        for publisher in (self._chunk, self._trajectory, self._selection):
            self._node.destroy_lifecycle_publisher(publisher)
        for publisher in (self._status, self._model_info):
            self._node.destroy_publisher(publisher)
        self._diagnostics.destroy()
        self._views.destroy()

    def _publish_status(self, health: Health) -> None:
        self._published = (health.state, health.reason)
        message = PolicyStatus()
        message.header = messages.header(health.stamp_ns, self._base_frame)
        message.state = int(health.state)
        message.reason = health.reason
        message.enabled = health.enabled
        message.dry_run = health.dry_run
        message.instruction = health.mission.instruction if health.mission is not None else ""
        if (last := self._last) is not None:
            message.observation_stamp = messages.time_message(last.chunk.stamp_ns)
            message.observation_age_s = last.age_s
            stages = {"queued": last.queued_s * 1e3, **last.chunk.timings_ms}
            message.stage_names = list(stages)
            message.stage_ms = [float(ms) for ms in stages.values()]
            message.overhead_ms = last.overhead_s * 1e3
            if last.chunk.selection is not None:
                rows, cols = last.chunk.selection.grid
                message.tokens_total = int(rows * cols)
                message.tokens_kept = len(last.chunk.selection.indices)
        message.images_received = health.pairing.images
        message.images_superseded = health.images_superseded
        message.chunks_published = health.counters.chunks_published
        message.chunks_rejected = health.counters.chunks_rejected
        message.gripper_state = int(health.gripper.state)
        message.gripper = health.gripper.text
        message.gripper_position = math.nan if health.gripper.position is None else health.gripper.position
        message.orientation_residual_rad = list(health.residual_rad or ())
        self._status.publish(message)
