"""A camera on the tool that sees a point of the room: the pairs of a fixed camera, with base and tool swapped.

Seen from the tool, the camera is fixed and the base moves before it, with the point on it. Where the point is, nobody
has to know: it is fitted with the camera's pose (eye on hand; Tsai and Lenz 1989 do so with whole boards).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.hand_eye.faults import MIN_PAIRS, MOVES_PX, STANDS_M, Fault
from sqap_vla_ros.robot.hand_eye.fit import MUCH_BETTER, Fit, fit_camera, fit_point, unfitted
from sqap_vla_ros.robot.hand_eye.pairs import Array, ToolPairs, extent

TURNS_RAD = 0.05  # rms turn of the tool about a second axis, below which the camera's place on it does not show


def sees_the_room(pairs: ToolPairs) -> bool:
    """Return whether by TF the camera rides with the tool, while what is seen moves in the images."""
    return pairs.camera_moves and extent(pairs.in_optical) < STANDS_M and extent(pairs.seen) > MOVES_PX


def from_tool(pairs: ToolPairs) -> ToolPairs:
    """Return the pairs with base and tool swapped, and with the point where TF's camera sees it best.

    In what is returned `base_from_tool` is tool_from_base, `optical_from_base` optical_from_tool and `point_in_tool`
    the point in the base frame.
    """
    swapped = _swapped(pairs, np.eye(4))
    return replace(swapped, point_in_tool=fit_point(swapped).point_in_tool)


def fit_on_hand(pairs: ToolPairs) -> Fit:
    """Fit the pose of the camera on the tool and the place of the point in the room.

    Starts at TF's own pose, or at one of the quarter turns of it where the rays meet far better. The correction and its
    uncertainty are those of `from_tool(pairs)`; `point_in_tool` of the result is the point in the base frame.
    """
    starts = [(turn, _swapped(pairs, turn)) for turn in _quarter_turns()]
    costs = [float(np.square(np.clip(unfitted(start).residuals, -1e3, 1e3)).sum()) for _, start in starts]
    best = int(np.argmin(costs))
    turn, start = starts[best if costs[best] < MUCH_BETTER * costs[0] else 0]
    fit = fit_camera(start, any_point=True)
    return replace(fit, correction=fit.correction @ turn)


def degenerate_on_hand(pairs: ToolPairs, tool_frame: str) -> Iterator[Fault]:
    """Yield why these pairs cannot tell where on the tool the camera is."""
    if len(pairs) < MIN_PAIRS:
        yield Fault(
            f"{len(pairs)} pairs, at least {MIN_PAIRS} are needed",
            "look at the point from more places, and keep the tool still at each for a second",
        )
    elif (turned_rad := _turned_rad(pairs)) < TURNS_RAD:
        yield Fault(
            f"{tool_frame} turns about a second axis by {np.degrees(turned_rad):.1f} degrees only: where on it the "
            "camera is does not show",
            "turn the wrist by 20 degrees and more, about two axes, with the point in view",
        )


def _turned_rad(pairs: ToolPairs) -> float:
    """Return the rms turn of the tool about the axis, square to the one it turns about most, that it turns about."""
    turns = Rotation.from_matrix(pairs.base_from_tool[0, :3, :3].T @ pairs.base_from_tool[:, :3, :3]).as_rotvec()
    spread = np.linalg.svd(turns - turns.mean(axis=0), compute_uv=False) / np.sqrt(len(pairs))
    return float(spread[1])


def _swapped(pairs: ToolPairs, turn: Array) -> ToolPairs:
    """Return the pairs from the tool's view, the camera being turned by `turn` [4, 4] against TF's."""
    return replace(
        pairs,
        base_from_tool=np.stack([invert_pose(pose) for pose in pairs.base_from_tool]),
        optical_from_base=turn @ pairs.optical_from_base @ pairs.base_from_tool,
        point_in_tool=_meeting_point(pairs, turn),
    )


def _meeting_point(pairs: ToolPairs, turn: Array) -> Array:
    """Return the point [3] in the base frame that lies nearest to all rays, the camera being turned against TF's."""
    rays = pairs.rays()
    sound = np.isfinite(rays).all(axis=1)
    directions = np.hstack([rays[sound], np.ones((int(sound.sum()), 1))]) @ pairs.camera.rotation
    poses = np.stack([invert_pose(turn @ pose) for pose in pairs.optical_from_base[sound]])  # base_from_optical
    directions = np.einsum("nij,nj->ni", poses[:, :3, :3], directions)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]  # onto the plane square to each ray
    right = np.einsum("nij,nj->i", across, poses[:, :3, 3])
    return np.asarray(np.linalg.lstsq(across.sum(axis=0), right, rcond=None)[0])


def _quarter_turns() -> list[NDArray[np.float64]]:
    """Return the 24 turns [4, 4] that map the axes onto axes, the one that does nothing first."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = np.eye(4)
            turn[:3, :3] = np.eye(3)[list(order)] * signs
            if np.linalg.det(turn[:3, :3]) > 0.0:
                found.append(turn)
    return found
