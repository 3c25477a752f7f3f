import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.camera import CameraError, CameraModel, project_tool
from sqap_vla_ros.robot.conventions import invert_pose, pose_matrix

K = np.array([[610.0, 0.0, 322.4], [0.0, 605.0, 238.1], [0.0, 0.0, 1.0]])
PLUMB_BOB = [-0.31, 0.12, 0.0007, -0.0011, -0.02]
RATIONAL = [0.52, -2.7, 0.0004, -0.0002, 1.55, 0.4, -2.5, 1.48]  # of a depth camera's colour sensor
EQUIDISTANT = [-0.012, 0.031, -0.024, 0.006]


def camera_info(*, k=K, d=(), model="plumb_bob", r=None, p=None, size=(640, 480), binning=(0, 0), roi=(0, 0, 0, 0)):
    """What a driver publishes; roi is x, y, width, height."""
    if p is None:
        p = np.hstack([k, np.zeros((3, 1))])
    return SimpleNamespace(
        width=size[0],
        height=size[1],
        distortion_model=model,
        d=list(d),
        k=np.ravel(k),
        r=np.ravel(np.eye(3) if r is None else r),
        p=np.ravel(p),
        binning_x=binning[0],
        binning_y=binning[1],
        roi=SimpleNamespace(x_offset=roi[0], y_offset=roi[1], width=roi[2], height=roi[3], do_rectify=False),
    )


def points_in_view(seed: int, count: int = 50, spread: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.3, 3.0, count)
    return np.column_stack([rng.uniform(-spread, spread, (count, 2)) * depth[:, None], depth])


def undistorted(pixels: np.ndarray, d, r=None, p=None) -> np.ndarray:
    """OpenCV's inverse of the distortion, iterated to the end; its default stops after five rounds."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 500, 1e-14)
    if hasattr(cv2, "undistortPointsIter"):  # OpenCV 4
        return cv2.undistortPointsIter(pixels[:, None], K, np.array(d), r, p, criteria).reshape(-1, 2)
    return cv2.undistortPoints(pixels[:, None], K, np.array(d), R=r, P=p, criteria=criteria).reshape(-1, 2)


def test_a_pinhole_is_the_closed_form():
    points = points_in_view(0)
    projection = CameraModel.from_camera_info(camera_info()).project(points)
    expected = points[:, :2] / points[:, 2:] * [610.0, 605.0] + [322.4, 238.1]
    np.testing.assert_allclose(projection.pixels, expected, atol=1e-9)
    assert projection.in_front.all()
    np.testing.assert_array_equal(projection.in_image, ((expected >= -0.5) & (expected < [639.5, 479.5])).all(axis=1))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1_000_000),
    focal=st.floats(200, 1500),
    k1=st.floats(-0.4, 0.4),
    k2=st.floats(-0.1, 0.2),
    tangential=st.floats(-0.003, 0.003),
    k3=st.floats(-0.05, 0.05),
)
def test_plumb_bob_equals_opencv(seed, focal, k1, k2, tangential, k3):
    k = np.array([[focal, 0.0, 310.0], [0.0, focal * 1.02, 250.0], [0.0, 0.0, 1.0]])
    d = np.array([k1, k2, tangential, -tangential, k3])
    camera = CameraModel.from_camera_info(camera_info(k=k, d=d))
    points = points_in_view(seed)
    radius = np.hypot(*(points[:, :2] / points[:, 2:]).T)
    projection = camera.project(points)
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, d)[0].reshape(-1, 2)
    valid = radius < camera.max_radius
    np.testing.assert_allclose(projection.pixels[valid], expected[valid], atol=1e-8)
    assert np.isnan(projection.pixels[~valid]).all()


def test_rational_polynomial_is_the_formula():
    x, y = (points := points_in_view(3))[:, :2].T / points[:, 2]
    s = x**2 + y**2
    k1, k2, p1, p2, k3, k4, k5, k6 = RATIONAL
    radial = (1 + k1 * s + k2 * s**2 + k3 * s**3) / (1 + k4 * s + k5 * s**2 + k6 * s**3)
    u = 610 * (x * radial + 2 * p1 * x * y + p2 * (s + 2 * x**2)) + 322.4
    v = 605 * (y * radial + p1 * (s + 2 * y**2) + 2 * p2 * x * y) + 238.1
    camera = CameraModel.from_camera_info(camera_info(d=RATIONAL, model="rational_polynomial"))
    valid = np.sqrt(s) < camera.max_radius
    assert valid.sum() > 40
    np.testing.assert_allclose(camera.project(points).pixels[valid], np.column_stack([u, v])[valid], atol=1e-8)


def test_equidistant_is_the_formula():
    points = points_in_view(4, spread=2.0)
    x, y = points[:, :2].T / points[:, 2]
    theta = np.arctan(np.hypot(x, y))
    distorted = theta * (1 + sum(c * theta ** (2 * k + 2) for k, c in enumerate(EQUIDISTANT)))
    expected = (np.column_stack([x, y]) * (distorted / np.hypot(x, y))[:, None]) * [610, 605] + [322.4, 238.1]
    camera = CameraModel.from_camera_info(camera_info(d=EQUIDISTANT, model="equidistant"))
    np.testing.assert_allclose(camera.project(points).pixels, expected, atol=1e-8)


@pytest.mark.parametrize(
    ("d", "model"), [(PLUMB_BOB, "plumb_bob"), (RATIONAL, "rational_polynomial"), (EQUIDISTANT, "equidistant")]
)
def test_every_pixel_in_the_image_goes_back_to_its_ray(d, model):
    """Independent of projectPoints: OpenCV's undistortion inverts what we project."""
    camera = CameraModel.from_camera_info(camera_info(d=d, model=model))
    rays = np.column_stack([np.random.default_rng(5).uniform(-0.45, 0.45, (200, 2)), np.ones(200)])
    projection = camera.project(rays)
    seen = projection.in_image
    assert seen.sum() > 150
    if model == "equidistant":
        back = cv2.fisheye.undistortPoints(projection.pixels[seen][:, None], K, np.array(d)).reshape(-1, 2)
    else:
        back = undistorted(projection.pixels[seen], d)
    np.testing.assert_allclose(back, rays[seen, :2], atol=1e-6)


