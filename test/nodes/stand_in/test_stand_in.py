"""The stand-in by itself, and between it and policy_node a motion over DDS."""

import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
import rclpy
from beside import ProcessRig, ros_arguments
from geometry_msgs.msg import PoseStamped, TwistStamped
from places import ROOT, SUPPORT
from policy_node_rig import Rig
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.launch.robots import read_robot
from sqap_vla_ros.nodes.launch.table import BRINGUPS, resolve
from sqap_vla_ros.nodes.stand_in.arm import StandInArm
from sqap_vla_ros.nodes.stand_in.node import StandIn, main
from sqap_vla_ros.nodes.stand_in.picture import StandInCamera
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.camera import CameraModel, project_tool
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.simulation.joint_path import TrajectoryRejectedError

READY = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
S = 1_000_000_000


def tabletop(**changed) -> StandInArm:
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    return StandInArm(urdf, "base_link", "tool0", start=READY, **changed)


def reach(joint: int, by: float, arm: StandInArm, start_ns: int, seconds: float = 1.0) -> JointTrajectory:
    goal = arm.position.copy()
    goal[joint] += by
    message = JointTrajectory(joint_names=list(arm.joints))
    message.header.stamp = messages.time_message(start_ns)
    for at_s, position in ((0.0, arm.position), (seconds, goal)):
        point = JointTrajectoryPoint(positions=position.tolist(), velocities=[0.0] * len(position))
        point.time_from_start = messages.duration_message(round(at_s * S))
        message.points.append(point)
    return message


def test_it_follows_a_trajectory_a_little_late_and_arrives():
    arm = tabletop()
    arm.follow(reach(0, 0.5, arm, 10 * S), 10 * S)
    halfway = None
    for step in range(1, 200):
        arm.update(10 * S + step * S // 100, 0.01)
        halfway = arm.position[0] if step == 50 else halfway
    assert 0.15 < halfway < 0.25  # 0.25 without its lag
    assert arm.position[0] == pytest.approx(0.5, abs=1e-4)


def test_the_links_lead_from_the_base_to_the_tool():
    arm = tabletop()
    above = {child: (parent, pose) for parent, child, pose in [*arm.links.fixed(), *arm.links.moving(arm.positions())]}
    link, base_from_tool = "tool0", np.eye(4)
    while link != "base_link":
        link, pose = above[link]
        base_from_tool = pose @ base_from_tool
    np.testing.assert_allclose(base_from_tool, arm.tool(), atol=1e-9)
    assert {child for _, child, _ in arm.links.fixed()} == {"hand", "tool0"}


def test_it_refuses_what_the_controller_refuses():
    arm = tabletop(gripper_joint="finger_joint1", gripper_in_trajectory=True, gripper_open=0.04)
    assert arm.joints[-1] == "finger_joint1"
    message = reach(0, 0.5, arm, 10 * S)
    message.joint_names = message.joint_names[:-1]
    with pytest.raises(TrajectoryRejectedError, match="this arm has"):
        arm.follow(message, 10 * S)
    with pytest.raises(TrajectoryRejectedError, match=r"ended 1\.000 s ago"):
        arm.follow(reach(0, 0.5, arm, 8 * S), 10 * S)


def shifted(arm: StandInArm, x: float) -> np.ndarray:
    pose = arm.tool()
    pose[0, 3] += x
    return pose


def pass_time(arm: StandInArm, seconds: float, now_ns: int = 10 * S) -> int:
    for _ in range(round(seconds / 0.02)):
        now_ns += S // 50
        arm.update(now_ns, 0.02)
    return now_ns


def test_it_goes_to_a_pose_no_faster_than_its_joints_may_and_stays_there():
    arm = tabletop()
    goal = shifted(arm, 0.15)
    arm.go_to(goal)
    speeds = []
    for _ in range(100):
        pass_time(arm, 0.02)
        speeds.append(np.abs(arm.velocity) / arm.kinematics.velocity_limit)
    assert 0.9 < np.max(speeds) <= 1.0 + 1e-9
    np.testing.assert_allclose(arm.tool(), goal, atol=1e-3)
    with pytest.raises(ValueError, match="no joint values bring tool0"):
        arm.go_to(shifted(arm, 5.0))
    pass_time(arm, 0.5)
    np.testing.assert_allclose(arm.tool(), goal, atol=1e-3)


def test_a_twist_moves_the_tool_until_it_is_too_old():
    arm = tabletop()
    before = arm.tool()
    arm.drive(np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.5]), 10 * S, timeout_s=0.1)
    now_ns = pass_time(arm, 1.0)
    np.testing.assert_allclose(arm.tool()[:3, 3] - before[:3, 3], [0.009, 0.0, 0.0], atol=1.5e-3)
    assert np.arctan2(*(arm.tool()[:3, :3] @ before[:3, :3].T)[[1, 0], 0]) == pytest.approx(0.045, abs=0.01)
    stopped = arm.tool()
    arm.drive(np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0]), now_ns - S, timeout_s=0.1)  # one that comes late, or by
    pass_time(arm, 0.5, now_ns)  # another clock, moves nothing
    np.testing.assert_allclose(arm.tool(), stopped, atol=1e-6)


