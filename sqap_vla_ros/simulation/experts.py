"""Scripted experts: functions from the world's state to the next action, without memory, for every task family.

Having no memory makes them robust (any state is a fine start, so a policy can be corrected where it strayed) and lets
`plan_actions` label an image with the whole chunk of actions that lies ahead, free of physics and noise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.simulation.layout import DRAWER_OPEN_M
from sqap_vla_ros.simulation.scene import BOWL_HEIGHT_M, FINGER_RANGE_M, SHAPES
from sqap_vla_ros.simulation.tasks import Task, WorldState
from sqap_vla_ros.simulation.vocabulary import TaskFamily

MAX_MOVE_M = 0.05  # per action
MAX_TURN_RAD = 0.35
MAX_YAW_RAD = np.deg2rad(100.0)  # of the hand: a little more than half a turn, so every bar has a grasp in it
BESIDE_M = 0.095  # between the centres of an object and the one it is moved near
CARRY_M = 0.19  # height of the tool while it carries: clears the cabinet
HOVER_M = 0.08  # above the object before the hand goes down to it
PRESS_M = 0.007  # half the depth of a closed hand plus half the handle's: where a finger touches the handle
OPEN, CLOSED = 1.0, 0.0


def expert(task: Task, state: WorldState) -> NDArray[np.float64]:
    """Return the next action [7] (see robot/conventions.py) towards the task's end."""
    if task.family in (TaskFamily.OPEN_DRAWER, TaskFamily.CLOSE_DRAWER):
        return _move_drawer(task, state)
    if task.family != TaskFamily.PICK and task.succeeded(state):
        return _action(state, (*state.tool_xyz_m[:2], CARRY_M), OPEN)
    if not state.target.held:
        return _grasp(task, state)
    if task.family == TaskFamily.PICK:
        return _action(state, (*state.tool_xyz_m[:2], 0.25), CLOSED)
    return _carry(task, state)


