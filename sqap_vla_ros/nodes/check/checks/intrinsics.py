"""Doubts about intrinsics and distortion: can they be those of a real camera, at this resolution?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import RegionOfInterest

from sqap_vla_ros.robot.camera import CameraModel

# Degrees that the longer side of the image shows. A pinhole beyond 150 degrees would need an image eight times as wide
# as its focal length.
NARROWEST, NARROW, WIDE, WIDEST = 10.0, 25.0, 120.0, 150.0
# Ratio of fx to fy where pixels are not square, and where no picture was squashed: 16:9 made square has 1.8.
SQUASHED, UNSQUASHED = 1.1, 1.9
CENTRED, CORNERED = 0.2, 0.4  # of the image that a principal point may lie beside the middle: oddly, and at all
SWAPPED_FAR, SWAPPED_NEAR = 0.1, 0.05  # of the image from its middle: as it is, and with cx and cy swapped
RESIZED, ALIKE = 0.2, 0.1  # by which a resolution differs from the image's, and its two sides from each other
COVERED, COVERED_MOST = 0.98, 0.8  # share of the picture that the distortion model explains: all of it, and enough
PINCUSHION, SIDEWAYS = 1.4, 0.03  # a real lens moves a point outwards by less, and hardly sideways
SHRUNK, STRETCHED = 0.6, 1.5  # of the angle off axis: an orthographic and a stereographic lens stay within
DIRECTIONS, ANGLES = 32, 300
CALIBRATE = "calibrate the camera (camera_calibration) at this resolution, with pictures that reach edges and corners"


@dataclass(frozen=True)
class Doubt:
    """serious: pixels computed with it lie elsewhere than the things that they stand for."""

    serious: bool
    text: str
    remedy: str = CALIBRATE


def whole_camera(info: Any, *, rectified: bool) -> CameraModel:
    """Return the camera of a CameraInfo that was read before, without its region of interest and binning."""
    info = copy.deepcopy(info)
    info.roi, info.binning_x, info.binning_y = RegionOfInterest(), 0, 0
    camera = CameraModel.from_camera_info(info, rectified=rectified)
    return replace(camera, rotation=np.eye(3), translation=np.zeros(3))


def fields_of_view(camera: CameraModel) -> tuple[float, float]:
    """Return the degrees that width and height show."""
    sides = (camera.width / camera.matrix[0, 0], camera.height / camera.matrix[1, 1])
    if camera.fisheye:
        return float(np.degrees(sides[0])), float(np.degrees(sides[1]))
    return float(np.degrees(2.0 * np.arctan(sides[0] / 2.0))), float(np.degrees(2.0 * np.arctan(sides[1] / 2.0)))


def doubts(camera: CameraModel) -> list[Doubt]:
    """Return what speaks against a camera; see `whole_camera`."""
    return [*_focal_length(camera), *_principal_point(camera), *_distortion(camera)]


def _focal_length(camera: CameraModel) -> Iterator[Doubt]:
    fx, fy = float(camera.matrix[0, 0]), float(camera.matrix[1, 1])
    across, down = fields_of_view(camera)
    longer = max(across, down)
    text = f"fx {fx:.0f} and fy {fy:.0f} give a field of view of {across:.0f} x {down:.0f} degrees"
    remedy = f"compare with the lens's data sheet; {CALIBRATE}"
    if longer < NARROWEST or (longer > WIDEST and not camera.fisheye):
        yield Doubt(True, text, remedy)
    elif longer < NARROW or (longer > WIDE and not camera.fisheye):
        yield Doubt(False, text, remedy)
    if not 1.0 / SQUASHED <= fx / fy <= SQUASHED:
        serious = not 1.0 / UNSQUASHED <= fx / fy <= UNSQUASHED
        yield Doubt(serious, f"fx {fx:.0f} and fy {fy:.0f} say that pixels are {fx / fy:.2f} times as high as wide")


def _principal_point(camera: CameraModel) -> Iterator[Doubt]:
    width, height = camera.width, camera.height
    cx, cy = float(camera.matrix[0, 2]), float(camera.matrix[1, 2])
    x, y = cx / width, cy / height
    where = f"its principal point ({cx:.0f}, {cy:.0f}) lies at {x:.0%} and {y:.0%} of the image"
    away, swapped = np.hypot(x - 0.5, y - 0.5), np.hypot(cy / width - 0.5, cx / height - 0.5)
    scale = x + y  # of the resolution that it would be in the middle of
    if away > SWAPPED_FAR and swapped < SWAPPED_NEAR:
        yield Doubt(
            True, f"{where}; with cx and cy swapped it would be in the middle", "correct k and p of camera_info"
        )
    elif abs(scale - 1.0) > RESIZED and abs(x - y) < ALIKE * scale:
        yield Doubt(
            True,
            f"{where}: the matrix is of about {scale * width:.0f}x{scale * height:.0f} pixels, the image has "
            f"{width}x{height}",
            "give camera_info of this resolution; binning and roi say what a driver averaged and cut",
        )
    elif (aside := max(abs(x - 0.5), abs(y - 0.5))) > CENTRED:
        yield Doubt(
            aside > CORNERED, where, "was the image cropped or resized? Then roi, binning or the matrix must say so"
        )


def _distortion(camera: CameraModel) -> Iterator[Doubt]:
    """Follow rays from the optical axis outwards to the border of the picture."""
    if camera.distortion.size == 0:
        return
    steepest = min(np.arctan(camera.max_radius), np.radians(89.0))
    angles = np.linspace(0.0, steepest, ANGLES + 1, endpoint=False)[1:]
    around = 2.0 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    outwards = np.stack([np.cos(around), np.sin(around)], axis=1)  # [D, 2]
    rays = np.concatenate(
        [np.tan(angles)[None, :, None] * outwards[:, None, :], np.ones((DIRECTIONS, ANGLES, 1))], axis=2
    )
    projection = camera.project(rays.reshape(-1, 3))
    focal, centre = camera.matrix[[0, 1], [0, 1]], camera.matrix[:2, 2]
    points = ((projection.pixels - centre) / focal).reshape(DIRECTIONS, ANGLES, 2)  # on the picture, in focal lengths
    inside = projection.in_image.reshape(DIRECTIONS, ANGLES)
    left = np.logical_or.accumulate(inside, axis=1) & ~inside  # the border was crossed: what comes back is folded
    inside = inside & ~np.logical_or.accumulate(left, axis=1)
    if not inside.any():
        yield Doubt(True, "its distortion leaves nothing of the picture")
        return
    away = np.linalg.norm(points, axis=2)
    coefficients = ", ".join(f"{value:g}" for value in camera.distortion)
    name = f"its distortion ({coefficients})"
    ideal = angles if camera.fisheye else np.tan(angles)
    largest = STRETCHED if camera.fisheye else PINCUSHION
    outward = np.where(inside, away / ideal, 1.0)
    shrunk = np.where(inside, away / angles, 1.0)
    aside = np.where(inside, np.abs(points[..., 0] * outwards[:, None, 1] - points[..., 1] * outwards[:, None, 0]), 0.0)
    if outward.max() > largest or shrunk.min() < SHRUNK:
        worst = float(outward.max()) if outward.max() > largest else float(shrunk.min())
        yield Doubt(True, f"{name} moves a point of the picture to {worst:.2g} times its distance from the middle")
    elif (aside / np.maximum(away, 1e-3)).max() > SIDEWAYS:
        yield Doubt(True, f"{name} moves a point of the picture sideways by {(aside / away).max():.0%} of its distance")
    elif (covered := _covered(camera, outwards, np.where(inside, away, 0.0).max(axis=1))) < COVERED:
        yield Doubt(
            covered < COVERED_MOST,
            f"{name} explains {covered:.0%} of the picture: beyond, a point has no pixel, or a wrong one",
        )


def _covered(camera: CameraModel, outwards: NDArray[np.float64], reached: NDArray[np.float64]) -> float:
    """Return the share of the picture within `reached` [D] focal lengths of the axis, along `outwards` [D, 2]."""
    focal, centre = camera.matrix[[0, 1], [0, 1]], camera.matrix[:2, 2]
    low, high = (-0.5 - centre) / focal, (np.array([camera.width, camera.height]) - 0.5 - centre) / focal
    ends = np.where(outwards > 0.0, high, low)
    border = np.divide(ends, outwards, out=np.full_like(ends, np.inf), where=outwards != 0.0).min(axis=1)
    if not (border > 0.0).all():
        return 1.0  # the axis is beside the picture
    return float((np.minimum(reached, border) ** 2).sum() / (border**2).sum())
