"""What twist mode adds to the trajectory's velocity when the tool is not where it should be."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.nodes.sinks import TWIST_CORRECTION_LIMITS, TWIST_GAIN_HZ, tracking_twist


def pose(xyz=(0.0, 0.0, 0.0), rotvec=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    matrix[:3, 3] = xyz
    return matrix


def test_it_points_from_the_measured_to_the_commanded_pose():
    twist = tracking_twist(pose((0.01, 0.0, -0.002), (0.0, 0.0, 0.1)), pose())
    np.testing.assert_allclose(twist, TWIST_GAIN_HZ * np.array([0.01, 0.0, -0.002, 0.0, 0.0, 0.1]), atol=1e-12)


def test_nothing_is_added_where_the_tool_is_right():
    np.testing.assert_array_equal(tracking_twist(pose((0.3, 0.1, 0.2)), pose((0.3, 0.1, 0.2))), np.zeros(6))


@pytest.mark.parametrize("far_m", [0.1, 10.0])
def test_it_is_bounded_and_keeps_its_direction(far_m):
    twist = tracking_twist(pose((far_m, far_m, 0.0), (0.0, 2.0, 0.0)), pose())
    assert np.linalg.norm(twist[:3]) == pytest.approx(TWIST_CORRECTION_LIMITS[0])
    assert twist[0] == pytest.approx(twist[1])
    assert np.linalg.norm(twist[3:]) == pytest.approx(TWIST_CORRECTION_LIMITS[1])
