"""The times of a LeRobot dataset's rows: their rate is that of the description, and gaps are no fault."""

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")

from tiny_datasets.factory import FPS, LENGTHS, SIDE, edit_info, edit_rows

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.recordings.lerobot import dataset as lerobot_dataset
from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
from sqap_vla_ros.recordings.lerobot.layout import DatasetError
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec


def put_times(dataset, *episodes):
    edit_rows(dataset, "timestamp", lambda values: values.__setitem__(slice(None), np.concatenate(episodes).tolist()))


@pytest.mark.parametrize("episodes", [(), (1,)])
def test_another_rate_than_that_of_the_description_is_refused(dataset, episodes):
    edit_info(dataset, fps=10)
    said = "has 5 rows a second, and meta/info.json says fps 10: set fps there to 5, or correct the timestamps"
    with pytest.raises(DatasetError, match=f"timestamp of episode {episodes[0] if episodes else 0} {said}"):
        DatasetFrames(dataset, DatasetSpec(episodes=episodes)).check()


def test_a_rate_that_is_nearly_that_of_the_description_is_refused_too(dataset):
    put_times(dataset, *(np.arange(length) / (1.02 * FPS) for length in LENGTHS))
    with pytest.raises(
        DatasetError, match=r"has 5\.1 rows a second, and meta/info.json says fps 5: set fps there to 5\.1"
    ):
        DatasetFrames(dataset, DatasetSpec()).check()


@pytest.mark.parametrize("begin_s", [0.0, 90_000.0])
def test_the_rounding_of_timestamps_is_no_other_rate(dataset, begin_s):
    edit_info(dataset, fps=30)
    put_times(dataset, *(begin_s + (np.arange(length) / 30).astype(np.float32) for length in LENGTHS))
    edit_rows(dataset, "timestamp", lambda values: values.__setitem__(slice(None), np.float32(values).tolist()))
    DatasetFrames(dataset, DatasetSpec()).check()


def test_an_episode_with_gaps_ends_before_the_next_one_begins(dataset, monkeypatch):
    def blank(_, __, wanted, *___):
        return (np.full((SIDE, SIDE, 3), 9, np.uint8) for _ in wanted)

    monkeypatch.setattr(lerobot_dataset, "pictures", blank)
    even = [frame.stamp_ns for frame in DatasetFrames(dataset, DatasetSpec())]
    assert even[LENGTHS[0]] == NS_PER_S + round(LENGTHS[0] / FPS * NS_PER_S) + 10 * NS_PER_S
    gap_s = 60.0 * (np.arange(LENGTHS[0]) > 3)
    put_times(dataset, np.arange(LENGTHS[0]) / FPS + gap_s, np.arange(LENGTHS[1]) / FPS)
    source = DatasetFrames(dataset, DatasetSpec())
    source.check()
    for _ in range(2):
        stamps = [frame.stamp_ns for frame in source]
        assert stamps[0] == even[0]
        assert stamps[LENGTHS[0]] - stamps[LENGTHS[0] - 1] == 10 * NS_PER_S
