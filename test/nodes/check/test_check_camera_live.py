"""`check --camera` over DDS: somebody moves the arm, and a tag on it is found."""

import json

import pytest
import rclpy
from hand_eye.scene import BASE_FROM_OPTICAL, ERROR, camera_info, motion, picture, tool_poses
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.nodes.check.main import main
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.messages import transform_message
from sqap_vla_ros.nodes.policy.inputs import TF_STATIC_QOS
from sqap_vla_ros.nodes.spinning import SpinThread
from sqap_vla_ros.robot.hand_eye.faults import MIN_PAIRS

ATTEMPTS, LISTEN_S = 4, 4.0  # a busy computer needs longer
POSES = tool_poses(10)
TICKS_AT_A_PLACE = 5


class Robot:
    """Publishes images, camera_info and TF of a tool that stands at one place after the other."""

    def __enter__(self):
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = Node("robot", context=self._context)
        self._image = self.node.create_publisher(Image, "image", 2)
        self._info = self.node.create_publisher(CameraInfo, "camera_info", 2)
        self._tf = self.node.create_publisher(TFMessage, "/tf", 10)
        static = self.node.create_publisher(TFMessage, "/tf_static", TF_STATIC_QOS)
        static.publish(TFMessage(transforms=[transform_message(BASE_FROM_OPTICAL, 0, "base_link", "camera_optical")]))
        self._pictures = [picture(pose, motion(*ERROR)) for pose in POSES]
        self._tick = 0
        self.node.create_timer(0.06, self._publish)
        self._spinning = SpinThread(self.node)
        return self

    def __exit__(self, *_):
        self._spinning.close()
        self._context.try_shutdown()

    def _publish(self):
        place = self._tick // TICKS_AT_A_PLACE % len(POSES)
        self._tick += 1
        stamp = self.node.get_clock().now()
        moving = transform_message(POSES[place], stamp.nanoseconds, "base_link", "tool0")
        self._tf.publish(TFMessage(transforms=[moving]))
        self._info.publish(camera_info(stamp.nanoseconds))
        self._image.publish(rgb_to_message(self._pictures[place], stamp=stamp.to_msg(), frame_id="camera_optical"))


@pytest.fixture(scope="module")
def robot():
    with Robot() as robot:
        yield robot


def check(capsys, tmp_path, *arguments):
    status = main(["--camera", "--json", "--picture", str(tmp_path / "check.png"), *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_the_error_of_the_camera_is_found_while_the_arm_is_moved(robot, capsys, tmp_path):
    made = []
    for attempt in range(1, ATTEMPTS + 1):
        board = ("--board", "tag:apriltag_36h11:7", "--without-policy")
        status, report = check(capsys, tmp_path, "--listen", str(LISTEN_S * attempt), *board)
        made = report["hand_eye"].get("pairs", 0)
        if made > MIN_PAIRS + 1:
            break
    assert status == 0, report
    assert report["hand_eye"]["held_out_rms_px"] < 2.0
    assert report["hand_eye"]["rms_px"] > 4.0
    assert report["hand_eye"]["child"] == "camera_optical"


def test_what_is_missing_is_told(robot, capsys, tmp_path):
    status, report = check(capsys, tmp_path, "--listen", "0.5", "image:=/no_such_image", "--without-policy")
    assert status == 1
    assert "/no_such_image" in report["findings"][0]["text"]
