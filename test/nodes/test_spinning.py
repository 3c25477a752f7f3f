"""A thread that spins a node, and the order in which both end."""

import threading

import rclpy
from rclpy.node import Node
from std_msgs.msg import String

from sqap_vla_ros.nodes.spinning import SpinThread


def test_a_node_is_destroyed_after_the_callback_that_uses_it():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node("busy", context=context)
    publisher = node.create_publisher(String, "words", 1)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def publish() -> None:
        timer.cancel()
        begun.set()
        assert go_on.wait(20.0)
        publisher.publish(String(data="still there"))
        ended.set()

    timer = node.create_timer(0.01, publish)
    spinning = SpinThread(node)
    assert begun.wait(20.0)
    threading.Timer(0.1, go_on.set).start()
    spinning.close()
    assert ended.is_set()
    assert not any(thread.name == "spin" and thread.is_alive() for thread in threading.enumerate())
    context.try_shutdown()


def test_a_context_that_is_shut_down_ends_the_thread():
    context = rclpy.Context()
    rclpy.init(context=context)
    with SpinThread(Node("quiet", context=context)):
        context.try_shutdown()
