"""The small watchers: the clock, the thread that stands still, the arm against its command, descriptions aside."""

import threading
import time

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.arm_watch import CONFIRMATIONS, CONTRADICTIONS, ArmWatch
from sqap_vla_ros.control.clock_monitor import ClockMonitor, read_clocks
from sqap_vla_ros.control.description import MAX_CHARS, DescriptionReader
from sqap_vla_ros.control.watchdog import Watchdog
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.holding import ArmSample, Evidence
from sqap_vla_ros.robot.kinematics import ArmKinematics


def test_simulated_time_that_never_came_or_stands_still_is_named():
    clock = ClockMonitor(simulated=True)
    assert "no /clock was received" in clock.problem(0, 10.0)
    assert clock.problem(NS_PER_S, 11.0) is None
    assert "stood still for 3.0 s" in clock.problem(NS_PER_S, 14.0)
    assert clock.problem(NS_PER_S + 1, 15.0) is None
    assert ClockMonitor(simulated=False).problem(0, 10.0) is None


@pytest.mark.parametrize("step_s", [0.06, -0.06, 0.2, -0.2])
def test_a_system_clock_that_is_set_by_little_is_a_jump(step_s):
    """As ntpd does from 0.128 s on; a stream of commands would leap by what the arm moves in that time."""
    clock = ClockMonitor(simulated=False)
    assert clock.jump(1_000 * NS_PER_S, 10.0) is None
    assert clock.jump(1_000 * NS_PER_S + 20_000_000, 10.02) is None
    jumped = clock.jump(1_000 * NS_PER_S + 40_000_000 + round(step_s * NS_PER_S), 10.04)
    assert f"jumped by {step_s:+.2f} s" in jumped


def test_clocks_are_read_again_where_the_thread_was_interrupted_between_them(monkeypatch):
    ticks = iter([10.0, 10.3, 11.0, 11.0001])
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    times_ns = iter([500, 600])
    assert read_clocks(lambda: next(times_ns)) == (600, 11.0)


def test_a_system_clock_that_is_set_is_a_jump_and_a_pause_of_the_process_is_none():
    clock = ClockMonitor(simulated=False)
    assert clock.jump(1_000 * NS_PER_S, 10.0) is None
    assert clock.jump(1_005 * NS_PER_S, 15.0) is None
    assert "jumped by +3.00 s" in clock.jump(1_009 * NS_PER_S, 16.0)
    assert "jumped by -9.00 s" in clock.jump(1_001 * NS_PER_S, 17.0)
    assert clock.jump(1_002 * NS_PER_S, 18.0) is None


def test_the_watchdog_acts_only_while_its_owner_is_armed_and_stands_still():
    acted = threading.Semaphore(0)
    watchdog = Watchdog(0.1, lambda due: acted.release(), 0.02)
    for _ in range(10):
        assert watchdog.feed(armed=True) is None
        time.sleep(0.02)
    assert acted.acquire(timeout=2.0)  # nobody feeds it now
    assert acted.acquire(timeout=2.0)  # and it goes on
    stalled_s = watchdog.feed(armed=False)
    assert stalled_s is not None
    assert stalled_s > 0.1
    watchdog.close()
    while acted.acquire(blocking=False):
        pass
    idle = Watchdog(0.05, lambda due: acted.release(), 0.02)
    idle.feed(armed=False)
    assert not acted.acquire(timeout=0.3)
    idle.close()


def pose(x: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


def test_one_sample_never_says_that_the_arm_is_astray():
    watch = ArmWatch(0.1, 0.6)
    told = pose(0.4)
    found = []
    for step in range(20):
        x = 0.75 if step == 5 or step > 12 else 0.4
        sample = ArmSample(step * 20_000_000, pose(x), None, told)
        found.append(watch.note(sample, "astray" if x > 0.5 else None))
    assert CONFIRMATIONS == 6
    assert found == [None] * 18 + ["astray"] * 2
    assert watch.note(sample, "astray") is None  # the same sample again proves nothing


def test_joints_and_tf_that_contradict_each_other_are_named_and_prove_nothing():
    watch = ArmWatch(0.1, 0.6)
    for step in range(CONTRADICTIONS):
        assert watch.contradiction is None
        watch.note(ArmSample(step * 20_000_000, pose(0.7), pose(0.4), pose(0.4)), "astray")
    assert "300 mm" in watch.contradiction
    assert watch.evidence(CONTRADICTIONS * 20_000_000) is Evidence.UNCONFIRMED
    watch.forget()
    assert watch.contradiction is None


@pytest.mark.parametrize(
    ("apart_m", "speed_m_s", "named"),
    [(0.015, 0.0, False), (0.025, 0.0, True), (0.025, 0.2, False), (0.04, 0.02, True), (0.055, 0.4, True)],
)
def test_joints_and_tf_may_differ_by_a_calibration_and_by_what_a_stamp_may_be_wrong(apart_m, speed_m_s, named):
    watch = ArmWatch(0.1, 0.6)
    for step in range(20):
        x = 0.4 + speed_m_s * 0.02 * step
        watch.note(ArmSample(step * 20_000_000, pose(x), pose(x + apart_m), pose(x)), None)
    assert (watch.contradiction is not None) == named


def test_descriptions_are_read_aside_the_newest_one_and_each_once():
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    read = threading.Event()
    reader = DescriptionReader("base_link", "tool0", read.set)

    def outcome():
        assert read.wait(20.0)
        read.clear()
        return reader.take()

    assert reader.submit(urdf)
    assert isinstance(outcome(), ArmKinematics)
    assert not reader.submit(urdf)
    assert reader.take() is None
    assert reader.submit("<robot")
    assert "no usable URDF" in outcome()
    assert reader.submit("x" * (MAX_CHARS + 1))
    assert "the limit is" in outcome()


def test_of_a_large_description_only_the_arm_is_read_and_no_thread_stands_still():
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    more = "".join(
        f'<link name="l{i}"/><joint name="j{i}" type="fixed"><parent link="base_link"/><child link="l{i}"/></joint>'
        for i in range(20_000)
    )
    read = threading.Event()
    reader = DescriptionReader("base_link", "tool0", read.set)
    reader.submit(urdf.replace("</robot>", f"{more}</robot>"))
    longest_s, last_s = 0.0, time.monotonic()
    while not read.wait(0.002):
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
    arm, whole = reader.take(), ArmKinematics.from_urdf(urdf, "base_link", "tool0")
    assert isinstance(arm, ArmKinematics)
    assert arm.joint_names == whole.joint_names
    q = np.array([0.1, -0.5, 0.0, -2.2, 0.0, 0.3, 0.8])
    np.testing.assert_allclose(arm.forward(q), whole.forward(q), atol=1e-12)
    np.testing.assert_array_equal(arm.velocity_limit, whole.velocity_limit)
    assert longest_s < 1.0  # a tenth of it on an idle computer


def test_what_the_watchdog_does_may_ask_whether_its_owner_still_stands_still():
    """It may wait for a lock that the owner holds, and get it when the owner has gone on."""
    asked, answers = threading.Event(), []
    went_on = threading.Event()

    def act(due):
        answers.append(due())
        asked.set()
        went_on.wait(2.0)
        answers.append(due())

    watchdog = Watchdog(0.1, act, 0.02)
    watchdog.feed(armed=True)
    assert asked.wait(2.0)
    assert watchdog.feed(armed=True) > 0.1
    went_on.set()
    watchdog.close()
    assert answers[:2] == [True, False]
