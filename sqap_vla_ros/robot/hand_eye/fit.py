"""Least-squares fits of one mistake each to pairs of projected and seen pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.conventions import invert_pose, pose_matrix
from sqap_vla_ros.robot.hand_eye.pairs import Array, ToolPairs

PIXEL_NOISE = 0.5  # of a click or a detection, at least
ROBUST_PX = 3.0  # residuals beyond it count linearly
NO_PIXEL_PX = 1e3  # residual of a point that has no pixel
OUTLIER_PX = 8.0  # a residual below it is no outlier
OUTLIER_SHARE = 0.3  # of the pairs, at most: with more of them nobody can tell who is right
MUCH_BETTER = 0.25  # cost at which the start by PnP is preferred to the one at TF's own pose


@dataclass(frozen=True)
class Fit:
    """One explanation of the pairs.

    correction: [4, 4] true_from_tf of the optical frame: it maps points in the optical frame as TF has it to points as
        the camera sees them. point_in_tool: [3] m. scale: of the intrinsics against camera_info.
    residuals: [N, 2] px, projected with the correction minus seen. inliers: [N] bool. rms_px: of their distances.
    position_m, rotation_rad: standard deviations of the correction; infinite where the pairs do not determine it.
    """

    correction: Array
    point_in_tool: Array
    scale: float
    residuals: Array
    inliers: NDArray[np.bool_]
    position_m: float = np.inf
    rotation_rad: float = np.inf

    @property
    def rms_px(self) -> float:
        errors = np.square(self.residuals[self.inliers]).sum(axis=1)
        return float(np.sqrt(errors.mean())) if len(errors) else np.inf

    @property
    def angle_rad(self) -> float:
        """Angle of the correction."""
        return float(np.linalg.norm(Rotation.from_matrix(self.correction[:3, :3]).as_rotvec()))

    @property
    def metres(self) -> float:
        """Distance that the correction moves the camera's centre."""
        return float(np.linalg.norm(invert_pose(self.correction)[:3, 3]))


def fit_camera(pairs: ToolPairs, *, scaled: bool = False, any_point: bool = False) -> Fit:
    """Fit the pose of the optical frame.

    scaled: also a factor of the intrinsics, as of another resolution. any_point: also the point's place in the tool's
    frame, which shows only where the tool turns.

    Starts at TF's own pose, and at the pose that PnP finds (Terzakis and Lourakis 2020, SQPnP), which is taken where it
    fits far better. A turn is about the middle of the points, so that turn and shift are told apart.
    """
    middle = pairs.in_optical.mean(axis=0)

    def unpack(x: Array) -> tuple[Array, float, Array]:
        scale = float(np.exp(x[6])) if scaled else 1.0
        return _about(middle, x[:6]), scale, x[-3:] if any_point else np.zeros(3)

    def residuals(x: Array) -> Array:
        correction, scale, shift = unpack(x)
        points = pairs.in_optical + pairs.optical_from_tool_rotation @ shift
        return _residuals(pairs, points @ correction[:3, :3].T + correction[:3, 3], scale)

    starts = [np.zeros(6 + scaled + 3 * any_point)]
    for correction in _perspective_n_point(pairs):
        x = np.zeros_like(starts[0])
        x[:3] = Rotation.from_matrix(correction[:3, :3]).as_rotvec()
        x[3:6] = correction[:3, :3] @ middle + correction[:3, 3] - middle
        starts.append(x)
    x, inliers, covariance = _robust(residuals, starts, len(pairs))
    correction, scale, shift = unpack(x)
    position_m, rotation_rad = np.inf, np.inf
    if covariance is not None:
        lever = correction[:3, :3] @ middle  # of the turn's uncertainty on the camera's centre
        to_centre = np.hstack([_cross(lever), np.eye(3)])
        position_m = float(np.sqrt(np.trace(to_centre @ covariance[:6, :6] @ to_centre.T)))
        rotation_rad = float(np.sqrt(np.trace(covariance[:3, :3])))
    shape = residuals(x).reshape(-1, 2)
    return Fit(correction, pairs.point_in_tool + shift, scale, shape, inliers, position_m, rotation_rad)


def fit_point(pairs: ToolPairs) -> Fit:
    """Fit where in the tool's frame the point is, with the camera where TF has it."""

    def residuals(x: Array) -> Array:
        return _residuals(pairs, pairs.in_optical + pairs.optical_from_tool_rotation @ x, 1.0)

    x, inliers, _ = _robust(residuals, [np.zeros(3)], len(pairs))
    return Fit(np.eye(4), pairs.point_in_tool + x, 1.0, residuals(x).reshape(-1, 2), inliers)


