"""A thread that spins a node, and the order in which both end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import rclpy
from rclpy.node import Node
from std_msgs.msg import String

from sqap_vla_ros.nodes.spinning import Interruption, SpinThread


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


HANDLED_EVERYWHERE = """
import sys
from sqap_vla_ros.nodes.spinning import Interruption

def handle(frame, event, argument):  # as a signal between any two steps would be
    sys.settrace(None)
    interruption.set()
    sys.settrace(handle)
    return handle

interruption = Interruption.by_signals()
sys.settrace(handle)
interruption.set()
interruption.wait(0.1)
sys.settrace(None)
print("set", interruption.is_set())
"""


def test_a_second_signal_may_come_within_the_first_ones_handler():
    done = subprocess.run([sys.executable, "-c", HANDLED_EVERYWHERE], capture_output=True, text=True, timeout=30)
    assert done.stdout == "set True\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        interruption = Interruption.by_signals()
        begin_s = time.monotonic()
        assert not interruption.wait(0.05)
        assert time.monotonic() - begin_s >= 0.05
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        assert interruption.wait(20.0)
        assert time.monotonic() - begin_s < 10.0
        assert interruption.is_set()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
