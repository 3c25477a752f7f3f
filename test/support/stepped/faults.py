"""Faults that a campaign inflicts on a cell: what begins, how long it lasts, and by which words the node names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from std_msgs.msg import String

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk
from stepped.simulated_cell import TICK_NS, Cell

MODES = ("joint", "pose", "twist")
TICK_S = TICK_NS / NS_PER_S
Begin = Callable[[Cell, np.random.Generator], bool | None]  # False: it cannot happen now
Shows = Callable[[Cell, int], bool]


@dataclass(frozen=True)
class Fault:
    """A fault and its name in what the node says.

    begin: turns switches; what it turned is turned back at the end. lasts_s: drawn between the two.
    named: pattern of this fault alone that status, problems or log have within named_s of when it shows, if it lasts
    as long and the node works on a mission all the while; "" where a fault of this kind need not be named.
    unseen: pattern of what the node says while it cannot see the fault, for the time to begin anew.
    modes: the output modes that it can happen in. shows: whether it can be noticed yet, by the steady time of its
    begin; at once by default.
    """

    name: str
    begin: Begin
    lasts_s: tuple[float, float]
    named: str = ""
    named_s: float = 0.0
    modes: Sequence[str] = MODES
    shows: Shows = lambda cell, begin_ns: True
    unseen: str = ""


def asked(cell: Cell, begin_ns: int) -> bool:
    """Return whether the policy was handed an observation since."""
    return bool(cell.asked_ns) and cell.asked_ns[-1] > begin_ns


def moved_on(cell: Cell, begin_ns: int) -> bool:
    """Return whether images were used for a second in which the tool moved by more than frozen_motion_m."""
    used_ns = [at_ns for at_ns in cell.asked_ns if at_ns > begin_ns]
    if not used_ns or used_ns[-1] - used_ns[0] < NS_PER_S:
        return False
    since = [position for at_ns, position in cell.way if used_ns[0] <= at_ns <= used_ns[-1]]
    return float(np.linalg.norm(np.subtract(since, since[0]), axis=1).max()) > 0.025


def left_behind(cell: Cell, begin_ns: int) -> bool:
    """Return whether a motion under way has left the arm behind by more than max_tracking_m."""
    return cell.loop.executive.moving and cell.left_behind()[0] > 0.12


def watched(cell: Cell, begin_ns: int) -> bool:
    """Return whether the watchdog has something to hold when the executor stands still."""
    return cell.watchdog.armed and cell.loop.commander.commanded


def switch(**values: Any) -> Begin:
    """A fault that sets switches of the cell."""

    def begin(cell: Cell, rng: np.random.Generator) -> None:
        cell.switches = replace(cell.switches, **values)

    return begin


def once(edit: Callable[[Any, np.random.Generator], Any], name: str) -> Begin:
    """A fault that changes one sample and then nothing any more."""

    def begin(cell: Cell, rng: np.random.Generator) -> None:
        left = [1]

        def edited(*values: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                return edit(values if len(values) > 1 else values[0], rng)
            return values if len(values) > 1 else values[0]

        cell.switches = replace(cell.switches, **{name: edited})

    return begin


def always(edit: Callable[[Any, np.random.Generator], Any], name: str) -> Begin:
    """A fault that changes every sample."""

    def begin(cell: Cell, rng: np.random.Generator) -> None:
        cell.switches = replace(
            cell.switches, **{name: lambda *values: edit(values if len(values) > 1 else values[0], rng)}
        )

    return begin


def moved_tool(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pose far from the true one."""
    pose[:3, 3] += rng.normal(size=3) * 0.3
    return pose