def held_out_px(pairs: ToolPairs, fit: Fit, folds: int = 3, *, any_point: bool = False) -> float:
    """Return the rms in pixels of pairs that took no part in fitting the camera's pose; outliers of `fit` aside.

    Below the error of the pairs as they are, the correction is worth something; in its own pairs it always is.
    any_point: the point's place is fitted too, and `fit` is where the fits start.
    """
    if any_point:
        pairs = replace(
            pairs, optical_from_base=fit.correction @ pairs.optical_from_base, point_in_tool=fit.point_in_tool
        )
    sound = np.flatnonzero(fit.inliers)
    squares = []
    for fold in range(folds):
        left_out = sound[fold::folds]
        others = fit_camera(pairs.take(np.setdiff1d(sound, left_out)), any_point=any_point)
        correction, other = others.correction, replace(pairs.take(left_out), point_in_tool=others.point_in_tool)
        points = other.in_optical @ correction[:3, :3].T + correction[:3, 3]
        squares.append(np.square(_residuals(other, points, 1.0)).reshape(-1, 2).sum(axis=1))
    return float(np.sqrt(np.concatenate(squares).mean()))


def unfitted(pairs: ToolPairs) -> Fit:
    """Return the pairs as they are, as a fit that changes nothing."""
    residuals = _residuals(pairs, pairs.in_optical, 1.0).reshape(-1, 2)
    return Fit(np.eye(4), pairs.point_in_tool, 1.0, residuals, np.ones(len(pairs), bool))


def _residuals(pairs: ToolPairs, points_optical: Array, scale: float) -> Array:
    pixels = (pairs.camera.project(points_optical).pixels + 0.5) * scale - 0.5
    return np.nan_to_num(pixels - pairs.seen, nan=NO_PIXEL_PX).ravel()


def _robust(
    residuals: Callable[[Array], Array], starts: list[Array], pairs: int
) -> tuple[Array, NDArray[np.bool_], Array | None]:
    """Return the parameters, which pairs they explain, and the covariance of the parameters, None if undetermined."""
    best = least_squares(residuals, starts[0], loss="soft_l1", f_scale=ROBUST_PX)
    for start in starts[1:]:
        found = least_squares(residuals, start, loss="soft_l1", f_scale=ROBUST_PX)
        if found.cost < MUCH_BETTER * best.cost:
            best = found
    distance = np.linalg.norm(residuals(best.x).reshape(-1, 2), axis=1)
    inliers = distance <= max(OUTLIER_PX, 4.0 * float(np.median(distance)))
    if not inliers.any() or (~inliers).sum() > OUTLIER_SHARE * pairs:
        inliers = np.ones(pairs, bool)
    elif 2 * inliers.sum() > len(best.x):
        best = least_squares(lambda x: residuals(x).reshape(-1, 2)[inliers].ravel(), best.x)
    return best.x, inliers, _covariance(best.jac, best.fun)


def _covariance(jacobian: Array, residuals: Array) -> Array | None:
    freedom = len(residuals) - jacobian.shape[1]
    if freedom < 1:
        return None
    variance = max(PIXEL_NOISE**2, float(residuals @ residuals) / freedom)
    normal = jacobian.T @ jacobian
    if not np.isfinite(normal).all() or np.linalg.cond(normal) > 1e14:
        return None
    return np.asarray(variance * np.linalg.inv(normal))


def _perspective_n_point(pairs: ToolPairs) -> list[Array]:
    """Return corrections [4, 4] by SQPnP of the seen directions; none where there is no solution."""
    rays, points = pairs.rays(), pairs.in_optical
    sound = np.isfinite(rays).all(axis=1)
    if sound.sum() < 4:
        return []
    try:
        _, rotations, translations, _ = cv2.solvePnPGeneric(
            points[sound], rays[sound], np.eye(3), None, flags=cv2.SOLVEPNP_SQPNP
        )
    except cv2.error:
        return []
    to_intrinsics = np.eye(4)
    to_intrinsics[:3, :3], to_intrinsics[:3, 3] = pairs.camera.rotation, pairs.camera.translation
    return [
        invert_pose(to_intrinsics) @ pose_matrix(t.ravel(), Rotation.from_rotvec(r.ravel()).as_quat())
        for r, t in zip(rotations, translations, strict=True)
        if np.isfinite(r).all() and np.isfinite(t).all()
    ]


def _about(middle: Array, x: Array) -> Array:
    """Return the [4, 4] motion that turns by x[:3] (rotation vector) about `middle`, then shifts by x[3:]."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(x[:3]).as_matrix()
    motion[:3, 3] = middle - motion[:3, :3] @ middle + x[3:]
    return motion


def _cross(v: Array) -> Array:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
