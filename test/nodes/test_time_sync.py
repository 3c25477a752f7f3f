"""Exact pairing of images and camera_infos."""

import itertools

import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sqap_vla_ros.nodes.time_sync import ImageInfoSynchronizer


def header(ms):
    return Header(stamp=Time(sec=ms // 1000, nanosec=ms % 1000 * 1_000_000), frame_id="camera")


def image(ms):
    return Image(header=header(ms))


def info(ms):
    return CameraInfo(header=header(ms))


def stamp_ms(message):
    return message.header.stamp.sec * 1000 + message.header.stamp.nanosec // 1_000_000


def test_either_may_come_first():
    sync = ImageInfoSynchronizer()
    assert sync.add_image(image(10)) is None
    pair = sync.add_camera_info(info(10))
    assert [stamp_ms(m) for m in pair] == [10, 10]
    assert sync.add_camera_info(info(20)) is None
    assert isinstance(sync.add_image(image(20))[0], Image)
    assert sync.counters.paired == 2
    assert sync.explain() == ""


def test_camera_info_much_faster_than_the_image():
    sync = ImageInfoSynchronizer()
    paired = []
    for ms in range(0, 3000, 33):
        if ms % 15 == 0 and ms > 0:
            paired.append(sync.add_image(image(ms)))
        if (pair := sync.add_camera_info(info(ms))) is not None:
            paired.append(pair)
    assert sync.counters.images == sync.counters.paired > 5
    assert sync.counters.images_without_info == 0


def test_memory_is_bounded_and_what_is_given_up_is_counted():
    sync = ImageInfoSynchronizer(waiting_images=2, waiting_infos=3)
    for ms in range(1, 11):
        sync.add_image(image(10 * ms))
        sync.add_camera_info(info(10 * ms + 1))
    assert sync.counters.images_without_info == 8
    assert sync.add_camera_info(info(90)) is not None  # among the two newest
    assert sync.add_camera_info(info(80)) is None
    assert sync.add_image(image(71)) is None  # its camera_info left with the pair
    assert sync.counters.images_late == 1


def test_the_nearest_camera_info_is_named():
    sync = ImageInfoSynchronizer()
    sync.add_image(image(100))
    sync.add_camera_info(info(90))
    sync.add_camera_info(info(103))
    assert "nearest is +3.000 ms away: both must be published with the same stamp" in sync.explain()


@pytest.mark.parametrize(
    ("images", "infos", "text"),
    [
        (0, 0, "neither an image nor a camera_info"),
        (3, 0, "3 images but no camera_info"),
        (0, 2, "2 camera_infos but no image"),
    ],
)
def test_a_missing_stream_is_named(images, infos, text):
    sync = ImageInfoSynchronizer()
    for i in range(images):
        sync.add_image(image(i))
    for i in range(infos):
        sync.add_camera_info(info(i))
    assert text in sync.explain()


def test_an_older_image_is_not_paired_after_a_newer_one():
    sync = ImageInfoSynchronizer()
    sync.add_image(image(100))
    sync.add_image(image(200))
    assert sync.add_camera_info(info(200)) is not None
    assert sync.add_camera_info(info(100)) is None
    assert sync.add_image(image(150)) is None
    assert (sync.counters.images_without_info, sync.counters.images_late) == (1, 1)


def test_a_bag_that_loops_starts_anew():
    sync = ImageInfoSynchronizer(restart_s=1.0)
    for ms in (5000, 6000):
        sync.add_image(image(ms))
        assert sync.add_camera_info(info(ms)) is not None
    sync.add_image(image(1000))
    assert sync.add_camera_info(info(1000)) is not None
    assert sync.counters.restarts == 1


@pytest.mark.parametrize("bad", [{"waiting_images": 0}, {"waiting_infos": 0}, {"restart_s": 0.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be at least 1"):
        ImageInfoSynchronizer(**bad)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60))
def test_pairs_match_ascend_and_are_all_accounted_for(arrivals):
    sync = ImageInfoSynchronizer(waiting_images=3, waiting_infos=5, restart_s=100.0)
    pairs = []
    for is_image, ms in arrivals:
        pairs.append(sync.add_image(image(ms)) if is_image else sync.add_camera_info(info(ms)))
    stamps = [(stamp_ms(a), stamp_ms(b)) for a, b in filter(None, pairs)]
    assert all(a == b for a, b in stamps)
    assert all(x < y for x, y in itertools.pairwise(stamps))
    counters = sync.counters
    waiting = counters.images - (counters.paired + counters.images_without_info + counters.images_late)
    assert 0 <= waiting <= 3
