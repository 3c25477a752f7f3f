"""Which poses of the tool are believed."""

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.tool_monitor import ToolMonitor, ToolMonitorConfig, ToolSample


def at(seconds: float) -> int:
    return round((1000.0 + seconds) * NS_PER_S)


def sample(x: float, seconds: float, z: float = 0.3) -> ToolSample:
    pose = np.eye(4)
    pose[:3, 3] = x, 0.0, z
    return ToolSample(pose, at(seconds))


def moving(monitor: ToolMonitor, begin_s: float, count: int, x: float = 0.4) -> None:
    for step in range(count):
        assert monitor.update(sample(x + 0.004 * step, begin_s + 0.02 * step))


def test_a_moving_tool_is_believed_and_repetitions_are_nothing_new():
    monitor = ToolMonitor(ToolMonitorConfig())
    assert monitor.newest is None
    moving(monitor, 1.0, 20)
    assert monitor.problem(at(1.4)) is None
    assert not monitor.update(sample(0.4, 1.38))
    assert not monitor.update(sample(0.4, 1.1))


def test_one_wrong_sample_is_not_believed():
    monitor = ToolMonitor(ToolMonitorConfig())
    moving(monitor, 1.0, 20)
    before = monitor.newest
    assert not monitor.update(sample(0.48, 1.4, z=-0.05))
    assert monitor.newest is before
    assert monitor.problem(at(1.4)) is None
    assert monitor.update(sample(0.484, 1.42))
    assert monitor.contradiction(sample(0.48, 1.4, z=-0.05)).startswith("the tool's transform at the image's stamp")
    assert monitor.contradiction(sample(0.48, 1.4)) is None


def test_two_publishers_are_named():
    monitor = ToolMonitor(ToolMonitorConfig())
    for step in range(20):
        monitor.update(sample(0.4 if step % 2 else 0.9, 1.0 + 0.02 * step))
    assert "second publisher" in monitor.problem(at(1.4))


def test_a_tool_that_was_moved_is_believed_after_several_samples():
    monitor = ToolMonitor(ToolMonitorConfig())
    moving(monitor, 1.0, 5)
    for step in range(4):
        assert not monitor.update(sample(0.7, 1.1 + 0.02 * step))
    assert monitor.update(sample(0.7, 1.18))
    assert monitor.newest.pose[0, 3] == 0.7


def test_stamps_that_stand_or_lie_in_the_future_are_named():
    monitor = ToolMonitor(ToolMonitorConfig(max_age_s=0.5))
    moving(monitor, 1.0, 5)
    for _ in range(50):
        monitor.update(sample(0.5, 1.08))  # comes on and on, with one stamp
    assert "stale: stamped 0.9 s ago (limit 0.5 s)" in monitor.problem(at(2.0))
    assert "in the future" in monitor.problem(at(0.5))


def test_a_static_tool_never_becomes_stale():
    monitor = ToolMonitor(ToolMonitorConfig())
    monitor.update(ToolSample(np.eye(4), 0))
    monitor.update(ToolSample(np.eye(4), 0))
    assert monitor.problem(at(100.0)) is None
