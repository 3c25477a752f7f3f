"""The tf2 stand-in: against answers of tf2 itself, against closed forms, and over real topics."""

import json
import math
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from scipy.spatial.transform import Rotation, Slerp

from sqap_vla_ros.nodes.tf import standin_buffer, standin_listener, transform_gate, transform_tree

# Transforms and lookups in the order they were made, with what tf2::BufferCore of tf2 0.39.1 (C++) answered: moving and
# static frames, data out of order, repeated and too old, frames that change their parent, invalid rotations, a clear.
ANSWERS = json.loads(Path(__file__).with_name("tf2_answers.json").read_text())


def transform(parent, child, stamp_ns, pose):
    """pose: x y z qx qy qz qw."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z, q.x, q.y, q.z, q.w = (float(c) for c in pose)
    return message


def moved(x, yaw=0.0):
    return [x, 0.0, 0.0, *Rotation.from_euler("z", yaw).as_quat()]


def pose_of(message):
    t, q = message.transform.translation, message.transform.rotation
    return np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w])


def stamp_ns(message):
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def replay_answers(make_buffer, transform_exception):
    """Every lookup as (expected, got): an exception's name, or (stamp, translation, quaternion)."""
    buffer = make_buffer()
    for step in ANSWERS:
        if "new_buffer" in step:
            buffer = make_buffer()
        elif "clear" in step:
            buffer.clear()
        elif "set" in step:
            put = buffer.set_transform_static if step["static"] else buffer.set_transform
            put(transform(*step["set"], step["stamp_ns"], step["pose"]), "test")
        else:
            try:
                message = buffer.lookup_transform_core(*step["lookup"], Time(nanoseconds=step["stamp_ns"]))
                yield step["answer"], (stamp_ns(message), *pose_of(message))
            except transform_exception as error:
                yield step["answer"], type(error).__name__


def check_answers(pairs):
    compared = 0
    for expected, got in pairs:
        if isinstance(expected, str) or isinstance(got, str):
            assert got == expected
        else:
            assert got[0] == expected["stamp_ns"]
            pose = np.array(expected["pose"])
            np.testing.assert_allclose(got[1], pose[:3], atol=1e-6)
            difference = Rotation.from_quat(got[2]).inv() * Rotation.from_quat(pose[3:])
            assert difference.magnitude() < 1e-6
            compared += 1
    assert compared > 20


@pytest.fixture(autouse=True)
def _quiet():
    rclpy.logging.set_logger_level("tf2_buffer", rclpy.logging.LoggingSeverity.FATAL)


def test_answers_as_tf2_does():
    check_answers(replay_answers(standin_buffer.Buffer, standin_buffer.TransformException))


def test_tf2_where_it_is_installed_answers_the_same():
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros is not installed: the recorded answers stand for it")
    check_answers(replay_answers(tf2_ros.Buffer, tf2_ros.TransformException))


def test_interpolates_linearly_and_along_the_arc():
    buffer = standin_buffer.Buffer()
    rng = np.random.default_rng(3)
    ends = Rotation.random(2, random_state=7)
    positions = rng.uniform(-1, 1, (2, 3))
    for i, ns in enumerate((1_000_000_000, 1_100_000_000)):
        buffer.set_transform(transform("base", "tool", ns, [*positions[i], *ends[i].as_quat()]), "test")
    for ratio in (0.1, 0.5, 0.9):
        time_ns = 1_000_000_000 + round(ratio * 1e8)
        xyz, quat = pose_of(buffer.lookup_transform("base", "tool", Time(nanoseconds=time_ns)))
        np.testing.assert_allclose(xyz, (1 - ratio) * positions[0] + ratio * positions[1], atol=1e-12)
        expected = Slerp([0.0, 1.0], ends)(ratio)
        assert (Rotation.from_quat(quat).inv() * expected).magnitude() < 1e-7


def test_a_chain_through_the_common_ancestor():
    """optical <- camera <- base -> arm -> tool, against matrix products."""
    buffer = standin_buffer.Buffer()
    poses = {}
    for i, (parent, child) in enumerate(
        [("base", "camera"), ("camera", "optical"), ("base", "arm"), ("arm", "tool")], start=1
    ):
        rotation = Rotation.from_euler("xyz", [0.1 * i, -0.3 * i, 0.7 * i])
        put = buffer.set_transform_static if child in ("camera", "optical") else buffer.set_transform
        put(transform(parent, child, 5_000_000_000, [0.1 * i, -0.2, 0.3 * i, *rotation.as_quat()]), "test")
        poses[child] = np.eye(4)
        poses[child][:3, :3], poses[child][:3, 3] = rotation.as_matrix(), [0.1 * i, -0.2, 0.3 * i]
    expected = np.linalg.inv(poses["camera"] @ poses["optical"]) @ poses["arm"] @ poses["tool"]
    xyz, quat = pose_of(buffer.lookup_transform("optical", "tool", Time(seconds=5)))
    np.testing.assert_allclose(xyz, expected[:3, 3], atol=1e-12)
    np.testing.assert_allclose(Rotation.from_quat(quat).as_matrix(), expected[:3, :3], atol=1e-12)


