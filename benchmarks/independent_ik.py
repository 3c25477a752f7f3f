"""Judge whether an arm can follow a path of tool poses, by a search that shares nothing with the package's solver.

Forward kinematics is read from the URDF with ElementTree and numpy, joint values are found by scipy's bounded least
squares from many starts over the whole joint range, and the path is followed through them without leaps.
"""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
POSITION_M, ROTATION_RAD = 1e-4, 1e-3  # what a solution may miss the pose by
LEAP_RAD = 0.5  # largest move of a joint between two poses of the searched path


class Chain:
    """The movable joints between two links of a URDF. lower, upper: [n], infinite for a continuous joint."""

    def __init__(self, urdf: str, base: str, tool: str) -> None:
        robot = ElementTree.fromstring(urdf)
        above = {joint.find("child").get("link"): joint for joint in robot.iterfind("joint") if _has(joint, "child")}
        joints, link = [], tool
        while link != base:
            joints.append(above[link])
            link = joints[-1].find("parent").get("link")
        self._fixed: list[Array] = [np.eye(4)]  # [4, 4] before each movable joint, and after the last
        self._axes: list[Array] = []
        self._slides: list[bool] = []
        lower, upper = [], []
        for joint in reversed(joints):
            self._fixed[-1] = self._fixed[-1] @ _origin(joint)
            kind = joint.get("type")
            if kind == "fixed":
                continue
            axis = joint.find("axis")
            along = np.array([float(x) for x in ("1 0 0" if axis is None else axis.get("xyz")).split()])
            self._axes.append(along / np.linalg.norm(along))
            self._slides.append(kind == "prismatic")
            limit, soft = joint.find("limit"), joint.find("safety_controller")
            ends = [-np.inf, np.inf]
            if kind != "continuous":
                ends = [float(limit.get("lower", "0")), float(limit.get("upper", "0"))]
                if soft is not None:
                    ends[0] = max(ends[0], float(soft.get("soft_lower_limit", "-inf")))
                    ends[1] = min(ends[1], float(soft.get("soft_upper_limit", "inf")))
            lower.append(ends[0])
            upper.append(ends[1])
            self._fixed.append(np.eye(4))
        self.lower, self.upper = np.array(lower), np.array(upper)

    def forward(self, q: Array) -> tuple[Array, Array]:
        """Return base_from_tool [4, 4] and its Jacobian [6, n] (tool's origin, base axes; m and rad)."""
        pose, points, axes = np.eye(4), [], []
        for fixed, axis, slides, value in zip(self._fixed, self._axes, self._slides, q, strict=False):
            pose = pose @ fixed
            axes.append(pose[:3, :3] @ axis)
            points.append(pose[:3, 3].copy())
            moved = np.eye(4)
            if slides:
                moved[:3, 3] = axis * value
            else:
                moved[:3, :3] = _turn(axis, value)
            pose = pose @ moved
        pose = pose @ self._fixed[-1]
        jacobian = np.zeros((6, len(axes)))
        for column, (point, axis, slides) in enumerate(zip(points, axes, self._slides, strict=True)):
            jacobian[:3, column] = axis if slides else np.cross(axis, pose[:3, 3] - point)
            jacobian[3:, column] = 0.0 if slides else axis
        return pose, jacobian

    def missing(self, q: Array, pose: Array, residual_rad: Array) -> tuple[float, float]:
        """Return by how much q misses `pose`: metres, and radians beyond the residual allowed about the tool's axes."""
        reached, _ = self.forward(q)
        turn = Rotation.from_matrix(reached[:3, :3].T @ pose[:3, :3]).as_rotvec()
        beyond = np.maximum(np.abs(turn) - residual_rad, 0.0)
        return float(np.linalg.norm(reached[:3, 3] - pose[:3, 3])), float(np.linalg.norm(beyond))

    def solve(self, pose: Array, start: Array, residual_rad: Array) -> Array | None:
        """Return joint values near `start` that bring the tool to `pose`, or None."""
        span = np.where(np.isfinite(self.upper - self.lower), self.upper - self.lower, 1.0)
        low, high = self.lower, self.upper

        def residuals(q: Array) -> Array:
            reached, _ = self.forward(q)
            turn = Rotation.from_matrix(reached[:3, :3].T @ pose[:3, :3]).as_rotvec()
            beyond = np.sign(turn) * np.maximum(np.abs(turn) - residual_rad, 0.0)
            return np.concatenate([3.0 * (reached[:3, 3] - pose[:3, 3]), beyond])

        def slopes(q: Array) -> Array:
            reached, jacobian = self.forward(q)
            turn = Rotation.from_matrix(reached[:3, :3].T @ pose[:3, :3]).as_rotvec()
            angular = -_left_jacobian_inverse(turn) @ reached[:3, :3].T @ jacobian[3:]
            angular[np.abs(turn) <= residual_rad] = 0.0
            return np.concatenate([3.0 * jacobian[:3], angular])

        inside = np.clip(start, low + 1e-6 * span, high - 1e-6 * span)
        found = least_squares(residuals, inside, slopes, bounds=(low, high), xtol=1e-10, ftol=1e-12, gtol=1e-12,
                              max_nfev=60)  # fmt: skip
        metres, radians = self.missing(found.x, pose, residual_rad)
        return found.x if metres < POSITION_M and radians < ROTATION_RAD else None


