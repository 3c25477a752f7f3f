"""A scripted expert for LIBERO's "pick up the X and place it in the basket". NumPy alone, without memory.

It reads a `Scene` (privileged poses) and returns the next command of OSC_POSE. Having no memory, it can say from any
state, also from one that a policy got itself into, what it would do next; `plan` rolls that out with a model of the
controller, so that a label holds the next commands without noise.

Commands: [7], metres and radians (rotation vector, along the world's axes) and the gripper's opening, 1 open, 0 closed.
The controller starts its goal from the measured pose at each step, so the arm moves by about a quarter of a command.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_MOVE_M, MAX_TURN_RAD = 0.05, 0.5  # of a command, where LIBERO's actions are 1
OPEN, CLOSED = 1.0, 0.0
FINGER_OPEN_M = 0.04  # of one finger from the middle

# The controller, measured: the speed (metres a step) follows a command with this memory and this share of it.
SPEED_KEPT, SPEED_GAINED = 0.45, 0.144
FINGER_M = 0.0045  # that a finger moves in a step
GAIN = 1.5  # command per error: settles with hardly an overshoot

FINGER_DEPTH_M = 0.036  # from an object's top to where the fingertips grasp it: longer ones meet the palm
PALM_M = 0.04  # from the tool up to the palm, which is a broad bar along the closing fingers
PALM_HALF_M = (0.1, 0.035)  # along the fingers and across
LOWEST_M = 0.014  # of the tool above the floor: where the fingertips touch it
HOVER_M = 0.07
CLEAR_M = 0.04  # between what is carried and the rim of the basket
ALIGNED_M, ALIGNED_RAD = 0.01, 0.1


@dataclass(frozen=True)
class Thing:
    """An object: its pose and the box around it. position: [3]; rotation: [3, 3]; low, high: [3] in its own frame."""

    position: Array
    rotation: Array
    low: Array
    high: Array

    @property
    def upright_axis(self) -> int:
        """Return which of its axes is the most vertical."""
        return int(np.abs(self.rotation[2]).argmax())

    @property
    def centre(self) -> Array:
        """Return the middle of the box in the world."""
        return self.position + self.rotation @ ((self.low + self.high) / 2)

    @property
    def half_height_m(self) -> float:
        return float(np.abs(self.rotation[2]) @ (self.high - self.low)) / 2

    @property
    def top_m(self) -> float:
        return float(self.centre[2]) + self.half_height_m

    @property
    def bottom_m(self) -> float:
        return float(self.centre[2]) - self.half_height_m

    def grasp(self) -> tuple[float, float, float]:
        """Return the direction (rad) along which fingers close on it, the period of that angle, and the width."""
        first, second = (axis for axis in range(3) if axis != self.upright_axis)
        size = self.high - self.low
        square = abs(size[first] - size[second]) < 0.1 * max(size[first], size[second])
        narrow = first if size[first] <= size[second] else second
        along = self.rotation[:2, narrow]
        return float(np.arctan2(along[1], along[0])), np.pi / 2 if square else np.pi, float(size[narrow])

    def moved(self, by: Array) -> Thing:
        """Return the thing at another place."""
        return replace(self, position=self.position + by)


@dataclass(frozen=True)
class Tool:
    """The hand. position, speed: [3], speed in metres a step; rotation: [3, 3], z towards the floor, fingers along x.

    turning: [3] radians a step. finger_m: of one finger from the middle.
    """

    position: Array
    speed: Array
    rotation: Array
    turning: Array
    finger_m: float

    @property
    def closing_rad(self) -> float:
        """Return the direction along which the fingers close."""
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))

    @property
    def tilt(self) -> Array:
        """Return the rotation vector that makes the hand point straight down."""
        return np.cross(self.rotation[:, 2], (0.0, 0.0, -1.0))


@dataclass(frozen=True)
class Scene:
    """The state that an expert acts on. held: the target is between both fingers; inside: it lies in the basket.

    others: everything else that the hand may meet.
    """

    tool: Tool
    target: Thing
    basket: Thing
    held: bool
    inside: bool
    others: tuple[Thing, ...] = ()


HOME_CLOSING_RAD = -np.pi / 2  # of LIBERO's first pose: the hand may turn by a quarter from there


def expert(scene: Scene) -> Array:
    """Return the next command [7]."""
    tool, target, basket = scene.tool, scene.target, scene.basket
    above_basket = float(np.linalg.norm(target.centre[:2] - basket.centre[:2]))
    if scene.inside and not scene.held:
        return _command(tool, (*tool.position[:2], max(tool.position[2], basket.top_m + 0.12)), OPEN)
    if scene.held:
        hangs = float(tool.position[2]) - target.bottom_m
        carry = basket.top_m + CLEAR_M + hangs
        if above_basket < 0.025:
            return _command(tool, (*tool.position[:2], carry), OPEN)
        goal = tool.position[:2] + basket.centre[:2] - target.centre[:2]
        low = target.bottom_m < basket.top_m + CLEAR_M / 2
        return _command(tool, (*(tool.position[:2] if low else goal), carry), CLOSED)
    if target.bottom_m > basket.top_m - 0.02 and above_basket < 0.08:  # it leaves the fingers: do not follow it
        return _command(tool, tool.position, OPEN)
    return _grasp(tool, target, scene.others)


def _grasp(tool: Tool, target: Thing, others: tuple[Thing, ...]) -> Array:
    angle, period, width = target.grasp()
    turn = _nearest(angle, period) - _near_home(tool.closing_rad)
    height = max(target.top_m - FINGER_DEPTH_M, LOWEST_M)
    spot = target.centre[:2] + _off_centre(target, others, height)
    apart = float(np.linalg.norm(tool.position[:2] - spot))
    at_height = tool.position[2] < height + 0.008
    aligned = apart < ALIGNED_M and abs(turn) < ALIGNED_RAD
    missed = tool.finger_m < min(0.2 * width, 0.006)  # closed on nothing
    if aligned and at_height and not missed:
        return _command(tool, (*spot, height), CLOSED, turn)
    safe = target.top_m + HOVER_M
    if missed and at_height:
        return _command(tool, (*tool.position[:2], safe), OPEN)
    roughly = apart < 0.03 and abs(turn) < 0.2
    low = tool.position[2] < target.top_m + 0.5 * HOVER_M
    if roughly and (aligned or not low) and tool.finger_m > min(0.8 * FINGER_OPEN_M, width / 2 + 0.004):
        return _command(tool, (*spot, height if aligned else safe - 0.03), OPEN, turn)
    if low and roughly:
        return _command(tool, (*spot, tool.position[2]), OPEN, turn)
    if low:  # up first: a hand beside the object would push it over
        return _command(tool, (*tool.position[:2], safe + 0.02), OPEN)
    return _command(tool, (*spot, safe), OPEN, turn)


def _off_centre(target: Thing, others: tuple[Thing, ...], height: float) -> Array:
    """Return how far from the middle of a long object to grasp it, so that the palm clears taller things beside it."""
    angle, period, _ = target.grasp()
    if period != np.pi:
        return np.zeros(2)
    fingers, along = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    first, second = (axis for axis in range(3) if axis != target.upright_axis)
    size = target.high - target.low
    room = max(max(size[first], size[second]) / 2 - 0.012, 0.0)
    shift = 0.0
    for other in others:
        gap = other.centre[:2] - target.centre[:2]
        radius = float(np.sort(other.high - other.low)[1]) / 2
        if other.top_m < height + PALM_M or abs(gap @ fingers) > PALM_HALF_M[0] + radius:
            continue
        lacking = PALM_HALF_M[1] + radius - abs(float(gap @ along))
        if lacking > 0.0:
            shift -= lacking * float(np.sign(gap @ along))
    return float(np.clip(shift, -room, room)) * along


def _near_home(angle: float) -> float:
    """Return an angle of the closing fingers, which look the same after half a turn, in the range around home."""
    low = HOME_CLOSING_RAD - np.pi / 2 + 0.3  # objects lie along the axes: the range ends between them
    return float((angle - low) % np.pi) + low


def _nearest(angle: float, period: float) -> float:
    if period == np.pi:
        return _near_home(angle)
    low = HOME_CLOSING_RAD - np.pi / 4
    return float((angle - low) % period) + low


def _command(tool: Tool, goal: tuple[float, ...] | Array, opening: float, turn: float = 0.0) -> Array:
    move = GAIN * (np.asarray(goal, dtype=np.float64) - tool.position)
    rotation = GAIN * (tool.tilt + np.array([0.0, 0.0, turn]))
    length, angle = float(np.linalg.norm(move)), float(np.linalg.norm(rotation))
    move *= min(1.0, MAX_MOVE_M / max(length, 1e-9))
    rotation *= min(1.0, MAX_TURN_RAD / max(angle, 1e-9))
    return np.array([*move, *rotation, opening])


def plan(scene: Scene, horizon: int = 16) -> Array:
    """Return the expert's next `horizon` commands [horizon, 7], rolled out without physics."""
    commands = np.empty((horizon, 7))
    width = scene.target.grasp()[2]
    gripped_m = scene.tool.finger_m if scene.held else min(width / 2, FINGER_OPEN_M)
    for i in range(horizon):
        commands[i] = expert(scene)
        scene = _next(scene, commands[i], gripped_m)
    return commands


