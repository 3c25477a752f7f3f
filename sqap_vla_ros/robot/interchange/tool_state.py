"""The tool's pose in the state vectors of clients and datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

# What follows the tool's position in a client's state -> how many numbers, and the rotation they mean.
STATES: Mapping[str, tuple[int, Callable[[NDArray[np.float64]], Rotation]]] = {
    "axis_angle": (3, Rotation.from_rotvec),  # LIBERO, in vla-eval's form and in openpi's
    "quat_wxyz": (4, lambda quat: Rotation.from_quat(quat[[1, 2, 3, 0]])),  # SimplerEnv in vla-eval's form
    "quat_xyzw": (4, Rotation.from_quat),
    "rpy": (3, lambda angles: Rotation.from_euler("xyz", angles)),  # extrinsic, as in robot/conventions.py
}
FARTHEST_M = 100.0  # of a tool from its base: beyond it the state is in other units or not the tool's
LARGEST_ROTATION = 10.0  # rad
MOST_NUMBERS = 64  # of a state: an array of more is something else


def tool_pose(state: ArrayLike, form: str = "axis_angle") -> NDArray[np.float64]:
    """Return base_from_tool [4, 4] of a state that begins with position (m) and rotation (form: a name of `STATES`).

    Raises ValueError with a sentence.
    """
    count, rotation = STATES[form]
    try:
        values = np.array(state, dtype=np.float64).ravel()  # a copy: arrays of messages are read-only
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("the state must be numbers in a flat list") from error
    if len(values) < 3 + count:
        raise ValueError(f"the state must begin with position and {form}, {3 + count} numbers; got {len(values)}")
    if len(values) > MOST_NUMBERS:
        raise ValueError(
            f"the state has {len(values)} numbers, at most {MOST_NUMBERS} are allowed: its first {3 + count}, position "
            f"and {form}, are enough"
        )
    xyz, turned = values[:3], values[3 : 3 + count]
    if not np.isfinite(values).all() or np.abs(xyz).max() > FARTHEST_M or np.abs(turned).max() > LARGEST_ROTATION:
        raise ValueError(
            f"the state must be finite, within {FARTHEST_M:g} m and {LARGEST_ROTATION:g} rad; "
            f"got {np.round(values[: 3 + count], 4).tolist()}"
        )
    if count == 4 and not abs(np.linalg.norm(turned) - 1.0) < 0.01:
        raise ValueError(f"the state's quaternion ({form}) must have norm 1, got {np.round(turned, 4).tolist()}")
    pose = np.eye(4)
    pose[:3, :3] = rotation(turned).as_matrix()
    pose[:3, 3] = xyz
    return pose
