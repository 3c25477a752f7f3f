"""Faults of the pairs themselves, and mistakes elsewhere that they give away. Each has a sentence of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.hand_eye.fit import Fit, fit_camera, fit_point
from sqap_vla_ros.robot.hand_eye.pairs import Array, ToolPairs, extent

MIN_PAIRS = 6
STANDS_M = 0.01  # a tool that stays within it stands
WRIST = (
    "to fit the transform of a camera on the tool, let it look at a board, or click on a point, that lies still while "
    "the arm moves"
)
ROOM_M = 0.05  # least room that the tool must pass through in the camera's view
THIN = 0.1  # width of a line of points against its length
THIN_M = 0.015
MOVES_PX = 20.0
FOLLOWS = 0.2  # least motion in the image against the motion that is projected
POOR_PX, POOR_PATCHES = 5.0, 0.2  # rms of a fit that explains nothing, whichever is larger
LARGE = 0.35  # rad, or m, of a correction that is no error of calibration any more
SCALED = 0.05  # error of the intrinsics that is worth a word


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and what to do about it."""

    text: str
    remedy: str


def degenerate(pairs: ToolPairs, tool_frame: str, base_frame: str) -> Iterator[Fault]:
    """Yield why these pairs cannot tell anything about the camera's pose; nothing where they can."""
    if len(pairs) < MIN_PAIRS:
        yield Fault(
            f"{len(pairs)} pairs, at least {MIN_PAIRS} are needed",
            "move the tool to more places in the camera's view, and keep it still there for a second",
        )
        return
    moved_m, base_m = extent(pairs.in_optical), extent(pairs.in_base)
    seen_px, projected_px = extent(pairs.seen), extent(pairs.projected)
    if moved_m < STANDS_M:
        if seen_px > MOVES_PX and not pairs.camera_moves:
            yield Fault(
                f"by TF {tool_frame} stays within {1e3 * moved_m:.0f} mm, but in the images it moves {seen_px:.0f} px",
                f"{base_frame} -> {tool_frame} must contain the moving joints: correct the frames' names, and see that "
                "robot_state_publisher gets this arm's joint_states",
            )
        elif not pairs.camera_moves:
            yield _one_place(moved_m)
        return
    if seen_px < min(MOVES_PX, FOLLOWS * projected_px):
        yield Fault(
            f"by TF {tool_frame} moves {base_m:.2f} m, but in the images it stays within {seen_px:.0f} px",
            "does the camera ride on the arm while TF has it fixed, or do the images stand still? Correct the parent "
            "of the camera's frame",
        )
        return
    if moved_m < ROOM_M:
        yield _one_place(moved_m)
        return
    spread = np.linalg.svd(pairs.in_optical - pairs.in_optical.mean(axis=0), compute_uv=False) / np.sqrt(len(pairs))
    if spread[1] < max(THIN_M, THIN * spread[0]):
        yield Fault(
            f"the tool's places lie on a line, {2 * spread[0]:.2f} m long and {1e3 * spread[1]:.0f} mm wide: turns of "
            "the camera about it cannot be seen",
            "move the tool to the left and right, up and down, near and far",
        )


def _one_place(moved_m: float) -> Fault:
    return Fault(
        f"all pairs lie within {1e2 * moved_m:.1f} cm: elsewhere in the image the offset may be another",
        f"move the tool through the workspace, at least {1e2 * ROOM_M:.0f} cm to each side",
    )


@dataclass(frozen=True)
class _Mistake:
    """A common mistake. undo: returns the pairs as they would be without it."""

    text: str
    remedy: str
    undo: Callable[[ToolPairs], ToolPairs]


def _seen(pairs: ToolPairs, *, mirrored: bool = False, flipped: bool = False, swapped: bool = False) -> ToolPairs:
    u, v = pairs.seen.T
    u = pairs.camera.width - 1 - u if mirrored else u
    v = pairs.camera.height - 1 - v if flipped else v
    return replace(pairs, seen=np.stack((v, u) if swapped else (u, v), axis=1))


def _inverted(poses: Array) -> Array:
    return np.stack([invert_pose(pose) for pose in poses])


