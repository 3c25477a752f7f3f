"""Clocks that differ, stand or leap are found; a computer that is busy is told from them."""

import dataclasses

import pytest
from planted.robot import arrivals, healthy, joint_states, stamps, values

from sqap_vla_ros.control.arm.tool_monitor import ToolSample
from sqap_vla_ros.nodes.check import processors
from sqap_vla_ros.nodes.check.finding import Level
from sqap_vla_ros.nodes.check.report import Report, examine
from sqap_vla_ros.nodes.check.table import CHECKS

CAMERA = stamps(10.0)
GAP = CAMERA[:9] + CAMERA[14:]


def tool_every(period_s):
    """The tool's transform that comes seldom."""
    pose = healthy().tools[-1][0].pose
    return tuple((ToolSample(pose, a.now_ns), a.now_ns) for a in stamps(1.0 / period_s))


# name -> (part of the text, the snapshot's fields)
FAULTS = {
    "camera's clock ahead": ("in the future", {"arrivals": arrivals(image=stamps(10.0, age_s=-3.0))}),
    "arm's clock behind": ("joint_states is 4.00 s old", {"joint_states": joint_states(stamps(60, age_s=4))}),
    "stamps of zero": (
        "stamped zero",
        {"arrivals": arrivals(image=tuple(dataclasses.replace(a, stamp_ns=0) for a in CAMERA))},
    ),
    "no clock": ("no /clock", {"simulated_time": True, "now_ns": 0}),
    "controller's clock 60 ms ahead": (
        "joint_states is stamped 60 ms in the future",
        {"joint_states": joint_states(stamps(60.0, age_s=-0.06))},
    ),
    "TF at 4 Hz": ("longer than tf_timeout_s = 0.2 s", {"tools": tool_every(0.4)}),
    "clock of the simulation stands": ("/clock stands still", {"simulated_time": True, "passed_s": 0.0}),
    "two simulations": (
        "/gazebo, /player publish /clock",
        {"simulated_time": True, "clock_publishers": ("/gazebo", "/player")},
    ),
}


def found(**fields):
    return [row.finding for row in examine(healthy(**fields), CHECKS) if row.check == "clocks"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_clock_is_found(fault):
    text, fields = FAULTS[fault]
    assert [one.remedy for one in found(**fields) if one.level is Level.FAIL and text in one.text]


@pytest.mark.parametrize(
    "fields",
    [
        {"clock_publishers": ("/gazebo",)},
        {"passed_s": 3.4},
        {"joint_states": joint_states(stamps(60.0, age_s=-0.02))},
        {"joint_states": joint_states(stamps(60.0, age_s=-0.06)), "values": values(output_mode="pose")},
        {"arrivals": arrivals(image=stamps(10.0, age_s=-0.06))},
        {"joint_states": joint_states(stamps(60.0, age_s=0.08))},
    ],
)
def test_what_may_be_wrong_with_a_clock_is_a_warning(fields):
    assert Level.WARNING in {one.level for one in found(**fields)}
    assert Report(examine(healthy(**fields), CHECKS)).go


@pytest.mark.parametrize(
    "changed",
    [
        {"joint_states": joint_states(stamps(60.0, age_s=0.08)), "simulated_time": True},  # in steps of /clock
        {"joint_states": joint_states(stamps(60.0, age_s=0.08)), "paused_s": 0.3},
        {"arrivals": arrivals(image=GAP, camera_info=GAP), "paused_s": 0.3},
        {"arrivals": arrivals(image=GAP, camera_info=GAP), "free": 0.02},
    ],
)
def test_a_computer_that_is_busy_is_named_and_not_the_streams(changed):
    rows = [row.finding for row in examine(healthy(**changed), CHECKS) if row.check in ("clocks", "rates")]
    assert {row.level for row in rows if "this computer is busy" not in row.text} == {Level.OK}
    assert any("this computer is busy" in row.text for row in rows) == (not changed.get("simulated_time", False))


def test_without_a_clock_nothing_else_is_told_about_stamps():
    rows = examine(healthy(simulated_time=True, now_ns=0), CHECKS)
    failed = {row.check for row in rows if row.finding.level is Level.FAIL}
    assert failed & {"transforms", "joint_states"} == set()


def test_processors_are_told_busy_by_their_counters(monkeypatch, tmp_path):
    counters = tmp_path / "stat"
    monkeypatch.setattr(processors, "_COUNTERS", counters)
    counters.write_text("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3 4\n")
    before = processors.ProcessorTime.read()
    counters.write_text("cpu  190 0 100 705 105 0 0 0 0 0\ncpu0 1 2 3 4\n")
    assert processors.ProcessorTime.read().free_since(before) == pytest.approx(0.1)
    counters.unlink()
    assert processors.ProcessorTime.read().free_since(before) == 1.0
