"""`bag_player` by itself, without a policy node."""

import signal
import subprocess
import sys

import pytest
from bag_factory import write_bag
from listener import Listener, wait
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from sqap_vla_ros.nodes.bags.writer import BagWriter

pytestmark = pytest.mark.ros


def play(bag, **parameters):
    command = [sys.executable, "-m", "sqap_vla_ros.nodes.bags.player", "--ros-args", "-p", f"bag:={bag}"]
    for name, value in {"policy_node": "''", "wait_s": 0.1, "tail_s": 0.0, **parameters}.items():
        command += ["-p", f"{name}:={value}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_instruction_is_given_to_recordings_without_one(tmp_path):
    bag = write_bag(tmp_path / "bag", instruction=None)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    with Listener() as listener:
        heard = listener.collect(String, "instruction", latched)
        process = play(bag, instruction="open the drawer", wait_s=3.0)
        assert wait(lambda: heard, 30.0)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert [message.data for message in heard] == ["open the drawer"]


@pytest.mark.parametrize("name", ["nothing", "broken"])
def test_a_bag_that_cannot_be_read_is_one_sentence(tmp_path, name):
    (tmp_path / "broken").mkdir()
    process = play(tmp_path / name)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("bag_player: error: ") == 1
    assert "Traceback" not in errors


def test_a_recording_that_cannot_be_written_is_one_sentence(tmp_path):
    """Nothing can be made in /proc, on whatever disk the test runs and as whatever user."""
    process = play(write_bag(tmp_path / "bag", frames=3), policy_node="nobody", record="/proc/answers")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("bag_player: error: /proc/answers") == 1
    assert "Traceback" not in errors


def test_a_bag_without_messages_is_refused(tmp_path):
    with BagWriter(tmp_path / "empty"):
        pass
    process = play(tmp_path / "empty")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "empty has no messages to play" in errors


@pytest.mark.parametrize(
    ("number", "doing"),
    [(signal.SIGINT, {"tail_s": 600.0}), (signal.SIGTERM, {"policy_node": "nobody", "wait_s": 600.0})],
    ids=["playing", "waiting"],
)
def test_a_signal_ends_it_quietly_with_status_0(tmp_path, number, doing):
    bag = write_bag(tmp_path / "bag", frames=3)
    with Listener() as listener:
        clock = listener.collect(Clock, "/clock")
        process = play(bag, **doing)
        assert wait(lambda: len(clock) > 30, 30.0)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
