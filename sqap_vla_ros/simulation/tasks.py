"""The task families: their words, and the detectors that tell when a task is done."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.simulation.scene import BOWL_RADIUS_M, COLOURS, SHAPES, ObjectKind
from sqap_vla_ros.simulation.vocabulary import TaskFamily

LIFTED_M = 0.08  # above where the object stood
NEAR_M = 0.12
OPENED_M = 0.12
CLOSED_M = 0.015


# Control steps (at 5 Hz) after which an episode has failed: two to three times what the scripted expert needs.
MAX_STEPS = {
    TaskFamily.PICK: 35,
    TaskFamily.MOVE_NEAR: 50,
    TaskFamily.OPEN_DRAWER: 35,
    TaskFamily.CLOSE_DRAWER: 35,
    TaskFamily.PLACE_IN_DRAWER: 55,
    TaskFamily.PLACE_IN_BOWL: 55,
}


@dataclass(frozen=True)
class ObjectState:
    """The state of an object. held: both fingers touch it while commanded to close; touched: any finger does."""

    xyz_m: NDArray[np.float64]
    yaw_rad: float
    held: bool
    touched: bool


@dataclass(frozen=True)
class WorldState:
    """The state that detectors and experts may know (the policy sees none of it). Positions in the base frame, metres.

    tool_xyz_m, tool_yaw_rad: the measured tool frame; finger_m: the measured opening of a finger.
    gripper_open: what the hand was last told.
    handle_xyz_m: centre of the drawer's handle; drawer_xyz_m: centre of its floor; drawer_m: how far it is open.
    target, reference: the objects the task is about; others_xyz_m: what else stands on the table, bowl included.
    """

    tool_xyz_m: NDArray[np.float64]
    tool_yaw_rad: float
    finger_m: float
    gripper_open: bool
    handle_xyz_m: NDArray[np.float64]
    drawer_xyz_m: NDArray[np.float64]
    drawer_m: float
    bowl_xyz_m: NDArray[np.float64] | None
    target: ObjectState
    reference: ObjectState
    others_xyz_m: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class Task:
    """A family and the objects it is about. `reference` matters for MOVE_NEAR only."""

    family: TaskFamily
    target: ObjectKind
    reference: ObjectKind

    @property
    def instruction(self) -> str:
        match self.family:
            case TaskFamily.PICK:
                return f"pick up the {self.target}"
            case TaskFamily.MOVE_NEAR:
                return f"move the {self.target} near the {self.reference}"
            case TaskFamily.OPEN_DRAWER:
                return "open the drawer"
            case TaskFamily.CLOSE_DRAWER:
                return "close the drawer"
            case TaskFamily.PLACE_IN_DRAWER:
                return f"put the {self.target} in the drawer"
            case TaskFamily.PLACE_IN_BOWL:
                return f"put the {self.target} in the bowl"

    @property
    def max_steps(self) -> int:
        return MAX_STEPS[self.family]

    def succeeded(self, state: WorldState) -> bool:
        """Return whether the task is done in `state`. Objects must have been let go, except the one picked up."""
        target = state.target
        released = state.gripper_open and not target.touched
        match self.family:
            case TaskFamily.PICK:
                return target.held and bool(target.xyz_m[2] > LIFTED_M + 0.02)
            case TaskFamily.MOVE_NEAR:
                gap = np.linalg.norm(target.xyz_m[:2] - state.reference.xyz_m[:2])
                return released and bool(gap < NEAR_M and target.xyz_m[2] < 0.04)
            case TaskFamily.OPEN_DRAWER:
                return state.drawer_m > OPENED_M
            case TaskFamily.CLOSE_DRAWER:
                return state.drawer_m < CLOSED_M
            case TaskFamily.PLACE_IN_DRAWER:
                inside = np.abs(target.xyz_m[:2] - state.drawer_xyz_m[:2]) < (0.095, 0.078)
                return released and bool(inside.all() and target.xyz_m[2] < 0.06 and state.drawer_m > 0.05)
            case TaskFamily.PLACE_IN_BOWL:
                if state.bowl_xyz_m is None:
                    return False
                gap = np.linalg.norm(target.xyz_m[:2] - state.bowl_xyz_m[:2])
                return released and bool(gap < BOWL_RADIUS_M and 0.01 < target.xyz_m[2] < 0.07)


# Families whose words name the target, and those whose words name the reference.
_NAMES_TARGET = frozenset(TaskFamily) - {TaskFamily.OPEN_DRAWER, TaskFamily.CLOSE_DRAWER}
_NAMES_REFERENCE = frozenset({TaskFamily.MOVE_NEAR})


@cache
def _named_kinds() -> dict[str, tuple[TaskFamily, tuple[ObjectKind, ...]]]:
    """Return every instruction there is, with the objects it names."""
    kinds = [ObjectKind(colour, shape) for colour in COLOURS for shape in SHAPES]
    known: dict[str, tuple[TaskFamily, tuple[ObjectKind, ...]]] = {}
    for family in TaskFamily:
        for target, reference in itertools.permutations(kinds, 2):
            named = (target,) * (family in _NAMES_TARGET) + (reference,) * (family in _NAMES_REFERENCE)
            known[Task(family, target, reference).instruction] = (family, named)
    return known


def every_instruction() -> list[str]:
    """Return every instruction that this tabletop knows."""
    return list(_named_kinds())


def parse_instruction(instruction: str) -> tuple[TaskFamily, tuple[ObjectKind, ...]]:
    """Return the family and the objects that an instruction names: none, the target, or target and reference.

    Raises:
        ValueError: this tabletop knows no such task; the message gives an example of each.
    """
    words = " ".join(instruction.lower().removesuffix(".").split())
    if words not in _named_kinds():
        example = (ObjectKind("red", "cube"), ObjectKind("blue", "can"))
        examples = [repr(Task(family, *example).instruction) for family in TaskFamily]
        raise ValueError(
            f"no task is called {instruction!r}; there are {', '.join(examples)}, "
            f"with {', '.join(COLOURS)} and {', '.join(SHAPES)}"
        )
    return _named_kinds()[words]
