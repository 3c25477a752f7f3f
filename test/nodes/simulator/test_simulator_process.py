"""How simulator_node starts and ends."""

import signal

import pytest
import yaml
from simulator_rig import TIMEOUT_S, Rig, S

from sqap_vla_ros.nodes import parameter_table
from sqap_vla_ros.nodes.messages import time_ns
from sqap_vla_ros.nodes.simulator.parameters import HEADING, PARAMETERS
from sqap_vla_ros.resources import share_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_cleanly_with_simulated_time(number):
    with Rig(publish_clock=True, real_time_factor=2.0, image_width=64, image_height=48) as rig:
        rig.wait_until_connected()
        rig.wait(lambda: "/clock" in rig.latest and time_ns(rig.latest["/clock"].clock) > S, "simulated time")
        assert rig.now_ns < 1000 * S  # it counts from zero
        assert any(stamp % 100_000_000 < 8_000_000 for stamp in rig.images)
        assert rig.stop_process(number) == 0
        assert "Traceback" not in rig.log
        assert "OpenGL backend" in rig.log


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"real_time_factor": 2.0}, "real_time_factor must be 1 without publish_clock, got 2"),
        ({"seed": "first"}, "expecting type 'INTEGER'"),
        ({"task": "juggle"}, "task must be one of '', 'pick'"),
        ({"instruction": "make coffee"}, "no task is called 'make coffee'; there are 'pick up the red cube'"),
        ({"image_width": 5000}, "image_width must be at most 1280, got 5000"),
    ],
)
def test_wrong_parameters_are_told(parameters, text):
    with Rig(**parameters) as rig:
        assert rig.process.wait(TIMEOUT_S) == 2
        rig.stop_process()
        assert text in rig.log
        assert "Traceback" not in rig.log


def test_no_opengl_is_told(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    with Rig() as rig:
        assert rig.process.wait(TIMEOUT_S) == 1
        rig.stop_process()
        assert "simulator_node: MUJOCO_GL=off turns rendering off: unset it" in rig.log


def test_the_shipped_file_holds_the_defaults():
    text = share_path("config/simulator.yaml").read_text()
    command = "python -m sqap_vla_ros.nodes.simulator.parameters > config/simulator.yaml"
    assert text == parameter_table.as_yaml(PARAMETERS, HEADING), f"run: {command}"
    shipped = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert shipped == {parameter.name: parameter.default for parameter in PARAMETERS}
