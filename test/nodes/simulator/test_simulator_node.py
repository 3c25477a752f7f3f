"""simulator_node as a process, seen over DDS."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.action import ActionClient
from simulator_rig import Rig, S
from std_msgs.msg import Float64MultiArray

from sqap_vla_ros.nodes.images import to_rgb
from sqap_vla_ros.nodes.messages import pose_message, time_ns
from sqap_vla_ros.robot.camera import CameraModel, project_tool
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.simulation.world import tool_pose


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        rig.wait_until_connected()
        yield rig


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> None:
    if "rig" in request.fixturenames:
        rig = request.getfixturevalue("rig")
        rig.call_reset()
        called = rig.node.get_clock().now().nanoseconds
        rig.wait(lambda: rig.now_ns > called and rig.at_rest(), "the arm at rest after a reset")


def test_image_and_camera_info_belong_together(rig):
    rig.wait(lambda: time_ns(rig.latest["camera_info"].header.stamp) in rig.images, "an image with camera_info's stamp")
    info, image = rig.latest["camera_info"], rig.latest["image"]
    assert (image.encoding, image.width, image.height, image.step) == ("rgb8", 320, 240, 960)
    assert image.header.frame_id == info.header.frame_id == "camera_optical_frame"
    assert CameraModel.from_camera_info(info).project(np.array([[0, 0, 1.0]])).pixels[0] == pytest.approx(
        (159.5, 119.5)
    )
    assert to_rgb(image).std() > 20  # something is to be seen


def test_the_tool_is_where_tf_and_camera_info_say(rig):
    """TF at the image's own stamp, through camera_info, hits the orange fingers in the picture."""
    rig.images.clear()
    stamp = rig.wait(lambda: next(iter(rig.images), None), "an image")
    rig.wait(lambda: rig.now_ns > stamp, "a later state")
    base_from_tool = rig.wait(lambda: rig.transform("base_link", "tool0", stamp), "TF of the tool at the image's stamp")
    base_from_optical = rig.transform("base_link", "camera_optical_frame", stamp)
    kinematics = ArmKinematics.from_urdf(rig.latest["robot_description"].data, "base_link", "tool0")
    np.testing.assert_allclose(kinematics.forward(rig.joints), base_from_tool, atol=2e-3)
    camera = CameraModel.from_camera_info(rig.latest["camera_info"])
    projection = project_tool(camera, invert_pose(base_from_optical), base_from_tool)
    assert projection.pixel is not None, projection.reason
    rgb = to_rgb(rig.images[stamp]).astype(int)
    orange = np.argwhere((rgb[..., 0] - rgb[..., 2] > 90) & (abs(rgb[..., 1] - rgb[..., 0] // 2) < 40))
    u, v = projection.pixel
    nearest = np.linalg.norm(orange[:, ::-1] - (u, v), axis=1).min()
    assert nearest < 15, f"the fingers are {nearest:.0f} pixels from where the tool frame projects, {u:.0f}, {v:.0f}"


def test_a_trajectory_is_followed_in_time_and_held(rig):
    start = rig.joints
    goal = start + np.array([0.3, 0.0, 0.1, 0.0, -0.1, 0.0, 0.2])
    began = rig.now_ns
    rig.trajectory(goal, 1.0)
    rig.wait(lambda: rig.now_ns > began + S // 2, "half of the time")
    half = (rig.joints - start)[0] / 0.3
    assert 0.2 < half < 0.85
    rig.wait(lambda: rig.now_ns > began + round(1.3 * S), "the end")
    np.testing.assert_allclose(rig.joints, goal, atol=5e-3)
    rig.wait(lambda: rig.now_ns > began + 2 * S, "a while after it")
    np.testing.assert_allclose(rig.joints, goal, atol=5e-3)


def test_a_new_trajectory_replaces_the_one_before(rig):
    start = rig.joints
    rig.trajectory(start + 0.5, 5.0)
    began = rig.now_ns
    rig.wait(lambda: rig.now_ns > began + S // 4, "a moment")
    rig.trajectory(start, 0.5)
    rig.wait(lambda: rig.now_ns > began + 2 * S and rig.at_rest(), "the end of the second")
    np.testing.assert_allclose(rig.joints, start, atol=5e-3)


def test_past_and_foreign_trajectories_are_rejected(rig):
    start = rig.joints
    rig.trajectory(start + 0.3, 0.5, start_ns=rig.now_ns - 60 * S)
    rig.wait(lambda: "joint_trajectory rejected: the trajectory ended" in rig.log, "the rejection")
    time.sleep(1.0)  # the log of rejections is throttled to one a second
    rig.trajectory([0.0, 0.0], 0.5, names=("shoulder", "elbow"))
    rig.wait(lambda: "['shoulder', 'elbow'], this arm has ['joint1'" in rig.log, "the second rejection")
    np.testing.assert_allclose(rig.joints, start, atol=2e-3)


def test_target_pose(rig):
    goal = tool_pose(np.array([0.45, -0.1, 0.2]), 0.3)
    message = PoseStamped(pose=pose_message(goal))
    message.header.frame_id = "base_link"
    rig.publishers["target_pose"].publish(message)

    def there() -> bool:
        pose = rig.transform("base_link", "tool0", 0)
        return pose is not None and np.abs(pose - goal).max() < 5e-3

    rig.wait(there, "the tool at the commanded pose")
    message.header.frame_id = "camera_link"
    rig.publishers["target_pose"].publish(message)
    rig.wait(
        lambda: "target_pose rejected: frame_id must be 'base_link', got 'camera_link'" in rig.log, "the rejection"
    )
    rig.wait(rig.at_rest, "rest")
    assert there()


def test_a_twist_stops_when_it_is_not_renewed(rig):
    stamp = rig.now_ns
    start = rig.wait(lambda: rig.transform("base_link", "tool0", stamp), "the tool")
    message = TwistStamped()
    message.header.frame_id = "base_link"
    message.twist.linear.z = 0.1
    for _ in range(10):
        rig.publishers["delta_twist_cmds"].publish(message)
        time.sleep(0.05)
    sent = rig.now_ns
    rig.wait(lambda: rig.now_ns > sent + S // 2, "the deadman's time")
    risen = rig.transform("base_link", "tool0", 0)[2, 3] - start[2, 3]
    assert 0.02 < risen < 0.12
    rig.wait(lambda: rig.now_ns > sent + S, "more time")
    assert abs(rig.transform("base_link", "tool0", 0)[2, 3] - start[2, 3] - risen) < 3e-3


def test_gripper_command(rig):
    for opening in (0.0, 0.03):
        rig.publishers["gripper_command"].publish(Float64MultiArray(data=[opening]))
        rig.wait(lambda o=opening: abs(rig.latest["joint_states"].position[7] - o) < 3e-3, f"fingers at {opening} m")
    rig.publishers["gripper_command"].publish(Float64MultiArray(data=[0.0, 0.0]))
    rig.wait(lambda: "gripper_command rejected: needs one finite value" in rig.log, "the rejection")


def test_goals_of_the_gripper(rig):
    """They end when the fingers are there; what they cannot reach is rejected."""
    action = pytest.importorskip("control_msgs.action", reason="control_msgs is not installed: make setup")
    client = ActionClient(rig.node, action.GripperCommand, "gripper_cmd")

    def send(position):
        goal = action.GripperCommand.Goal()
        goal.command.position = position
        answer = client.send_goal_async(goal)
        rig.wait(answer.done, "an answer")
        return answer.result()

    rig.wait(client.server_is_ready, "the action server")
    for opening in (0.0, 0.03):
        ended = send(opening).get_result_async()
        rig.wait(ended.done, f"the end of the goal {opening} m")
        result = ended.result().result
        assert (result.reached_goal, result.stalled) == (True, False)
        assert result.position == pytest.approx(opening, abs=2e-3)
    assert not send(0.5).accepted
    assert not send(float("nan")).accepted
    client.destroy()


def test_reset_begins_the_next_episode(rig):
    told = {rig.call_reset().message for _ in range(4)}
    assert len(told) > 1
    assert all(text.startswith("pick up the ") for text in told)
    last = rig.call_reset().message
    rig.wait(lambda: rig.latest["instruction"].data == last, "the instruction on its topic")
    rig.wait(lambda: not rig.latest["/simulator/success"].data, "not done yet")
