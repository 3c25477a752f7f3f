"""The overlay image, the path and the markers, made only while somebody subscribes."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import Point
from nav_msgs.msg import Path
from numpy.typing import NDArray
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from sqap_vla_ros.contracts import PolicyInfo
from sqap_vla_ros.nodes import images, messages
from sqap_vla_ros.nodes.policy.prediction import Prediction
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning.overlay import draw_overlay

_OPEN = (0.0, 0.62, 0.45)  # gripper open and closed, told apart under every common colour vision deficiency
_CLOSED = (0.84, 0.37, 0.0)


class Views:
    """~/overlay, ~/path and ~/markers."""

    def __init__(self, node: Any, base_frame: str) -> None:
        self._transform = ImageTransform()
        self._node = node
        self._base_frame = base_frame
        publisher = node.create_lifecycle_publisher
        self._overlay = publisher(Image, "~/overlay", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
        self._path = publisher(Path, "~/path", QoSProfile(depth=1))
        self._markers = publisher(MarkerArray, "~/markers", QoSProfile(depth=1))

    def show_policy(self, info: PolicyInfo) -> None:
        """Draw the patches of this policy from now on, through its own crop and resize."""
        self._transform = ImageTransform.of(info)

    def publish(self, prediction: Prediction) -> None:
        """Draw what has subscribers."""
        if self._path.get_subscription_count():
            self._path.publish(messages.path_message(prediction.trajectory, self._base_frame))
        if self._markers.get_subscription_count():
            self._markers.publish(self._chunk_markers(prediction))
        if self._overlay.get_subscription_count() and prediction.chunk.selection is not None:
            frame = prediction.view.frame
            self._overlay.publish(
                images.rgb_to_message(self._draw(prediction), stamp=frame.image.header.stamp, frame_id=frame.frame_id)
            )

    def destroy(self) -> None:
        """Remove the publishers from the node."""
        for publisher in (self._overlay, self._path, self._markers):
            self._node.destroy_lifecycle_publisher(publisher)

    def _draw(self, prediction: Prediction) -> NDArray[np.uint8]:
        view, chunk = prediction.view, prediction.chunk
        path = None
        if view.camera is not None and view.optical_from_base is not None:
            positions = np.concatenate([view.base_from_tool[None, :3, 3], prediction.trajectory.poses[:, :3, 3]])
            rotation, translation = view.optical_from_base[:3, :3], view.optical_from_base[:3, 3]
            path = view.camera.project(positions @ rotation.T + translation).pixels
        caption = f"{view.observation.instruction}   {chunk.timings_ms.get('total', 0.0):.0f} ms"
        assert chunk.selection is not None
        return draw_overlay(
            view.observation.image,
            chunk.selection,
            self._transform,
            gripper_pixel=view.tool.pixel,
            path_pixels=path,
            caption=caption,
        )

    def _chunk_markers(self, prediction: Prediction) -> MarkerArray:
        """Return the chunk as a line with a point for each action, coloured by the gripper."""
        header = messages.header(prediction.chunk.stamp_ns, self._base_frame)
        points = [Point(x=p[0], y=p[1], z=p[2]) for p in prediction.trajectory.poses[:, :3, 3].tolist()]
        colours = [
            ColorRGBA(r=r, g=g, b=b, a=1.0)
            for r, g, b in (_OPEN if opening > 0.5 else _CLOSED for opening in prediction.trajectory.gripper)
        ]
        line = Marker(header=header, ns="chunk", id=0, type=Marker.LINE_STRIP, points=points, colors=colours)
        line.scale.x = 0.003
        steps = Marker(header=header, ns="chunk", id=1, type=Marker.SPHERE_LIST, points=points, colors=colours)
        steps.scale.x = steps.scale.y = steps.scale.z = 0.008
        for marker in (line, steps):
            marker.pose.orientation.w = 1.0
        return MarkerArray(markers=[line, steps])
