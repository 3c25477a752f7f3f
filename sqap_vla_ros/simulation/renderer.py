"""Off-screen pictures of the scene. A renderer belongs to the thread that made it."""

from __future__ import annotations

import os

import mujoco
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.simulation.gl import HELP, RenderingUnavailableError
from sqap_vla_ros.simulation.scene import CAMERA


class SceneRenderer:
    """Renders the front camera. Use as a context manager or call `close`: OpenGL must go before the interpreter does.

    OpenGL contexts are bound to a thread, so create, use and close a renderer in one thread.

    Raises:
        RenderingUnavailableError: no OpenGL without a screen on this machine.
    """

    def __init__(self, model: mujoco.MjModel, width: int = 640, height: int = 480, *, shadows: bool = True) -> None:
        limit = (model.vis.global_.offwidth, model.vis.global_.offheight)
        if not (0 < width <= limit[0] and 0 < height <= limit[1]):
            raise ValueError(f"image size must be within 1x1 and {limit[0]}x{limit[1]} pixels, got {width}x{height}")
        self.backend = os.environ.get("MUJOCO_GL", "") or "native"
        if not hasattr(mujoco, "Renderer") or self.backend == "disabled":
            raise RenderingUnavailableError(HELP)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # each backend raises its own type; all mean that no context could be made
            raise RenderingUnavailableError(f"{HELP} (backend {self.backend!r}: {error})") from error
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(shadows)

    def update(self, data: mujoco.MjData) -> None:
        """Take what `draw` shows from `data`, whose kinematics, cameras and lights must be current (0.1 ms)."""
        self._renderer.update_scene(data, CAMERA)

    def draw(self) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB of the state last taken. Reads neither model nor data, so physics may go on."""
        return self._renderer.render()

    def render(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """`update` and `draw`."""
        self.update(data)
        return self.draw()

    def segmentation(self, data: mujoco.MjData) -> NDArray[np.int32]:
        """[H, W] int32, the id of the body seen in each pixel, 0 (the world) for table and background."""
        self._renderer.enable_segmentation_rendering()
        self._renderer.update_scene(data, CAMERA)
        ids = self._renderer.render()  # [H, W, 2]: object id, object type
        self._renderer.disable_segmentation_rendering()
        model = self._renderer.model
        is_geom = ids[..., 1] == mujoco.mjtObj.mjOBJ_GEOM
        return np.where(is_geom, model.geom_bodyid[np.where(is_geom, ids[..., 0], 0)], 0).astype(np.int32)

    def close(self) -> None:
        self._renderer.close()

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
