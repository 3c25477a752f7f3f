"""The arm's kinematics from its URDF: forward, inverse, and tool poses in time as joint positions and velocities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pinocchio as pin
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.arm.inverse import InverseConfig, Linearised, Relaxed, bounded_step
from sqap_vla_ros.robot.arm.urdf import DEEPEST, JointDescription, joints_to, read_joints, too_deep
from sqap_vla_ros.robot.conventions import invert_pose, pose_distance
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays, ToolMotion
from sqap_vla_ros.robot.trajectory import PoseTrajectory

POSITION_TOLERANCE_M = 1e-4
ROTATION_TOLERANCE_RAD = 1e-3
SETTLED_RAD = 1e-4  # the last step of a joint (rad or m) where a rotation may remain
MAX_ITERATIONS = 60
MAX_STRICTER = 2  # times that axes with too much rotation left get more weight
# Speeds of a redundant arm's drift towards its posture, rad/s (or m/s) over all joints. The second is tried where the
# first leaves a pose out of reach: a joint at its limit has to be led away from it in good time.
POSTURE_SPEEDS = (0.05, 0.4)
FOLLOWED_S = 0.2  # between the poses of a path as the joints follow it, at most
MAX_HALVINGS = 3  # of the span between two poses in which joints have far to go
# A segment of joints is a cubic: the tool is computed at its ends and between these parts of it, and interpolated by
# the polynomial through them at the moments of FINE_PARTS. The speed is then right within 0.5 %.
TOOL_PARTS, FINE_PARTS = 6, 24
SEED_SLACK_RAD = 0.05  # encoders of an arm at its limit report values slightly beyond it


class KinematicsError(ValueError):
    """A URDF without the wanted chain, or a pose the arm cannot take; the message names it and by how much."""


class ArmKinematics:
    """The chain of movable joints between two frames of a URDF.

    Joints outside the chain (fingers, other arms, the camera's pan) are locked at zero and do not appear. Joint
    values are ROS's: one number per joint, radians or metres; a continuous joint counts on beyond pi.

    joint_names: the chain's joints from the base outwards.
    is_continuous: [n] joints that turn without end.
    lower, upper, velocity_limit, acceleration_limit: [n] from the URDF, its soft limits included; infinite where it
        states none.
    """

    def __init__(
        self,
        model: pin.Model,
        base_frame: str,
        tool_frame: str,
        described: dict[str, JointDescription],
        config: InverseConfig,
    ) -> None:
        """model: reduced to the chain. described: its joints by name. Use `from_urdf`."""
        self.config = config
        self._model = model
        self._data = model.createData()
        self._base_id, self._tool_id = (_link_id(model, name) for name in (base_frame, tool_frame))
        joints = list(model.joints)[1:]
        self.joint_names: tuple[str, ...] = tuple(model.names)[1:]
        self.tool_frame = tool_frame
        self.is_continuous = np.array([joint.nq == 2 for joint in joints])  # continuous: (cos, sin) in Pinocchio
        self._idx_q = np.array([joint.idx_q for joint in joints])
        soft_lower, soft_upper = np.array([described[name].soft_limits for name in self.joint_names]).T
        bounded_lower = np.maximum(np.asarray(model.lowerPositionLimit)[self._idx_q], soft_lower)
        bounded_upper = np.minimum(np.asarray(model.upperPositionLimit)[self._idx_q], soft_upper)
        self.lower: NDArray[np.float64] = np.where(self.is_continuous, -np.inf, bounded_lower)
        self.upper: NDArray[np.float64] = np.where(self.is_continuous, np.inf, bounded_upper)
        speed = np.asarray(model.velocityLimit)
        self.velocity_limit: NDArray[np.float64] = np.where((speed > 0) & (speed < 1e20), speed, np.inf)
        self.acceleration_limit: NDArray[np.float64] = np.array(
            [described[name].acceleration for name in self.joint_names]
        )
        try:
            self.posture = config.posture_of(self.joint_names, self.lower, self.upper)
        except ValueError as error:
            raise KinematicsError(str(error)) from error
        pin.framesForwardKinematics(model, self._data, self._configuration(np.zeros(len(joints))))
        self._base_from_root = invert_pose(self._data.oMf[self._base_id].homogeneous)

    @classmethod
    def from_urdf(
        cls, urdf_xml: str, base_frame: str, tool_frame: str, config: InverseConfig | None = None
    ) -> ArmKinematics:
        """Build from the text of `robot_description`. config: None for poses met exactly.

        Raises `KinematicsError` for text that is no URDF, a frame it lacks, a tool that is not beyond the base, a joint
        in the chain that this class does not handle (mimic, planar, floating), or one whose limits make no sense.
        """
        described = read_joints(urdf_xml)
        if too_deep(described.values()):
            raise KinematicsError(f"robot_description has more than {DEEPEST} links that hang on each other")
        try:
            model = pin.buildModelFromXML(urdf_xml)
        except (ValueError, RuntimeError) as error:
            cause = next((text for joint in described.values() if (text := joint.problem()) is not None), str(error))
            raise KinematicsError(f"robot_description is no usable URDF: {cause}") from error
        for name in (base_frame, tool_frame):
            if not model.existFrame(name, pin.FrameType.BODY):
                links = ", ".join(frame.name for frame in model.frames if frame.type == pin.FrameType.BODY)
                raise KinematicsError(f"robot_description has no link {name!r}; its links are: {links}")
        base_joint = model.frames[model.getFrameId(base_frame, pin.FrameType.BODY)].parentJoint
        tool_joint = model.frames[model.getFrameId(tool_frame, pin.FrameType.BODY)].parentJoint
        support = list(model.supports[tool_joint])
        if base_joint not in support:
            raise KinematicsError(f"{tool_frame!r} is not beyond {base_frame!r} in the tree of links")
        chain = support[support.index(base_joint) + 1 :]
        if not chain:
            raise KinematicsError(f"no movable joint lies between {base_frame!r} and {tool_frame!r}")
        for joint in chain:
            name, kind = model.names[joint], model.joints[joint].shortname()
            if name not in described:
                raise KinematicsError(f"joint {name!r} was not found again in robot_description")
            if model.joints[joint].nv != 1 or described[name].mimics is not None:
                kind = "mimic joint" if described[name].mimics is not None else kind
                raise KinematicsError(f"joint {name!r} between base and tool is a {kind}: not supported")
            if (problem := described[name].problem()) is not None:
                raise KinematicsError(problem)
        if misplaced := [text for joint in joints_to(tool_frame, described.values()) if (text := joint.misplaced())]:
            raise KinematicsError(misplaced[0])
        _rename_ambiguous_links(model)
        locked = [joint for joint in range(1, model.njoints) if joint not in chain]
        reduced = pin.buildReducedModel(model, locked, pin.neutral(model))
        return cls(reduced, base_frame, tool_frame, described, config or InverseConfig())

    def same_arm(self, other: ArmKinematics) -> bool:
        """Return whether the other chain has the same joints, limits and geometry to the last bit."""
        return bool(
            (self.joint_names, self.tool_frame) == (other.joint_names, other.tool_frame)
            and all(np.array_equal(a, b) for a, b in zip(self._limits(), other._limits(), strict=True))
            and list(self._model.joints) == list(other._model.joints)
            and list(self._model.jointPlacements) == list(other._model.jointPlacements)
            and np.array_equal(self._base_from_root, other._base_from_root)
            and self._model.frames[self._tool_id].placement == other._model.frames[other._tool_id].placement
        )

    def _limits(self) -> tuple[NDArray[np.float64], ...]:
        return self.lower, self.upper, self.velocity_limit, self.acceleration_limit, self.posture

    def configuration(self, names: Sequence[str], positions: Sequence[float]) -> NDArray[np.float64]:
        """Return the chain's joint values [n] of a JointState's `name` and `position`, whatever their order.

        Raises KinematicsError for a joint that is missing, named twice or not finite, and for counts that differ.
        """
        if len(names) != len(positions):
            raise KinematicsError(f"joint_states has {len(names)} names and {len(positions)} positions")
        by_name = dict(zip(names, positions, strict=True))
        if len(by_name) != len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise KinematicsError(f"joint_states names {twice} {list(names).count(twice)} times")
        missing = [name for name in self.joint_names if name not in by_name]
        if missing:
            raise KinematicsError(f"joint_states lacks {', '.join(missing)}; it has {', '.join(names)}")
        q = np.array([by_name[name] for name in self.joint_names], dtype=np.float64)
        if not np.isfinite(q).all():
            raise KinematicsError(
                f"joint_states has non-finite positions: {dict(zip(self.joint_names, q, strict=True))}"
            )
        return q

    def forward(self, q: ArrayLike) -> NDArray[np.float64]:
        """Return base_from_tool [4, 4] for joint values q [n]."""
        pin.framesForwardKinematics(self._model, self._data, self._configuration(self._checked(q)))
        return self._base_from_root @ self._data.oMf[self._tool_id].homogeneous

    def tool_motion(self, joints: JointTrajectoryArrays) -> ToolMotion:
        """Return where and how fast the tool moves while a controller draws its cubic through `joints`."""
        positions, velocities = joints.sampled(TOOL_PARTS)
        tool = np.empty((len(positions), 9))  # position, linear and angular velocity
        for row, q, v in zip(tool, self._configuration(positions), velocities, strict=True):
            pin.forwardKinematics(self._model, self._data, q, v)
            row[:3] = pin.updateFramePlacement(self._model, self._data, self._tool_id).translation
            row[3:] = pin.getFrameVelocity(
                self._model, self._data, self._tool_id, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
            ).vector
        nodes = np.arange(len(joints.spans_s))[:, None] * TOOL_PARTS + np.arange(TOOL_PARTS + 1)
        fine = _FINE @ tool[nodes]  # [S, FINE_PARTS + 1, 9]
        return ToolMotion(
            fine[..., :3] @ self._base_from_root[:3, :3].T + self._base_from_root[:3, 3],
            np.linalg.norm(fine[..., 3:6], axis=-1),
            np.linalg.norm(fine[..., 6:], axis=-1),
        )

    def joint_origins(self, q: ArrayLike) -> NDArray[np.float64]:
        """Return the origins [n + 2, 3] (m, in the base) of base, joints and tool for joint values q [n]."""
        tool = self.forward(q)
        placements = [self._data.oMi[joint].homogeneous for joint in range(1, self._model.njoints)]
        joints = [(self._base_from_root @ placement)[:3, 3] for placement in placements]
        return np.stack([np.zeros(3), *joints, tool[:3, 3]])

    def inverse(self, pose: ArrayLike, seed: ArrayLike, posture_step: float = 0.0) -> NDArray[np.float64]:
        """Return joint values [n] within the limits that bring the tool to `pose` [4, 4] (base_from_tool), near `seed`.

        Damped least squares (`robot.arm.inverse`) within the joints' limits; a redundant arm takes one step of length
        `posture_step` (rad) towards the posture in its null space. The tool's origin arrives within 0.1 mm, and its
        orientation within 1 mrad, or as near as the joints allow where the configuration lets a rotation remain.
        Raises `KinematicsError` with the residual otherwise.
        """
        wanted = np.asarray(pose, dtype=np.float64)
        if wanted.shape != (4, 4) or not np.isfinite(wanted).all():
            raise KinematicsError(f"pose must be a finite [4, 4] matrix, got {pose!r}")
        q = self._checked(seed)
        beyond = np.maximum(self.lower - q, q - self.upper)
        if (beyond > SEED_SLACK_RAD).any():
            worst = int(np.argmax(beyond))
            raise KinematicsError(
                f"{self.joint_names[worst]} is at {q[worst]:.3f}, outside its limits "
                f"[{self.lower[worst]:.3f}, {self.upper[worst]:.3f}]: move the arm back by hand"
            )
        q = np.clip(q, self.lower, self.upper)
        margin = self.config.joint_margin
        bounds = np.minimum(self.lower + margin, q), np.maximum(self.upper - margin, q)
        root_from_tool = pin.SE3(invert_pose(self._base_from_root) @ wanted)
        # The first step alone moves in the null space: pulling in each would keep the error from closing.
        away = self.posture - q
        toward_posture = away * min(1.0, posture_step / max(float(np.linalg.norm(away)), 1e-12))
        if self.config.is_relaxed:
            return self._inverse_relaxed(wanted, root_from_tool, q, bounds, toward_posture)
        for _ in range(MAX_ITERATIONS):
            linearised = self._linearised(q, root_from_tool)
            q = bounded_step(linearised, q, bounds, toward_posture, None)
            toward_posture = np.zeros(len(q))
            if _arrived(self._linearised(q, root_from_tool).error):
                return q
        raise KinematicsError(self._residual_text(q, wanted))

    def _inverse_relaxed(
        self,
        wanted: NDArray[np.float64],
        root_from_tool: pin.SE3,
        q: NDArray[np.float64],
        bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
        posture: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return joint values that meet the position, and the orientation within its limits."""
        relaxed = Relaxed(np.array(self.config.orientation_weights))
        at = self._linearised(q, root_from_tool)
        for _ in range(MAX_STRICTER + 1):
            q, at = self._descended(q, at, root_from_tool, bounds, posture, relaxed)
            if not _arrived(at.error[:3]):
                break
            if not self.config.beyond(at.error[3:]):
                return q
            relaxed = relaxed.stricter(at.error[3:], self.config)
        raise KinematicsError(self._residual_text(q, wanted))

    def _descended(
        self,
        q: NDArray[np.float64],
        at: Linearised,
        root_from_tool: pin.SE3,
        bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
        posture: NDArray[np.float64],
        relaxed: Relaxed,
    ) -> tuple[NDArray[np.float64], Linearised]:
        """Return where the weighted error is smallest near q, and its linearisation there. at: that at q."""
        for iteration in range(MAX_ITERATIONS):
            toward = posture if iteration == 0 else np.zeros(len(q))
            following = bounded_step(at, q, bounds, toward, relaxed)
            there = self._linearised(following, root_from_tool)
            better = there.cost(relaxed) <= at.cost(relaxed) or (iteration == 0 and bool(toward.any()))
            relaxed = relaxed.after(better=better)
            moved = np.abs(following - q).max()
            if better:
                q, at = following, there
            if moved < SETTLED_RAD and (better or not _arrived(at.error[:3])):
                break
        return q, at

    def joint_trajectory(
        self,
        trajectory: PoseTrajectory,
        q_start: ArrayLike,
        v_start: ArrayLike | None = None,
        a_start: ArrayLike | None = None,
        max_joint_step: float = 0.5,
    ) -> JointTrajectoryArrays:
        """Return joint positions and velocities along `trajectory`, each pose solved from the one before it.

        The first point is the state at the anchor: position `q_start` [n], velocity `v_start` [n] and the acceleration
        `a_start` [n] with which it is reached; an arm at rest without them.

        Near a singularity the joints have far to go for a small motion of the tool. Where one would move more than
        `max_joint_step` (rad or m) between two poses, poses on the way are solved too and become points of the result:
        the joints then keep the tool on its path, and how fast they may go is for `SafetyLimits.check_joints` to say.

        Velocities are the slopes of the monotone cubic through the positions (Fritsch and Carlson 1980): consistent
        with the finite differences, and from the second point on the cubic that a controller draws through positions
        and velocities never leaves the interval between two neighbours. The last velocity is zero: an arm that gets
        nothing further stands.

        Raises `KinematicsError` naming the step if a pose is out of reach, or if a joint would move further than twice
        `max_joint_step` between two poses, or by leaps however finely they are divided: a change of branch.
        """
        start = self._checked(q_start)
        velocity = np.zeros(len(start)) if v_start is None else self._checked(v_start)
        try:
            times_ns, positions = self._solved(trajectory, start, max_joint_step, POSTURE_SPEEDS[0])
        except KinematicsError:
            if len(start) <= 6:
                raise
            times_ns, positions = self._solved(trajectory, start, max_joint_step, POSTURE_SPEEDS[1])
        times_from_stamp_ns = np.array(times_ns, dtype=np.int64) - trajectory.anchor_ns
        knots_s = times_from_stamp_ns / NS_PER_S
        slopes = PchipInterpolator(knots_s, np.stack(positions)).derivative()(knots_s)
        slopes[0], slopes[-1] = velocity, 0.0
        arriving = None if a_start is None else self._checked(a_start)
        return JointTrajectoryArrays(
            self.joint_names, trajectory.anchor_ns, times_from_stamp_ns, np.stack(positions), slopes, arriving
        )

    def followed(self, trajectory: PoseTrajectory, joints: JointTrajectoryArrays) -> PoseTrajectory:
        """Return `trajectory` as `joints` follow it: in the orientations that are reached, if relaxed.

        And with poses on the way where it is so slow that the cubics between its own leave its straight lines.
        """
        times_ns = trajectory.divided_times_ns(FOLLOWED_S)
        if not self.config.is_relaxed and len(times_ns) == len(trajectory):
            return trajectory
        poses = np.stack([self.forward(joints.state(int(time)).position) for time in times_ns])
        return replace(trajectory, times_ns=times_ns, poses=poses, gripper=trajectory.sample_many(times_ns)[1])

    def _solved(
        self, trajectory: PoseTrajectory, start: NDArray[np.float64], max_joint_step: float, posture_speed: float
    ) -> tuple[list[int], list[NDArray[np.float64]]]:
        """Return times and joint values [n] from the anchor on, each pose solved from the one before it."""
        times_ns, positions = [trajectory.anchor_ns], [start]
        for step, end_ns in enumerate(int(time) for time in trajectory.times_ns):
            try:
                points = self._segment(trajectory, (times_ns[-1], end_ns), positions[-1], max_joint_step, posture_speed)
            except KinematicsError as error:
                raise KinematicsError(f"step {step} of {len(trajectory)}: {error}") from error
            times_ns += [time for time, _ in points]
            positions += [q for _, q in points]
        return times_ns, positions

    def _segment(
        self,
        trajectory: PoseTrajectory,
        span_ns: tuple[int, int],
        q: NDArray[np.float64],
        limit: float,
        posture_speed: float,
        halvings: int = 0,
    ) -> list[tuple[int, NDArray[np.float64]]]:
        """Return (time, joints) at the end of a span from `q` on, and at poses on the way where joints move fast."""
        start_ns, end_ns = span_ns
        pose, _ = trajectory.sample(end_ns)
        following = self.inverse(pose, q, posture_speed * (end_ns - start_ns) / NS_PER_S)
        jump = np.abs(following - q)
        # a part may take twice its share, so that a motion may be uneven, but no leap is left at the finest division
        if (jump <= (limit if halvings == 0 else 2.0 * limit / 2**halvings)).all():
            return [(end_ns, following)]
        if halvings == MAX_HALVINGS or end_ns - start_ns < 2:
            worst = int(np.argmax(jump))
            raise KinematicsError(
                f"{self.joint_names[worst]} would leap by {jump[worst]:.2f} in a {2**halvings}th of the step: at a "
                "singularity, or the arm is not where the chunk starts"
            )
        middle_ns = (start_ns + end_ns) // 2
        first = self._segment(trajectory, (start_ns, middle_ns), q, limit, posture_speed, halvings + 1)
        return first + self._segment(trajectory, (middle_ns, end_ns), first[-1][1], limit, posture_speed, halvings + 1)

    def _checked(self, q: ArrayLike) -> NDArray[np.float64]:
        values = np.array(q, dtype=np.float64)
        if values.shape != (len(self.joint_names),) or not np.isfinite(values).all():
            raise KinematicsError(f"expected {len(self.joint_names)} finite joint values, got {q!r}")
        return values

    def _configuration(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ROS joint values [..., n] as Pinocchio's configuration [..., nq]."""
        if not self.is_continuous.any():
            return q
        configuration = np.empty((*q.shape[:-1], self._model.nq))
        configuration[..., self._idx_q] = np.where(self.is_continuous, np.cos(q), q)
        configuration[..., self._idx_q[self.is_continuous] + 1] = np.sin(q[..., self.is_continuous])
        return configuration

    def _linearised(self, q: NDArray[np.float64], root_from_tool: pin.SE3) -> Linearised:
        """Return the tool's Jacobian and the remaining motion, both in its own axes.

        Exact poses: the motion is the twist that leads to the pose. Where a rotation may remain, the origin's way does
        not depend on it, and the Jacobian is that of the rotation vector, which stays finite.
        """
        pin.computeJointJacobians(self._model, self._data, self._configuration(q))
        current = pin.updateFramePlacement(self._model, self._data, self._tool_id)
        jacobian = pin.getFrameJacobian(self._model, self._data, self._tool_id, pin.ReferenceFrame.LOCAL)
        remaining = current.actInv(root_from_tool)
        if not self.config.is_relaxed:
            return Linearised(jacobian, pin.log6(remaining).vector)
        jacobian[3:] = pin.Jlog3(remaining.rotation).T @ jacobian[3:]
        return Linearised(jacobian, np.concatenate([remaining.translation, pin.log3(remaining.rotation)]))

    def _residual_text(self, q: NDArray[np.float64], wanted: NDArray[np.float64]) -> str:
        distance_m, angle_rad = pose_distance(self.forward(q), wanted)
        at_limit = [
            name
            for name, value, low, high in zip(self.joint_names, q, self.lower, self.upper, strict=True)
            if min(value - low, high - value) < 1e-6
        ]
        limits = f"; at their limits: {', '.join(at_limit)}" if at_limit else ""
        if self.config.is_relaxed:
            turn = pin.log3(self.forward(q)[:3, :3].T @ wanted[:3, :3])
            about, allowed = (
                ", ".join(f"{value:.1f}" for value in np.degrees(values))
                for values in (turn, self.config.orientation_residual_rad)
            )
            limits += f"; about the tool's axes {about} degrees, orientation_residual_rad allows {allowed}"
        elif len(q) < 6:
            limits += f"; an arm of {len(q)} joints meets few poses exactly: set orientation_residual_rad"
        xyz = ", ".join(f"{c:.3f}" for c in wanted[:3, 3])
        return (
            f"no joint values bring {self.tool_frame} to ({xyz}) m: {distance_m * 1e3:.1f} mm and "
            f"{np.degrees(angle_rad):.1f} degrees remain{limits}"
        )


def _interpolation(parts: int, fine: int) -> NDArray[np.float64]:
    """Return [fine + 1, parts + 1]: from values at the ends of equal parts to those of finer ones, by a polynomial."""
    nodes, moments = np.linspace(0.0, 1.0, parts + 1), np.linspace(0.0, 1.0, fine + 1)
    return np.vander(moments, parts + 1) @ np.linalg.inv(np.vander(nodes))


_FINE = _interpolation(TOOL_PARTS, FINE_PARTS)
LINK_SUFFIX = " (link)"


def _rename_ambiguous_links(model: pin.Model) -> None:
    """Tell links apart from joints of the same name, as in the SO-100: Pinocchio cannot reduce a model with both."""
    joints = {frame.name for frame in model.frames if frame.type != pin.FrameType.BODY}
    for index, frame in enumerate(model.frames):
        if frame.type == pin.FrameType.BODY and frame.name in joints:
            model.frames[index].name = frame.name + LINK_SUFFIX


def _link_id(model: pin.Model, name: str) -> int:
    renamed = name + LINK_SUFFIX
    return int(model.getFrameId(renamed if model.existFrame(renamed, pin.FrameType.BODY) else name, pin.FrameType.BODY))


def _arrived(error: NDArray[np.float64]) -> bool:
    """Return whether what remains, of the position alone ([3], m) or of the pose ([6], m and rad), is small enough."""
    moved, turned = error[:3], error[3:]
    return bool(moved @ moved < POSITION_TOLERANCE_M**2 and turned @ turned < ROTATION_TOLERANCE_RAD**2)
