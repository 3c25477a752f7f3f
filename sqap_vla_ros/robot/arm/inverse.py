"""Least squares for inverse kinematics: one step towards a pose within the joints' limits, exact or relaxed.

Exact: all six components of the pose are met. Relaxed: the tool's origin is met, and the orientation as nearly as the
joints allow. That is what an arm with fewer than six joints needs, for it reaches almost no pose exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

MAX_STEP_RAD = 0.3  # of one joint in one iteration; the linearisation is good to about this
# Weight of a metre beside a radian where the orientation is relaxed: half a radian that remains moves the origin by
# some micrometres, so that the position counts as met.
POSITION_WEIGHT = 1e3


@dataclass(frozen=True)
class InverseConfig:
    """Settings of the inverse kinematics.

    orientation_residual_rad: largest rotation that may remain about the tool's x, y and z axis (components of the
        rotation vector from the reached to the wanted orientation). All zero: every pose is met exactly.
    orientation_weights: what a rotation that remains about each of these axes costs beside the other two.
    posture: [n] joint values that a redundant arm drifts towards (rad or m); a single one: the middle of the limits.
    joint_margin: distance kept from every joint's limits (rad or m); a joint that is nearer does not go further.
    """

    orientation_residual_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    posture: tuple[float, ...] = (0.0,)
    joint_margin: float = 0.0

    def __post_init__(self) -> None:
        for name, values in (("residual_rad", self.orientation_residual_rad), ("weights", self.orientation_weights)):
            if np.shape(values) != (3,) or not np.isfinite(values).all() or min(values) < 0.0:
                raise ValueError(f"orientation_{name} must be 3 finite numbers of at least 0, got {list(values)}")
        if not all(self.orientation_weights):
            # A component that costs nothing is free to turn without end.
            raise ValueError(f"orientation_weights must be positive, got {list(self.orientation_weights)}")

    def posture_of(
        self, names: Sequence[str], lower: NDArray[np.float64], upper: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the posture of joints with these limits, [n] (rad or m).

        Raises ValueError for another number of values, and for a value that its joint cannot have.
        """
        if len(self.posture) == 1:
            middle = np.clip(0.0, lower, upper)
            bounded = np.isfinite(lower) & np.isfinite(upper)
            middle[bounded] = 0.5 * (lower[bounded] + upper[bounded])
            return middle
        posture = np.array(self.posture)
        if posture.shape != (len(names),) or not np.isfinite(posture).all():
            raise ValueError(
                f"joint_posture must be {len(names)} finite values, one for each of {', '.join(names)}, "
                f"got {list(self.posture)}"
            )
        outside = [
            f"{value:g} for {name} ({low:.3f} to {high:.3f})"
            for name, value, low, high in zip(names, posture, lower, upper, strict=True)
            if not low <= value <= high
        ]
        if outside:
            raise ValueError(f"joint_posture is outside the joints' limits (radians, or metres): {', '.join(outside)}")
        return posture

    @property
    def is_relaxed(self) -> bool:
        """True where a rotation may remain."""
        return any(self.orientation_residual_rad)

    def beyond(self, turn: NDArray[np.float64]) -> bool:
        """Return whether a rotation vector [3] that remains (tool axes, rad) is more than is allowed."""
        return bool((np.abs(turn) > self.orientation_residual_rad).any())


@dataclass(frozen=True)
class Relaxed:
    """Weights of the orientation's rows, [3], and the Levenberg-Marquardt damping of a step.

    Where the arm is stretched, elbow and shoulder move far without moving the tool, and an undamped step swings them to
    and fro instead of giving up orientation: a step that makes things worse is not taken, and the next is damped more.
    """

    weights: NDArray[np.float64]
    damping: float = 1e-4

    @property
    def scale(self) -> NDArray[np.float64]:
        """Weights [6] of all rows."""
        return np.concatenate([np.full(3, POSITION_WEIGHT), self.weights])

    def after(self, *, better: bool) -> Relaxed:
        """Return it for the next step. better: the last one made the error smaller."""
        return replace(self, damping=max(self.damping / 10.0, 1e-8) if better else 10.0 * self.damping)

    def stricter(self, turn: NDArray[np.float64], config: InverseConfig) -> Relaxed:
        """Return it with more weight on axes about which more remains of `turn` [3] than is allowed."""
        allowed = np.maximum(config.orientation_residual_rad, 1e-3)
        return Relaxed(self.weights * np.clip(1.2 * np.abs(turn) / allowed, 1.0, 3.0))


@dataclass(frozen=True)
class Linearised:
    """A pose's distance from the wanted one, and what the joints do about it.

    jacobian: [6, n] of the tool's origin and orientation in the tool's own axes; error: [6] m and rad in them.
    """

    jacobian: NDArray[np.float64]
    error: NDArray[np.float64]

    def exact_step(self, free: NDArray[np.bool_], posture: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the step of the free joints that closes the error, `posture` [n] being added in the null space.

        The damping is that of Sugihara, "Solvability-Unconcerned Inverse Kinematics by the Levenberg-Marquardt Method"
        (2011, Eq. 30): proportional to the squared error, so it vanishes at the goal.
        """
        columns, toward = self.jacobian[:, free], posture[free]
        damping = 0.5 * float(self.error @ self.error) + 1e-8
        normal = columns @ columns.T + damping * np.eye(6)
        return toward + columns.T @ np.linalg.solve(normal, self.error - columns @ toward)

    def relaxed_step(
        self, free: NDArray[np.bool_], posture: NDArray[np.float64], relaxed: Relaxed
    ) -> NDArray[np.float64]:
        """Return the same for weighted rows, of which not all can be met."""
        scale = relaxed.scale
        columns, toward = scale[:, None] * self.jacobian[:, free], posture[free]
        normal = columns.T @ columns + relaxed.damping * np.eye(len(toward))
        return toward + np.linalg.solve(normal, columns.T @ (scale * self.error - columns @ toward))

    def cost(self, relaxed: Relaxed) -> float:
        """Return the weighted squared error."""
        weighted = relaxed.scale * self.error
        return float(weighted @ weighted)


def bounded_step(
    linearised: Linearised,
    q: NDArray[np.float64],
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
    posture: NDArray[np.float64],
    relaxed: Relaxed | None,
) -> NDArray[np.float64]:
    """Return the joint values [n] after one step from q. bounds: lower and upper limits [n]; relaxed: None if exact.

    A joint at a limit that would be pushed beyond it is taken out of the step.
    """
    lower, upper = bounds
    free = np.ones(len(q), dtype=bool)
    step = np.zeros(len(q))
    for _ in range(len(q)):
        step[:] = 0.0
        if relaxed is None:
            step[free] = linearised.exact_step(free, posture)
        else:
            step[free] = linearised.relaxed_step(free, posture, relaxed)
        blocked = free & (((q <= lower) & (step < 0.0)) | ((q >= upper) & (step > 0.0)))
        if not blocked.any():
            break
        free &= ~blocked
    largest = np.abs(step).max()
    if largest > MAX_STEP_RAD:
        step *= MAX_STEP_RAD / largest
    return np.minimum(np.maximum(q + step, lower), upper)
