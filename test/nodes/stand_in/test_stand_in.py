"""The stand-in by itself, and between it and policy_node a motion over DDS."""

import signal

import numpy as np
import pytest
from beside import ProcessRig, ros_arguments
from places import ROOT, SUPPORT
from policy_node_rig import Rig
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.launch.robots import read_robot
from sqap_vla_ros.nodes.launch.table import BRINGUPS, resolve
from sqap_vla_ros.nodes.stand_in.arm import StandInArm
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


def test_a_start_or_a_gripper_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="gripper_joint 'jaw' is no movable joint"):
        tabletop(gripper_joint="jaw")
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    with pytest.raises(ValueError, match="the arm has 7 joints"):
        StandInArm(urdf, "base_link", "tool0", start=np.zeros(6))


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
        self.stand_in.stop_process(signal.SIGKILL)
        super().__exit__(*details)


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


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "robot is required"),
        ({"robot": "ur5e"}, "urdf is required"),
        ({"robot": "ur9", "urdf": "x"}, "the robots that ship are"),
        ({"robot": "ur5e", "urdf": "absent.urdf"}, "urdf:=absent.urdf: there is no such file"),
    ],
)
def test_what_the_stand_in_lacks_is_named(parameters, text, capsys):
    from sqap_vla_ros.nodes.stand_in.node import main

    assert main(ros_arguments(parameters)) == 2
    assert text in capsys.readouterr().err
