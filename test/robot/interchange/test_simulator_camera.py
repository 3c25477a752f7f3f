"""Cameras of MuJoCo simulators, against closed forms."""

import json

import numpy as np
import pytest

from sqap_vla_ros.robot.conventions import pose_matrix
from sqap_vla_ros.robot.interchange.simulator_camera import read_simulator_camera, simulator_camera

# A metre above the origin, looking straight down with x to the right: MuJoCo's camera without a rotation.
DOWN = {
    "position": [0.0, 0.0, 1.0],
    "rotation": np.eye(3).ravel().tolist(),
    "fovy_deg": 45.0,
    "width": 256,
    "height": 256,
}
FOCAL = 128.0 / np.tan(np.radians(22.5))


def tool(x, y, z):
    return pose_matrix([x, y, z], [0.0, 0.0, 0.0, 1.0])


def test_x_is_to_the_right_and_y_up():
    camera = simulator_camera(**DOWN)
    np.testing.assert_allclose(camera.pixel(tool(0.1, 0.2, 0.0), 256, 256), [127.5 + 0.1 * FOCAL, 127.5 - 0.2 * FOCAL])
    np.testing.assert_allclose(camera.pixel(tool(0.1, 0.2, 0.5), 256, 256), [127.5 + 0.2 * FOCAL, 127.5 - 0.4 * FOCAL])


def test_a_mirrored_image_mirrors_the_column_alone():
    u, v = simulator_camera(**DOWN).pixel(tool(0.1, 0.2, 0.0), 256, 256)
    assert simulator_camera(**DOWN, mirrored=True).pixel(tool(0.1, 0.2, 0.0), 256, 256) == (255.0 - u, v)


def test_the_field_of_view_reaches_the_edge_of_the_image():
    half = np.tan(np.radians(22.5))
    inside, outside = (
        simulator_camera(**DOWN).pixel(tool(0.0, share * half, 0.0), 256, 256) for share in (0.999, 1.001)
    )
    assert inside[1] == pytest.approx(-0.5, abs=0.2)
    assert outside is None


def test_what_is_behind_has_no_pixel():
    assert simulator_camera(**DOWN).pixel(tool(0.0, 0.0, 1.5), 256, 256) is None


def test_liberos_agentview_looks_at_the_table():
    """From in front of the robot, tilted down by 45 degrees: what is nearer to the camera is lower in the image."""
    s = np.sqrt(0.5)
    # columns: the camera's x (to the right, along -y of the world... seen from the front), y (up) and z (backwards)
    rotation = np.column_stack([[0.0, 1.0, 0.0], [-s, 0.0, s], [s, 0.0, s]])
    camera = simulator_camera([1.0, 0.0, 1.0], rotation, 45.0, 256, 256)
    centre, near, right = (camera.pixel(tool(*xyz), 256, 256) for xyz in ((0, 0, 0), (0.2, 0, 0), (0, 0.2, 0)))
    np.testing.assert_allclose(centre, [127.5, 127.5])
    assert near[1] > centre[1]
    assert near[0] == pytest.approx(centre[0])
    assert right[0] > centre[0]


def test_a_file_gives_the_same_camera(tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(DOWN))
    here, there = simulator_camera(**DOWN), read_simulator_camera(path)
    assert here.pixel(tool(0.1, 0.2, 0.3), 256, 256) == there.pixel(tool(0.1, 0.2, 0.3), 256, 256)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"position": [0.0, 1.0]}, "expected 3 finite numbers"),
        ({"rotation": [1.0] * 9}, "must be a rotation matrix"),
        ({"fovy_deg": 200.0}, "fovy_deg must be within 0 and 180"),
        ({"width": float("nan")}, "expected 1 finite numbers"),
        ({"height": "tall"}, "must be a JSON object of numbers"),
    ],
)
def test_a_file_that_is_no_camera_is_refused(tmp_path, change, text):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(DOWN | change))
    with pytest.raises(ValueError, match=text):
        read_simulator_camera(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="must be a JSON object"):
        read_simulator_camera(path)