def nan_tool(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pose with a number that is none."""
    pose[int(rng.integers(3)), 3] = np.nan
    return pose


def zero_joints(state: Any, rng: np.random.Generator) -> Any:
    """All joints at zero, as a joint_state_publisher without a driver publishes them."""
    return state[0], [0.0] * len(state[0])


def nan_joint(state: Any, rng: np.random.Generator) -> Any:
    """One joint that is no number."""
    values = list(state[1])
    values[int(rng.integers(len(values)))] = float(rng.choice([np.nan, np.inf]))
    return state[0], values


def moved_joint(state: Any, rng: np.random.Generator) -> Any:
    """One joint far from the true one."""
    values = list(state[1])
    values[int(rng.integers(len(values)))] += float(rng.choice([-1.0, 1.0]))
    return state[0], values


def double_name(state: Any, rng: np.random.Generator) -> Any:
    """A joint named twice, with two values."""
    return [*state[0], state[0][2]], [*state[1], 0.0]


def short_joints(state: Any, rng: np.random.Generator) -> Any:
    """More names than positions."""
    return state[0], state[1][:-1]


def chunk_with(change: Callable[[np.ndarray, np.random.Generator], Any]) -> Callable[[Any, np.random.Generator], Any]:
    """A chunk whose deltas are changed in place, or the answer that `change` returns instead."""

    def edit(chunk: ActionChunk, rng: np.random.Generator) -> Any:
        deltas = chunk.deltas.copy()
        answer = change(deltas, rng)
        return replace(chunk, deltas=deltas) if answer is None else answer

    return edit


def nan_chunk(deltas: np.ndarray, rng: np.random.Generator) -> None:
    """One number that is none."""
    deltas[int(rng.integers(len(deltas))), int(rng.integers(7))] = float(rng.choice([np.nan, np.inf, -np.inf]))


def wild_chunk(deltas: np.ndarray, rng: np.random.Generator) -> None:
    """Motions that are too fast by a little or a lot, or that lead out of the workspace."""
    deltas[:, :3] *= float(rng.choice([5.0, 30.0, 1e6, 1e300]))
    deltas[:, 3:6] += rng.normal(size=3) * float(rng.choice([0.0, 0.3, 3.0]))


def impossible_chunk(deltas: np.ndarray, rng: np.random.Generator) -> None:
    """Motions that no arm can make."""
    deltas[:, :3] *= float(rng.choice([30.0, 1e6, 1e300]))
    deltas[:, 3:6] += rng.normal(size=3) * float(rng.choice([0.0, 0.3, 3.0]))


def blocked_and_pushed(cell: Cell, rng: np.random.Generator) -> None:
    """The arm stands against something, and every chunk asks for more of the same."""
    way = rng.normal(size=3)
    push = np.concatenate([way / np.linalg.norm(way) * rng.uniform(0.002, 0.025), rng.uniform(-0.06, 0.06, 3)])

    def pushing(chunk: ActionChunk) -> ActionChunk:
        return replace(chunk, deltas=np.column_stack([np.tile(push, (len(chunk.deltas), 1)), chunk.deltas[:, 6:]]))

    cell.switches = replace(cell.switches, blocked=True, chunk_edit=pushing)


def hangs(cell: Cell, rng: np.random.Generator) -> None:
    """The policy never answers again."""
    cell.switches = replace(cell.switches, chunk_edit=lambda _: None)


def dies(cell: Cell, rng: np.random.Generator) -> bool:
    """The worker process is gone, unless there is none."""
    if cell.worker.dead:
        return False
    cell.worker.die()
    return True


def jumps(cell: Cell, rng: np.random.Generator) -> None:
    """Somebody sets the system's clock."""
    cell.clock.set_ros(float(rng.choice([-1.0, 1.0])) * float(rng.choice([0.4, 2.0, 30.0, 3600.0])))


def jumps_a_little(cell: Cell, rng: np.random.Generator) -> None:
    """The system's clock is stepped, as by a time synchronisation that finds it a little wrong."""
    cell.clock.set_ros(float(rng.choice([-1.0, 1.0])) * float(rng.uniform(0.06, 0.24)))


def other_arm(cell: Cell, rng: np.random.Generator) -> bool:
    """Another robot_description comes: broken, or of an arm with other lengths. The same once more is no fault."""
    same = cell.urdf + "<!-- again -->"
    text = str(rng.choice([same, "<robot name='broken'>", cell.urdf.replace("0.316", "0.416")]))
    cell.publish("robot_description", String(data=text))
    return text != same


def second_joints(cell: Cell, rng: np.random.Generator) -> None:
    """A second publisher of joint_states, with zeros."""
    cell.switches = replace(cell.switches, second_joints=np.zeros(7))


def second_tf(cell: Cell, rng: np.random.Generator) -> None:
    """A second publisher of the tool's transform."""
    pose = cell.tool.copy()
    pose[:3, 3] += (0.0, 0.2, 0.1)
    cell.switches = replace(cell.switches, second_tf=pose)


def slips(cell: Cell, rng: np.random.Generator) -> None:
    """The tool's transform slips, slower than a tool can move, and stays where it slipped to."""
    way = rng.normal(size=3)
    slip, done = way / np.linalg.norm(way) * rng.uniform(0.03, 0.35), np.zeros(1)

    def slipping(pose: np.ndarray) -> np.ndarray:
        done[0] = min(done[0] + 0.01 / float(np.linalg.norm(slip)), 1.0)
        pose[:3, 3] += done[0] * slip
        return pose

    cell.switches = replace(cell.switches, tf_edit=slipping)


def moved_at_rest(cell: Cell, rng: np.random.Generator) -> None:
    """Another controller moves the resting arm, and is switched off again."""
    cell.enable(False)
    cell.run(1.2)
    by = np.zeros(7)
    by[rng.integers(7, size=2)] = rng.uniform(-0.3, 0.3, size=2)
    if rng.integers(2):  # the tool stays where it is, and only turns
        by = rng.uniform(0.15, 0.28) * np.eye(7)[6]
    cell.relocate(np.clip(cell.joints + by, cell.kinematics.lower + 0.05, cell.kinematics.upper - 0.05))
    cell.run(0.5)
    cell.enable()


def storm(cell: Cell, rng: np.random.Generator) -> None:
    """People and nodes that want everything at once."""
    goals = cell.node.action.goals
    for _ in range(int(rng.integers(3, 12))):
        match int(rng.integers(9)):
            case 0:
                cell.enable(bool(rng.integers(2)))
            case 1:
                cell.trigger(str(rng.choice(["stop", "reset_fault", "reset_policy"])))
            case 2:
                cell.instruct(str(rng.choice(["pick", "place", "", "x" * 5000])))
            case 3 | 4:
                cell.node.action.send(str(rng.choice(["pick", "", "push"])), float(rng.integers(3)))
            case 5 | 6 if goals:
                cell.node.action.cancel(goals[int(rng.integers(len(goals)))])
            case 7:
                cell.safety_stop(bool(rng.integers(2)))
            case _:
                cell.run(TICK_S * int(rng.integers(1, 4)))
    cell.safety_stop(False)
    cell.trigger("reset_fault")
    cell.instruct("pick")
    cell.enable()


JOINT = ("joint",)
NO_INFO = r"camera_info stopped coming|no camera_info has the stamp of the newest image"
NO_IMAGE, NO_TRANSFORM = r"no new image for", r"no transform base_link <- tool0|the tool's transform is stale"
TWO_TF = r"the tool jumped by .* second publisher|a glitch, or two publishers|alternates between two"
LEAPT = r"joint_states: joint\d leapt from .* second publisher"
LEAPT_OR_APART = LEAPT + r"|joint_states and TF contradict"  # joints not heard for a while may have got there
WILD = r"chunk rejected: (step|linear|angular)|is absurd|unusable chunks in a row"
NOTHING_STARTS = r"still coming to rest|where it was told to rest"  # so that no chunk is looked into
FAULTS = (
    Fault("image silent", switch(image_silent=True), (0.1, 1.1), NO_IMAGE, 0.6),
    Fault("camera_info silent", switch(info_silent=True), (0.1, 1.1), NO_INFO, 0.9),
    Fault("TF silent", switch(tf_silent=True), (0.1, 1.1), NO_TRANSFORM, 1.0),
    Fault("joint_states silent", switch(joints_silent=True), (0.1, 1.1), "joint_states are stale", 0.5, JOINT),
    Fault("image old", switch(image_age_s=0.8), (0.1, 1.5), "the image is stale: stamped", 1.1),
    Fault("TF old", switch(tf_age_s=1.5), (0.1, 1.1), NO_TRANSFORM, 1.0),
    Fault("joint_states old", switch(joints_age_s=2.0), (0.1, 1.1), "joint_states are stale", 0.5, JOINT),
    Fault(
        "joint_states from the future",
        switch(joints_age_s=-3.0),
        (0.1, 1.1),
        "are stamped .* in the future",
        0.2,
        JOINT,
    ),
    Fault("image stamped zero", switch(image_stamp=0), (0.1, 1.1), "images are stamped zero", 0.3),
    Fault("image frozen", switch(image_frozen=True), (0.1, 2.0), "the camera is frozen", 0.5, shows=moved_on),
    Fault("TF glitch", once(moved_tool, "tf_edit"), (0.1, 0.3)),
    Fault("TF not finite once", once(nan_tool, "tf_edit"), (0.1, 0.3)),
    Fault("TF not finite", always(nan_tool, "tf_edit"), (0.1, 1.1), NO_TRANSFORM, 1.0),
    Fault("TF slips", slips, (0.3, 1.5)),
    Fault("TF at random", always(moved_tool, "tf_edit"), (0.1, 1.1), TWO_TF, 0.5),
    Fault("two TF publishers", second_tf, (0.1, 1.1), TWO_TF, 0.5),
    Fault("joint_states zero once", once(zero_joints, "joints_edit"), (0.1, 0.3), modes=JOINT),
    Fault("joint_states zero", always(zero_joints, "joints_edit"), (0.1, 1.1), LEAPT_OR_APART, 0.3, JOINT),
    Fault("joint_states not finite once", once(nan_joint, "joints_edit"), (0.1, 0.3), modes=JOINT),
    Fault("joint_states not finite", always(nan_joint, "joints_edit"), (0.1, 1.1), "non-finite position", 0.2, JOINT),
    Fault("joint glitch", once(moved_joint, "joints_edit"), (0.1, 0.3), modes=JOINT),
    Fault("joint named twice", always(double_name, "joints_edit"), (0.1, 1.1), r"name joint\d twice", 0.2, JOINT),
    Fault("positions missing", always(short_joints, "joints_edit"), (0.1, 1.1), "7 names and 6 positions", 0.2, JOINT),
    Fault("two joint_states publishers", second_joints, (0.1, 1.1), LEAPT, 0.3, JOINT),
    Fault("arm blocked", switch(blocked=True), (0.1, 1.5), "tracking error", 0.3, shows=left_behind),
    Fault("arm blocked and pushed", blocked_and_pushed, (0.5, 2.0), "tracking error", 0.3, shows=left_behind),
    Fault("chunk not finite once", once(chunk_with(nan_chunk), "chunk_edit"), (0.1, 0.3)),
    Fault(
        "chunks not finite",
        always(chunk_with(nan_chunk), "chunk_edit"),
        (0.3, 1.5),
        "is not finite",
        0.4,
        shows=asked,
    ),
    Fault("chunk wild once", once(chunk_with(wild_chunk), "chunk_edit"), (0.1, 0.3)),
    Fault(
        "chunks wild",
        always(chunk_with(impossible_chunk), "chunk_edit"),
        (0.3, 1.5),
        WILD,
        0.4,
        shows=asked,
        unseen=NOTHING_STARTS,
    ),
    Fault("prediction fails once", once(chunk_with(lambda *_: "out of memory"), "chunk_edit"), (0.1, 0.3)),
    Fault("predictions late", switch(latency_s=0.7), (0.3, 1.2)),
    Fault("policy hangs", hangs, (1.5, 1.8), "a prediction took longer than", 1.1, shows=asked),
    Fault("worker dies", dies, (0.3, 0.3), "the worker process ended", 0.2),
    Fault("clock set", jumps, (0.1, 0.3), "clock jumped by", 0.1),
    Fault("clock stepped a little", jumps_a_little, (0.1, 0.3), "clock jumped by", 0.1),
    Fault("another robot_description", other_arm, (0.1, 0.3), "robot_description", 0.1, JOINT),
    Fault("executor stands still", switch(stalled=True), (0.05, 1.0), "executor stands still", 0.54, shows=watched),
    Fault("executor pauses", switch(stalled=True), (0.04, 0.24)),
    Fault("arm moved at rest", moved_at_rest, (1.0, 1.5), modes=JOINT),
    Fault("storm of requests", storm, (0.1, 0.3)),
)