def test_a_gripper_of_the_trajectory_controller_obeys_its_own_command_under_poses():
    arm = tabletop(gripper_joint="finger_joint1", gripper_in_trajectory=True, gripper_open=0.04)
    arm.go_to(arm.tool())
    arm.move_gripper(0.01)
    pass_time(arm, 1.0)
    assert arm.gripper == pytest.approx(0.01, abs=1e-3)


def test_a_start_that_does_not_fit_is_named():
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    with pytest.raises(ValueError, match="the arm has 7 joints"):
        StandInArm(urdf, "base_link", "tool0", start=np.zeros(6))


def test_a_posture_in_degrees_is_refused(real_data, capsys):
    posture = {"joint_posture": [0.0, -90.0, 90.0, -90.0, -90.0, 0.0]}
    assert main(ros_arguments({"robot": "ur5e", "urdf": str(real_data("robots/ur5e.urdf"))} | posture)) == 2
    assert "outside the joints' limits (radians, or metres): -90 for shoulder_lift_joint" in capsys.readouterr().err


def test_the_camera_sees_the_tool_where_camera_info_says():
    arm = tabletop()
    camera = StandInCamera(np.array([0.15, -0.6, 0.0]), np.array([0.85, 0.6, 0.8]))
    picture = camera.draw(arm.skeleton(), arm.tool())
    assert picture.shape == (480, 640, 3)
    info = CameraInfo(width=640, height=480, distortion_model="plumb_bob")
    info.k = camera.matrix.ravel().tolist()
    seen = project_tool(CameraModel.from_camera_info(info), invert_pose(camera.base_from_optical), arm.tool())
    u, v = (round(x) for x in seen.pixel)
    around = picture[v - 3 : v + 4, u - 3 : u + 4].reshape(-1, 3).astype(int)
    assert (np.ptp(around, axis=1) > 80).any()  # the tool's coloured axes; the table is grey


class Pair(Rig):
    """policy_node with a policy double as policy.launch.py starts it, and the stand-in as its robot."""

    def __init__(self, robot: str, urdf: str) -> None:
        super().__init__()
        self.images = self.infos = self.transforms = self.joints = self.follow = False  # the stand-in's
        self.robot = read_robot(robot)
        self.stand_in = ProcessRig()
        self._robot, self._urdf = robot, urdf
        self.tools: list[np.ndarray] = []

    def create(self) -> None:
        super().create()
        self.states: list[JointState] = []
        self.pictures: list[Image] = []
        self.node.create_subscription(
            JointState, self.robot.arguments["joint_states"], self.states.append, qos_profile_sensor_data
        )
        self.node.create_subscription(Image, "image", self.pictures.append, qos_profile_sensor_data)

    def start_process(self) -> None:
        (command,) = resolve(BRINGUPS["policy"], {"robot": self._robot, "dry_run": "false"})
        code = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]\n"
            "from sqap_vla_ros.nodes.policy.node import main\n"
            "sys.exit(main(worker_factory='policy_doubles:by_instruction'))"
        )
        plain = ["-p", "gripper_output:=forward_command"]  # control_msgs may not be installed
        self.start_python("-c", code, *command.ros_arguments(), *plain)
        arguments = ros_arguments({"robot": self._robot, "urdf": self._urdf})
        self.stand_in.start_python("-m", "sqap_vla_ros.nodes.stand_in.node", *arguments)

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self.stand_in.stop_process(signal.SIGKILL)


def test_a_ur5e_moves_over_dds_as_its_robot_file_says(real_data):
    with Pair("ur5e", str(real_data("robots/ur5e_robotiq.urdf"))) as pair:
        pair.wait(lambda: pair.states and pair.pictures, "the stand-in")
        before = dict(zip(pair.states[-1].name, pair.states[-1].position, strict=True))
        pair.wait_for_state(0, "call ~/enable")
        pair.instruct("move")
        assert pair.enable_when_active().success

        def moved() -> bool:
            now = dict(zip(pair.states[-1].name, pair.states[-1].position, strict=True))
            return max(abs(now[name] - before[name]) for name in before) > 0.03

        pair.wait(moved, "a motion")
        pair.enable(False)
        assert pair.stand_in.stop_process() == 0
        # A hold that is sent again may come too late on a busy computer; nothing else is refused.
        rejected = [line for line in pair.stand_in.log.splitlines() if "rejected" in line]
        assert [line for line in rejected if "the trajectory ended" not in line] == []


