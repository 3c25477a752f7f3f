"""Exact pairing of images and camera_infos."""

import itertools
import math
import time

import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sqap_vla_ros.control.camera.time_sync import ImageInfoSync


def header(ms):
    return Header(stamp=Time(sec=ms // 1000, nanosec=ms % 1000 * 1_000_000), frame_id="camera")


def image(ms):
    return Image(header=header(ms))


def info(ms):
    return CameraInfo(header=header(ms))


def stamp_ms(message):
    return message.header.stamp.sec * 1000 + message.header.stamp.nanosec // 1_000_000


class Recorder:
    """A synchroniser with the pairs it made, as stamps in ms."""

    def __init__(self, **settings):
        self.pairs = []
        self.sync = ImageInfoSync(self._on_pair, **settings)
        self.counters = self.sync.counters

    def _on_pair(self, paired_image, paired_info):
        assert isinstance(paired_image, Image)
        assert isinstance(paired_info, CameraInfo)
        self.pairs.append((stamp_ms(paired_image), stamp_ms(paired_info)))

    def feed(self, text):
        """ "i10 c10": an image of 10 ms, then a camera_info of 10 ms."""
        for item in text.split():
            if item[0] == "i":
                self.sync.add_image(image(int(item[1:])))
            else:
                self.sync.add_info(info(int(item[1:])))
        return self


@pytest.mark.parametrize("order", ["i10 c10", "c10 i10"])
def test_either_may_come_first(order):
    recorder = Recorder().feed(order)
    assert recorder.pairs == [(10, 10)]
    assert recorder.sync.problem(math.inf) is None


def test_camera_info_much_faster_than_the_image():
    recorder = Recorder()
    for ms in range(0, 3000, 33):
        recorder.feed(f"i{ms} c{ms}" if ms % 15 == 0 else f"c{ms}")
    assert recorder.counters.images == recorder.counters.paired > 5
    assert recorder.counters.images_without_info == 0


def test_memory_is_bounded_and_what_is_given_up_is_counted():
    recorder = Recorder(waiting_images=2, waiting_infos=3)
    for ms in range(1, 11):
        recorder.feed(f"i{10 * ms} c{10 * ms + 1}")
    assert recorder.counters.images_without_info == 8
    recorder.feed("c90")  # among the two newest
    assert recorder.pairs == [(90, 90)]
    recorder.feed("c80 i71")  # the image of 80 was given up; 71 is before the pair
    assert recorder.pairs == [(90, 90)]
    assert recorder.counters.images_late == 1


def test_an_image_that_waited_too_long_is_given_up():
    recorder = Recorder(patience_s=0.5).feed("i10")
    recorder.sync.expire(time.monotonic() + 0.4)
    assert recorder.counters.images_without_info == 0
    recorder.sync.expire(time.monotonic() + 0.6)
    assert recorder.counters.images_without_info == 1
    assert recorder.feed("c10").pairs == []
    assert "+0.000 ms" in recorder.sync.problem(math.inf)


@pytest.mark.parametrize(
    ("fed", "text"),
    [
        ("i10 i20 i30", "3 images but no camera_info were received"),
        ("i10 c10 i20", "camera_info stopped coming"),
        ("i100 c90 c103", "nearest is +3.000 ms away: both must be published with the same stamp"),
    ],
)
def test_a_problem_is_named_after_a_while(fed, text):
    recorder = Recorder(patience_s=0.5).feed(fed)
    assert recorder.sync.problem(time.monotonic()) is None
    assert text in recorder.sync.problem(time.monotonic() + 0.6)


def test_the_problem_ends_with_the_next_pair():
    recorder = Recorder().feed("i10 i20 i30")
    assert recorder.sync.problem(math.inf)
    recorder.feed("c30")
    assert recorder.sync.problem(math.inf) is None


def test_an_older_image_is_not_paired_after_a_newer_one():
    recorder = Recorder().feed("i100 i200 c200 c100 i150")
    assert recorder.pairs == [(200, 200)]
    assert (recorder.counters.images_without_info, recorder.counters.images_late) == (1, 1)


def test_a_bag_that_loops_starts_anew():
    recorder = Recorder(restart_s=1.0).feed("i5000 c5000 i6000 c6000 i1000 c1000")
    assert recorder.pairs == [(5000, 5000), (6000, 6000), (1000, 1000)]
    assert recorder.counters.restarts == 1


@pytest.mark.parametrize("bad", [{"waiting_images": 0}, {"waiting_infos": 0}, {"restart_s": 0.0}, {"patience_s": 0.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be at least 1"):
        Recorder(**bad)


@given(st.lists(st.tuples(st.sampled_from("ic"), st.integers(0, 30)), max_size=60))
def test_pairs_match_ascend_and_are_all_accounted_for(arrivals):
    recorder = Recorder(waiting_images=3, waiting_infos=5, restart_s=100.0)
    recorder.feed(" ".join(f"{kind}{ms}" for kind, ms in arrivals))
    assert all(a == b for a, b in recorder.pairs)
    assert all(x < y for x, y in itertools.pairwise(recorder.pairs))
    counters = recorder.counters
    waiting = counters.images - (counters.paired + counters.images_without_info + counters.images_late)
    assert 0 <= waiting <= 3
