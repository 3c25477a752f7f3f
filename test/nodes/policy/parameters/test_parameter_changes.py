"""Parameters changed while the node runs: each takes effect or is refused by name, and a set changes whole or not."""

from types import SimpleNamespace

import pytest
import rclpy
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node
from rclpy.parameter import Parameter

from sqap_vla_ros.nodes.policy import configuration, parameters
from sqap_vla_ros.nodes.policy.node import PolicyNode


class Loop:
    """The control loop of a configured node, as far as parameters reach it."""

    def __init__(self, enabled):
        self.executive = SimpleNamespace(enabled=enabled)
        self.dry_run = []

    def set_dry_run(self, value):
        self.dry_run.append(value)


@pytest.fixture(scope="module")
def process():
    rclpy.init()
    node = PolicyNode()
    yield node
    node.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def node(process):
    process._loop = None
    process.set_parameters([Parameter(name, value=value) for name, value in parameters.defaults().items()])
    yield process
    process._loop = None


def another(row):
    """A valid value that is not the default."""
    if isinstance(row.default, bool):
        return not row.default
    if isinstance(row.default, str):
        return next(text for text in (*row.choices, row.default + "x") if text not in ("", row.default))
    if isinstance(row.default, list):
        return [number + 0.01 for number in row.default]
    steps = (1, -1) if isinstance(row.default, int) else (0.01, -0.01)
    return next(row.default + step for step in steps if row.problem(row.default + step) is None)


CHANGES = {row.name: another(row) for row in parameters.PARAMETERS}


def test_before_configure_every_change_is_what_configure_reads(node):
    for name, value in CHANGES.items():
        (result,) = node.set_parameters([Parameter(name, value=value)])
        assert result.successful, f"{name}: {result.reason}"
    read = {name: node.get_parameter(name).value for name in CHANGES}
    assert {name: list(v) if isinstance(CHANGES[name], list) else v for name, v in read.items()} == CHANGES


@pytest.mark.parametrize("enabled", [False, True])
def test_once_configured_every_change_takes_effect_or_is_refused_by_name(node, enabled):
    node._loop = loop = Loop(enabled)
    before = configuration.read(node)
    for name, value in CHANGES.items():
        (result,) = node.set_parameters([Parameter(name, value=value)])
        taken = name in parameters.RUNTIME and not enabled
        assert result.successful == taken, name
        assert taken or result.reason.startswith(f"{name} "), result.reason
    assert loop.dry_run == ([] if enabled else [CHANGES["dry_run"]])
    assert configuration.read(node) == before | ({} if enabled else {"dry_run": CHANGES["dry_run"]})


def test_a_set_with_one_refused_change_changes_nothing(node):
    node._loop = loop = Loop(enabled=False)
    before = configuration.read(node)
    for name in ("gripper_answer_scale", "orientation_residual_rad", "joint_posture", "speed_scale"):
        result = node.set_parameters_atomically(
            [Parameter("dry_run", value=CHANGES["dry_run"]), Parameter(name, value=CHANGES[name])]
        )
        assert not result.successful
        assert name in result.reason
    assert loop.dry_run == []
    assert configuration.read(node) == before


def test_no_parameter_can_be_deleted(node):
    node._loop = Loop(enabled=False)
    before = configuration.read(node)
    for name in CHANGES:
        (result,) = node.set_parameters([Parameter(name)])
        assert not result.successful, name
    assert configuration.read(node) == before


def test_a_parameter_that_there_is_not_is_named(node):
    result = node.set_parameters_atomically([Parameter("speed_scal", value=0.1)])
    assert (result.successful, result.reason) == (False, "there is no parameter speed_scal, did you mean speed_scale?")
    assert node.set_parameters_atomically([Parameter("use_sim_time", value=False)]).successful


def test_a_misspelt_parameter_at_start_is_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(RcutilsLogger, "warning", lambda _logger, text, **_: said.append(text))
    context = rclpy.Context()
    given = ["speed_scal:=0.1", "use_sim_time:=false", "qos_overrides./tf.subscription.depth:=5", "threads:=2"]
    rclpy.init(args=["--ros-args", *(word for text in given for word in ("-p", text))], context=context)
    node = Node("policy_node", context=context)
    configuration.declare(node)
    node.destroy_node()
    context.try_shutdown()
    assert said == ["there is no parameter speed_scal, did you mean speed_scale?"]