@pytest.mark.parametrize(
    ("d", "model"),
    [
        (PLUMB_BOB, "plumb_bob"),
        ([-0.35, 0.0, 0.0, 0.0, 0.0], "plumb_bob"),
        ([-0.35, 0.0, 0.0, 0.0, 0.0, 0.05, 0.0, 0.0], "rational_polynomial"),
        ([-0.4, 0.0, 0.0, 0.0], "equidistant"),
    ],
)
def test_a_point_far_outside_the_field_of_view_does_not_fold_back_into_the_image(d, model):
    camera = CameraModel.from_camera_info(camera_info(d=d, model=model))
    tangents = np.tan(np.radians(np.arange(0.5, 89.9, 0.25)))
    points = np.column_stack([tangents, np.zeros_like(tangents), np.ones_like(tangents)])
    projection = camera.project(points)
    last = np.flatnonzero(projection.in_image).max()
    assert projection.in_image[: last + 1].all()  # in the image up to some angle, and never again
    u = projection.pixels[:, 0]
    assert (np.diff(u[np.isfinite(u)]) > 0).all()
    function = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    naive = function(points[:, None], np.zeros(3), np.zeros(3), K, np.array(d))[0][:, 0, 0]
    folded = (naive >= 0) & (naive < 640) & ~projection.in_image
    assert folded.any()  # what OpenCV alone would have called visible


def test_behind_the_camera_there_is_no_pixel():
    camera = CameraModel.from_camera_info(camera_info(d=PLUMB_BOB))
    projection = camera.project([[0.0, 0.0, -1.0], [0.1, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, np.nan, 1.0]])
    np.testing.assert_array_equal(projection.in_front, [False, False, True, False])
    np.testing.assert_array_equal(projection.in_image, [False, False, True, False])
    assert np.isnan(projection.pixels[[0, 1, 3]]).all()


def test_the_image_ends_half_a_pixel_beyond_the_centres():
    k = np.array([[100.0, 0, 0], [0, 100.0, 0], [0, 0, 1]])
    camera = CameraModel.from_camera_info(camera_info(k=k))
    points = np.array([[-0.0051, 0, 1], [-0.0049, 0, 1], [6.3949, 4.7949, 1], [6.3951, 4.7, 1], [6.3, 4.7951, 1]])
    np.testing.assert_array_equal(camera.project(points).in_image, [False, True, True, False, False])


def test_a_region_of_interest_is_cut_out_and_then_binned():
    whole = CameraModel.from_camera_info(camera_info(d=PLUMB_BOB, size=(1280, 960)))
    part = CameraModel.from_camera_info(
        camera_info(d=PLUMB_BOB, size=(1280, 960), roi=(100, 60, 800, 600), binning=(2, 4))
    )
    assert (part.width, part.height) == (400, 150)
    points = points_in_view(6)
    np.testing.assert_allclose(
        part.project(points).pixels, (whole.project(points).pixels - [100, 60]) / [2, 4], atol=1e-9
    )