def can_follow(
    chain: Chain, poses: Array, start: Array, residual_rad: Array, rng: np.random.Generator, starts: int = 24
) -> bool:
    """Return whether joint values lead from `start` [n] along `poses` [T, 4, 4] without a leap.

    Every pose, and one half way between each two, has a set of solutions: found from those before it, from random moves
    of them, and from `starts` places in the whole joint range. A solution counts when it is no further than a leap from
    one that counts at the pose before.
    """
    n = len(start)
    low = np.where(np.isfinite(chain.lower), chain.lower, -np.pi)
    high = np.where(np.isfinite(chain.upper), chain.upper, np.pi)
    if not _each_has_one(chain, poses, start, residual_rad, rng.uniform(low, high, (starts, n))):
        return False
    layer, before = [start], chain.forward(start)[0]
    for pose in poses:
        for wanted in (_half_way(before, pose), pose):
            near = [*layer, *(q + rng.normal(0.0, 0.2, n) for q in layer for _ in range(3))]
            solved = [chain.solve(wanted, q, residual_rad) for q in [*near, *rng.uniform(low, high, (4, n))]]
            reached = [q for q in solved if q is not None and min(np.abs(q - last).max() for last in layer) <= LEAP_RAD]
            if not reached:
                return False
            layer = _spread(reached, 6)
        before = pose
    return True


def _each_has_one(chain: Chain, poses: Array, start: Array, residual_rad: Array, seeds: Array) -> bool:
    """Return whether every pose by itself has a solution anywhere; the last first, which is the likeliest not to."""
    guess = start
    for pose in poses[::-1]:
        found = next((q for seed in (guess, *seeds) if (q := chain.solve(pose, seed, residual_rad)) is not None), None)
        if found is None:
            return False
        guess = found
    return True


def _spread(values: list[Array], count: int) -> list[Array]:
    """Return up to `count` of the values, each as far from the others as there is one."""
    kept = [values[0]]
    while len(kept) < count:
        away = [min(np.abs(value - other).max() for other in kept) for value in values]
        furthest = int(np.argmax(away))
        if away[furthest] < 1e-3:
            break
        kept.append(values[furthest])
    return kept


def _half_way(a: Array, b: Array) -> Array:
    pose = np.eye(4)
    pose[:3, 3] = 0.5 * (a[:3, 3] + b[:3, 3])
    turn = Rotation.from_matrix(b[:3, :3] @ a[:3, :3].T).as_rotvec()
    pose[:3, :3] = Rotation.from_rotvec(0.5 * turn).as_matrix() @ a[:3, :3]
    return pose


def _has(joint: ElementTree.Element, tag: str) -> bool:
    return joint.find(tag) is not None


def _origin(joint: ElementTree.Element) -> Array:
    pose, origin = np.eye(4), joint.find("origin")
    if origin is not None:
        pose[:3, 3] = [float(x) for x in origin.get("xyz", "0 0 0").split()]
        pose[:3, :3] = Rotation.from_euler("xyz", [float(x) for x in origin.get("rpy", "0 0 0").split()]).as_matrix()
    return pose


def _turn(axis: Array, angle: float) -> Array:
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def _left_jacobian_inverse(turn: Array) -> Array:
    angle = float(np.linalg.norm(turn))
    x, y, z = turn
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-6:
        return np.eye(3) - 0.5 * cross
    half = 0.5 * angle
    return np.eye(3) - 0.5 * cross + (1.0 - half / np.tan(half)) / angle**2 * cross @ cross
