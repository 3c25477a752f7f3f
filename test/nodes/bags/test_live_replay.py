"""The live node on a played recording gives what the offline replay gives."""

import subprocess
import sys

import numpy as np
import pytest
from places import TABLETOP_BAG

from sqap_vla_ros.evaluation.replay.run import replay_recipe
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.messages import chunk_from_message, selection_from_message, time_ns
from sqap_vla_ros.serving.worker import WorkerConfig


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the node published, as `bringup replay` (or replay.launch.py) records it."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "policy.yaml").write_text(
        "/**:\n  ros__parameters:\n    threads: 1\n    image_max_age_s: 2.0\n    image_timeout_s: 5.0\n"
    )
    command = [sys.executable, "-m", "sqap_vla_ros.nodes.launch.bringup", "replay", f"bag:={TABLETOP_BAG}", "rate:=1.0"]
    command += [f"record:={folder / 'answers'}", f"params_file:={folder / 'policy.yaml'}", "recipe:=sqap_pruning"]
    command += ["image:=/camera/image_raw", "camera_info:=/camera/camera_info", "image_transport:=compressed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "answers"


def test_live_and_offline_agree(answers, tmp_path):
    with Bag(answers) as bag:
        (action_topic,) = (name for name in bag.topics if name.endswith("/action_chunk"))
        (token_topic,) = (name for name in bag.topics if name.endswith("/token_selection"))
        chunks = {time_ns(m.message.header.stamp): m.message for m in bag.messages([action_topic])}
        tokens = {time_ns(m.message.header.stamp): m.message for m in bag.messages([token_topic])}
    run = replay_recipe(
        TABLETOP_BAG, ReplaySpec(), WorkerConfig("micro", "sqap_pruning", threads=1), tmp_path, show=False
    )
    offline = {record.stamp_ns: record for record in run.records}
    # The newest image wins, so on a slow machine not every one is predicted; those that are must agree.
    assert len(chunks) >= 5
    assert set(chunks) <= set(offline)
    assert len({message.instruction for message in chunks.values()}) == 2  # both episodes
    for stamp_ns, message in chunks.items():
        chunk, trajectory = chunk_from_message(message)
        record = offline[stamp_ns]
        assert message.instruction == record.instruction
        np.testing.assert_allclose(chunk.deltas, record.deltas, atol=1e-6)
        np.testing.assert_allclose(trajectory.anchor, record.pose, atol=1e-6)
        np.testing.assert_array_equal(selection_from_message(tokens[stamp_ns]).indices, record.selection.indices)