def plan_actions(
    task: Task, state: WorldState, horizon: int = 16, committed: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the expert's next `horizon` actions [horizon, 7], rolled out with kinematics instead of physics.

    Closed fingers hold what is between them, the drawer follows the hand, a released object drops: so much of the world
    is enough for labels without noise, in a millisecond.

    committed: actions [d, 7] that are executed first, whoever chose them; the expert goes on from where they lead.
    """
    committed = np.empty((0, 7)) if committed is None else committed
    actions = np.empty((horizon, 7))
    closing_steps = 2 if state.target.held else int(not state.gripper_open)
    for i in range(horizon):
        actions[i] = committed[i] if i < len(committed) else expert(task, state)
        state, closing_steps = _roll(task, state, actions[i], closing_steps)
    return actions


# -- grasping and placing ---------------------------------------------------------------------------------------------


def _grasp(task: Task, state: WorldState) -> NDArray[np.float64]:
    shape = SHAPES[task.target.shape]
    target, tool = state.target.xyz_m, state.tool_xyz_m
    turn = _turn_to(state, state.target.yaw_rad, shape.yaw_period_rad)
    grasp_z = target[2] + min(0.002, shape.half_height_m / 4)
    apart = float(np.linalg.norm(tool[:2] - target[:2]))
    if apart < 0.012 and abs(turn) < 0.1:
        if tool[2] > grasp_z + 0.006:
            return _action(state, (*target[:2], grasp_z), OPEN, turn)
        return _action(state, (*target[:2], tool[2]), CLOSED, max_move_m=0.01)
    low = tool[2] < grasp_z + 0.05
    if low and (apart > 0.03 or abs(turn) > 0.2):  # up first: a hand beside the object would push it over
        return _action(state, (*tool[:2], grasp_z + HOVER_M + 0.02), OPEN)
    if apart > 0.03 or abs(turn) > 0.2:
        return _action(state, (*target[:2], grasp_z + HOVER_M), OPEN, turn)
    return _action(state, (*target[:2], max(tool[2], grasp_z)), OPEN, turn)


def _carry(task: Task, state: WorldState) -> NDArray[np.float64]:
    tool, target = state.tool_xyz_m, state.target.xyz_m
    goal, yaw, bottom_z = _put_down(task, state)
    # The object, not the tool, is to be over the goal, and its lower side above it.
    goal = goal + tool[:2] - target[:2]
    release_z = bottom_z + tool[2] - target[2] + SHAPES[task.target.shape].half_height_m
    turn = 0.0 if yaw is None else _turn_to(state, yaw, np.pi)
    if np.linalg.norm(tool[:2] - goal) > 0.015 or abs(turn) > 0.1:
        if tool[2] < CARRY_M - 0.05:
            return _action(state, (*tool[:2], CARRY_M), CLOSED)
        return _action(state, (*goal, CARRY_M), CLOSED, turn)
    if tool[2] > release_z + 0.008:
        return _action(state, (*goal, release_z), CLOSED, turn)
    return np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, OPEN])


def _put_down(task: Task, state: WorldState) -> tuple[NDArray[np.float64], float | None, float]:
    """Return where the object's centre goes (x, y), the hand's yaw there, and the height of the object's lower side."""
    if task.family == TaskFamily.MOVE_NEAR:
        return *_beside_reference(task, state), 0.004
    if task.family == TaskFamily.PLACE_IN_DRAWER:
        return state.drawer_xyz_m[:2] - (0.0, 0.005), 0.0, 0.04
    assert state.bowl_xyz_m is not None  # the layout of this family has one
    return state.bowl_xyz_m[:2].copy(), None, BOWL_HEIGHT_M + 0.005


def _beside_reference(task: Task, state: WorldState) -> tuple[NDArray[np.float64], float]:
    """Return a free spot beside the reference, and the yaw whose fingers open along the gap, not into the reference."""
    reference = state.reference
    yaws = (0.0, np.pi / 2) if task.reference.shape != "bar" else (reference.yaw_rad + np.pi / 2,)
    best, best_cost = None, np.inf
    for yaw in yaws:
        away = BESIDE_M * np.array([np.cos(yaw), np.sin(yaw)])
        for spot in (reference.xyz_m[:2] + away, reference.xyz_m[:2] - away):
            room = min((float(np.linalg.norm(spot - other[:2])) for other in state.others_xyz_m), default=np.inf)
            blocked = room < BESIDE_M or spot[1] > state.handle_xyz_m[1] - 0.07
            cost = float(np.linalg.norm(spot - state.target.xyz_m[:2])) + 10.0 * blocked
            if cost < best_cost:
                best, best_cost = (spot, yaw), cost
    assert best is not None
    return best


# -- the drawer -------------------------------------------------------------------------------------------------------


def _move_drawer(task: Task, state: WorldState) -> NDArray[np.float64]:
    tool, handle = state.tool_xyz_m, state.handle_xyz_m
    opening = task.family == TaskFamily.OPEN_DRAWER
    if task.succeeded(state):
        return _action(state, (*tool[:2], CARRY_M), CLOSED)
    aside = abs(tool[0] - handle[0])
    behind = tool[1] - handle[1]  # positive: between handle and front
    low = tool[2] < handle[2] + 0.03
    if opening:
        engaged = low and aside < 0.045 and 0.004 < behind < 0.05
        start = handle[:2] + np.array([0.0, 0.027])
    else:
        engaged = low and aside < 0.05 and -0.075 < behind < 0.0
        start = handle[:2] - np.array([0.0, 0.045])
    if engaged:
        lift = float(np.clip(handle[2] - tool[2], -0.02, 0.02))
        return np.array([0.0, -0.045 if opening else 0.045, lift, 0.0, 0.0, _turn_to(state, 0.0, np.pi), CLOSED])
    turn = _turn_to(state, 0.0, np.pi)
    if np.linalg.norm(tool[:2] - start) < 0.012:
        return _action(state, (*start, handle[2]), CLOSED, turn)
    if tool[2] < handle[2] + 0.05:
        return _action(state, (*(tool[:2] + 0.3 * (start - tool[:2])), handle[2] + 0.07), CLOSED, turn)
    return _action(state, (*start, handle[2] + 0.07), CLOSED, turn)


# -- the pieces -------------------------------------------------------------------------------------------------------


def _action(
    state: WorldState,
    goal_xyz_m: tuple[float, float, float],
    gripper: float,
    turn_rad: float = 0.0,
    *,
    max_move_m: float = MAX_MOVE_M,
) -> NDArray[np.float64]:
    """Return a limited step towards a tool position that also turns about the vertical."""
    move = np.asarray(goal_xyz_m) - state.tool_xyz_m
    length = float(np.linalg.norm(move))
    if length > max_move_m:
        move *= max_move_m / length
    return np.array([*move, 0.0, 0.0, np.clip(turn_rad, -MAX_TURN_RAD, MAX_TURN_RAD), gripper])


def _turn_to(state: WorldState, yaw_rad: float, period_rad: float) -> float:
    """Return the shortest turn to `yaw_rad`, or an equivalent every `period_rad`, that keeps the wrist in its range."""
    if period_rad == 0.0:
        return 0.0
    equivalents = yaw_rad + period_rad * np.arange(-6, 7)
    equivalents = equivalents[np.abs(equivalents) <= MAX_YAW_RAD]
    turns = equivalents - state.tool_yaw_rad
    return float(turns[np.abs(turns).argmin()])


def _roll(task: Task, state: WorldState, action: NDArray[np.float64], closing_steps: int) -> tuple[WorldState, int]:
    """Return the state after one action, by kinematics; closing_steps: steps for which the hand was told to close."""
    tool = state.tool_xyz_m + action[:3]
    is_open = bool(action[6] > 0.5)
    moved = replace(
        state,
        tool_xyz_m=tool,
        tool_yaw_rad=state.tool_yaw_rad + action[5],
        gripper_open=is_open,
        finger_m=FINGER_RANGE_M[1] if is_open else 0.0,
    )
    if task.family in (TaskFamily.OPEN_DRAWER, TaskFamily.CLOSE_DRAWER):
        return _drag(task, state, moved), closing_steps
    target = state.target
    held = target.held
    if is_open:
        closing_steps = 0
        if held:  # it drops to where it is wanted; at the heights of `_put_down` that is not far
            resting = SHAPES[task.target.shape].half_height_m
            xyz = np.array([*(target.xyz_m[:2] + action[:2]), resting + 0.01])
            target = replace(target, xyz_m=xyz, held=False, touched=False)
        return replace(moved, target=replace(target, touched=False)), closing_steps
    closing_steps += 1
    if held:
        target = replace(target, xyz_m=target.xyz_m + action[:3], yaw_rad=target.yaw_rad + action[5])
    elif closing_steps >= 2 and np.linalg.norm(tool - target.xyz_m) < 0.03:
        target = replace(target, held=True, touched=True)
    return replace(moved, target=target), closing_steps


def _drag(task: Task, before: WorldState, moved: WorldState) -> WorldState:
    """Return the state with the drawer moved as far as the hand pushes or pulls its handle."""
    tool, handle = moved.tool_xyz_m, before.handle_xyz_m
    if tool[2] > handle[2] + 0.03 or abs(tool[0] - handle[0]) > 0.06:
        return moved
    opened_m = before.drawer_m
    contact = PRESS_M + 0.01
    if task.family == TaskFamily.OPEN_DRAWER and before.tool_xyz_m[1] > handle[1]:
        opened_m = min(DRAWER_OPEN_M, opened_m + max(0.0, handle[1] + contact - tool[1]))
    elif task.family == TaskFamily.CLOSE_DRAWER and before.tool_xyz_m[1] < handle[1]:
        opened_m = max(0.0, opened_m - max(0.0, tool[1] - (handle[1] - contact)))
    shift = np.array([0.0, before.drawer_m - opened_m, 0.0])
    return replace(moved, drawer_m=opened_m, handle_xyz_m=handle + shift, drawer_xyz_m=before.drawer_xyz_m + shift)
