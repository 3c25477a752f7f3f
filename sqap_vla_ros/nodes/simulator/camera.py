"""The simulated camera, which renders in a thread of its own, so that a slow picture does not hold up the arm."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.messages import time_message
from sqap_vla_ros.nodes.simulator.frames import OPTICAL_FRAME
from sqap_vla_ros.simulation.camera import SceneRenderer, intrinsics
from sqap_vla_ros.simulation.world import TabletopWorld


class SimulatorCamera:
    """Publishes image and camera_info of the states handed to `capture`, each stamped with the time of its state.

    A state that arrives while the one before is still being rendered waits; the newest wins.
    `error` is set, and nothing is published any more, when rendering fails.
    """

    def __init__(self, node: Node, world: TabletopWorld, lock: threading.Lock, values: Mapping[str, Any]) -> None:
        self.error: Exception | None = None
        self._node, self._world, self._lock = node, world, lock
        self._width, self._height = values["image_width"], values["image_height"]
        self._looks = {name: values[name] for name in ("shadows", "antialiasing")}
        self._image_publisher = node.create_publisher(Image, "image", qos_profile_sensor_data)
        self._info_publisher = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._info = camera_info(world.camera_fovy_rad, self._width, self._height)
        self._condition = threading.Condition()
        self._pending: tuple[int, int, NDArray[np.float64]] | None = None  # stamp (ns), episode, qpos
        self._episode = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="camera")

    def start(self) -> None:
        self._thread.start()

    def capture(self, stamp_ns: int, episode: int) -> None:
        """Take the world's present state to be rendered. The caller holds the world's lock."""
        with self._condition:
            self._pending = (stamp_ns, episode, self._world.data.qpos.copy())
            self._episode = episode
            self._condition.notify()

    def stop(self) -> None:
        """End the thread, which closes its OpenGL context."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            with SceneRenderer(self._world.model, self._width, self._height, **self._looks) as renderer:
                self._node.get_logger().info(
                    f"camera: {self._width}x{self._height} through OpenGL backend {renderer.backend!r}"
                )
                self._render_until_stopped(renderer)
        except RuntimeError as error:
            self.error = error

    def _render_until_stopped(self, renderer: SceneRenderer) -> None:
        data = mujoco.MjData(self._world.model)
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._pending is not None)
                if self._stopping or self._pending is None:
                    return
                stamp_ns, episode, qpos = self._pending
                self._pending = None
            with self._lock:
                if episode != self._episode:
                    continue  # a reset changed the model under this state
                data.qpos[:] = qpos
                mujoco.mj_fwdPosition(self._world.model, data)
                renderer.update(data)
            image = renderer.draw()
            stamp = time_message(stamp_ns)
            self._info.header.stamp = stamp
            self._info_publisher.publish(self._info)
            self._image_publisher.publish(rgb_to_message(image, stamp=stamp, frame_id=OPTICAL_FRAME))


def camera_info(fovy_rad: float, width: int, height: int) -> CameraInfo:
    """Return the calibration of an ideal camera: no distortion, image rectified as it is."""
    k = intrinsics(fovy_rad, width, height)
    message = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.frame_id = OPTICAL_FRAME
    message.k = k.ravel().tolist()
    message.r = np.eye(3).ravel().tolist()
    message.p = np.hstack([k, np.zeros((3, 1))]).ravel().tolist()
    return message
