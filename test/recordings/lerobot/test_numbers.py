"""The numbers of a LeRobot dataset: what is wrong in them is said before anything else begins."""

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")

from tiny_datasets.factory import LENGTHS, edit_rows

from sqap_vla_ros import cli
from sqap_vla_ros.evaluation.replay import run as replay_run
from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
from sqap_vla_ros.recordings.lerobot.layout import DatasetError
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (
            "action",
            [0.0, 0.0, np.nan, 0.0, 0.0, 0.0, 1.0],
            "has nan as number 2: .* or read none with --action-key none",
        ),
        ("action", [np.inf] * 7, "has inf as number 0: .* or read none with --action-key none"),
        ("action", [0.0] * 6, "has 6 of them: .* or read none with --action-key none"),
        ("action", None, "has none: .* or read none with --action-key none"),
        ("observation.state", [np.nan] * 8, "has nan as number 0: .* or read none with --state-key none"),
    ],
)
def test_a_number_that_is_none_is_named_with_its_frame(dataset, column, value, said):
    edit_rows(dataset, column, lambda values: values.__setitem__(LENGTHS[0] + 3, value))
    frames = DatasetFrames(dataset, DatasetSpec())
    with pytest.raises(DatasetError, match=rf"{column} must be .*frame 3 of episode 1 \(index 9\) {said}"):
        frames.check()
    key = {"action": "action_key", "observation.state": "state_key"}[column]
    DatasetFrames(dataset, DatasetSpec(**{key: "none"})).check()
    DatasetFrames(dataset, DatasetSpec(episodes=(0,))).check()


def test_a_timestamp_that_is_none_is_named_with_its_frame(dataset):
    edit_rows(dataset, "timestamp", lambda values: values.__setitem__(2, None))
    with pytest.raises(DatasetError, match=r"timestamp of episode 0 must be .* is none in that of frame 2"):
        DatasetFrames(dataset, DatasetSpec()).check()


def test_it_is_said_before_a_policy_is_loaded(dataset, tmp_path, monkeypatch, capsys):
    edit_rows(dataset, "action", lambda values: values.__setitem__(0, [np.nan] * 7))
    monkeypatch.setattr(replay_run, "_Policy", lambda _: pytest.fail("loaded"))
    assert cli.main(["replay", str(dataset), "--recipes", "fp32", "--out", str(tmp_path / "out")]) == 1
    assert "frame 0 of episode 0 (index 0) has nan" in capsys.readouterr().err


def test_calibration_needs_no_numbers(dataset):
    """`compress` has no option that leaves them out."""
    from sqap_vla_ros.commands.compress import _recorded

    edit_rows(dataset, "action", lambda values: values.__setitem__(0, [np.nan] * 7))
    edit_rows(dataset, "observation.state", lambda values: values.__setitem__(0, [np.nan] * 8))
    args = cli.build_parser().parse_args(["compress", "--checkpoint", "c", "--calibration", str(dataset), "--out", "x"])
    assert len(_recorded(args, "dataset", 3)) == 3
