"""The node's joint trajectories, played at 500 Hz by a controller's rules to an arm that lags: nothing jumps.

joint_trajectory_controller approaches a first point that is in the future from the measured state by default, and from
the desired one with interpolate_from_desired_state. An arm that lags makes up for its lag on that way at once, unless
the message begins with the motion that is under way.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from sqap_vla_ros.contracts import JOINS, NS_PER_S, ActionChunk
from sqap_vla_ros.control.motion import Motion, MotionConfig
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.sinks.joint import JointSink
from sqap_vla_ros.nodes.policy.sinks.sink import Measured, SinkParts
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.simulation.commander import ArmCommander
from sqap_vla_ros.simulation.joint_path import accept_trajectory

START_NS = 1_763_000_000 * NS_PER_S
STEP_NS = 2_000_000  # 500 Hz
DT_S, REPLAN_NS, LATENCY_NS, TRANSPORT_NS = 0.2, 400_000_000, 120_000_000, 3_000_000
HOME = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
LIMITS = SafetyLimits(max_joint_velocity=2.0)
SECONDS = 6.0


@pytest.fixture(scope="module")
def arm() -> ArmKinematics:
    return ArmKinematics.from_urdf(share_path("config/robots/tabletop_arm.urdf").read_text(), "base_link", "tool0")


class LaggingArm:
    """What a commander needs of the world: joints that follow their targets through a low pass."""

    def __init__(self, arm: ArmKinematics, lag_s: float) -> None:
        self.arm_position, self.arm_velocity = HOME.copy(), np.zeros(7)
        self.forward = arm.forward
        self._share = STEP_NS / NS_PER_S / lag_s

    def step(self, target: np.ndarray) -> None:
        move = self._share * (target - self.arm_position)
        self.arm_velocity = move * NS_PER_S / STEP_NS
        self.arm_position = self.arm_position + move


def chunk(rng: np.random.Generator, stamp_ns: int) -> ActionChunk:
    """To and fro, turning, with some noise."""
    way = 1.0 if (stamp_ns - START_NS) // (2 * REPLAN_NS) % 2 == 0 else -1.0
    delta = way * np.array([0.004, 0.02, -0.01, 0.0, 0.02, 0.06]) + rng.uniform(-0.004, 0.004, 6)
    deltas = np.tile(np.append(delta, 1.0), (12, 1))
    return ActionChunk(stamp_ns, deltas, DT_S, deltas)


def as_before(message) -> None:
    """The message as it was without its start: what is in the past or is the start itself falls away."""
    head = next(i for i, p in enumerate(message.points) if messages.time_ns(p.time_from_start) > 35_000_000)
    del message.points[:head]


def play(
    arm: ArmKinematics, lag_s: float, *, desired: bool, edit=lambda message: None, chunk_join="path"
) -> np.ndarray:
    """Targets [N, 7] at 500 Hz under a new chunk every 0.4 s."""
    rng = np.random.default_rng(3)
    world = LaggingArm(arm, lag_s)
    commander = ArmCommander(
        world, max_joint_velocity_rad_s=2.0, twist_timeout_s=0.2, interpolate_from_desired_state=desired
    )
    motion = Motion(MotionConfig(ensemble_chunks=1, ramp_s=0.3, chunk_join=chunk_join), LIMITS)
    sent = []
    publisher = SimpleNamespace(publish=sent.append)
    sink = JointSink(
        SimpleNamespace(create_lifecycle_publisher=lambda *_: publisher),
        SinkParts(SimpleNamespace(kinematics=arm), LIMITS, "base_link"),
    )
    targets, flight, on_the_way = [], None, []
    for now_ns in range(START_NS, START_NS + round(SECONDS * NS_PER_S), STEP_NS):
        tool = arm.forward(world.arm_position)
        if (now_ns - START_NS) % REPLAN_NS == 0:
            flight = (chunk(rng, now_ns), tool)
        if flight is not None and now_ns >= flight[0].stamp_ns + LATENCY_NS:
            (what, seen), flight = flight, None
            trajectory = motion.plan(what, seen, tool, now_ns).trajectory
            latest_ns = motion.latest_ns(what.stamp_ns)
            motion.commit(sink.start(trajectory, Measured(tool, world.arm_position), latest_ns))
            edit(sent[-1])
            on_the_way.append((now_ns + TRANSPORT_NS, sent[-1]))
        while on_the_way and now_ns >= on_the_way[0][0]:
            _, message = on_the_way.pop(0)
            start_ns = messages.time_ns(message.header.stamp)
            position, velocity = commander.start_state()
            path = accept_trajectory(
                arm.joint_names,
                names=message.joint_names,
                times_ns=[start_ns + messages.time_ns(p.time_from_start) for p in message.points],
                positions=[p.positions for p in message.points],
                velocities=[p.velocities for p in message.points],
                now_ns=now_ns,
                position=position,
                velocity=velocity,
            )
            commander.follow(path)
        targets.append(commander.update(now_ns, STEP_NS / NS_PER_S).copy())
        world.step(targets[-1])
    assert len(sent) >= 8
    return np.array(targets)


@pytest.mark.parametrize("chunk_join", JOINS)
@pytest.mark.parametrize("desired", [False, True], ids=["from the measured state", "from the desired state"])
@pytest.mark.parametrize("lag_s", [0.03, 0.06, 0.1, 0.14])
def test_no_jump_whatever_the_controller_starts_from(arm, lag_s, desired, chunk_join):
    targets = play(arm, lag_s, desired=desired, chunk_join=chunk_join)
    speed = np.diff(targets, axis=0) * NS_PER_S / STEP_NS
    acceleration = np.diff(speed, axis=0) * NS_PER_S / STEP_NS
    assert np.ptp(targets, axis=0).max() > 0.15  # it moves
    assert np.abs(speed).max() <= LIMITS.max_joint_velocity * 1.001
    assert np.abs(acceleration).max() <= LIMITS.max_joint_acceleration * 1.05


def test_without_its_start_a_message_makes_the_arm_jump(arm):
    """That the test sees what it is to see: the same messages, as they were before they began with their start."""
    targets = play(arm, 0.14, desired=False, edit=as_before)
    assert np.abs(np.diff(targets, axis=0)).max() > 0.02  # rad in 2 ms