def test_rectified_pixels_are_the_raw_ones_undistorted():
    """With R and P of a stereo pair, against OpenCV's own raw-to-rectified map."""
    r = Rotation.from_euler("xyz", [0.02, -0.03, 0.01]).as_matrix()
    p = np.array([[580.0, 0.0, 330.0, 0.0], [0.0, 580.0, 245.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    info = camera_info(d=PLUMB_BOB, r=r, p=p)
    points = points_in_view(7, spread=0.4)
    raw = CameraModel.from_camera_info(info).project(points)
    rectified = CameraModel.from_camera_info(info, rectified=True).project(points)
    expected = undistorted(raw.pixels, PLUMB_BOB, r, p[:, :3])
    np.testing.assert_allclose(rectified.pixels, expected, atol=1e-4)


def test_where_tf_gives_the_rectified_frame_both_images_agree_too():
    r = Rotation.from_euler("xyz", [0.02, -0.03, 0.01]).as_matrix()
    p = np.array([[580.0, 0.0, 330.0, -58.0], [0.0, 580.0, 245.0, 0.0], [0.0, 0.0, 1.0, 0.0]])  # 0.1 m baseline
    info = camera_info(d=PLUMB_BOB, r=r, p=p)
    points = points_in_view(8, spread=0.4)  # in the first camera's rectified frame, as P's definition says
    rectified = CameraModel.from_camera_info(info, rectified=True, optical_frame_rectified=True).project(points)
    homogeneous = np.column_stack([points, np.ones(len(points))]) @ p.T
    np.testing.assert_allclose(rectified.pixels, homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-9)
    raw = CameraModel.from_camera_info(info, optical_frame_rectified=True).project(points)
    back = undistorted(raw.pixels, PLUMB_BOB, r, p[:, :3])
    np.testing.assert_allclose(rectified.pixels, back, atol=1e-4)


def test_a_zero_rotation_means_none():
    camera = CameraModel.from_camera_info(camera_info(r=np.zeros((3, 3))), rectified=True)
    np.testing.assert_array_equal(camera.rotation, np.eye(3))


@pytest.mark.parametrize("model", ["", "plumb_bob", "rational_polynomial", "something"])
def test_no_coefficients_or_zeros_are_no_distortion(model):
    points = points_in_view(1)
    expected = CameraModel.from_camera_info(camera_info()).project(points).pixels
    for d in ([], [0.0] * 5):
        camera = CameraModel.from_camera_info(camera_info(d=d, model=model))
        np.testing.assert_array_equal(camera.project(points).pixels, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((3, 3))}, r"uncalibrated \(k\[0\] = 0\)"),
        ({"k": -K}, "k is no camera matrix"),
        ({"k": K * np.nan}, "k must be 9 finite numbers"),
        ({"k": np.zeros(6), "p": np.zeros(12)}, "k must be 9 finite numbers"),
        ({"d": [0.1, 0.2, 0.3]}, "d has 3 coefficients; plumb_bob has 4 or 5"),
        ({"d": PLUMB_BOB, "model": "rational_polynomial"}, "d has 5 coefficients; rational_polynomial has 8"),
        ({"d": [], "model": "equidistant"}, "d has 0 coefficients; equidistant has 4"),
        ({"d": [0.1] * 5, "model": "thin_lens"}, "distortion_model is 'thin_lens': known are plumb_bob"),
        ({"d": [np.inf] * 5}, "d must be finite"),
        ({"r": np.ones((3, 3))}, "r is no rotation"),
        ({"size": (0, 0)}, "no image size: 0x0"),
        ({"roi": (600, 0, 100, 100)}, r"roi \(600, 0\) 100x100 does not lie in the full image 640x480"),
    ],
)
def test_a_camera_info_that_cannot_be_used_says_why(change, message):
    with pytest.raises(CameraError, match=message):
        CameraModel.from_camera_info(camera_info(**change))


def test_a_rectified_topic_of_a_camera_without_p_is_uncalibrated():
    with pytest.raises(CameraError, match=r"uncalibrated \(p\[0\] = 0\)"):
        CameraModel.from_camera_info(camera_info(p=np.zeros((3, 4))), rectified=True)


def test_an_image_of_another_size_is_refused():
    camera = CameraModel.from_camera_info(camera_info())
    camera.require_size(640, 480)
    with pytest.raises(CameraError, match="image is 320x240 and its camera_info describes 640x480"):
        camera.require_size(320, 240)


def test_points_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        CameraModel.from_camera_info(camera_info()).project([0.0, 0.0, 1.0])


def test_the_tool_goes_from_the_base_into_the_image():
    """SQAP-VLA's Eq. 2: u = K (T_optical_base p_base), dehomogenised."""
    camera = CameraModel.from_camera_info(camera_info())
    base_from_optical = pose_matrix([1.2, 0.1, 0.6], Rotation.from_euler("xyz", [-2.0, 0.1, 1.5]).as_quat())
    base_from_tool = pose_matrix((base_from_optical @ [0.05, -0.08, 0.9, 1.0])[:3], [0, 1, 0, 0])
    tool = project_tool(camera, invert_pose(base_from_optical), base_from_tool)
    assert tool.pixel == pytest.approx((322.4 + 610 * 0.05 / 0.9, 238.1 - 605 * 0.08 / 0.9))
    assert tool.reason == ""


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ([0.1, 0.0, -0.5], r"behind the camera: z = -0.500 m"),
        ([1.0, 0.0, 1.0], r"outside the image: \(u, v\) = \(\d+\.\d, 238\.1\) of 640x480"),
        ([4.0, 0.0, 1.0], r"outside the field the lens model covers: 76 degrees off axis"),
        ([np.nan, 0.0, 1.0], r"not finite"),
    ],
)
def test_why_the_tool_has_no_pixel(point, reason):
    camera = CameraModel.from_camera_info(camera_info(d=[-0.1, 0.0, 0.0, 0.0, 0.0]))
    base_from_tool = np.eye(4)
    base_from_tool[:3, 3] = point
    tool = project_tool(camera, np.eye(4), base_from_tool)
    assert tool.pixel is None
    assert re.search(reason, tool.reason)
