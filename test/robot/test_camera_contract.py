"""The training camera against the robot's."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.camera_contract import CameraContract

CONTRACT = CameraContract(640, 480, 600.0, 600.0, 319.5, 239.5)


def camera(width=640, height=480, focal=600.0, cx=None, cy=None, d=(), roi=(0, 0, 0, 0), binning=1):
    k = np.array([focal, 0, (width - 1) / 2 if cx is None else cx, 0, focal, (height - 1) / 2 if cy is None else cy])
    x, y, roi_width, roi_height = roi
    return CameraModel.from_camera_info(
        SimpleNamespace(
            width=width,
            height=height,
            distortion_model="plumb_bob",
            d=list(d),
            k=[*k, 0, 0, 1],
            r=np.eye(3).ravel(),
            p=np.zeros(12),
            binning_x=binning,
            binning_y=binning,
            roi=SimpleNamespace(x_offset=x, y_offset=y, width=roi_width, height=roi_height),
        )
    )


@pytest.mark.parametrize(
    "same",
    [
        camera(),
        camera(1280, 960, 1200.0),  # the policy squashes both to the same picture
        camera(binning=2),
        camera(640, 480, 620.0, d=(-0.02, 0.0, 0.0, 0.0)),
        camera(cx=335.0),
    ],
)
def test_a_camera_that_sees_the_same_passes(same):
    assert CONTRACT.problem(same) is None


def test_resolution_and_binning_do_not_matter_at_all():
    # Binning moves pixel centres by a quarter of a published pixel, image_geometry's way.
    assert CONTRACT.displacement(camera(1280, 960, 1200.0, cx=639.5, cy=479.5)) == pytest.approx(0.0, abs=1e-9)
    assert CONTRACT.displacement(camera(binning=2)) < 0.002


def test_the_displacement_is_that_of_the_projection():
    # Focal length 10 % longer: the outermost of nine directions, 4/9 of the side from the middle, moves by a tenth.
    assert CONTRACT.displacement(camera(focal=660.0)) == pytest.approx(0.1 * 4 / 9, abs=1e-9)
    assert CONTRACT.displacement(camera(cx=319.5 + 64)) == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (camera(focal=800.0), r"15% of the image away from its place, 5% is .* about 44 x 33 degrees and was 56 x 44"),
        (camera(cx=400.0), "13% of the image"),
        (camera(roi=(160, 120, 320, 240)), "of the image away"),
        (camera(640, 360), "of the image away"),
        (camera(d=(-0.4, 0.0, 0.0, 0.0)), "of the image away"),
        (camera(focal=600.0, d=(-2.0, 0.0, 0.0, 0.0)), "outside the lens model"),
    ],
)
def test_another_camera_is_refused_with_what_differs(other, text):
    assert CONTRACT.tolerance == 0.05

    assert re.search(text, CONTRACT.problem(other))


@pytest.mark.parametrize(
    "wrong", [{"fx": 0.0}, {"width": -1.0}, {"cx": float("nan")}, {"tolerance": 0.0}, {"tolerance": 1.0}]
)
def test_wrong_contracts_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        CameraContract(**{**vars(CONTRACT), **wrong})
