"""A camera as sensor_msgs/CameraInfo describes it: points in the optical frame to pixels of the published image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

NEGLIGIBLE = 1e-12  # coefficients below it move no pixel, and their roots lie beyond any lens
COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


class CameraError(ValueError):
    """A camera_info that cannot be projected with; the message says which field and what to do."""


@dataclass(frozen=True)
class Projection:
    """pixels: [N, 2] (u right, v down), NaN where there is none; in_front, in_image: [N] bool."""

    pixels: NDArray[np.float64]
    in_front: NDArray[np.bool_]
    in_image: NDArray[np.bool_]


@dataclass(frozen=True)
class ToolProjection:
    """Place of the tool in the image: pixel (u, v), or None and the reason in words."""

    pixel: tuple[float, float] | None
    reason: str = ""


@dataclass(frozen=True)
class CameraModel:
    """Projection into the image as it is published: cropped, binned, distorted or rectified.

    width, height: of the published image, pixels. Pixel centres are at whole numbers, so the image covers
        [-0.5, width - 0.5) x [-0.5, height - 0.5).
    matrix: [3, 3] intrinsics of the published image (region of interest and binning applied).
    distortion: [n] coefficients in OpenCV's order; empty for an ideal pinhole.
    fisheye: whether `distortion` is the equidistant model's (Kannala and Brandt 2006; cv2.fisheye).
    rotation, translation: [3, 3], [3] from the optical frame to the frame the intrinsics belong to.
    max_radius: undistorted radius (tangent of the angle off axis) up to which the distortion is monotonic. The
        polynomial turns around beyond it and would fold points far outside the field of view back into the image.
    """

    width: int
    height: int
    matrix: NDArray[np.float64]
    distortion: NDArray[np.float64]
    fisheye: bool
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    max_radius: float

    @classmethod
    def from_camera_info(
        cls, msg: Any, *, rectified: bool = False, optical_frame_rectified: bool = False
    ) -> CameraModel:
        """Read a sensor_msgs/CameraInfo (any object with its fields).

        rectified: the image topic is rectified (image_rect*): P applies, without distortion. Otherwise K and D.
        optical_frame_rectified: what TF calls the optical frame is the rectified one (as image_geometry assumes for
            stereo pairs) rather than the physical camera's. Only matters where R is not the identity.

        K, P are of the full-resolution image. The region of interest is cut from it first, then binned; binning
        divides the coordinates, as image_geometry does. Raises `CameraError`.
        """
        k, p, r = (_matrix(getattr(msg, name), name, rows) for name, rows in (("k", 3), ("p", 3), ("r", 3)))
        used, name = (p, "p") if rectified else (k, "k")
        if used[0, 0] == 0.0 or used[1, 1] == 0.0:
            raise CameraError(
                f"camera_info is uncalibrated ({name}[0] = {used[0, 0]:g}): calibrate the camera "
                "(camera_calibration) or load its calibration in the driver (camera_info_url)"
            )
        if used[0, 0] < 0.0 or used[1, 1] < 0.0 or used[2, 2] != 1.0:
            raise CameraError(f"camera_info.{name} is no camera matrix: {used.ravel().tolist()}")
        if used[2, :2].any() or used[1, 0]:
            raise CameraError(
                f"camera_info.{name} is no camera matrix, its rows must be (fx, 0, cx), (0, fy, cy), (0, 0, 1): "
                f"{used.ravel().tolist()}; was it written column by column?"
            )
        if not r.any():
            r = np.eye(3)  # drivers of single cameras leave it zero
        if not np.allclose(r @ r.T, np.eye(3), atol=1e-3):
            raise CameraError(f"camera_info.r is no rotation: {r.ravel().tolist()}")
        distortion, fisheye = _distortion(msg)
        baseline = np.array([p[0, 3] / p[0, 0], p[1, 3] / p[1, 1], 0.0]) if p[0, 0] and p[1, 1] else np.zeros(3)
        if rectified:
            matrix, distortion, fisheye = p[:, :3], np.zeros(0), False
            rotation, translation = (np.eye(3) if optical_frame_rectified else r), baseline
        elif optical_frame_rectified:
            matrix, rotation, translation = k, r.T, r.T @ baseline
        else:
            matrix, rotation, translation = k, np.eye(3), np.zeros(3)
        width, height, to_published = _window(msg)
        max_radius = _max_radius(distortion, fisheye)
        return cls(width, height, to_published @ matrix, distortion, fisheye, rotation, translation, max_radius)

    def require_size(self, width: int, height: int) -> None:
        """Refuse an image that is not the one this camera_info describes (a resized or differently cropped topic)."""
        if (width, height) != (self.width, self.height):
            raise CameraError(
                f"image is {width}x{height} and its camera_info describes {self.width}x{self.height}: take "
                "camera_info from the same namespace as the image"
            )

    def project(self, points_optical: ArrayLike) -> Projection:
        """Project points [N, 3] in the optical frame (metres) to pixels.

        A point behind the camera, or where the distortion model no longer holds, has no pixel (NaN). A point more
        than 90 degrees off axis counts as behind, also for fisheye lenses that see further.
        """
        points = np.asarray(points_optical, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points must be [N, 3], got shape {points.shape}")
        points = points @ self.rotation.T + self.translation
        finite = np.isfinite(points).all(axis=1)
        in_front = finite & (points[:, 2] > 1e-9)
        pixels = np.full((len(points), 2), np.nan)
        rays = points[in_front, :2] / points[in_front, 2:]  # x/z, y/z
        seen = np.flatnonzero(in_front)[np.hypot(rays[:, 0], rays[:, 1]) < self.max_radius]
        if len(seen):
            function = cv2.fisheye.projectPoints if self.fisheye else cv2.projectPoints
            distortion = self.distortion if self.distortion.size else None
            zero = np.zeros(3)
            projected, *_ = function(points[seen, None, :], zero, zero, self.matrix, distortion)
            pixels[seen] = projected.reshape(-1, 2)
        u, v = pixels.T
        in_image = (u >= -0.5) & (u < self.width - 0.5) & (v >= -0.5) & (v < self.height - 0.5)
        return Projection(pixels, in_front, in_image)


def project_tool(camera: CameraModel, optical_from_base: ArrayLike, base_from_tool: ArrayLike) -> ToolProjection:
    """Project the tool's origin into the image (SQAP-VLA, Eq. 2): its pixel, or None with the reason."""
    optical_from_tool = np.asarray(optical_from_base, dtype=np.float64) @ np.asarray(base_from_tool, dtype=np.float64)
    point = optical_from_tool[:3, 3]
    if not np.isfinite(point).all():
        return ToolProjection(None, f"the transform to the camera is not finite: {point.tolist()}")
    projection = camera.project(point[None])
    if not projection.in_front[0]:
        return ToolProjection(None, f"behind the camera: z = {point[2]:.3f} m in the optical frame")
    u, v = (float(c) for c in projection.pixels[0])
    if np.isnan(u):
        angle = np.degrees(np.arctan2(np.hypot(point[0], point[1]), point[2]))
        return ToolProjection(None, f"outside the field the lens model covers: {angle:.0f} degrees off axis")
    if not projection.in_image[0]:
        return ToolProjection(None, f"outside the image: (u, v) = ({u:.1f}, {v:.1f}) of {camera.width}x{camera.height}")
    return ToolProjection((u, v))