def test_time_zero_is_the_newest_time_known_to_every_link():
    buffer = standin_buffer.Buffer()
    buffer.set_transform_static(transform("base", "camera", 0, moved(1)), "test")
    for ns in (1_000, 2_000, 3_000):
        buffer.set_transform(transform("base", "arm", ns, moved(ns)), "test")
    for ns in (500, 2_500):
        buffer.set_transform(transform("arm", "tool", ns, moved(0)), "test")
    message = buffer.lookup_transform("camera", "tool", Time())
    assert stamp_ns(message) == 2_500
    assert message.transform.translation.x == pytest.approx(2_499)
    assert buffer.get_latest_common_time("camera", "tool").nanoseconds == 2_500


@pytest.mark.parametrize(
    ("target", "source", "at_ns", "exception", "text"),
    [
        (
            "base",
            "hand",
            1_000,
            "LookupException",
            "frame 'hand' does not exist; known frames: base, island, rock, tool",
        ),
        ("base", "", 1_000, "InvalidArgumentException", "must not be empty nor start with '/'"),
        ("/base", "tool", 1_000, "InvalidArgumentException", "'/base'"),
        ("base", "rock", 1_000, "ConnectivityException", "'base' and 'rock' are not part of the same tree"),
        ("base", "tool", 500, "ExtrapolationException", "extrapolation into the past"),
        ("base", "tool", 9_000_000, "ExtrapolationException", "extrapolation into the future: requested time 0.009000"),
    ],
)
def test_failures_say_why(target, source, at_ns, exception, text):
    buffer = standin_buffer.Buffer()
    for ns in (1_000, 2_000):
        buffer.set_transform(transform("base", "tool", ns, moved(1)), "test")
    buffer.set_transform_static(transform("island", "rock", 0, moved(1)), "test")
    with pytest.raises(getattr(standin_buffer, exception), match=re.escape(text)):
        buffer.lookup_transform(target, source, Time(nanoseconds=at_ns))
    possible, why = buffer.can_transform(target, source, Time(nanoseconds=at_ns), return_debug_tuple=True)
    assert not possible
    assert text in why


@pytest.mark.parametrize(
    "bad",
    [
        [math.nan, 0, 0, 0, 0, 0, 1],
        [math.inf, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, math.inf, 1],
        [0, 0, 0, 1e-320, 0, 0, 1e-320],
    ],
)
def test_an_invalid_transform_is_ignored(bad):
    buffer = standin_buffer.Buffer()
    buffer.set_transform(transform("base", "tool", 1_000, moved(1)), "test")
    buffer.set_transform(transform("base", "tool", 2_000, bad), "test")
    assert stamp_ns(buffer.lookup_transform("base", "tool", Time())) == 1_000


def test_a_rotation_whose_square_overflows_is_a_rotation():
    buffer = standin_buffer.Buffer()
    for ns, turned in ((1_000, [0, 0, 0, 1]), (3_000, [0, 0, 0, 1e308])):
        buffer.set_transform(transform("base", "tool", ns, [0, 0, 0, *turned]), "test")
    assert buffer.lookup_transform("base", "tool", Time(nanoseconds=2_000)).transform.rotation.w == 1.0


def test_old_transforms_are_forgotten():
    buffer = standin_buffer.Buffer(cache_time=Duration(seconds=1))
    for i in range(50):
        buffer.set_transform(transform("base", "tool", i * 100_000_000 + 1, moved(i)), "test")
    assert buffer.can_transform("base", "tool", Time(nanoseconds=4_000_000_000))
    with pytest.raises(standin_buffer.ExtrapolationException, match="into the past"):
        buffer.lookup_transform("base", "tool", Time(nanoseconds=3_000_000_000))


def test_a_lookup_waits_for_another_thread():
    buffer = standin_buffer.Buffer()
    late = threading.Timer(0.1, lambda: buffer.set_transform(transform("base", "tool", 1_000, moved(4)), "test"))
    late.start()
    message = buffer.lookup_transform("base", "tool", Time(nanoseconds=1_000), Duration(seconds=10))
    late.join()
    assert message.transform.translation.x == 4.0


def test_a_lookup_gives_up_after_its_timeout():
    buffer = standin_buffer.Buffer()
    begin = time.monotonic()
    assert not buffer.can_transform("base", "tool", Time(), Duration(seconds=0.1))
    assert 0.1 <= time.monotonic() - begin < 5.0


