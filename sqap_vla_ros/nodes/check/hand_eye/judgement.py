"""The findings about pairs of projected and seen pixels: how far off, what explains it, and whether the ring holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.hand_eye.clicks import stamp_text
from sqap_vla_ros.nodes.check.hand_eye.mounts import correct_mount, publisher_command
from sqap_vla_ros.nodes.check.hand_eye.policy_view import PolicyView
from sqap_vla_ros.nodes.check.hand_eye.sights import Survey
from sqap_vla_ros.nodes.check.report import Row
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.hand_eye.faults import STANDS_M, WRIST, degenerate, mistakes, poor_px
from sqap_vla_ros.robot.hand_eye.fit import Fit, fit_camera, fit_point, held_out_px, unfitted
from sqap_vla_ros.robot.hand_eye.pairs import Array, ToolPairs, extent

HOLDS = 0.95  # share of the images in which the ring must lie on the tool
WELL_M, WELL_RAD = 0.03, 0.035  # standard deviations up to which a correction is worth telling
NO_BETTER = 1.5  # error against that of the fit, up to which TF is as good
FEW_PX = 3.0  # an error that is nobody's fault


@dataclass(frozen=True)
class Judgement:
    """Rows of the report, and the numbers behind them. fitted: `fit` is a correction of the camera's pose.

    pairs: those that `fit` is of. on_hand: the camera is on the tool and sees a point of the room.
    """

    rows: tuple[Row, ...]
    pairs: ToolPairs
    fit: Fit
    fitted: bool
    numbers: dict[str, Any]
    on_hand: bool = False


def judge(survey: Survey, pairs: ToolPairs, view: PolicyView) -> Judgement:
    """Judge the pairs of a survey."""
    camera = pairs.camera
    patch_px = min(view.patch_px(camera.width, camera.height))
    thin = list(degenerate(pairs, survey.tool_frame, survey.base_frame))
    rides = not thin and extent(pairs.in_optical) < STANDS_M  # with the tool
    fit, wrong = unfitted(pairs), []
    if not thin and not rides:
        fit = fit_camera(pairs)
        wrong = list(mistakes(pairs, fit, patch_px, survey.tool_frame))
    fitted = not thin and not rides and not wrong
    if not fitted:
        fit = unfitted(pairs)
    rows = [Row("pairs", ok(_places(pairs)))]
    rows += [Row("pairs", fail(fault.text, fault.remedy)) for fault in thin]
    rows += [Row("mistake", fail(fault.text, fault.remedy)) for fault in wrong]
    if fitted and fit.rms_px > poor_px(patch_px):
        rows.append(Row("pairs", unexplained(fit, patch_px)))
    if fitted and not fit.inliers.all():
        rows.append(Row("pairs", outliers(pairs, fit)))
    numbers = offsets(pairs, fit.inliers, view)
    rows.append(Row("offset", offset(numbers)))
    rows.append(Row("ring", _ring(pairs, fit.inliers, view, numbers)))
    if not fitted:
        rows.append(Row("camera pose", skipped(_not_fitted(rides))))
    else:
        for finding in correction(survey, pairs, fit, patch_px, numbers):
            rows.append(Row("camera pose", finding))
    return Judgement(tuple(rows), pairs, fit, fitted, numbers)


def _not_fitted(rides: bool) -> str:
    why = f"the camera rides with the tool, which is always in one place of the image; {WRIST}"
    return f"no correction is fitted: {why if rides else 'see above'}"


def _places(pairs: ToolPairs) -> str:
    across, down, deep = np.ptp(pairs.in_optical, axis=0)
    return (
        f"{len(pairs)} pairs; seen from the camera the tool moved {across:.2f} m across, {down:.2f} m down and "
        f"{deep:.2f} m in depth"
    )


def unexplained(fit: Fit, patch_px: float) -> Finding:
    """Return the finding about an error that remains."""
    return warning(
        f"{fit.rms_px:.1f} px, {fit.rms_px / patch_px:.1f} patches, remain that no pose of the camera explains",
        "an arm with play or a bad zero of a joint, clicks on different points, a moving arm, a poor calibration",
    )


def outliers(pairs: ToolPairs, fit: Fit) -> Finding:
    """Return the finding about pairs that contradict the others."""
    out = np.flatnonzero(~fit.inliers)
    worst = max(out, key=lambda k: float(np.linalg.norm(fit.residuals[k])))
    return warning(
        f"{len(out)} of {len(pairs)} pairs fit to no camera that the others fit to, the worst by "
        f"{np.linalg.norm(fit.residuals[worst]):.0f} px at {stamp_text(int(pairs.stamps_ns[worst]))}; left out",
        "look at them: another point clicked, a moving arm, a transform that came late?",
    )


def offsets(pairs: ToolPairs, inliers: NDArray[np.bool_], view: PolicyView) -> dict[str, Any]:
    """Return the error of the projection in pixels and patches, over the pairs that have a projection and are sound."""
    camera = pairs.camera
    sound = inliers & np.isfinite(pairs.projected).all(axis=1)
    away = (pairs.projected - pairs.seen)[sound]
    patch = np.array(view.patch_px(camera.width, camera.height))
    numbers: dict[str, Any] = {"pairs": len(pairs), "used": int(sound.sum()), "patch_px": patch.round(2).tolist()}
    numbers["each"] = [
        {
            "stamp": stamp_text(int(pairs.stamps_ns[k])),
            "projected": pairs.projected[k].round(2).tolist() if np.isfinite(pairs.projected[k]).all() else None,
            "seen": pairs.seen[k].round(2).tolist(),
            "used": bool(sound[k]),
        }
        for k in range(len(pairs))
    ]
    if len(away):
        distance = np.linalg.norm(away, axis=1)
        numbers |= {
            "mean_px": away.mean(axis=0).round(2).tolist(),
            "mean_patches": (away.mean(axis=0) / patch).round(3).tolist(),
            "spread_px": away.std(axis=0).round(2).tolist(),
            "rms_px": round(float(np.sqrt(np.square(distance).mean())), 2),
            "p95_px": round(float(np.percentile(distance, 95)), 2),
            "worst_px": round(float(distance.max()), 2),
        }
    return numbers


def offset(numbers: dict[str, Any], of: str = "the tool") -> Finding:
    """Return the finding about the error of the projection. of: what is seen."""
    if "mean_px" not in numbers:
        return skipped("no pair has a projection inside the lens model")
    (u, v), (right, down) = numbers["mean_px"], numbers["mean_patches"]
    across, height = numbers["spread_px"]
    return ok(
        f"the projection lies ({u:+.1f}, {v:+.1f}) px right and down of {of} on average, "
        f"({right:+.2f}, {down:+.2f}) patches; spread ({across:.1f}, {height:.1f}) px, "
        f"95 % within {numbers['p95_px']:.1f} px, worst {numbers['worst_px']:.1f} px"
    )


def _ring(pairs: ToolPairs, inliers: NDArray[np.bool_], view: PolicyView, numbers: dict[str, Any]) -> Finding:
    size = pairs.camera.width, pairs.camera.height
    used = [k for k in np.flatnonzero(inliers) if view.patch(pairs.seen[k], *size) is not None]
    apart = np.array([view.patches_apart(pairs.projected[k], pairs.seen[k], *size) for k in used])
    away = (pairs.projected - pairs.seen)[used]
    numbers |= {"ring_radius": view.radius, "ring_images": len(apart)}
    if not len(apart):
        return skipped("no pair lies in the policy's view of the image")
    if view.radius is None:
        return ok(f"recipe {view.name} protects no ring: its tokens do not depend on the projection")
    lost = np.isinf(apart)
    reach_px = (view.radius + 1) * min(view.patch_px(*size))
    border = lost & (np.linalg.norm(np.nan_to_num(away, nan=np.inf), axis=1) <= reach_px)
    outside, edge = int((apart > view.radius).sum()), int((apart >= max(view.radius, 1)).sum())
    numbers |= {"ring_outside": outside, "ring_edge": edge - outside, "ring_border": int(border.sum())}
    allowed = (1.0 - HOLDS) * len(apart)
    whose = f"of {view.radius} patches" + ("" if view.name else ", assumed as no policy was loaded,")
    remedy = "correct tool_frame or the camera's pose in TF, as the other rows say, and collect pairs again"
    if outside - border.sum() > allowed:
        beside = f", in {lost.sum()} of them because it is projected outside the image" if lost.any() else ""
        return fail(
            f"the ring {whose} will not lie on the gripper: in {outside} of {len(apart)} images the tool is outside "
            f"it{beside}",
            remedy,
        )
    if outside > allowed:
        return warning(
            f"the ring {whose} will lie on the gripper, but not at the image's border: in {outside} of {len(apart)} "
            "images the tool is seen there and projected outside, where no ring is",
            "let the camera see more room around the task, or correct its pose in TF",
        )
    if edge > allowed:
        return warning(
            f"the ring {whose} will lie on the edge of the gripper: in {edge} of {len(apart)} images the tool is in "
            "its outermost patches",
            remedy,
        )
    return ok(
        f"the ring {whose} will lie on the gripper: the projected patch and the tool's are at most "
        f"{apart[~lost].max():.0f} apart"
    )


def correction(
    survey: Survey,
    pairs: ToolPairs,
    fit: Fit,
    patch_px: float,
    numbers: dict[str, Any],
    *,
    any_point: bool = False,
    more: str = "further apart and in depth too",
) -> Iterator[Finding]:
    """Yield whether the fitted pose of the camera is worth publishing, and how. Adds to numbers.

    any_point: the place of the point was fitted too. more: which pairs would determine the pose better.
    """
    before = unfitted(pairs).residuals[fit.inliers]
    before_px, after_px = (
        float(np.sqrt(np.square(before).sum(axis=1).mean())),
        held_out_px(pairs, fit, any_point=any_point),
    )
    numbers |= {
        "fit_rms_px": round(fit.rms_px, 2),
        "held_out_rms_px": round(after_px, 2),
        "camera_off_m": round(fit.metres, 4),
        "camera_off_deg": round(float(np.degrees(fit.angle_rad)), 3),
        "camera_off_std_m": _finite(fit.position_m),
        "camera_off_std_deg": _finite(float(np.degrees(fit.rotation_rad))),
    }
    if not (fit.position_m <= WELL_M and fit.rotation_rad <= WELL_RAD):
        yield warning(
            f"the pairs do not determine the camera's pose well: its place to {1e2 * fit.position_m:.0f} cm, its turn "
            f"to {np.degrees(fit.rotation_rad):.0f} degrees (one standard deviation)",
            f"collect more pairs, {more}, before correcting anything",
        )
        return
    parent, child, pose = _corrected(survey, pairs, fit)
    command = publisher_command(parent, child, pose)
    numbers |= {"static_transform": command, "parent": parent, "child": child, "parent_from_child": pose.tolist()}
    if before_px <= max(NO_BETTER * after_px, FEW_PX):
        yield ok(
            f"TF has the camera as well as these pairs can tell: {before_px:.1f} px off, and {after_px:.1f} px in "
            "pairs that took no part in a correction"
        )
        return
    text = (
        f"moved by {1e2 * fit.metres:.1f} ± {1e2 * fit.position_m:.1f} cm and turned by "
        f"{np.degrees(fit.angle_rad):.1f} ± {np.degrees(fit.rotation_rad):.1f} degrees, the camera agrees "
        f"with pairs that took no part in it to {after_px:.1f} px instead of {before_px:.1f} px"
    )
    point = fit_point(pairs)
    also = ""
    if not any_point and point.rms_px <= max(NO_BETTER * after_px, FEW_PX):
        x, y, z = point.point_in_tool
        also = (
            f" (or it is tool_frame: with the point at ({x:.3f}, {y:.3f}, {z:.3f}) m in {survey.tool_frame} the camera "
            f"can stay, to {point.rms_px:.1f} px)"
        )
    remedy = f"publish instead of the present one: {command}{also}"
    yield warning(text, remedy) if before_px > 0.25 * patch_px or also else ok(f"{text}: {command}")


def _corrected(survey: Survey, pairs: ToolPairs, fit: Fit) -> tuple[str, str, Array]:
    """Return (parent, child, parent_from_child) of the static transform that takes up the correction."""
    optical = survey.optical_frame
    if pairs.camera_moves and optical in survey.mounts:
        parent, parent_from_optical = survey.mounts[optical]
        return parent, optical, parent_from_optical @ invert_pose(fit.correction)
    base_from_optical = invert_pose(fit.correction @ pairs.optical_from_base[0])
    return correct_mount(survey.mounts, survey.base_frame, optical, base_from_optical)


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
