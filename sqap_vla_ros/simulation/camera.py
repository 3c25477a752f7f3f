"""The simulated front camera: its geometry as ROS describes cameras, and off-screen pictures of the scene.

MuJoCo's camera looks along its -z axis with y up and has square pixels; `fovy` is the vertical angle between the edges
of the image. ROS's optical frame looks along z with y down. OpenGL puts pixel centres at half-integers, ROS and OpenCV
at integers, hence the principal point at ((W - 1) / 2, (H - 1) / 2).
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.simulation.gl import create_context
from sqap_vla_ros.simulation.scene import CAMERA

# camera_link (x forward, y left, z up; REP-103) to its optical frame (z forward, x right, y down).
LINK_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])

_MAX_GEOMS = 1000


def intrinsics(fovy_rad: float, width: int, height: int) -> NDArray[np.float64]:
    """Return K [3, 3] in pixels of a `width` x `height` picture with vertical field of view `fovy_rad`."""
    focal = height / 2 / np.tan(fovy_rad / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def camera_model(fovy_rad: float, width: int, height: int) -> CameraModel:
    """Return the projection of an ideal camera: `intrinsics` without distortion."""
    return CameraModel(
        width,
        height,
        intrinsics(fovy_rad, width, height),
        distortion=np.zeros(0),
        fisheye=False,
        rotation=np.eye(3),
        translation=np.zeros(3),
        max_radius=np.inf,
    )


def world_from_optical(data: mujoco.MjData, camera_id: int) -> NDArray[np.float64]:
    """Return the pose [4, 4] of the camera's optical frame; `data` must have its kinematics and cameras computed."""
    pose = np.eye(4)
    pose[:3, :3] = data.cam_xmat[camera_id].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = data.cam_xpos[camera_id]
    return pose


class SceneRenderer:
    """Renders the front camera. Use as a context manager or call `close`: OpenGL must go before the interpreter does.

    shadows, antialiasing: both look better and cost more than all the rest on a CPU (benchmarks/simulator.py).
    OpenGL contexts are bound to a thread, so create, use and close a renderer in one thread.

    Raises:
        RenderingUnavailableError: no OpenGL without a screen on this machine.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        width: int = 640,
        height: int = 480,
        *,
        shadows: bool = True,
        antialiasing: bool = True,
    ) -> None:
        limit = (model.vis.global_.offwidth, model.vis.global_.offheight)
        if not (0 < width <= limit[0] and 0 < height <= limit[1]):
            raise ValueError(f"image size must be within 1x1 and {limit[0]}x{limit[1]} pixels, got {width}x{height}")
        self._model = model
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(CAMERA).id
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(shadows)
        self._gl, self.backend = create_context(width, height)
        self._gl.make_current()
        samples = model.vis.quality.offsamples
        model.vis.quality.offsamples = samples if antialiasing else 0  # read when the context is made, and only then
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        model.vis.quality.offsamples = samples
        mujoco.mjr_resizeOffscreen(width, height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def update(self, data: mujoco.MjData) -> None:
        """Take what `draw` shows from `data`, whose kinematics, cameras and lights must be current (0.1 ms)."""
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )

    def draw(self) -> NDArray[np.uint8]:
        """Draw the state last taken, [H, W, 3] uint8 RGB. It reads neither model nor data, so physics may go on."""
        if self._context is None:
            raise RuntimeError("the renderer is closed")
        pixels = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest

    def render(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """Take the state of `data` and draw it."""
        self.update(data)
        return self.draw()

    def segmentation(self, data: mujoco.MjData) -> NDArray[np.int32]:
        """Return the id of the body seen in each pixel, [H, W] int32; 0 (the world) for table and background."""
        flags = self._scene.flags.copy()
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        colours = self.render(data).astype(np.int32)
        self._scene.flags[:] = flags
        segments = colours @ (1, 1 << 8, 1 << 16)  # 0 is the background, else one more than the segment's number
        body_of = np.zeros(self._scene.ngeom + 1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                body_of[geom.segid + 1] = self._model.geom_bodyid[geom.objid]
        return body_of[segments]

    def close(self) -> None:
        """Free the OpenGL context; closing twice is harmless."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
            self._gl.free()

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
