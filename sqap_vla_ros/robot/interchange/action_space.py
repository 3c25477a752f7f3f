"""Conversion of actions to a client's units: the package's own convention, and those of public benchmarks.

Adding a convention is one row of `ACTION_SPACES`. The package's own is stated in `robot/conventions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class ActionSpace:
    """One convention for actions, and the conversion of a chunk's deltas [T, 7] to it.

    metres, radians: what 1 stands for in the client's translation and rotation.
    rotation: "euler" (extrinsic xyz, as in the chunk) or "axis_angle".
    opened, closed: the client's gripper values. opened_at: openings from here on count as open; None passes the opening
        on, scaled between the two.
    gain: share of a commanded motion that the client's controller executes; commands are divided by it, so that the arm
        moves as far as the chunk says. 1 where the chunk holds commands already.
    limit: components of motion are clipped to it, for clients that take nothing beyond; None clips nothing.
    """

    metres: float = 1.0
    radians: float = 1.0
    rotation: str = "euler"
    opened: float = 1.0
    closed: float = 0.0
    gain: float = 1.0
    opened_at: float | None = None
    limit: float | None = None

    def actions(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the client's actions [T, 7] for a chunk's deltas [T, 7]."""
        out = self._scaled(deltas)
        if self.limit is not None:
            out[:, :6] = np.clip(out[:, :6], -self.limit, self.limit)
        opening = out[:, 6] if self.opened_at is None else np.where(out[:, 6] >= self.opened_at, 1.0, 0.0)
        out[:, 6] = self.closed + opening * (self.opened - self.closed)
        return out

    def excess(self, deltas: NDArray[np.float64]) -> float:
        """Return the largest component of motion of a chunk's deltas [T, 7] over `limit`: above 1 `actions` clips it.

        0 without a limit.
        """
        return 0.0 if self.limit is None else float(np.abs(self._scaled(deltas)[:, :6]).max()) / self.limit

    def _scaled(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return deltas [T, 7] with the motion in the client's units, not yet clipped; the opening as it is."""
        out = np.array(deltas, dtype=np.float64)
        out[:, :3] /= self.metres * self.gain
        if self.rotation == "axis_angle":
            out[:, 3:6] = Rotation.from_euler("xyz", out[:, 3:6]).as_rotvec()
        out[:, 3:6] /= self.radians * self.gain
        return out

    def deltas(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the package's deltas [T, 7] for a client's actions [T, 7]: what `actions` does, backwards."""
        out = np.array(actions, dtype=np.float64)
        out[:, :3] *= self.metres * self.gain
        out[:, 3:6] *= self.radians * self.gain
        if self.rotation == "axis_angle":
            out[:, 3:6] = Rotation.from_rotvec(out[:, 3:6]).as_euler("xyz")
        out[:, 6] = np.clip((out[:, 6] - self.closed) / (self.opened - self.closed), 0.0, 1.0)
        return out

    def spec(self) -> dict[str, Any]:
        """Return the action specification of vla-eval's hello."""
        reach = None if self.limit is None else [-self.limit, self.limit]
        gripper = "binary_close_positive" if self.closed > self.opened else "continuous_01"
        ends = sorted((self.opened, self.closed))
        spec: dict[str, dict[str, Any]] = {
            "position": {"name": "position", "dims": 3, "format": "delta_xyz"},
            "rotation": {
                "name": "rotation",
                "dims": 3,
                "format": "axis_angle" if self.rotation == "axis_angle" else "euler_xyz",
            },
            "gripper": {"name": "gripper", "dims": 1, "format": gripper, "range": ends},
        }
        if reach is not None:
            spec["position"]["range"] = spec["rotation"]["range"] = reach
        return spec


ACTION_SPACES: dict[str, ActionSpace] = {
    "metric": ActionSpace(),
    # SimplerEnv hands position and axis-angle on to ManiSkill2's pd_ee_delta_pose; its gripper opens above 0.5.
    "simpler": ActionSpace(rotation="axis_angle"),
    # robosuite's OSC_POSE as LIBERO configures it: 1 is 0.05 m or 0.5 rad, the gripper closes at +1.
    # Its goal starts from the measured pose at every step, so that the arm moves by 0.23 of the command (measured): a
    # policy that learned commands takes "libero", one that learned how far the arm moved takes "libero_displacement".
    "libero": ActionSpace(0.05, 0.5, "axis_angle", opened=-1.0, closed=1.0, opened_at=0.5, limit=1.0),
    "libero_displacement": ActionSpace(
        0.05, 0.5, "axis_angle", opened=-1.0, closed=1.0, opened_at=0.5, gain=0.23, limit=1.0
    ),
}
