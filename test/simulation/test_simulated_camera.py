import mujoco
import numpy as np
import pytest

from sqap_vla_ros.nodes.simulator.camera import camera_info
from sqap_vla_ros.robot.camera import CameraModel, project_tool
from sqap_vla_ros.simulation.camera import LINK_FROM_OPTICAL, SceneRenderer, intrinsics, world_from_optical
from sqap_vla_ros.simulation.environment import TabletopEnv

MARKER = """
<mujoco>
  <visual><global offwidth="640" offheight="480"/><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="front" pos="1.0 0.05 0.7" xyaxes="0.1 1 0 -0.7 0.07 0.7" fovy="44"/>
    <body name="marker" mocap="true"><geom type="sphere" size="0.012" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.mark.parametrize(("width", "height"), [(640, 480), (224, 224)])
def test_intrinsics_predict_where_a_marker_is_rendered(width, height):
    model = mujoco.MjModel.from_xml_string(MARKER)
    data = mujoco.MjData(model)
    k = intrinsics(np.deg2rad(44.0), width, height)
    residuals = []
    with SceneRenderer(model, width, height, shadows=False) as renderer:
        for x, y, z in ((0.4, 0.0, 0.0), (0.35, -0.15, 0.05), (0.5, 0.25, 0.1), (0.3, 0.2, 0.3), (0.6, -0.15, 0.0)):
            data.mocap_pos[0] = x, y, z
            mujoco.mj_forward(model, data)
            redness = renderer.render(data)[..., 0].astype(float)
            rows, cols = np.nonzero(redness > 10)
            assert len(rows) > 8
            weights = redness[rows, cols]
            seen = np.array([np.average(cols, weights=weights), np.average(rows, weights=weights)])
            point = np.linalg.inv(world_from_optical(data, 0)) @ (x, y, z, 1.0)
            projected = (k @ (point[:3] / point[2]))[:2]
            residuals.append(seen - projected)
    assert np.abs(residuals).max() < 0.5
    # The principal point is (W - 1) / 2: half a pixel off would show in the mean.
    assert np.abs(np.mean(residuals, axis=0)).max() < 0.15


def test_camera_link_looks_along_x():
    forward = LINK_FROM_OPTICAL[:3, :3] @ (0, 0, 1)
    up = LINK_FROM_OPTICAL[:3, :3] @ (0, -1, 0)
    np.testing.assert_array_equal(forward, (1, 0, 0))
    np.testing.assert_array_equal(up, (0, 0, 1))


def test_gripper_pixel_is_between_the_fingers():
    with TabletopEnv(width=640, height=480, shadows=False) as env:
        env.reset(seed=4, family="pick")
        bodies = env.segmentation()
        pixel = env.gripper_pixel
        assert pixel is not None
        left, right = (np.argwhere(bodies == env.world.model.body(name).id) for name in ("left_finger", "right_finger"))
        assert len(left) > 50
        assert len(right) > 50
        columns = sorted([left[:, 1].mean(), right[:, 1].mean()])
        assert columns[0] < pixel[0] < columns[1]
        assert abs(pixel[0] - np.mean(columns)) < 4
        tips = max(left[:, 0].max(), right[:, 0].max())
        assert abs(pixel[1] - tips) < 20  # the tool frame is a centimetre above the finger tips


def test_gripper_pixel_is_where_the_node_would_project_it():
    """The environment, camera_info and the policy node's projection agree, in view and out of it."""
    with TabletopEnv(width=320, height=240) as env:
        env.reset(seed=4, family="pick")
        message = camera_info(env.world.camera_fovy_rad, 320, 240)
        camera = CameraModel.from_camera_info(message)
        optical_from_base = np.linalg.inv(env.world.base_from_optical)
        assert env.gripper_pixel == pytest.approx(
            project_tool(camera, optical_from_base, env.world.base_from_tool).pixel, abs=1e-6
        )
        env.world.model.cam_pos[env.world.model.camera("front").id] = env.world.base_from_tool[:3, 3] + (-0.5, 0, 0.1)
        env.world.refresh()
        assert env.gripper_pixel is None  # behind the camera


def test_image_size_is_checked():
    with TabletopEnv(width=2000) as env, pytest.raises(ValueError, match="got 2000x480"):
        env.render()
