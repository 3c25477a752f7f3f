"""What every command of policy_node must satisfy, judged from the outside: from messages and from where the arm was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.joint_trajectory import JointState, JointTrajectoryArrays
from sqap_vla_ros.robot.safety import BETWEEN_POINTS_M, SafetyLimits
from stepped.simulated_cell import TICK_NS, Cell, SentCommand

# A controller's setpoint may step by so much where a message takes over: the message's path is not exactly the last.
SEAM_RAD, SEAM_RAD_S = 0.01, 0.3
SEAM_M, SEAM_ROTATION = 0.01, 0.05
# Where a motion may start otherwise: at rest, and so near to an arm that is at rest as well.
NEAR_RAD, NEAR_M = 0.1, 0.06
STANDING = 0.15  # rad/s or m/s
START_M = 0.35  # between any command's start and the arm; a blocked arm is left behind by max_tracking_m and a stop
REST_S, RETURN_M_S, RETURN_RAD_S = 0.7, 0.06, 0.25  # after a stop: at rest, or on the slow way back to a blocked arm
STOPPING_M, STOPPING_RAD = 0.12, 0.6  # that the command may still move on after a stop
# Lead of the command over a blocked arm beyond max_tracking_*, until that is found and the command is at rest.
PUSHED_M, PUSHED_RAD = 0.08, 0.3
LONGEST_S = 0.05  # of a stream's path by which a sample may lead on from the one before, however long ago that was
BEYOND = 1.03  # times a limit: samples of 20 ms, and rounding
WORKSPACE_M = BETWEEN_POINTS_M + 1e-3  # outside the workspace: an arc of joints, and the tolerance of their solution
TOOL_SPEED = 1.01  # times the tool's limit, at the peak of the cubic
FINE_PARTS = 20  # of each segment at which the tool is looked at
TWIST_GAP_S = 0.1  # of a stream whose last twist was not zero


@dataclass(frozen=True)
class Violation:
    """what: which rule; text: the numbers; at_s: in the sequence."""

    what: str
    text: str
    at_s: float


class CommandChecks:
    """Judges the commands of one cell, after it ran."""

    def __init__(self, cell: Cell, limits: SafetyLimits) -> None:
        self._cell, self._limits, self._arm = cell, limits, cell.kinematics
        self.found: list[Violation] = []

    def judge(self) -> list[Violation]:
        """Everything that is wrong with what was sent."""
        by_mode: dict[str, Callable[[], None]] = {"joint": self._joints, "pose": self._poses, "twist": self._twists}
        by_mode[self._cell.mode]()
        self._pushes()
        return self.found

    def _pushes(self) -> None:
        """A blocked arm is led no further than max_tracking_* and a stop, or than it was when it came to be blocked."""
        config = self._cell.loop.commander.motion.config
        before_ns, most_m, most_rad = -NS_PER_S, 0.0, 0.0
        for at_ns, lead_m, lead_rad in self._cell.leads:
            if at_ns - before_ns > TICK_NS:
                most_m = max(config.max_tracking_m + PUSHED_M, lead_m)
                most_rad = max(config.max_tracking_rad + PUSHED_RAD, lead_rad)
            before_ns = at_ns
            if lead_m > most_m or lead_rad > most_rad:
                text = f"the command leads a blocked arm by {lead_m:.3f} m and {lead_rad:.2f} rad"
                self.found.append(Violation("push", text, at_ns / NS_PER_S))

    def _relocated(self, before: SentCommand | None, command: SentCommand) -> bool:
        """Return whether somebody else moved the arm between two commands."""
        since_ns = 0 if before is None else before.sent_ns
        return any(since_ns < at_ns <= command.sent_ns for at_ns in self._cell.relocated_ns)

    def _wrong(self, what: str, command: SentCommand, text: str) -> None:
        self.found.append(Violation(what, text, command.sent_ns / NS_PER_S))

    def _stops(self) -> list[tuple[int, int]]:
        """(steady time, index of the first command after it) of each time from which the node may not move."""
        commands = self._cell.commands
        return [(at_ns, sum(c.sent_ns <= at_ns for c in commands)) for at_ns in self._cell.stopped_ns]

    def _inside(self, command: SentCommand, positions: np.ndarray) -> None:
        """Positions [N, 3] in the workspace, or no further out than the first of them."""
        low = np.minimum(self._limits.workspace_min_m, positions[0]) - WORKSPACE_M
        high = np.maximum(self._limits.workspace_max_m, positions[0]) + WORKSPACE_M
        outside = (positions < low) | (positions > high)
        if outside.any():
            self._wrong("workspace", command, f"{positions[outside.any(axis=1)][0].round(3)}")

    # Joint trajectories

    def _joints(self) -> None:
        arm = self._arm
        before: tuple[SentCommand, JointTrajectoryArrays] | None = None
        for command in self._cell.commands:
            points = command.message.points
            positions = np.array([p.positions for p in points])
            velocities = np.array([p.velocities for p in points])
            if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
                self._wrong("finite", command, "a position or velocity is not finite")
                continue
            times_ns = np.array([messages.time_ns(p.time_from_start) for p in points], dtype=np.int64)
            stamp_ns = messages.time_ns(command.message.header.stamp)
            try:
                arriving = None if before is None else _then(before, command, stamp_ns).acceleration
                path = JointTrajectoryArrays(arm.joint_names, stamp_ns, times_ns, positions, velocities, arriving)
            except ValueError as error:
                self._wrong("form", command, str(error))
                continue
            if list(command.message.joint_names) != list(arm.joint_names) or velocities[-1].any():
                self._wrong("form", command, "joint names, or a last velocity that is not zero")
            self._peaks(command, path)
            now_ns = max(command.ros_ns, stamp_ns)
            self._seam(command, before, path, now_ns)
            self._between_points(command, path)
            before = (command, path)
        for at_ns, text in self._cell.refusals:
            self.found.append(Violation("refused by the controller", text, at_ns / NS_PER_S))
        self._joint_stops()

    def _between_points(self, command: SentCommand, path: JointTrajectoryArrays) -> None:
        """Speeds of the tool and its place in the workspace, by forward kinematics of the cubic alone."""
        joints, _ = path.sampled(FINE_PARTS)
        poses = np.stack([self._arm.forward(q) for q in joints])
        self._inside(command, poses[:, :3, 3])
        spans_s = np.repeat(path.spans_s[:, 0] / FINE_PARTS, FINE_PARTS)
        turned = poses[1:, :3, :3] @ poses[:-1, :3, :3].transpose(0, 2, 1)
        axes = np.stack([turned[:, 2, 1] - turned[:, 1, 2], turned[:, 0, 2] - turned[:, 2, 0]], axis=1)
        axes = 0.5 * np.concatenate([axes, (turned[:, 1, 0] - turned[:, 0, 1])[:, None]], axis=1)  # small angles
        moved = np.diff(poses[:, :3, 3], axis=0)
        for kind, steps, limit in (
            ("m/s", moved, self._limits.max_linear_velocity),
            ("rad/s", axes, self._limits.max_angular_velocity),
        ):
            speed = float((np.linalg.norm(steps, axis=1) / spans_s).max())
            if speed > TOOL_SPEED * limit:
                self._wrong("tool speed", command, f"{speed:.3f} {kind}")

    def _peaks(self, command: SentCommand, path: JointTrajectoryArrays) -> None:
        peaks, arm, limits = path.peaks(), self._arm, self._limits
        for what, values, limit in (
            ("joint limit", peaks.high - arm.upper, np.full(7, 1e-3)),
            ("joint limit", arm.lower - peaks.low, np.full(7, 1e-3)),
            ("joint speed", peaks.speed, BEYOND * np.minimum(arm.velocity_limit, limits.max_joint_velocity)),
            ("joint acceleration", peaks.acceleration, BEYOND * limits.joint_acceleration(arm)),
            ("joint jerk", peaks.jerk, np.full(7, BEYOND * limits.max_joint_jerk)),
        ):
            if (values > limit).any():
                joint = int(np.argmax((values - limit).max(axis=0)))
                self._wrong(
                    what, command, f"{arm.joint_names[joint]}: {values[:, joint].max():.3f} > {limit[joint]:.3f}"
                )

    def _seam(
        self,
        command: SentCommand,
        before: tuple[SentCommand, JointTrajectoryArrays] | None,
        path: JointTrajectoryArrays,
        now_ns: int,
    ) -> None:
        start = path.state(now_ns)
        standing = not start.velocity.any() or float(np.abs(start.velocity).max()) < SEAM_RAD_S
        off_arm = float(np.abs(start.position - command.joints).max())
        near = standing and off_arm <= NEAR_RAD and command.speed <= STANDING
        if self._relocated(None if before is None else before[0], command):
            if off_arm > NEAR_RAD:
                self._wrong("start", command, f"the arm was moved, and would leap by {off_arm:.3f} rad")
        elif before is None and not near:
            self._wrong("start", command, f"the first command starts {off_arm:.3f} rad from the arm")
        elif before is not None and not near:
            was = _then(before, command, command.ros_ns)
            step = float(np.abs(start.position - was.position).max())
            jerk = float(np.abs(start.velocity - was.velocity).max())
            if step > SEAM_RAD or jerk > SEAM_RAD_S:
                self._wrong("start", command, f"the setpoint steps by {step:.3f} rad and {jerk:.2f} rad/s")
        tool = self._arm.forward(start.position)
        if (away := pose_distance(tool, command.arm)[0]) > START_M:
            self._wrong("start", command, f"{away:.3f} m from the arm")

    def _joint_stops(self) -> None:
        for at_ns, _ in self._stops():
            setpoints = [(t, q) for t, q in self._cell.setpoints if at_ns <= t and not self._cell.moves_again(at_ns, t)]
            self._stopped(at_ns, setpoints, RETURN_RAD_S, STOPPING_RAD, np.inf)

    def _stopped(
        self, at_ns: int, setpoints: list[tuple[int, np.ndarray]], slowly: float, far: float, norm: float = 2
    ) -> None:
        """After a stop the setpoint comes to rest soon, and moves on no further than a stop takes."""
        if len(setpoints) < 2:
            return
        times_s = np.array([(t - at_ns) / NS_PER_S for t, _ in setpoints])
        values = np.stack([value for _, value in setpoints])
        speeds = np.linalg.norm(np.diff(values, axis=0), norm, axis=1) / np.diff(times_s)
        moved = np.linalg.norm(values - values[0], norm, axis=1)
        soon = times_s <= REST_S
        if moved[soon].max() > far:
            self.found.append(
                Violation("after a stop", f"the command moved on by {moved[soon].max():.3f}", at_ns / NS_PER_S)
            )
        if not soon.all() and (late := speeds[times_s[:-1] > REST_S]).size and late.max() > slowly:
            self.found.append(Violation("after a stop", f"still {late.max():.3f} per second", at_ns / NS_PER_S))

    # Poses

    def _poses(self) -> None:
        limits, before = self._limits, None
        for command in self._cell.commands:
            position, q = command.message.pose.position, command.message.pose.orientation
            numbers = np.array([position.x, position.y, position.z, q.x, q.y, q.z, q.w])
            if not np.isfinite(numbers).all() or abs(np.linalg.norm(numbers[3:]) - 1.0) > 1e-6:
                self._wrong("finite", command, f"no pose: {numbers}")
                continue
            pose = messages.pose_from_message(command.message.pose)
            away_m, _ = pose_distance(pose, command.arm)
            near = away_m <= NEAR_M and command.speed <= STANDING
            if away_m > START_M:
                self._wrong("start", command, f"{away_m:.3f} m from the arm")
            if before is None:
                if not near:
                    self._wrong("start", command, f"the first command is {away_m:.3f} m from the arm")
                self._inside(command, np.stack([command.arm[:3, 3], pose[:3, 3]]))
            elif self._relocated(before[0], command):
                if not near:
                    self._wrong("start", command, f"the arm was moved, and would leap by {away_m:.3f} m")
            else:
                then, was = before
                step_m, step_rad = pose_distance(was, pose)
                passed_s = np.clip((command.sent_ns - then.sent_ns) / NS_PER_S, TICK_NS / NS_PER_S, LONGEST_S)
                too_far = step_m > BEYOND * limits.max_linear_velocity * passed_s + 1e-4
                too_far |= step_rad > BEYOND * limits.max_angular_velocity * passed_s + 1e-3
                # Where simulated time jumped, the world began anew, and the arm may be elsewhere.
                if too_far and not (near and self._cell.simulated):
                    self._wrong("step", command, f"{step_m:.4f} m and {step_rad:.3f} rad in {passed_s:.3f} s")
                self._inside(command, np.stack([was[:3, 3], pose[:3, 3]]))
            before = (command, pose)
        for at_ns, first in self._stops():
            last = self._cell.commands[first - 1 : first] if first else []
            after = [c for c in self._cell.commands[first:] if not self._cell.moves_again(at_ns, c.sent_ns)]
            points = [(c.sent_ns, messages.pose_from_message(c.message.pose)[:3, 3]) for c in (*last, *after)]
            points = [(max(t, at_ns), p) for t, p in points]
            points = [e for i, e in enumerate(points) if i == 0 or e[0] > points[i - 1][0]]
            self._stopped(at_ns, points, RETURN_M_S, STOPPING_M)

    # Twists

    def _twists(self) -> None:
        limits, last = self._limits, None
        for command in self._cell.commands:
            v, w = command.message.twist.linear, command.message.twist.angular
            linear, angular = np.array([v.x, v.y, v.z]), np.array([w.x, w.y, w.z])
            if not (np.isfinite(linear).all() and np.isfinite(angular).all()):
                self._wrong("finite", command, "a twist is not finite")
                continue
            if np.linalg.norm(linear) > TOOL_SPEED * limits.max_linear_velocity:
                self._wrong("tool speed", command, f"{np.linalg.norm(linear):.3f} m/s")
            if np.linalg.norm(angular) > TOOL_SPEED * limits.max_angular_velocity:
                self._wrong("tool speed", command, f"{np.linalg.norm(angular):.3f} rad/s")
            moves = bool(linear.any() or angular.any())
            gap_s = 0.0 if last is None or not last[1] else (command.sent_ns - last[0]) / NS_PER_S
            if last is not None and gap_s > TWIST_GAP_S and not self._cell.stood_still(last[0], command.sent_ns):
                self._wrong("stream", command, f"{gap_s:.2f} s after a motion")
            last = (command.sent_ns, moves)
            for at_ns, _ in self._stops():
                late = command.sent_ns - at_ns > REST_S * NS_PER_S
                if late and moves and not self._cell.moves_again(at_ns, command.sent_ns):
                    self._wrong("after a stop", command, f"a twist of {np.linalg.norm(linear):.3f} m/s")
        if last is not None and last[1] and self._cell.steady_ns - last[0] > TWIST_GAP_S * NS_PER_S:
            self.found.append(Violation("stream", "the last twist is not zero", last[0] / NS_PER_S))


def _then(before: tuple[SentCommand, JointTrajectoryArrays], command: SentCommand, at_ns: int) -> JointState:
    """The state of the path before at a moment of a command's time, which ROS time may have left since."""
    sent, path = before
    return path.state(sent.ros_ns + command.sent_ns - sent.sent_ns + at_ns - command.ros_ns)