def _matrix(values: Any, name: str, rows: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    columns = 4 if name == "p" else 3
    if array.size != rows * columns or not np.isfinite(array).all():
        raise CameraError(f"camera_info.{name} must be {rows * columns} finite numbers, got {array.tolist()}")
    return array.reshape(rows, columns)


def _distortion(msg: Any) -> tuple[NDArray[np.float64], bool]:
    model, coefficients = str(msg.distortion_model), np.asarray(msg.d, dtype=np.float64).ravel()
    if not np.isfinite(coefficients).all():
        raise CameraError(f"camera_info.d must be finite, got {coefficients.tolist()}")
    if model != "equidistant" and not coefficients.any():
        return np.zeros(0), False  # none published, or all zero: an ideal pinhole whatever the model is called
    if model not in COEFFICIENTS:
        raise CameraError(
            f"camera_info.distortion_model is {model!r}: known are {', '.join(COEFFICIENTS)}; use the rectified topic"
        )
    if coefficients.size not in COEFFICIENTS[model]:
        wanted = " or ".join(map(str, COEFFICIENTS[model]))
        raise CameraError(f"camera_info.d has {coefficients.size} coefficients; {model} has {wanted}")
    return coefficients, model == "equidistant"


def _window(msg: Any) -> tuple[int, int, NDArray[np.float64]]:
    """Return the size of the published image and the [3, 3] map from full-resolution pixels to its pixels."""
    if msg.width <= 0 or msg.height <= 0:
        raise CameraError(f"camera_info has no image size: {msg.width}x{msg.height}")
    roi = msg.roi
    whole = roi.width == 0 and roi.height == 0
    x, y = (0, 0) if whole else (roi.x_offset, roi.y_offset)
    width, height = (msg.width, msg.height) if whole else (roi.width, roi.height)
    if width <= 0 or height <= 0 or x + width > msg.width or y + height > msg.height:
        raise CameraError(
            f"camera_info.roi ({x}, {y}) {width}x{height} does not lie in the full image {msg.width}x{msg.height}"
        )
    binning_x, binning_y = max(msg.binning_x, 1), max(msg.binning_y, 1)  # 0 means the same as 1
    to_published = np.array([[1 / binning_x, 0, -x / binning_x], [0, 1 / binning_y, -y / binning_y], [0, 0, 1.0]])
    return width // binning_x, height // binning_y, to_published


def _max_radius(distortion: NDArray[np.float64], fisheye: bool) -> float:
    """Return the smallest undistorted radius at which the distorted radius stops growing; inf when it never does.

    The distorted radius is r N(s) / D(s) with s = r^2. Its derivative has the sign of N D + 2 s (N' D - N D').
    Equidistant: theta N(theta^2), D = 1, and r = tan(theta). Tangential and prism terms are small beside these.
    """
    if distortion.size == 0:
        return np.inf
    if fisheye:
        radial, denominator = distortion[:4], np.zeros(0)
    else:
        radial = np.concatenate([distortion[:2], distortion[4:5]])
        denominator = distortion[5:8]
    numerator_poly = np.polynomial.Polynomial(np.concatenate([[1.0], radial]))
    denominator_poly = np.polynomial.Polynomial(np.concatenate([[1.0], denominator]))
    s = np.polynomial.Polynomial([0.0, 1.0])
    slope = numerator_poly * denominator_poly + 2 * s * (
        numerator_poly.deriv() * denominator_poly - numerator_poly * denominator_poly.deriv()
    )
    roots = np.concatenate([slope.trim(NEGLIGIBLE).roots(), denominator_poly.trim(NEGLIGIBLE).roots()])
    positive = roots.real[(np.abs(roots.imag) < 1e-9 * np.abs(roots)) & (roots.real > 0.0)]
    if positive.size == 0:
        return np.inf
    turning = float(np.sqrt(positive.min()))
    if not fisheye:
        return turning
    return float(np.tan(turning)) if turning < np.pi / 2 else np.inf
