"""The findings about a camera on the tool that sees a point which lies still in the room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped
from sqap_vla_ros.nodes.check.hand_eye.judgement import (
    Judgement,
    correction,
    offset,
    offsets,
    outliers,
    unexplained,
)
from sqap_vla_ros.nodes.check.hand_eye.policy_view import PolicyView
from sqap_vla_ros.nodes.check.hand_eye.sights import Survey
from sqap_vla_ros.nodes.check.report import Row
from sqap_vla_ros.robot.hand_eye.faults import LARGE, poor_px
from sqap_vla_ros.robot.hand_eye.fit import Fit, unfitted
from sqap_vla_ros.robot.hand_eye.on_hand import degenerate_on_hand, fit_on_hand, from_tool
from sqap_vla_ros.robot.hand_eye.pairs import ToolPairs


def judge_on_hand(survey: Survey, pairs: ToolPairs, view: PolicyView) -> Judgement:
    """Judge pairs in which by TF the camera rides with the tool, see `sees_the_room`."""
    patch_px = min(view.patch_px(pairs.camera.width, pairs.camera.height))
    swapped = from_tool(pairs)
    thin = list(degenerate_on_hand(pairs, survey.tool_frame))
    fit = unfitted(swapped) if thin else fit_on_hand(pairs)
    wrong = None if thin else _mistake(survey, fit, patch_px)
    fitted = not thin and wrong is None
    if not fitted:
        fit = unfitted(swapped)
    rows = [Row("pairs", ok(_places(survey, pairs, fit)))]
    rows += [Row("pairs", fail(fault.text, fault.remedy)) for fault in thin]
    if wrong is not None:
        rows.append(Row("mistake", wrong))
    if fitted and fit.rms_px > poor_px(patch_px):
        rows.append(Row("pairs", unexplained(fit, patch_px)))
    if fitted and not fit.inliers.all():
        rows.append(Row("pairs", outliers(swapped, fit)))
    numbers = offsets(swapped, fit.inliers, view)
    rows.append(Row("offset", offset(numbers, "the point")))
    if not fitted:
        rows.append(Row("camera pose", skipped("no correction is fitted: see above")))
    else:
        rows.append(Row("ring", _ring(pairs, fit, view, numbers)))
        from_its_tool = replace(survey, base_frame=survey.tool_frame, tool_frame=survey.base_frame)
        more = "from all sides, with turns of the wrist about two axes"
        for finding in correction(from_its_tool, swapped, fit, patch_px, numbers, any_point=True, more=more):
            rows.append(Row("camera pose", finding))
    return Judgement(tuple(rows), swapped, fit, fitted, numbers, on_hand=True)


def _places(survey: Survey, pairs: ToolPairs, fit: Fit) -> str:
    turns = Rotation.from_matrix(pairs.base_from_tool[0, :3, :3].T @ pairs.base_from_tool[:, :3, :3]).magnitude()
    x, y, z = fit.point_in_tool
    return (
        f"{len(pairs)} pairs of a point that lies still, at ({x:.3f}, {y:.3f}, {z:.3f}) m in {survey.base_frame}; the "
        f"camera rides with {survey.tool_frame}, which turned by up to {np.degrees(turns.max()):.0f} degrees"
    )


def _mistake(survey: Survey, fit: Fit, patch_px: float) -> Finding | None:
    """Return what speaks against a fit."""
    if fit.rms_px > patch_px:
        return fail(
            f"no place of the camera on {survey.tool_frame} explains the pairs: {fit.rms_px:.1f} px remain",
            "is it one point that lies still while the arm moves, is the camera on the tool as TF has it, do images "
            "and joint_states have one clock, is the camera calibrated?",
        )
    if fit.angle_rad > LARGE:
        return fail(
            f"TF has the camera turned by {np.degrees(fit.angle_rad):.0f} degrees against the image: that is no error "
            "of calibration",
            "an optical frame has z forward, x right and y down: is it the optical frame that the image names?",
        )
    return None


def _ring(pairs: ToolPairs, fit: Fit, view: PolicyView, numbers: dict[str, Any]) -> Finding:
    """Compare where TF has the tool in the image with where the fitted camera has it; both stand still."""
    size = pairs.camera.width, pairs.camera.height
    true = pairs.in_optical[:1] @ fit.correction[:3, :3].T + fit.correction[:3, 3]
    ours, theirs = pairs.projected[0], pairs.camera.project(true).pixels[0]
    apart, away_px = view.patches_apart(ours, theirs, *size), float(np.linalg.norm(ours - theirs))
    numbers |= {"ring_radius": view.radius, "tool_off_px": round(away_px, 2) if np.isfinite(away_px) else None}
    if view.radius is None:
        return ok(f"recipe {view.name} protects no ring: its tokens do not depend on the projection")
    if view.patch(theirs, *size) is None:
        return skipped("the tool is outside what the camera sees, so that no ring is protected")
    whose = f"the ring of {view.radius} patches" + ("" if view.name else ", assumed as no policy was loaded,")
    if apart <= view.radius:
        return ok(f"{whose} will lie on the tool: it is projected {away_px:.0f} px, {apart:.0f} patches beside it")
    return fail(
        f"{whose} will not lie on the tool: TF projects it "
        + (f"{away_px:.0f} px, {apart:.0f} patches beside it" if np.isfinite(apart) else "outside the image"),
        "publish the transform of the row `camera pose`",
    )