OPTICAL_FROM_BODY = np.array([[0.0, -1.0, 0, 0], [0, 0, -1.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]])  # REP 103
_DRIVER = "switch the flip off in the camera's driver: calibration and policy see another image than they should"
MISTAKES = (
    _Mistake("the image is mirrored left to right", _DRIVER, lambda pairs: _seen(pairs, mirrored=True)),
    _Mistake("the image is flipped upside down", _DRIVER, lambda pairs: _seen(pairs, flipped=True)),
    _Mistake(
        "the image is turned by 180 degrees",
        "turn it back in the camera's driver, or turn the optical frame with it",
        lambda pairs: _seen(pairs, mirrored=True, flipped=True),
    ),
    _Mistake(
        "u and v are swapped in the clicks",
        "u is the pixel's column, to the right, and v its row, down",
        lambda pairs: _seen(pairs, swapped=True),
    ),
    _Mistake(
        "the frame that the images name has the axes of a body, x forward",
        "publish an optical frame below it, z forward, x right, y down (REP 103), and name that one in the images",
        lambda pairs: replace(pairs, optical_from_base=OPTICAL_FROM_BODY @ pairs.optical_from_base),
    ),
    _Mistake(
        "the transform between base and camera is published the wrong way round",
        "static_transform_publisher wants the pose of the child in its parent: invert the calibration's result",
        lambda pairs: replace(pairs, optical_from_base=_inverted(pairs.optical_from_base)),
    ),
    _Mistake(
        "the transform between base and tool is published the wrong way round",
        "TF must have the pose of the tool in the base: look at what publishes it",
        lambda pairs: replace(pairs, base_from_tool=_inverted(pairs.base_from_tool)),
    ),
)


def mistakes(pairs: ToolPairs, fit: Fit, patch_px: float, tool_frame: str) -> Iterator[Fault]:
    """Yield the mistake that explains the pairs far better than `fit`, the fit of the camera's pose, does.

    patch_px: side of a patch of the policy in camera pixels.
    """
    if fit.rms_px <= poor_px(patch_px) and _off(fit) <= LARGE:
        return
    for mistake in MISTAKES:
        other = fit_camera(mistake.undo(pairs))
        if _better(other, fit, patch_px):
            yield Fault(
                f"{mistake.text}: undone, the pairs agree to {other.rms_px:.1f} px with a camera that is off by "
                f"{_size(other)}, otherwise to {fit.rms_px:.1f} px with one that is off by {_size(fit)}",
                mistake.remedy,
            )
            return
    scaled = fit_camera(pairs, scaled=True)
    if _better(scaled, fit, patch_px) and abs(scaled.scale - 1.0) > SCALED:
        yield Fault(
            f"the camera matrix seems to be of another resolution: with its numbers times {scaled.scale:.2f} the pairs "
            f"agree to {scaled.rms_px:.1f} px instead of {fit.rms_px:.1f} px",
            "take the camera_info of this image size, or calibrate at this resolution",
        )
        return
    point, both = fit_point(pairs), fit_camera(pairs, any_point=True)
    enough = point.rms_px <= max(poor_px(patch_px), 2.0 * both.rms_px)
    other = point if enough else both
    if other.rms_px < 0.5 * fit.rms_px and other.rms_px <= patch_px and _off(other) <= LARGE:
        x, y, z = other.point_in_tool
        camera = "with the camera where TF has it" if enough else f"with a camera that is off by {_size(both)}"
        yield Fault(
            f"the point that was seen is not where {tool_frame} is: it lies at ({x:.3f}, {y:.3f}, {z:.3f}) m in that "
            f"frame, by which the pairs agree to {other.rms_px:.1f} px {camera}",
            "name a frame between the finger tips as tool_frame; or was another point clicked, or the board's place in "
            "the tool's frame wrong? Correct that first, then collect pairs again",
        )
        return
    if fit.rms_px > patch_px:
        yield Fault(
            f"no pose of the camera explains the pairs: {fit.rms_px:.1f} px remain",
            f"is it always the same point of the tool, is {tool_frame} the right frame, do images and joint_states "
            "have one clock, is the camera calibrated?",
        )
    elif fit.angle_rad > LARGE:
        yield Fault(
            f"TF has the camera turned by {np.degrees(fit.angle_rad):.0f} degrees against the image: that is no error "
            "of calibration",
            "an optical frame has z forward, x right and y down: is it the optical frame that the image names?",
        )


def poor_px(patch_px: float) -> float:
    """Return the residual of a fit beyond which something else than the camera's pose is wrong."""
    return max(POOR_PX, POOR_PATCHES * patch_px)


def _off(fit: Fit) -> float:
    """Return how far the camera is moved by a fit, a metre counting as a radian."""
    return fit.angle_rad + fit.metres


def _size(fit: Fit) -> str:
    return f"{1e2 * fit.metres:.0f} cm and {np.degrees(fit.angle_rad):.0f} degrees"


def _better(other: Fit, fit: Fit, patch_px: float) -> bool:
    """Return whether another explanation is far better: in its residual, or with as good a one in its correction."""
    if other.rms_px > patch_px or _off(other) > LARGE:
        return False
    return other.rms_px < 0.5 * fit.rms_px or (
        other.rms_px < max(1.5 * fit.rms_px, POOR_PX) and _off(other) < _off(fit) / 3.0
    )
