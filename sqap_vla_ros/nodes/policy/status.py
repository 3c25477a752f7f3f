"""What the node tells about itself: chunk, kept tokens, status, model info and diagnostics."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
from trajectory_msgs.msg import MultiDOFJointTrajectory

from sqap_vla_ros.contracts import ActionChunk, PolicyInfo
from sqap_vla_ros.control.executive import State
from sqap_vla_ros.msg import ActionChunk as ActionChunkMessage
from sqap_vla_ros.msg import PolicyStatus, TokenSelection
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.diagnostics import Diagnostics
from sqap_vla_ros.nodes.policy.observer import View
from sqap_vla_ros.nodes.policy.views import Views
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk

if TYPE_CHECKING:
    from sqap_vla_ros.nodes.policy.control_loop import ControlLoop

HEARTBEAT_S = 1.0  # the status is published at least this often
REASON_S = 0.5  # a reason that changes (an age that grows) is published at most this often


@dataclass(frozen=True)
class Prediction:
    """One prediction and what became of it.

    trajectory: the whole chunk anchored at its image. overhead_s: image usable to chunk published, less the policy's
    own time. queued_s: what the image waited for the policy to finish the one before. age_s: of the image, by ROS time,
    when the chunk was published.
    """

    chunk: ActionChunk
    view: View
    trajectory: PoseTrajectory
    overhead_s: float
    queued_s: float
    age_s: float


class Reporter:
    """Publishers of everything that is not a command."""

    def __init__(self, node: Any, loop: ControlLoop) -> None:
        self._node = node
        self._loop = loop
        self._base_frame = loop.values["base_frame"]
        self._tool_frame = loop.values["tool_frame"]
        publisher = node.create_lifecycle_publisher
        self._chunk = publisher(ActionChunkMessage, "~/action_chunk", QoSProfile(depth=5))
        self._trajectory = publisher(MultiDOFJointTrajectory, "~/action_trajectory", QoSProfile(depth=1))
        self._selection = publisher(TokenSelection, "~/token_selection", QoSProfile(depth=5))
        # These speak of the node itself, in every lifecycle state.
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._status = node.create_publisher(PolicyStatus, "~/status", latched)
        self._model_info = node.create_publisher(String, "~/model_info", latched)
        self.diagnostics = Diagnostics(node, loop)
        self.views = Views(node, self._base_frame)
        self._last: Prediction | None = None
        self._published: tuple[State, str] | None = None
        self._published_s = 0.0

    def publish_model_info(self, info: PolicyInfo) -> None:
        """What was loaded, as JSON."""
        self.views.image_size = info.image_size
        self._model_info.publish(String(data=json.dumps(dataclasses.asdict(info))))

    def publish_chunk(self, chunk: ActionChunk, view: View) -> PoseTrajectory:
        """The chunk in the base frame, anchored at its image; returns that trajectory."""
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

    def publish_prediction(self, prediction: Prediction) -> None:
        """What can wait until the command is out: kept tokens, status, and the pictures that have subscribers."""
        self._last = prediction
        chunk, view = prediction.chunk, prediction.view
        self.diagnostics.add(prediction)
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
        self._publish_status()
        self.views.publish(prediction)

    def tick(self, now_s: float) -> None:
        """Publish the state when it changed, and regularly."""
        state = self._loop.executive.state()
        age_s = now_s - self._published_s
        changed = self._published is None or state[0] != self._published[0]
        if changed or age_s >= HEARTBEAT_S or (state != self._published and age_s >= REASON_S):
            if changed:
                self._node.get_logger().info(f"{state[0].name}{': ' if state[1] else ''}{state[1]}")
            self._publish_status(now_s)
        self.diagnostics.tick(now_s)

    def destroy(self) -> None:
        """Remove the publishers from the node."""
        for publisher in (self._chunk, self._trajectory, self._selection):
            self._node.destroy_lifecycle_publisher(publisher)
        for publisher in (self._status, self._model_info):
            self._node.destroy_publisher(publisher)
        self.diagnostics.destroy()
        self.views.destroy()

    def _publish_status(self, now_s: float | None = None) -> None:
        loop, executive = self._loop, self._loop.executive
        state, reason = executive.state()
        self._published = (state, reason)
        if now_s is not None:
            self._published_s = now_s
        message = PolicyStatus()
        message.header = messages.header(loop.now_ns(), self._base_frame)
        message.state = int(state)
        message.reason = reason
        message.enabled = executive.enabled
        message.dry_run = executive.dry_run
        message.instruction = executive.task.instruction if executive.task is not None else ""
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
        message.images_received = loop.sync.counters.images
        message.images_superseded = loop.superseded
        message.chunks_published = executive.counters.chunks_published
        message.chunks_rejected = executive.counters.chunks_rejected
        self._status.publish(message)
