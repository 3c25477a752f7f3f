"""JPEGs that lost data, of every layout that cameras send, and whole ones that look as if they had."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from sqap_vla_ros.jpeg import is_cut

# No multiple of a block's side, which is 8 to 32 pixels.
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8), (203, 141))
SCANS = {
    "4:2:0": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420],
    "4:2:2": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422],
    "4:4:4": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    "4:1:1": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411],
    "grey": [],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 5],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
}


def encoded(picture, scans):
    return cv2.imencode(".jpg", picture[..., 0] if scans == "grey" else picture, SCANS[scans])[1].tobytes()


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("scans", SCANS)
def test_data_that_end_too_early_are_noticed_wherever_they_end(scans):
    whole = encoded(PICTURE, scans)
    begin = whole.find(b"\xff\xda") + 16
    for end in np.linspace(begin, len(whole) - 300, 25).astype(int):
        cut = whole[:end].rstrip(b"\xff") + b"\xff\xd9"
        assert is_cut(cut)
        assert is_cut(cut, decoded(cut))


@pytest.mark.parametrize("scans", SCANS)
def test_a_whole_picture_may_be_as_grey_as_what_the_decoder_fills_in(scans):
    half = PICTURE.copy()
    half[70:] = 128
    for picture in (PICTURE, half, np.full_like(PICTURE, 128)):
        data = encoded(picture, scans)
        assert not is_cut(data)
        assert not is_cut(data, decoded(data))


def test_data_lost_between_two_restarts_and_a_lost_restart_are_noticed():
    whole = encoded(PICTURE, "restarts")
    second, third = (whole.find(bytes((0xFF, 0xD0 + number))) for number in (1, 2))
    for damaged in (
        whole[: (second + third) // 2] + whole[third:],
        whole[:second] + whole[second + 2 :],  # the marker itself
        whole[:second] + whole[third:],
    ):
        assert is_cut(damaged)
        assert is_cut(damaged, decoded(damaged))


def test_what_follows_the_end_of_the_picture_is_not_its_business():
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "jpeg")
    for rest in (bytes(1000), b"\xff\xd8\xff\xe0" + bytes(50), b"a film of the camera"):
        assert not is_cut(buffer.getvalue() + rest)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda\x00\x00", b"\xff\xd8\xff\xc0\x00\x0b\x08" + bytes(8)]
)
def test_what_no_decoder_reads_is_left_to_it(data):
    assert not is_cut(data)
