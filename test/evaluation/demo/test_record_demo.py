"""The demonstration bag: the committed one is what the command makes, and it replays."""

import numpy as np
import pytest
from places import TABLETOP_BAG

from sqap_vla_ros import cli
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.messages import chunk_from_message


def messages(path, topic):
    with Bag(path) as bag:
        return [(recorded.time_ns, recorded.message) for recorded in bag.messages([topic])]


def test_the_command_makes_the_committed_bag(tmp_path):
    arguments = ["--episodes", "2", "--seed", "3", "--width", "320", "--height", "240"]
    assert cli.main(["record-demo", str(tmp_path / "again"), *arguments]) == 0
    with Bag(TABLETOP_BAG) as before, Bag(tmp_path / "again") as after:
        assert {t.name: t.count for t in after.topics.values()} == {t.name: t.count for t in before.topics.values()}
    for topic in ("/instruction", "/camera/camera_info"):
        assert messages(tmp_path / "again", topic) == messages(TABLETOP_BAG, topic)
    # MuJoCo's arithmetic may differ in the last bits between processors.
    for (time_a, a), (time_b, b) in zip(
        messages(tmp_path / "again", "/joint_states"), messages(TABLETOP_BAG, "/joint_states"), strict=True
    ):
        assert time_a == time_b
        assert a.name == b.name
        np.testing.assert_allclose(a.position, b.position, atol=1e-4)


def test_two_instructions_are_two_episodes_with_the_gripper_in_view():
    with Bag(TABLETOP_BAG) as bag:
        frames = list(BagObservations(bag, ReplaySpec()))
    assert all(frame.observation is not None for frame in frames)
    assert sum(frame.new_episode for frame in frames) == 2
    assert len({frame.observation.instruction for frame in frames}) == 2
    assert all(frame.observation.image.shape == (240, 320, 3) for frame in frames)
    seen = [frame.observation.gripper_pixel is not None for frame in frames]
    assert np.mean(seen) > 0.9


def test_the_experts_chunks_say_where_the_tool_went():
    """Anchored at the tool's pose, the first action of the expert leads to the next recorded pose."""
    chunks = [chunk_from_message(message) for _, message in messages(TABLETOP_BAG, "/expert/action_chunk")]
    with Bag(TABLETOP_BAG) as bag:
        poses = {frame.stamp_ns: frame.observation.base_from_tool for frame in BagObservations(bag, ReplaySpec())}
    errors = [
        np.linalg.norm(trajectory.poses[0, :3, 3] - poses[int(trajectory.times_ns[0])][:3, 3])
        for _, trajectory in chunks
        if int(trajectory.times_ns[0]) in poses
    ]
    assert len(errors) >= len(chunks) - 2
    assert np.median(errors) < 0.01  # the arm follows with a little lag


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--episodes", "0"], "at least 1"), (["--family", "juggle"], "invalid choice: 'juggle'")],
)
def test_bad_options(tmp_path, capsys, arguments, message):
    assert cli.main(["record-demo", str(tmp_path / "bag"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bag").exists()


def test_nothing_is_overwritten(capsys):
    assert cli.main(["record-demo", str(TABLETOP_BAG)]) == 2
    assert "holds a recording" in capsys.readouterr().err
