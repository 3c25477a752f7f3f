from dataclasses import replace

import numpy as np
import pytest

from sqap_vla_ros.simulation.scene import ObjectKind
from sqap_vla_ros.simulation.tasks import ObjectState, Task, WorldState, parse_instruction
from sqap_vla_ros.simulation.vocabulary import TaskFamily

RED, BLUE = ObjectKind("red", "cube"), ObjectKind("blue", "can")
FREE = ObjectState(np.array([0.4, 0.0, 0.02]), 0.0, held=False, touched=False)
STATE = WorldState(
    tool_xyz_m=np.array([0.4, 0.0, 0.2]),
    tool_yaw_rad=0.0,
    finger_m=0.04,
    gripper_open=True,
    handle_xyz_m=np.array([0.45, 0.19, 0.09]),
    drawer_xyz_m=np.array([0.45, 0.18, 0.0]),
    drawer_m=0.15,
    bowl_xyz_m=np.array([0.5, -0.2, 0.0]),
    target=FREE,
    reference=replace(FREE, xyz_m=np.array([0.4, 0.3, 0.02])),
    others_xyz_m=(),
)


def at(x: float, y: float, z: float, **changes: bool) -> ObjectState:
    return replace(FREE, xyz_m=np.array([x, y, z]), **changes)


HELD = {"held": True, "touched": True}
# family: a state in which it is done, and for each condition a state that fails it alone
CASES = {
    TaskFamily.PICK: (
        replace(STATE, gripper_open=False, target=at(0.4, 0, 0.15, **HELD)),
        [replace(STATE, gripper_open=False, target=at(0.4, 0, 0.05, **HELD)), replace(STATE, target=at(0.4, 0, 0.15))],
    ),
    TaskFamily.MOVE_NEAR: (
        replace(STATE, target=at(0.4, 0.2, 0.02)),
        [
            replace(STATE, target=at(0.4, 0.17, 0.02)),
            replace(STATE, target=at(0.4, 0.2, 0.06)),
            replace(STATE, target=at(0.4, 0.2, 0.02, touched=True)),
            replace(STATE, target=at(0.4, 0.2, 0.02), gripper_open=False),
        ],
    ),
    TaskFamily.OPEN_DRAWER: (replace(STATE, drawer_m=0.13), [replace(STATE, drawer_m=0.11)]),
    TaskFamily.CLOSE_DRAWER: (replace(STATE, drawer_m=0.01), [replace(STATE, drawer_m=0.02)]),
    TaskFamily.PLACE_IN_DRAWER: (
        replace(STATE, target=at(0.45, 0.2, 0.03)),
        [
            replace(STATE, target=at(0.56, 0.2, 0.03)),
            replace(STATE, target=at(0.45, 0.09, 0.03)),
            replace(STATE, target=at(0.45, 0.2, 0.1)),
            replace(STATE, target=at(0.45, 0.2, 0.03, touched=True)),
        ],
    ),
    TaskFamily.PLACE_IN_BOWL: (
        replace(STATE, target=at(0.51, -0.19, 0.03)),
        [
            replace(STATE, target=at(0.58, -0.2, 0.03)),
            replace(STATE, target=at(0.51, -0.19, 0.1)),
            replace(STATE, target=at(0.51, -0.19, 0.03), bowl_xyz_m=None),
            replace(STATE, target=at(0.51, -0.19, 0.03), gripper_open=False),
        ],
    ),
}


@pytest.mark.parametrize("family", TaskFamily)
def test_detector(family):
    task = Task(family, RED, BLUE)
    done, not_done = CASES[family]
    assert task.succeeded(done)
    for i, state in enumerate(not_done):
        assert not task.succeeded(state), f"case {i}"


def test_instructions_name_what_they_are_about():
    words = {family: Task(family, RED, BLUE).instruction for family in TaskFamily}
    assert words[TaskFamily.PICK] == "pick up the red cube"
    assert words[TaskFamily.MOVE_NEAR] == "move the red cube near the blue can"
    assert words[TaskFamily.CLOSE_DRAWER] == "close the drawer"
    assert len(set(words.values())) == len(TaskFamily)


def test_instructions_are_understood_as_they_are_said():
    for family, objects in (
        (TaskFamily.PICK, (RED,)),
        (TaskFamily.MOVE_NEAR, (RED, BLUE)),
        (TaskFamily.OPEN_DRAWER, ()),
        (TaskFamily.PLACE_IN_BOWL, (RED,)),
    ):
        assert parse_instruction(Task(family, RED, BLUE).instruction) == (family, objects)
    assert parse_instruction("  Pick up  the red CUBE.") == (TaskFamily.PICK, (RED,))


@pytest.mark.parametrize("words", ["make coffee", "pick up the pink cube", "move the red cube near the red cube", ""])
def test_other_words_are_answered_with_examples(words):
    with pytest.raises(ValueError, match=r"no task is called .*'move the red cube near the blue can'"):
        parse_instruction(words)
