"""Published calibrations of real cameras raise no serious doubt; those that cannot be true do."""

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from sqap_vla_ros.nodes.check.checks.intrinsics import doubts, fields_of_view, whole_camera


def info(width, height, fx, fy, cx, cy, distortion=(), model="plumb_bob", **fields):
    k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    message = CameraInfo(width=width, height=height, k=k, p=p, d=list(distortion), distortion_model=model)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def judged(message, *, rectified=False):
    return doubts(whole_camera(message, rectified=rectified))


REAL = {
    "D435, factory": (640, 480, 615.4, 615.5, 324.6, 237.9, (0.0,) * 5),
    "Kinect of TUM fr1": (640, 480, 517.3, 516.5, 318.6, 255.3, (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "Kinect of TUM fr2": (640, 480, 520.9, 521.0, 325.1, 249.7, (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "EuRoC, wide": (752, 480, 458.65, 457.30, 367.22, 248.38, (-0.28341, 0.07396, 0.00019, 0.00002)),
    "webcam of the toolbox": (640, 480, 657.46, 657.95, 303.1, 242.6, (-0.2554, 0.1276, -0.0002, 0.00003, 0.0)),
    "KITTI, raw": (1392, 512, 984.2, 980.8, 690.0, 233.2, (-0.3729, 0.2037, 0.0022, 0.0014, -0.0723)),
    "Azure Kinect": (
        *(1280, 720, 605.99, 605.85, 638.14, 367.72),
        (0.5116, -2.8217, 0.00049, -0.00031, 1.6763, 0.3898, -2.6359, 1.5955),
        "rational_polynomial",
    ),
    "fisheye of TUM-VI": (
        *(512, 512, 190.98, 190.97, 254.93, 256.90),
        (0.00348, 0.00072, -0.00205, 0.0002),
        "equidistant",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_camera_is_not_doubted(name):
    assert [doubt for doubt in judged(info(*REAL[name])) if doubt.serious] == []


PLAIN = (640, 480, 600.0, 600.0, 320.0, 240.0)
WRONG = {
    "of half the resolution": (info(640, 480, 300.0, 300.0, 160.0, 120.0), "of about 320x240 pixels"),
    "of twice the resolution": (info(640, 480, 1200.0, 1200.0, 640.0, 480.0), "of about 1280x960 pixels"),
    "of 720p in an image of 1080p": (info(1920, 1080, 900.0, 900.0, 640.0, 360.0), "of about 1280x720 pixels"),
    "cx and cy swapped": (info(640, 480, 600.0, 600.0, 240.0, 320.0), "with cx and cy swapped"),
    "focal length times ten": (info(640, 480, 6000.0, 6000.0, 320.0, 240.0), "field of view of 6 x 5 degrees"),
    "focal length by ten": (info(640, 480, 60.0, 60.0, 320.0, 240.0), "field of view of 159 x 152 degrees"),
    "stretched beyond any lens": (info(*PLAIN, (50.0, -300.0, 0.0, 0.0, 0.0)), "times its distance from the middle"),
    "folds back": (info(*PLAIN, (-0.9, 3.0, 0.0, 0.0, -9.0)), "of the picture: beyond"),
    "all of it absurd": (info(*PLAIN, (50.0, -300.0, 1.0, 2.0, 5.0)), "its distortion (50, -300, 1, 2, 5)"),
    "of another lens in fy": (info(640, 480, 600.0, 240.0, 320.0, 240.0), "2.50 times as high as wide"),
    "principal point at the border": (info(640, 480, 600.0, 600.0, 0.0, 240.0), "lies at 0% and 50%"),
    "turned sideways": (info(*PLAIN, (0.01, 0.0, 0.06, 0.06, 0.0)), "sideways by 6%"),
    "fisheye with another model's numbers": (
        info(*PLAIN, (-3.0, 5.0, 0.0, 0.0), "equidistant"),
        "its distortion (-3, 5, 0, 0)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_camera_has_is_a_serious_doubt(name):
    message, text = WRONG[name]
    found = [doubt for doubt in judged(message) if doubt.serious]
    assert len(found) == 1
    assert text in found[0].text
    assert found[0].remedy


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (info(640, 480, 600.0, 400.0, 320.0, 240.0), "1.50 times as high as wide"),
        (info(640, 480, 600.0, 600.0, 150.0, 240.0), "lies at 23% and 50%"),
        (info(640, 480, 1800.0, 1800.0, 320.0, 240.0), "field of view of 20 x 15"),
        (info(640, 480, 350.0, 350.0, 320.0, 240.0, (-0.28, 0.07, 0.0, 0.0, -0.008)), "of the picture: beyond"),
    ],
)
def test_what_is_unusual_is_a_doubt(message, text):
    assert [(doubt.serious, text in doubt.text) for doubt in judged(message)] == [(False, True)]


@pytest.mark.parametrize(
    "fields",
    [
        {"roi": RegionOfInterest(x_offset=0, y_offset=0, width=200, height=100)},
        {"binning_x": 2, "binning_y": 2},
    ],
)
def test_a_crop_that_is_told_is_a_crop(fields):
    assert judged(info(*PLAIN, **fields)) == []


def test_a_rectified_image_has_no_distortion():
    assert judged(info(*PLAIN, (50.0, -300.0, 0.0, 0.0, 0.0)), rectified=True) == []


def test_fields_of_view():
    assert np.allclose(fields_of_view(whole_camera(info(*PLAIN), rectified=False)), (56.14, 43.6), atol=0.1)
    fisheye = info(512, 512, 191.0, 191.0, 255.0, 256.0, (0.0, 0.0, 0.0, 0.0), "equidistant")
    assert np.allclose(fields_of_view(whole_camera(fisheye, rectified=False)), 153.6, atol=0.1)
