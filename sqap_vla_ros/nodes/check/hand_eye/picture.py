"""One image of the survey with every pair drawn in it, and the ring where the policy will have it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Reason, TokenSelection
from sqap_vla_ros.nodes.check.hand_eye.policy_view import PolicyView
from sqap_vla_ros.nodes.check.hand_eye.sights import Sight
from sqap_vla_ros.pruning.overlay import draw_overlay
from sqap_vla_ros.robot.hand_eye.fit import Fit
from sqap_vla_ros.robot.hand_eye.pairs import ToolPairs

SEEN, LINE, OUTLIER, CORRECTED = (0, 158, 115), (230, 159, 0), (213, 94, 0), (240, 228, 66)  # Okabe and Ito
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def draw_pairs(
    pairs: ToolPairs, sights: list[Sight], view: PolicyView, fit: Fit, *, corrected: bool
) -> NDArray[np.uint8]:
    """Return the picture [H, W, 3] in RGB: crosses where the tool is projected, rings where it is seen.

    sights: of the pairs, in their order. The background is the one with the median error; its projected patch is
    outlined, with the policy's ring around it. corrected: draw where the fit would project the tool, too.
    """
    error = np.linalg.norm(np.nan_to_num(pairs.projected - pairs.seen, nan=1e6), axis=1)
    shown = int(np.argsort(error)[len(error) // 2])
    image, width, height = sights[shown].image, pairs.camera.width, pairs.camera.height
    patch = view.patch(pairs.projected[shown], width, height)
    out = draw_overlay(
        image,
        _ring(view, patch),
        view.transform,
        caption="cross: projected, circle: seen" + (", dot: corrected" if corrected else "") + "; blue: ring",
        legend=False,
    )
    scale = max(1.0, min(width, height) / 240)
    for k in range(len(pairs)):
        thick = 2.0 if k == shown else 1.0
        seen = _integer(pairs.seen[k])
        if np.isfinite(pairs.projected[k]).all():
            cross = _integer(pairs.projected[k])
            cv2.line(out, seen, cross, LINE if fit.inliers[k] else OUTLIER, round(thick * scale), cv2.LINE_AA)
            for colour, more in ((BLACK, 2), (WHITE, 0)):
                cv2.drawMarker(
                    out, cross, colour, cv2.MARKER_CROSS, round(4 * thick * scale), round(0.8 * thick * scale) + more
                )
        for colour, more in ((BLACK, 2), (SEEN, 0)):
            cv2.circle(out, seen, round(2.5 * thick * scale), colour, round(0.8 * thick * scale) + more, cv2.LINE_AA)
        if corrected:
            cv2.circle(out, _integer(pairs.seen[k] + fit.residuals[k]), round(scale), CORRECTED, -1, cv2.LINE_AA)
    return out


def _ring(view: PolicyView, patch: tuple[int, int] | None) -> TokenSelection:
    """Return a selection that keeps every token, those of the ring as such."""
    rows, columns = np.divmod(np.arange(view.grid[0] * view.grid[1], dtype=np.int32), view.grid[1])
    reasons = np.full(len(rows), Reason.ALL, dtype=np.uint8)
    if patch is not None and view.radius is not None:
        near = np.maximum(np.abs(rows - patch[0]), np.abs(columns - patch[1])) <= view.radius
        reasons[near] = Reason.RING
    indices = np.arange(len(rows), dtype=np.int32)
    return TokenSelection(indices, reasons, view.grid, "ring", 0, patch)


def _integer(pixel: NDArray[np.float64]) -> tuple[int, int]:
    u, v = np.clip(pixel, -1e4, 1e4)
    return round(float(u)), round(float(v))
