"""Layouts: where things are and how they look in one episode, sampled from a seed. Plain data, no physics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.simulation.scene import COLOURS, SHAPES, SLOTS, TABLE_MATERIALS, ObjectKind
from sqap_vla_ros.simulation.tasks import NEAR_M, Task, parse_instruction
from sqap_vla_ros.simulation.vocabulary import TaskFamily, VariationName

DRAWER_OPEN_M = 0.15
CABINET_NOMINAL_M = (0.45, 0.33)
_NOT_YET_M = 0.01  # further apart than near: the task must not be done before it begins
CLEARANCE_M = 0.115  # between centres: a bar's half length, an open finger and a margin
_REACH_X_M = (0.33, 0.58)
_REACH_Y_M = (-0.29, 0.10)


@dataclass(frozen=True)
class Variation:
    """Ranges that an episode's looks are drawn from. The nominal camera and light are those of assets/tabletop.xml.

    camera_jitter_m: standard deviation of the camera's position along each axis.
    light_range: factor on the lamp's brightness, uniform.
    table_materials: drawn from uniformly.
    objects: (fewest, most) objects on the table.
    darkest_tint: the table's colour is multiplied by a grey between this and 1, and by a mild cast.
    """

    name: VariationName
    camera_jitter_m: float
    light_range: tuple[float, float]
    table_materials: tuple[str, ...]
    objects: tuple[int, int]
    darkest_tint: float = 1.0

    def __post_init__(self) -> None:
        unknown = set(self.table_materials) - set(TABLE_MATERIALS)
        if unknown or not self.table_materials:
            raise ValueError(f"table_materials must be some of {TABLE_MATERIALS}, got {self.table_materials}")
        if not 2 <= self.objects[0] <= self.objects[1] <= SLOTS:
            raise ValueError(f"objects must be (fewest, most) within 2 and {SLOTS}, got {self.objects}")


VISUAL_MATCHING = Variation(VariationName.VISUAL_MATCHING, 0.01, (0.85, 1.15), ("oak",), (2, 3))
VARIANT_AGGREGATION = Variation(
    VariationName.VARIANT_AGGREGATION, 0.03, (0.5, 1.3), ("walnut", "marble", "cloth"), (3, 5)
)
# For training alone: more looks than are matched, none of the table tops that are held out, fewer distractors.
RANDOMISED = Variation(VariationName.RANDOMISED, 0.02, (0.6, 1.25), ("oak", "plain"), (2, 4), darkest_tint=0.3)
VARIATIONS = {str(variation.name): variation for variation in (VISUAL_MATCHING, VARIANT_AGGREGATION, RANDOMISED)}


@dataclass(frozen=True)
class PlacedObject:
    """An object standing on the table at `xy_m`, turned by `yaw_rad`."""

    kind: ObjectKind
    xy_m: tuple[float, float]
    yaw_rad: float


@dataclass(frozen=True)
class Layout:
    """The start of one episode. The task's target is objects[0], its reference objects[1]."""

    task: Task
    objects: tuple[PlacedObject, ...]
    cabinet_xy_m: tuple[float, float]
    drawer_m: float
    bowl_xy_m: tuple[float, float] | None
    tool_xyz_m: tuple[float, float, float]
    camera_offset_m: tuple[float, float, float]
    light: float
    table_material: str
    table_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


def sample_layout(
    seed: int,
    family: TaskFamily | str | None = None,
    variation: Variation = VISUAL_MATCHING,
    *,
    instruction: str = "",
) -> Layout:
    """Draw an episode. The same arguments give the same layout.

    family: None draws the task family too. instruction: the task in words, which then has the last word on the family
    and on the objects it names; ValueError when there is no such task (see `parse_instruction`).
    """
    named: tuple[ObjectKind, ...] = ()
    if instruction:
        family, named = parse_instruction(instruction)
    rng = np.random.default_rng(seed)
    families = list(TaskFamily)
    drawn = families[rng.integers(len(families))]
    family = drawn if family is None else TaskFamily(family)

    cabinet = (CABINET_NOMINAL_M[0] + rng.uniform(-0.05, 0.05), CABINET_NOMINAL_M[1] + rng.uniform(-0.03, 0.03))
    needs_open = family in (TaskFamily.CLOSE_DRAWER, TaskFamily.PLACE_IN_DRAWER)
    open_by_chance = bool(rng.integers(2))
    may_open = family in (TaskFamily.PICK, TaskFamily.MOVE_NEAR)
    drawer_m = DRAWER_OPEN_M if needs_open or (open_by_chance and may_open) else 0.0
    with_bowl = family == TaskFamily.PLACE_IN_BOWL or (drawer_m == 0.0 and bool(rng.integers(2)))

    kinds = [ObjectKind(colour, shape) for colour in COLOURS for shape in SHAPES]
    chosen = [
        kinds[i] for i in rng.permutation(len(kinds))[: rng.integers(variation.objects[0], variation.objects[1] + 1)]
    ]
    chosen = [*named, *(kind for kind in chosen if kind not in named)][: len(chosen)]
    # Room in front of the cabinet for the drawer, its handle and the hand that moves it.
    reach_m = DRAWER_OPEN_M if family == TaskFamily.OPEN_DRAWER else drawer_m
    y_max = min(_REACH_Y_M[1], cabinet[1] - 0.14 - reach_m - 0.08)
    while True:
        centres = _scatter(rng, len(chosen) + with_bowl, y_max, bowl_first=with_bowl)
        bowl = centres.pop(0) if with_bowl else None
        if family != TaskFamily.MOVE_NEAR or math.dist(centres[0], centres[1]) > NEAR_M + _NOT_YET_M:
            break
    objects = tuple(
        PlacedObject(kind, centre, float(rng.uniform(-np.pi / 2, np.pi / 2)))
        for kind, centre in zip(chosen, centres, strict=True)
    )
    offset = rng.normal(0.0, variation.camera_jitter_m, 3)
    return Layout(
        task=Task(family, chosen[0], chosen[1]),
        objects=objects,
        cabinet_xy_m=cabinet,
        drawer_m=drawer_m,
        bowl_xy_m=bowl,
        tool_xyz_m=(float(rng.uniform(0.33, 0.5)), float(rng.uniform(-0.2, 0.12)), float(rng.uniform(0.20, 0.28))),
        camera_offset_m=(float(offset[0]), float(offset[1]), float(offset[2])),
        light=float(rng.uniform(*variation.light_range)),
        table_material=str(rng.choice(variation.table_materials)),
        table_tint=_tint(rng, variation.darkest_tint),
    )


def _tint(rng: np.random.Generator, darkest: float) -> tuple[float, float, float]:
    if darkest == 1.0:
        return (1.0, 1.0, 1.0)
    red, green, blue = rng.uniform(darkest, 1.0) * rng.uniform(0.65, 1.0, 3)
    return (float(red), float(green), float(blue))


def _scatter(rng: np.random.Generator, count: int, y_max: float, *, bowl_first: bool) -> list[tuple[float, float]]:
    """Draw `count` centres on the table, far enough apart; start over when the table is too full to go on."""
    while True:
        centres: list[tuple[float, float]] = []
        for _ in range(60 * count):
            centre = (float(rng.uniform(*_REACH_X_M)), float(rng.uniform(_REACH_Y_M[0], y_max)))
            if all(
                math.dist(centre, other) > CLEARANCE_M + (0.03 if bowl_first and i == 0 else 0.0)
                for i, other in enumerate(centres)
            ):
                centres.append(centre)
                if len(centres) == count:
                    return centres