class Commanded:
    """The stand-in's node and one that commands it, in this process."""

    def __init__(self, urdf: str) -> None:
        rclpy.init(args=ros_arguments({"robot": "ur5e", "urdf": urdf}))
        self.stand_in, self.node = StandIn(), rclpy.create_node("commander")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.stand_in)
        self.executor.add_node(self.node)

    def __enter__(self) -> "Commanded":
        return self

    def __exit__(self, *details: object) -> None:
        self.executor.shutdown()
        self.stand_in.destroy_node()
        self.node.destroy_node()
        rclpy.shutdown()

    def send_until(self, kind: type, topic: str, fill: Callable, done: Callable[[], bool]) -> None:
        """Send messages, stamped now and filled by `fill`, until `done`."""
        publisher = self.node.create_publisher(kind, topic, 1)
        end_s = time.monotonic() + 30.0
        while not done():
            assert time.monotonic() < end_s, f"nothing moved by {topic}"
            message = kind(header=messages.header(self.node.get_clock().now().nanoseconds, "base_link"))
            fill(message)
            publisher.publish(message)
            for _ in range(3):
                self.executor.spin_once(timeout_sec=0.02)


def test_what_is_given_to_the_stand_in_replaces_what_the_robot_file_says(real_data, capfd):
    given = {
        "robot": "so101", "urdf": str(real_data("robots/so101.urdf")), "gripper_output": "joint_trajectory",
        "gripper_open": 1.5, "joint_posture": [0.1, -0.3, 0.3, 1.2, 0.0], "base_frame": "/base_link",
        "gripper_opne": 1.0,
    }  # fmt: skip
    rclpy.init(args=ros_arguments(given))
    node = StandIn()
    try:
        unknown = [line for line in capfd.readouterr().err.splitlines() if "there is no parameter" in line]
        assert [line.partition("]: ")[2] for line in unknown] == [
            "there is no parameter gripper_opne, did you mean gripper_open?"
        ]
        assert node.arm.joints[-1] == "gripper"  # of the trajectory's controller, and behind no action any more
        assert "/follower/gripper_controller/gripper_cmd/_action/status" not in dict(node.get_topic_names_and_types())
        np.testing.assert_allclose(node.arm.position, [0.1, -0.3, 0.3, 1.2, 0.0, 1.5])
    finally:
        node.destroy_node()
        rclpy.shutdown()


def test_poses_and_twists_come_over_dds_and_only_in_the_base_frame(real_data, capfd):
    # xacro's ur.urdf.xacro has no gripper: its joint is in joint_states all the same.
    with Commanded(str(real_data("robots/ur5e.urdf"))) as pair:
        arm = pair.stand_in.arm
        start = arm.tool()
        assert "the URDF has no movable joint 'robotiq_85_left_knuckle_joint'" in capfd.readouterr().err
        arm.move_gripper(0.5)

        def elsewhere(message: PoseStamped) -> None:
            message.header.frame_id, message.pose = "camera", messages.pose_message(np.eye(4))

        def refused() -> bool:
            return "target_pose rejected: it is in 'camera', and base_frame is 'base_link'" in capfd.readouterr().err

        pair.send_until(PoseStamped, "target_pose", elsewhere, refused)
        np.testing.assert_allclose(arm.tool(), start, atol=1e-6)

        def higher(message: PoseStamped) -> None:
            message.pose = messages.pose_message(start)
            message.pose.position.z += 0.05

        pair.send_until(PoseStamped, "target_pose", higher, lambda: abs(arm.tool()[2, 3] - start[2, 3] - 0.05) < 1e-3)

        def sideways(message: TwistStamped) -> None:
            message.twist.linear.y = 0.1

        pair.send_until(TwistStamped, "delta_twist_cmds", sideways, lambda: arm.tool()[1, 3] > start[1, 3] + 0.02)
        assert arm.positions()["robotiq_85_left_knuckle_joint"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "robot is required"),
        ({"robot": "ur5e"}, "urdf is required"),
        ({"robot": "ur9", "urdf": "x"}, "the robots that ship are"),
        ({"robot": "ur5e", "urdf": "absent.urdf"}, "urdf:=absent.urdf: there is no such file"),
        ({"robot": "ur5e", "urdf": "x", "gripper_output": "magnet"}, "gripper_output must be one of 'forward_command'"),
        ({"robot": "ur5e", "urdf": "x", "gripper_open": "wide"}, "gripper_open"),
    ],
)
def test_what_the_stand_in_lacks_is_named(parameters, text, capsys):
    assert main(ros_arguments(parameters)) == 2
    assert text in capsys.readouterr().err
