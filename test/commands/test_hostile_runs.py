"""Every command runs with hostile values of each option up to its work: a run or one line, and never a traceback.

The work itself (loading, predicting, training, ROS) is replaced by an error; what judges the options before it is not.
"""

import importlib

import pytest
from bag_factory import write_bag
from command_lines.options import GIVEN, answer, options, parsers
from PIL import Image

from sqap_vla_ros import cli
from sqap_vla_ros.commands.recordings import record_demo
from sqap_vla_ros.nodes.check import main as check
from sqap_vla_ros.nodes.launch import bringup
from sqap_vla_ros.nodes.launch.table import BRINGUPS, resolve

VALUES = ("", "-1", "nan", str(2**70), "/", "a \x1b[31m")
MICRO = {name: ["--checkpoint", "micro"] for name in ("demo", "evaluate", "replay", "predict", "serve")}
WORK = {  # command -> the function that begins its work
    "demo": "sqap_vla_ros.commands.demo.run_demo",
    "evaluate": "sqap_vla_ros.evaluation.closed_loop.run_study.run_units",
    "replay": "sqap_vla_ros.evaluation.replay.jobs.run_jobs",
    "compress": "sqap_vla_ros.compression.load.load_uncompressed",
    "predict": "sqap_vla_ros.compression.load.load_policy",
    "serve": "sqap_vla_ros.commands.serve._serve",
    "train": "sqap_vla_ros.training.pipeline.run_pipeline",
    "inspect-tokens": "sqap_vla_ros.compression.load.load_policy",
    "convert": "sqap_vla_ros.policy.checkpoints.load.load_checkpoint",
    "record-demo": None,
    "check": None,
    "operate": "sqap_vla_ros.nodes.operate.operator.Operator",
    "bops": None,
}


class Reached(ValueError):
    """The work was about to begin."""


def reached(*arguments, **named):
    raise Reached("the work was reached")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to run in, with what the commands read, and nothing that works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (64, 48)).save(tmp_path / "IMAGE", "PNG")
    write_bag(tmp_path / "BAG", frames=1)
    for path in filter(None, WORK.values()):
        module, _, name = path.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), name, reached)
    monkeypatch.setattr(record_demo, "_FORMATS", {"bag": reached, "lerobot": reached})
    monkeypatch.setattr(check, "standing_in", lambda given: reached(resolve(BRINGUPS["policy"], given)))
    return tmp_path


@pytest.mark.parametrize(("command", "option", "count"), list(options()))
def test_any_value_of_any_option_is_judged_before_the_work(command, option, count, place, capsys):
    given = [*MICRO.get(command, []), *GIVEN.get(command, [])]
    given += ["start", "pick up the can"] if command == "operate" else []
    for value in VALUES[1:5]:
        assert answer([command, *given, f"{option}={value}", *[value] * (count - 1)], capsys) in (0, 1, 2)
    assert {path.name for path in place.iterdir()} <= {"IMAGE", "BAG", "cache"}  # nothing is begun


@pytest.mark.parametrize("what", ["status", "start", "disable", "stop", "reset"])
@pytest.mark.parametrize("option", ["--node=", "--once=", "", "--anyway="])
def test_whatever_is_typed_for_operate_is_judged_before_a_node_is_looked_for(what, option, place, capsys):
    for value in VALUES:
        assert answer(["operate", what, f"{option}{value}"], capsys) == 2


@pytest.mark.parametrize("name", BRINGUPS)
def test_whatever_is_typed_for_a_launch_argument_is_taken_or_refused_in_one_line(name, monkeypatch, capsys):
    """`check` takes those of `policy`."""
    monkeypatch.setattr(bringup, "NodeProcesses", lambda kind, given: reached(resolve(kind, given)))
    monkeypatch.setattr(check, "standing_in", lambda given: reached(resolve(BRINGUPS["policy"], given)))
    for argument in BRINGUPS[name].arguments:
        for value in (*VALUES, "\x00", "é", "//", "a//b", "1a", "~", "a/", "{", "{node}"):
            assert bringup.main([name, f"{argument.name}:={value}"]) == 2
            said = capsys.readouterr().err
            assert said.startswith("bringup: ")
            assert said.rstrip("\n").count("\n") <= 12
            if name == "policy" and value == VALUES[-1]:
                assert answer(["check", f"{argument.name}:={value}"], capsys) == 2


def test_every_command_is_driven_up_to_its_work():
    assert {name for name, _ in parsers()} == set(WORK) | {"inspect"}  # which has no options
    assert len(cli.COMMANDS) == len(WORK) + 1