def _next(scene: Scene, command: Array, gripped_m: float) -> Scene:
    tool, target, basket = scene.tool, scene.target, scene.basket
    speed = SPEED_KEPT * tool.speed + SPEED_GAINED * command[:3]
    turning = SPEED_KEPT * tool.turning + SPEED_GAINED * command[3:6]
    closing = command[6] < 0.5
    finger = tool.finger_m + (-FINGER_M if closing else FINGER_M)
    spot = target.centre[:2] + _off_centre(target, scene.others, float(tool.position[2]))
    near = bool(np.linalg.norm(tool.position[:2] - spot) < ALIGNED_M + 0.005)
    around = near and target.bottom_m - 0.01 < tool.position[2] < target.top_m
    held = (scene.held and (closing or finger <= gripped_m + 2 * FINGER_M)) or (
        closing and around and finger <= gripped_m
    )
    finger = float(np.clip(finger, gripped_m if held and closing else 0.001, FINGER_OPEN_M))
    moved = replace(
        tool,
        position=tool.position + speed,
        speed=speed,
        turning=turning,
        rotation=_turned(tool, turning),
        finger_m=finger,
    )
    inside = scene.inside
    if held:
        target = target.moved(speed)
    elif scene.held:  # it falls
        inside = bool(np.linalg.norm(target.centre[:2] - basket.centre[:2]) < 0.06)
        target = target.moved(np.array([0.0, 0.0, 0.01 - target.bottom_m]))
    return Scene(moved, target, basket, held, inside, scene.others)


def _turned(tool: Tool, by: Array) -> Array:
    angle = float(np.linalg.norm(by))
    if angle < 1e-9:
        return tool.rotation
    x, y, z = by / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    rotation: Array = (np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross) @ tool.rotation
    return rotation