def test_a_future_is_set_by_what_was_missing():
    buffer = standin_buffer.Buffer()
    future = buffer.wait_for_transform_async("base", "tool", Time(nanoseconds=1_500))
    buffer.set_transform(transform("base", "tool", 1_000, moved(0)), "test")
    assert not future.done()
    buffer.set_transform(transform("base", "tool", 2_000, moved(2)), "test")
    assert future.result().transform.translation.x == pytest.approx(1.0)


def test_what_one_frame_keeps_is_bounded_and_the_newest_is_kept(monkeypatch):
    monkeypatch.setattr(transform_tree, "MAX_LINKS", 100)
    tree = transform_tree.TransformTree()
    for number in range(1000):  # stamps that stand
        tree.insert("base", "tool", 1_000, (float(number), 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), static=False)
    assert tree.lookup("base", "tool", 0)[1][0] == 999.0
    for number in range(1000):  # stamps that pour in
        tree.insert("base", "hand", 1_000 + number, (float(number), 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), static=False)
    assert tree.lookup("base", "hand", 0)[1][0] == 999.0
    assert len(tree._frames["tool"].links) == transform_tree.MAX_AT_ONE_STAMP
    assert len(tree._frames["hand"].links) == 100


def test_a_gate_refuses_what_is_from_the_future_and_frames_without_end(monkeypatch):
    monkeypatch.setattr(transform_gate, "FRAMES", 3)
    buffer = standin_buffer.Buffer()
    gate = transform_gate.TransformGate(buffer, lambda: 5_000_000_000)
    gate.set_transform(transform("base", "tool", 60_000_000_000, moved(1)), "test")
    assert gate.problem() == ("the transform from base to tool is stamped 55.0 s in the future: synchronise the clocks")
    gate.set_transform(transform("/base", "/tool", 5_100_000_000, moved(2)), "test")  # ROS 1 wrote the slash
    gate.set_transform_static(transform("base", "camera", 60_000_000_000, moved(3)), "test")
    assert buffer.lookup_transform("camera", "tool", Time()).transform.translation.x == pytest.approx(-1.0)
    for number in range(9):
        gate.set_transform(transform("base", f"person_{number}", 5_000_000_000, moved(1)), "test")
    assert gate.problem() == "the transform from base to person_8 is not kept: there are more than 3 frames"
    assert not buffer.can_transform("base", "person_2", Time())
    gate.set_transform(transform("base", "tool", 5_200_000_000, moved(4)), "test")
    assert buffer.lookup_transform("base", "tool", Time()).transform.translation.x == pytest.approx(4.0)


@pytest.fixture
def ros_context():
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()


def test_over_topics_for_those_who_join_late(ros_context):
    """Broadcasters, then a listener that subscribes only afterwards: static frames are kept for it."""
    talker = rclpy.create_node("talker", context=ros_context)
    static = standin_listener.StaticTransformBroadcaster(talker)
    static.sendTransform(transform("base", "camera", 0, moved(1)))
    static.sendTransform([transform("camera", "optical", 0, moved(2)), transform("base", "camera", 0, moved(3))])
    moving = standin_listener.TransformBroadcaster(talker)
    listener_node = rclpy.create_node("hearer", context=ros_context)
    buffer = standin_buffer.Buffer(node=listener_node)
    listener = standin_listener.TransformListener(buffer, listener_node)
    executor = SingleThreadedExecutor(context=ros_context)
    executor.add_node(listener_node)
    deadline = time.monotonic() + 20
    while not buffer.can_transform("optical", "tool", Time(nanoseconds=1_000)) and time.monotonic() < deadline:
        moving.sendTransform(transform("base", "tool", 1_000, moved(7)))
        executor.spin_once(timeout_sec=0.05)
    message = buffer.lookup_transform("optical", "tool", Time(nanoseconds=1_000))
    assert message.transform.translation.x == pytest.approx(7 - 3 - 2)  # the newer of the two camera poses
    listener.unregister()
    executor.shutdown()
    talker.destroy_node()
    listener_node.destroy_node()


def test_a_thread_of_its_own_may_listen(ros_context):
    node = rclpy.create_node("self_spun", context=ros_context)
    buffer = standin_buffer.Buffer()
    listener = standin_listener.TransformListener(buffer, node, spin_thread=True)
    broadcaster = standin_listener.StaticTransformBroadcaster(node)
    broadcaster.sendTransform(transform("base", "camera", 0, moved(1)))
    assert buffer.can_transform("base", "camera", Time(), Duration(seconds=20))
    listener.unregister()
    node.destroy_node()
