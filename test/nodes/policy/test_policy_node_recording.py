"""policy_node on a recording of a real robot's head camera: Bayer images, a distorted lens, a fast camera_info."""

import array
import itertools
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from listener import Listener, wait
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from ring import check_ring
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from sqap_vla_ros.msg import ActionChunk, PolicyStatus, TokenSelection
from std_msgs.msg import String
from std_srvs.srv import SetBool

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.tf.api import StaticTransformBroadcaster

BAG = "jsk_demos/test-button-light.bag"
CAMERA, CAMERA_FRAME = "/wide_stereo/left", "wide_stereo_optical_frame"

# The bag has no TF: the camera looks along the base's x; the tool is 0.9 m in front of it, low and on the left.
BASE_FROM_OPTICAL = np.array([[0.0, 0, 1, -0.3], [-1, 0, 0, 0], [0, -1, 0, 0.7], [0, 0, 0, 1]])
BASE_FROM_TOOL = np.eye(4)
BASE_FROM_TOOL[:3, :3] = Rotation.from_euler("xyz", [np.pi, 0.1, 0.3]).as_matrix()
BASE_FROM_TOOL[:3, 3] = 0.6, 0.3, 0.4


@pytest.fixture(scope="module")
def recorded(real_data):
    """[(stamp, ROS 2 message)] of the camera in the order of their stamps, read without any code of the package."""
    found = []
    with AnyReader([real_data(BAG)]) as reader:
        for connection, _, raw in reader.messages():
            if connection.topic in (f"{CAMERA}/image_raw", f"{CAMERA}/camera_info"):
                old = reader.deserialize(raw, connection.msgtype)
                stamp_ns = old.header.stamp.sec * 10**9 + old.header.stamp.nanosec
                new = Image(step=old.step, encoding=old.encoding) if "Image" in connection.msgtype else CameraInfo()
                new.header = messages.header(stamp_ns, old.header.frame_id)
                new.height, new.width = old.height, old.width
                if isinstance(new, Image):
                    new.data = array.array("B", old.data.tobytes())
                else:
                    new.distortion_model, new.k, new.r, new.p = old.distortion_model, old.K, old.R, old.P
                    new.d = old.D.tolist()
                found.append((stamp_ns, new))
    return sorted(found, key=lambda entry: entry[0])


def play(listener, recorded):
    """Publish at the recorded pace, /clock with it."""
    publishers = {
        Image: listener.node.create_publisher(Image, f"{CAMERA}/image_raw", qos_profile_sensor_data),
        CameraInfo: listener.node.create_publisher(CameraInfo, f"{CAMERA}/camera_info", qos_profile_sensor_data),
    }
    assert wait(lambda: all(publisher.get_subscription_count() for publisher in publishers.values()), 20)
    begin_s, begin_ns = time.monotonic(), listener.clock_ns
    for stamp_ns, message in recorded:
        while listener.clock_ns < stamp_ns:
            time.sleep(0.005)
            listener.clock_ns = min(stamp_ns, begin_ns + round((time.monotonic() - begin_s) * 1e9))
        publishers[type(message)].publish(message)


def parameters(**values):
    return itertools.chain.from_iterable(("-p", f"{name}:={value}") for name, value in values.items())


def test_a_real_camera_through_the_node(recorded):
    stamps = [stamp_ns for stamp_ns, message in recorded if isinstance(message, Image)]
    info = next(message for _, message in recorded if isinstance(message, CameraInfo))
    k, d = np.array(info.k).reshape(3, 3), np.array(info.d)
    node = subprocess.Popen(
        [
            *(sys.executable, "-m", "sqap_vla_ros.nodes.policy.node", "--ros-args"),
            *parameters(use_sim_time="true", dry_run="true", output_mode="pose", seed=5),
            *("-r", f"image:={CAMERA}/image_raw", "-r", f"camera_info:={CAMERA}/camera_info"),
        ]
    )
    try:
        with Listener() as listener:
            listener.clock_ns = recorded[0][0] - 10**9
            listener.publish_clock()
            chunks = listener.collect(ActionChunk, "policy_node/action_chunk", QoSProfile(depth=50))
            selections = listener.collect(TokenSelection, "policy_node/token_selection", QoSProfile(depth=50))
            statuses = listener.collect(PolicyStatus, "policy_node/status", QoSProfile(depth=50))
            StaticTransformBroadcaster(listener.node).sendTransform(
                [
                    messages.transform_message(BASE_FROM_OPTICAL, 0, "base_link", CAMERA_FRAME),
                    messages.transform_message(BASE_FROM_TOOL, 0, "base_link", "tool0"),
                ]
            )
            listener.publish_once(String(data="press the button"), "instruction")
            listener.call(SetBool, "policy_node/enable", SetBool.Request(data=True), timeout_s=90)
            play(listener, recorded)
            assert wait(lambda: chunks and len(selections) == len(chunks), 20), [s.reason for s in statuses]
    finally:
        node.send_signal(signal.SIGINT)
        status = node.wait(30)
    assert status == 0

    # Nearly every image is predicted from: at 2 Hz the policy is free long before the next one.
    made_from = [messages.time_ns(chunk.header.stamp) for chunk in chunks]
    assert set(made_from) <= set(stamps)
    assert len(made_from) == len(set(made_from)) >= len(stamps) // 2
    for chunk in chunks:
        np.testing.assert_allclose(messages.pose_from_message(chunk.anchor), BASE_FROM_TOOL, atol=1e-9)
        assert chunk.instruction == "press the button"

    optical_from_tool = np.linalg.inv(BASE_FROM_OPTICAL) @ BASE_FROM_TOOL
    pixel = cv2.projectPoints(optical_from_tool[None, :3, 3], np.zeros(3), np.zeros(3), k, d)[0].ravel()
    straight = (k @ (optical_from_tool[:3, 3] / optical_from_tool[2, 3]))[:2]
    assert np.linalg.norm(pixel - straight) > 10  # the lens matters here
    for message in selections:
        check_ring(message, pixel, 640, 480)
