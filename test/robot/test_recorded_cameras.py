"""The camera model against recordings of real robots."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from benchmarks import camera_projection
from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose, pose_matrix

WHOLE = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)


def first_camera_infos(path):
    """topic -> the first CameraInfo of a ROS 1 bag, with the field names of ROS 2."""
    found = {}
    with AnyReader([path]) as reader:
        for connection in (c for c in reader.connections if c.msgtype == "sensor_msgs/msg/CameraInfo"):
            _, _, raw = next(iter(reader.messages(connections=[connection])))
            msg = reader.deserialize(raw, connection.msgtype)
            fields = {name: getattr(msg, name) for name in ("width", "height", "distortion_model", "roi")}
            fields |= {"binning_x": msg.binning_x, "binning_y": msg.binning_y}
            found[connection.topic] = SimpleNamespace(
                **fields, **{name: getattr(msg, name.upper(), getattr(msg, name, None)) for name in "dkrp"}
            )
    return found


def test_a_wrist_cameras_pixels_are_predicted_from_the_arms_poses(real_data):
    result = camera_projection.evaluate(real_data("industrial_calibration"))
    assert result["calibration_rms_px"] < 0.25
    assert result["calibration_rms_through_camera_model_px"] == pytest.approx(result["calibration_rms_px"], abs=0.01)
    assert len(result["predicted_error_px"]) == 15
    assert result["predicted_error_max_px"] < 6.5  # a patch of the policy's view is 40 camera pixels wide


@pytest.mark.parametrize(
    ("bag", "cameras", "distorted"),
    [("jsk_pr2eus/pr1040_camera_info.bag", 9, 7), ("jsk_demos/test-button-light.bag", 1, 1)],
)
def test_every_camera_of_a_real_robot_sees_the_same_raw_and_rectified(real_data, bag, cameras, distorted):
    infos = first_camera_infos(real_data(bag))
    assert len(infos) == cameras
    models = {topic: CameraModel.from_camera_info(info) for topic, info in infos.items()}
    assert sum(model.distortion.size > 0 for model in models.values()) == distorted
    rng = np.random.default_rng(0)
    for topic, info in infos.items():
        pixels = rng.uniform([0, 0], [info.width - 1, info.height - 1], (200, 2))
        k, p, r = (np.reshape(m, (3, -1)) for m in (info.k, info.p, info.r))
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 500, 1e-12)
        undistort = getattr(cv2, "undistortPointsIter", None) or cv2.undistortPoints
        rays = undistort(pixels[:, None], k, np.array(info.d), R=None, P=None, criteria=criteria).reshape(-1, 2)
        points = np.column_stack([rays, np.ones(200)]) * rng.uniform(0.5, 2.0, (200, 1))
        np.testing.assert_allclose(models[topic].project(points).pixels, pixels, atol=1e-3, err_msg=topic)
        if p[0, 3] == 0.0:
            rectified = CameraModel.from_camera_info(info, rectified=True).project(points).pixels
            turned = points @ r.T
            expected = turned[:, :2] / turned[:, 2:] * [p[0, 0], p[1, 1]] + p[:2, 2]
            np.testing.assert_allclose(rectified, expected, atol=1e-9, err_msg=topic)


@pytest.mark.parametrize("pair", ["narrow_stereo", "wide_stereo"])
def test_a_stereo_pair_that_shares_a_frame_has_the_disparity_of_its_baseline(real_data, pair):
    """Both of the PR2's camera_infos name one optical frame: the left camera's, rectified."""
    infos = first_camera_infos(real_data("jsk_pr2eus/pr1040_camera_info.bag"))
    points = np.array([[0.0, 0.0, 1.0], [0.1, -0.1, 2.0], [-0.1, 0.05, 0.8]])
    left, right = (
        CameraModel.from_camera_info(infos[f"/{pair}/{side}/camera_info"], rectified=True, optical_frame_rectified=True)
        for side in ("left", "right")
    )
    disparity = left.project(points).pixels - right.project(points).pixels
    baseline_m = -infos[f"/{pair}/right/camera_info"].p[3] / infos[f"/{pair}/right/camera_info"].p[0]
    assert 0.08 < baseline_m < 0.1  # the PR2's cameras are 9 cm apart
    np.testing.assert_allclose(disparity[:, 0], left.matrix[0, 0] * baseline_m / points[:, 2], atol=1e-9)
    np.testing.assert_allclose(disparity[:, 1], 0.0, atol=1e-9)


def test_hand_eye_samples_agree_when_read_in_the_right_direction(real_data):
    """24 samples of a fixed camera that sees a marker on the gripper.

    The file's `robot` is gripper_from_base. Where the marker sits on the gripper must come out the same every time;
    read as base_from_gripper, it wanders.
    """
    camera_yaml = yaml.safe_load(real_data("so101/cam_overhead.yaml").read_text())
    eye_yaml = yaml.safe_load(real_data("so101/so101_eye_on_base.yaml").read_text())["transform"]
    samples = yaml.safe_load(real_data("so101/so101_eye_on_base.samples.yaml").read_text())
    base_from_optical = pose_matrix(
        [eye_yaml["translation"][c] for c in "xyz"], [eye_yaml["rotation"][c] for c in "xyzw"]
    )
    camera = CameraModel.from_camera_info(
        SimpleNamespace(
            width=camera_yaml["image_width"],
            height=camera_yaml["image_height"],
            distortion_model=camera_yaml["distortion_model"],
            d=camera_yaml["distortion_coefficients"]["data"],
            k=camera_yaml["camera_matrix"]["data"],
            r=camera_yaml["rectification_matrix"]["data"],
            p=camera_yaml["projection_matrix"]["data"],
            binning_x=0,
            binning_y=0,
            roi=WHOLE,
        )
    )
    robots = [np.array(sample["robot"]) for sample in samples]
    markers = [np.array(sample["tracking"]) for sample in samples]
    assert len(samples) == 24

    def wander(gripper_from_base):
        placed = [
            g @ base_from_optical @ optical_from_marker
            for g, optical_from_marker in zip(gripper_from_base, markers, strict=True)
        ]
        return np.stack(placed), np.linalg.norm(np.std([p[:3, 3] for p in placed], axis=0))

    gripper_from_marker, spread_m = wander(robots)
    assert spread_m < 0.02  # a hobby arm with printed links
    assert wander([invert_pose(robot) for robot in robots])[1] > 5 * spread_m
    # The mean placement, sent back through the chain, falls on the markers that the camera saw.
    placement = pose_matrix(
        np.median(gripper_from_marker[:, :3, 3], axis=0),
        Rotation.from_matrix(gripper_from_marker[:, :3, :3]).mean().as_quat(),
    )
    predicted = [
        camera.project((invert_pose(base_from_optical) @ invert_pose(g) @ placement)[None, :3, 3]).pixels[0]
        for g in robots
    ]
    seen = [camera.project(marker[None, :3, 3]).pixels[0] for marker in markers]
    error_px = np.linalg.norm(np.subtract(predicted, seen), axis=1)
    assert np.median(error_px) < 20
