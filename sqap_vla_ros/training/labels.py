"""Labels of one picture: the expert's chunks for several instructions that make sense in the same state.

One picture with six instructions teaches the policy to listen: what tells the labels apart is in the words alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.simulation.experts import plan_actions
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.tasks import OPENED_M, Task, WorldState
from sqap_vla_ros.simulation.vocabulary import TaskFamily
from sqap_vla_ros.simulation.world import TabletopWorld

FAMILIES = tuple(TaskFamily)
_ON_TABLE_M = 0.05  # an object whose centre is higher is held, or lies on something
_FAR_M = 0.16  # between objects that are not near each other yet
# A family is drawn for a second label in this proportion: those with few candidates more often.
_WEIGHT = {
    TaskFamily.PICK: 1.0,
    TaskFamily.MOVE_NEAR: 0.5,
    TaskFamily.OPEN_DRAWER: 2.0,
    TaskFamily.CLOSE_DRAWER: 2.0,
    TaskFamily.PLACE_IN_DRAWER: 1.0,
    TaskFamily.PLACE_IN_BOWL: 1.0,
}


@dataclass(frozen=True)
class Asked:
    """A task about the layout's objects number `target` and `reference`."""

    family: TaskFamily
    target: int
    reference: int

    def task(self, layout: Layout) -> Task:
        """Return the task about the objects of `layout`."""
        return Task(self.family, layout.objects[self.target].kind, layout.objects[self.reference].kind)


def expert_chunk(world: TabletopWorld, asked: Asked, horizon: int = 16) -> NDArray[np.float32]:
    """Return the expert's next actions [horizon, 7] for what is asked, from the present state."""
    assert world.layout is not None
    return plan_actions(asked.task(world.layout), world.state(asked.target, asked.reference), horizon).astype(
        np.float32
    )


def sensible_tasks(world: TabletopWorld) -> list[Asked]:
    """Return everything that makes sense to ask for in the present state."""
    assert world.layout is not None
    count = len(world.layout.objects)
    states = [world.state(slot, (slot + 1) % count) for slot in range(count)]
    held = [slot for slot in range(count) if states[slot].target.held]
    found: list[Asked] = []
    if not held:
        if states[0].drawer_m < OPENED_M - 0.01:
            found.append(Asked(TaskFamily.OPEN_DRAWER, 0, 1))
        if states[0].drawer_m > 0.02:
            found.append(Asked(TaskFamily.CLOSE_DRAWER, 0, 1))
    for slot in held or range(count):
        state = states[slot]
        if not held and not _within_reach(state):
            continue
        other = (slot + 1) % count
        found.append(Asked(TaskFamily.PICK, slot, other))
        if state.drawer_m > OPENED_M:
            found.append(Asked(TaskFamily.PLACE_IN_DRAWER, slot, other))
        if state.bowl_xyz_m is not None:
            found.append(Asked(TaskFamily.PLACE_IN_BOWL, slot, other))
        for reference in range(count):
            if reference == slot or not _within_reach(states[reference]):
                continue
            gap = np.linalg.norm(state.target.xyz_m[:2] - states[reference].target.xyz_m[:2])
            if held or gap > _FAR_M:
                found.append(Asked(TaskFamily.MOVE_NEAR, slot, reference))
    return found


def _within_reach(state: WorldState) -> bool:
    """Return whether the target stands on the table, clear of the drawer and not in the bowl."""
    target = state.target.xyz_m
    if not -0.01 < target[2] < _ON_TABLE_M or target[1] > state.handle_xyz_m[1] - 0.03:
        return False
    return state.bowl_xyz_m is None or bool(np.linalg.norm(target[:2] - state.bowl_xyz_m[:2]) > 0.08)


def draw_tasks(world: TabletopWorld, own: Asked, count: int, rng: np.random.Generator) -> list[Asked]:
    """Draw `own` and up to `count - 1` other tasks; too few are repeated until there are `count`."""
    others = [asked for asked in sensible_tasks(world) if asked.task(world.layout) != own.task(world.layout)]  # type: ignore[arg-type]
    weight = np.array([_WEIGHT[asked.family] for asked in others])
    chosen = [own]
    if others:
        number = min(count - 1, len(others))
        drawn = rng.choice(len(others), number, replace=False, p=weight / weight.sum())
        chosen += [others[i] for i in drawn]
    return [chosen[i % len(chosen)] for i in range(count)]
