"""The Bridge clips become a recording that is replayed like any other."""

import importlib.util
import struct
import sys

import numpy as np
import pytest
from places import ROOT
from scipy.spatial.transform import Rotation

from sqap_vla_ros.evaluation.replay.jobs import ReplayJob, run_job
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.serving.worker import WorkerConfig


@pytest.fixture(scope="module")
def bridge_bag():
    path = ROOT / "benchmarks" / "bridge_bag.py"
    specification = importlib.util.spec_from_file_location("bridge_bag", path)
    module = sys.modules["bridge_bag"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data


def test_an_example_written_by_hand(bridge_bag, tmp_path):
    """By the protobuf encoding's definition: a map of names to one of three lists; 300 is the varint AC 02."""
    numbers = field(3, field(1, b"\x07\xac\x02"))
    floats = field(2, field(1, struct.pack("<2f", 1.5, -2.0)))
    texts = field(1, field(1, b"pick") + field(1, b"place"))
    entries = b"".join(
        field(1, field(1, name) + field(2, value)) for name, value in ((b"n", numbers), (b"f", floats), (b"t", texts))
    )
    example = field(1, entries)
    path = tmp_path / "file"
    path.write_bytes((struct.pack("<Q", len(example)) + b"crc_" + example + b"crc_") * 2)
    first, second = bridge_bag.records(path)
    assert first == second == example
    found = bridge_bag.features(example)
    assert found["t"] == [b"pick", b"place"]
    np.testing.assert_array_equal(found["f"], [1.5, -2.0])
    np.testing.assert_array_equal(found["n"], [7, 300])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="ends within the record at byte"):
        list(bridge_bag.records(path))


def test_clips_are_replayed_without_special_cases(bridge_bag, real_data, tmp_path):
    clips = bridge_bag.read_clips(real_data(str(bridge_bag.FILE)))
    bridge_bag.write_bag(tmp_path / "bag", clips)
    with Bag(tmp_path / "bag") as bag:
        source = BagObservations(bag, ReplaySpec())
        frames = list(source)
    assert (len(clips), len(frames), source.counters.observed) == (25, 250, 250)
    assert source.sources["tool pose"].startswith("/tool_pose")
    for number in (0, 137, 249):
        clip, observation = clips[number // 10], frames[number].observation
        assert observation.image.shape == (64, 64, 3)
        assert observation.instruction == clip.instruction
        state = clip.states[number % 10]
        np.testing.assert_allclose(observation.base_from_tool[:3, 3], state[:3], atol=1e-9)
        rotation = Rotation.from_matrix(observation.base_from_tool[:3, :3])
        assert (rotation.inv() * Rotation.from_euler("xyz", state[3:6])).magnitude() < 1e-6
    worker = WorkerConfig("", factory="replay_doubles:counting", warmup=0)
    job = ReplayJob(tmp_path / "bag", ReplaySpec(), ("fp32",), worker, tmp_path / "out", video=False)
    (summary,) = run_job(job, show=False).summaries
    assert summary["predicted"] == 250
    assert summary["seams"]["seams"] == 25 * 9  # none from one clip to the next
    assert summary["recorded_motion"]["frames"] == 250
    assert summary["ring"]["not_in_view"] == {"the bag has no camera_info": 250}
    assert (tmp_path / "out" / "report.html").exists()
