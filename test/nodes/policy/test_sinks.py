"""What twist mode adds to the velocity, and that joint mode sends nothing faster than the joints may go."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy import parameters
from sqap_vla_ros.nodes.policy.commander import Commander
from sqap_vla_ros.nodes.policy.grippers.forward_command import ForwardCommand
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.nodes.policy.sinks.joint import JointSink
from sqap_vla_ros.nodes.policy.sinks.sink import HoldOrder, Measured, SinkParts
from sqap_vla_ros.nodes.policy.sinks.table import SINKS
from sqap_vla_ros.nodes.policy.sinks.twist import TWIST_CORRECTION_LIMITS, TWIST_GAIN_HZ, tracking_twist
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.holding import Evidence, HoldReason
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

LATEST_NS = 100 * NS_PER_S


class Publisher:
    def __init__(self):
        self.sent = []

    def publish(self, message):
        self.sent.append(message)

    def wait_for_all_acked(self, _):
        return False


def joint_sink(**limits: object) -> tuple[JointSink, ArmKinematics, Publisher]:
    arm = ArmKinematics.from_urdf(share_path("config/robots/tabletop_arm.urdf").read_text(), "base_link", "tool0")
    publisher = Publisher()
    node = SimpleNamespace(create_lifecycle_publisher=lambda *_: publisher)
    return (
        JointSink(node, SinkParts(SimpleNamespace(kinematics=arm), SafetyLimits(**limits), "base_link")),
        arm,
        publisher,
    )


def pose(xyz=(0.0, 0.0, 0.0), rotvec=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    matrix[:3, 3] = xyz
    return matrix


@pytest.mark.parametrize("sink", SINKS.values(), ids=SINKS)
def test_every_output_states_what_is_different_for_each(sink):
    assert isinstance(sink.KEEPS_POSE, bool)
    assert sink.SUMMARY.endswith(".")


def test_the_gripper_is_the_one_that_the_parameter_names(monkeypatch):
    class Magnet(ForwardCommand):
        """Another gripper."""

    monkeypatch.setitem(GRIPPER_SINKS, "magnet", Magnet)
    node = SimpleNamespace(get_logger=lambda: None, create_lifecycle_publisher=lambda kind, topic, qos: topic)
    values = parameters.defaults() | {"output_mode": "pose"}

    def gripper(**changes):
        return Commander(node, values | changes, SimpleNamespace(arm=None), lambda: 0)._gripper

    assert type(gripper()) is ForwardCommand
    assert type(gripper(gripper_output="magnet")) is Magnet


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


@pytest.mark.parametrize(("off", "refused"), [(0.05, False), (0.15, True), (1.0, True)])
def test_a_trajectory_that_starts_away_from_the_measured_joints_is_not_sent(off, refused):
    """The tool is where TF has it, but a redundant arm may stand there with other joints than joint_states say."""
    sink, arm, publisher = joint_sink()
    q = np.array([0.0, -0.35, 0.0, -2.3, 0.0, 2.0, 0.785])
    wanted = anchor_chunk(np.tile([0.005, 0, 0, 0, 0, 0, 1.0], (8, 1)), arm.forward(q), 0, 0.2)
    measured = q + off * np.eye(7)[6]  # the last joint turns the tool about its axis
    if refused:
        with pytest.raises(KinematicsError, match=r"starts with joint7 at 0\.\d\d, but joint_states have it at"):
            sink.start(wanted, Measured(wanted.anchor, measured), LATEST_NS)
        assert publisher.sent == []
    else:
        sink.start(wanted, Measured(wanted.anchor, measured), LATEST_NS)
        assert len(publisher.sent) == 1


def test_what_is_slowed_down_for_the_joints_is_judged_again():
    sink, arm, publisher = joint_sink(max_joint_velocity=np.inf, joint_margin=0.0, workspace_min_m=(-1.0, -1.0, 0.0))
    rng = np.random.default_rng(0)
    slowed = refused = 0
    for _ in range(120):  # near a singular wrist, where joints go fast
        q = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 0.0, 0.8]) + rng.uniform(-0.3, 0.3, 7)
        q[5] = rng.uniform(0.0, 0.35)
        deltas = np.concatenate([rng.uniform(-0.015, 0.015, 3), rng.uniform(-0.1, 0.1, 3), [1.0]])
        wanted = anchor_chunk(np.tile(deltas, (8, 1)), arm.forward(q), 0, 0.2)
        sink.forget()  # each begins at rest: what is under way would be left at its speed
        try:
            slowed += sink.start(wanted, Measured(wanted.anchor, q), LATEST_NS).end_ns > wanted.end_ns
        except KinematicsError:
            refused += 1
            continue
        points = publisher.sent.pop().points
        times_s = np.array([p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in points])
        np.testing.assert_allclose(points[0].positions, q, atol=2e-2)  # the tolerance of the inverse kinematics
        assert not any(points[0].velocities)
        cubic = CubicHermiteSpline(times_s, [p.positions for p in points], [p.velocities for p in points])
        fine_s = np.linspace(0.0, times_s[-1], 2000)
        assert (np.abs(cubic(fine_s, 1)) <= arm.velocity_limit * (1 + 1e-5)).all()
        assert (np.abs(cubic(fine_s, 2)) <= SafetyLimits().max_joint_acceleration * (1 + 1e-5)).all()
    assert slowed >= 5
    assert refused < 40
    assert not publisher.sent


@pytest.mark.parametrize(
    ("max_start_rad", "behind_rad", "starts"), [(0.8, 0.5, True), (0.8, 0.7, False), (1.2, 0.7, True)]
)
def test_a_joint_may_be_left_behind_as_far_as_the_tool_may(max_start_rad, behind_rad, starts):
    """A wrist that is held by a drawer's handle in motion: what follows leaves from the command, or none ever would."""
    sink, arm, publisher = joint_sink(max_start_rad=max_start_rad)
    q = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
    first = anchor_chunk(np.zeros((4, 7)), arm.forward(q), 0, 0.2)
    sink.start(first, Measured(first.anchor, q), LATEST_NS)
    held_back = q - behind_rad * np.eye(7)[6]
    following = anchor_chunk(np.zeros((4, 7)), arm.forward(q), NS_PER_S * 2 // 5, 0.2)
    measured = Measured(arm.forward(held_back), held_back)
    assert not sink.left_rest(following.anchor_ns, measured)
    assert sink.left_rest(NS_PER_S, measured)
    if starts:
        sink.start(following, measured, LATEST_NS)
        np.testing.assert_allclose(publisher.sent[-1].points[0].positions, q, atol=2e-2)
    else:
        with pytest.raises(KinematicsError, match=r"starts with joint7 at 0.80, but joint_states have it at 0.10"):
            sink.start(following, measured, LATEST_NS)


@pytest.mark.parametrize(("moved_rad", "sent"), [(0.05, True), (0.3, False)])
def test_a_hold_does_not_fetch_back_an_arm_that_was_moved_while_it_rested(moved_rad, sent):
    sink, arm, publisher = joint_sink()
    q = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
    sink.start(anchor_chunk(np.zeros((4, 7)), arm.forward(q), 0, 0.2), Measured(arm.forward(q), q), LATEST_NS)
    before = len(publisher.sent)
    moved = q + moved_rad * np.eye(7)[6]
    measured = Measured(arm.forward(moved), moved)
    sink.hold(HoldOrder(2 * NS_PER_S, 2 * NS_PER_S, Evidence.UNCONFIRMED, HoldReason.ORDER, measured))
    assert (len(publisher.sent) > before) == sent


def test_a_hold_is_not_past_when_it_arrives_late():
    """Controllers refuse a trajectory whose end is past, and go on with the one before."""
    sink, arm, publisher = joint_sink()
    q = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
    slow = np.tile([0.0, 0.0005, 0.0, 0.0, 0.0, 0.0, 0.0], (8, 1))
    sink.start(anchor_chunk(slow, arm.forward(q), 0, 0.2), Measured(arm.forward(q), q), LATEST_NS)
    now_ns = NS_PER_S // 2
    sink.hold(HoldOrder(now_ns, now_ns, Evidence.NONE, HoldReason.ORDER, Measured(arm.forward(q), q)))
    points = publisher.sent[-1].points
    assert messages.time_ns(points[-1].time_from_start) > NS_PER_S
    assert list(points[-1].positions) == list(points[-2].positions)
    assert not any(points[-1].velocities)
    sink.tick(now_ns + NS_PER_S // 2, None)  # said again, since nobody acknowledged it
    assert messages.time_ns(publisher.sent[-1].points[-1].time_from_start) > NS_PER_S


def test_from_rest_the_joints_start_where_they_are_measured():
    sink, arm, _ = joint_sink()
    q = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
    elsewhere = anchor_chunk(np.zeros((4, 7)), arm.forward(q + 0.5 * np.eye(7)[0]), 0, 0.2)
    with pytest.raises(KinematicsError, match="joint_states have it at"):
        sink.start(elsewhere, Measured(elsewhere.anchor, q), LATEST_NS)
