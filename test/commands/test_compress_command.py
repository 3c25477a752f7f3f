import json
from pathlib import Path

import numpy as np
from places import TABLETOP_BAG

from sqap_vla_ros.cli import main
from sqap_vla_ros.compression.files.storage import CompressedFile
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec


def compress(out: Path, *arguments: str) -> int:
    return main(["compress", "--checkpoint", "micro", "--recipe", "w4a4", "--out", str(out), *arguments])


def test_calibration_from_a_recording(tmp_path):
    out, report = tmp_path / "policy.safetensors", tmp_path / "report"
    assert compress(out, "--calibration", str(TABLETOP_BAG), "--observations", "3", "--report", str(report)) == 0
    summary = CompressedFile(out).header.calibration
    assert summary["source"] == str(TABLETOP_BAG)
    assert summary["observations"] == 3
    assert json.loads((report / "report.json").read_text())["held_out"]["observations"] >= 3
    # what was recorded is what was looked at: other pictures calibrate otherwise
    other = tmp_path / "other.safetensors"
    assert compress(other, "--calibration", "synthetic:3") == 0
    assert CompressedFile(other).header.calibration["digest"] != summary["digest"]
    with Bag(TABLETOP_BAG) as bag:
        frames = [frame.observation for frame in BagObservations(bag, ReplaySpec(stride=20))]
    observation = next(found for found in frames if found is not None)
    exact = load_policy("micro").predict(observation).normalized
    errors = [np.square(load_policy(str(p)).predict(observation).normalized - exact).mean() for p in (out, other)]
    assert all(0 < error < np.square(exact).mean() for error in errors)


def test_a_recording_without_pictures_is_explained(tmp_path, capsys):
    from rosbags.rosbag2 import Writer

    bag = tmp_path / "empty"
    with Writer(bag, version=9):
        pass
    assert compress(tmp_path / "policy.safetensors", "--calibration", str(bag)) == 2
    assert "has no topic of type sensor_msgs/msg/Image" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors*"))
