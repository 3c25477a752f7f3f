"""The policy's view of the camera image: its patches, and the ring that it protects around the tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqap_vla_ros.contracts import Observation, PolicyInfo, Reason
from sqap_vla_ros.nodes.check.hand_eye.sights import Array, Sight
from sqap_vla_ros.nodes.check.trial import try_policy
from sqap_vla_ros.policy.preprocessing import ImageTransform, patch_of

ASSUMED_GRID, ASSUMED_RADIUS = (16, 16), 2  # of CogACT, and R_t of SQAP-VLA's selector


@dataclass(frozen=True)
class PolicyView:
    """Patches and ring. radius: in patches, None where none is protected. name: of the recipe, for sentences."""

    transform: ImageTransform
    grid: tuple[int, int]
    radius: int | None
    name: str

    def patch_px(self, width: int, height: int) -> tuple[float, float]:
        """Return the width and height of a patch in pixels of a camera image of this size."""
        (left, top), (right, bottom) = (
            self.transform.unmap_pixel((edge, edge), width, height) for edge in (-0.5, self.transform.size - 0.5)
        )
        return (right - left) / self.grid[1], (bottom - top) / self.grid[0]

    def patch(self, pixel: Array, width: int, height: int) -> tuple[int, int] | None:
        """Return the (row, col) of a camera pixel; None where the policy does not see it."""
        if not np.isfinite(pixel).all():
            return None
        mapped = self.transform.map_pixel((float(pixel[0]), float(pixel[1])), width, height)
        return None if mapped is None else patch_of(mapped, self.transform.size, self.grid)

    def patches_apart(self, a: Array, b: Array, width: int, height: int) -> float:
        """Return the distance of two pixels' patches as the ring counts it; inf where the policy does not see one."""
        first, second = self.patch(a, width, height), self.patch(b, width, height)
        if first is None or second is None:
            return np.inf
        return float(max(abs(first[0] - second[0]), abs(first[1] - second[1])))


def assumed_view(info: PolicyInfo | None = None) -> PolicyView:
    """Return the view of a policy whose ring is not known; info: None where nothing of the policy is."""
    if info is None:
        return PolicyView(ImageTransform(), ASSUMED_GRID, ASSUMED_RADIUS, "")
    return PolicyView(ImageTransform.of(info), info.grid, ASSUMED_RADIUS, info.recipe)


def loaded_view(
    values: Mapping[str, Any], sight: Sight, factory: str = "", *, wait_s: float | None = None
) -> PolicyView | str:
    """Load the policy and let it predict once, with the tool in the middle of the image; return its view, or a failure.

    The ring is measured in the tokens that come back, so it is right for compressed checkpoints, which hold a recipe of
    their own, and for servers. factory, wait_s: as in `try_policy`.
    """
    height, width = sight.image.shape[:2]
    middle = (0.5 * (width - 1), 0.5 * (height - 1))
    observation = Observation(sight.image, sight.stamp_ns, "check", middle, sight.base_from_tool)
    trial = try_policy(values, observation, factory, predictions=1, wait_s=wait_s)
    if trial.info is None or trial.chunk is None:
        return trial.failure or "it answered nothing"
    selection, radius = trial.chunk.selection, None
    if selection is not None and selection.gripper_patch is not None:
        ring = selection.indices[selection.reasons == Reason.RING]
        if len(ring):
            rows, columns = np.divmod(ring, selection.grid[1])
            row, column = selection.gripper_patch
            radius = int(max(np.abs(rows - row).max(), np.abs(columns - column).max()))
    return PolicyView(ImageTransform.of(trial.info), trial.info.grid, radius, trial.info.recipe)
