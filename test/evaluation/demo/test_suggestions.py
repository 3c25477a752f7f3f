"""A command that is suggested can be pasted into a shell, whatever its paths are called."""

import re
import shlex

import numpy as np
import pytest

from sqap_vla_ros import cli
from sqap_vla_ros.commands.recordings import record_demo
from sqap_vla_ros.compression import load
from sqap_vla_ros.compression.recipe import RecipeError, load_recipe
from sqap_vla_ros.evaluation.demo.record_lerobot import CAMERA_FILE
from sqap_vla_ros.nodes.bags import store
from sqap_vla_ros.nodes.check.hand_eye import mounts
from sqap_vla_ros.policy.config import MICRO


def parsed(command):
    """What the command line makes of a command that was pasted into a shell."""
    name, *arguments = shlex.split(command)
    assert name == "sqap-vla"
    return cli.build_parser().parse_args(arguments)


@pytest.mark.parametrize("name", ["my set", "it's; here", "plain"])
def test_record_demo(name, tmp_path, monkeypatch, capsys):
    def record(args):
        args.out.mkdir()
        (args.out / CAMERA_FILE).write_text("{}")
        return [True]

    monkeypatch.setitem(record_demo._FORMATS, "lerobot", record)
    out = tmp_path / name
    assert cli.main(["record-demo", str(out), "--format", "lerobot"]) == 0
    args = parsed(re.search(r"try: (.*)", capsys.readouterr().out)[1])
    assert args.bags == [out]
    assert str(args.simulator_camera) == str(out / CAMERA_FILE)


def test_train(tmp_path, monkeypatch, capsys):
    def run_pipeline(out, config, **how):
        out.mkdir(exist_ok=True)
        (out / "stage.safetensors").write_text("weights")
        return out / "stage.safetensors"

    monkeypatch.setattr("sqap_vla_ros.training.pipeline.run_pipeline", run_pipeline)
    assert cli.main(["train", "--out", str(tmp_path / "my policy")]) == 0
    args = parsed(re.search(r"try it: (.*)", capsys.readouterr().out)[1])
    assert args.checkpoint == str(tmp_path / "my policy" / "policy.safetensors")


def test_compress_for_a_recipe_that_needs_calibration(tmp_path):
    checkpoint = tmp_path / "my policy"
    checkpoint.mkdir()
    with pytest.raises(RecipeError) as error:
        load.require_fitting(str(checkpoint), load_recipe("w4a4"), MICRO.replace(name="mine"))
    command = re.search(r"`(sqap-vla compress .*)`", str(error.value))[1].replace("...", "bag")
    assert parsed(command).checkpoint == str(checkpoint)


def test_tools_of_ros(tmp_path):
    bag = tmp_path / "my bag"
    bag.mkdir()
    (bag / "metadata.yaml").write_text("a: [")
    (bag / "one.mcap").write_bytes(b"\x89MCAP0\r\n")
    error = store.unreadable(bag, ValueError("metadata.yaml: yaml"))
    assert shlex.split(re.search(r"`(ros2 bag reindex .*?)`", str(error))[1])[-1] == str(bag)
    assert shlex.split(mounts.publisher_command("my base", "camera", np.eye(4)))[-3] == "my base"
