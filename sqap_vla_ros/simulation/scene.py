"""The MuJoCo model of the tabletop: the arm of assets/tabletop.xml, object slots, a bowl and table textures.

One model serves every episode, so a renderer (whose OpenGL context belongs to one model) is built once. What differs
between episodes is written into the model at reset: each of the `SLOTS` movable bodies owns one geom of every shape,
of which one is made solid and visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

ARM_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("finger_joint1", "finger_joint2")
FINGER_RANGE_M = (0.0, 0.04)  # of each finger from the centre: the hand opens to 8 cm
HAND_TO_TOOL_M = 0.1034  # along the hand's z, to the point between the finger tips
CAMERA = "front"
HOME_RAD = np.array([0.0, 0.0, 0.0, -np.pi / 2 - 0.4, 0.0, np.pi / 2 + 0.4, -np.pi / 4])

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.10, 0.25, 0.85),
    "yellow": (0.92, 0.80, 0.10),
    "purple": (0.52, 0.18, 0.62),
}
TABLE_MATERIALS = ("oak", "walnut", "marble", "cloth", "plain")
SLOTS = 5


@dataclass(frozen=True)
class Shape:
    """A graspable shape standing on the table.

    geom: MuJoCo geom type. half_size_m: MuJoCo's size (half lengths; radius and half height for a cylinder).
    yaw_period_rad: the grasp looks the same after this turn about the vertical; 0 for a round shape.
    """

    geom: mujoco.mjtGeom
    half_size_m: tuple[float, ...]
    yaw_period_rad: float

    @property
    def half_height_m(self) -> float:
        return self.half_size_m[-1]


# The bar is longer than the hand opens, so it can only be grasped across: yaw decides.
SHAPES: dict[str, Shape] = {
    "cube": Shape(mujoco.mjtGeom.mjGEOM_BOX, (0.020, 0.020, 0.020), np.pi / 2),
    "can": Shape(mujoco.mjtGeom.mjGEOM_CYLINDER, (0.019, 0.028), 0.0),
    "bar": Shape(mujoco.mjtGeom.mjGEOM_BOX, (0.050, 0.014, 0.018), np.pi),
}
OBJECT_MASS_KG = 0.05
OBJECT_INERTIA_KG_M2 = 2e-5  # of a 5 cm cube of that mass, about every axis
BOWL_RADIUS_M = 0.062
BOWL_HEIGHT_M = 0.035


@dataclass(frozen=True, order=True)
class ObjectKind:
    """A movable object as the instruction names it, for example `ObjectKind("red", "cube")`."""

    colour: str
    shape: str

    def __post_init__(self) -> None:
        if self.colour not in COLOURS or self.shape not in SHAPES:
            raise ValueError(f"unknown object {self.colour!r} {self.shape!r}: colours {[*COLOURS]}, shapes {[*SHAPES]}")

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


def build_model() -> mujoco.MjModel:
    """Compile the tabletop. Once per process: with the textures it takes a fifth of a second."""
    spec = mujoco.MjSpec.from_file(str(Path(__file__).parent / "assets" / "tabletop.xml"))
    spec.site("tool0").pos = [0.0, 0.0, HAND_TO_TOOL_M]
    _add_table_materials(spec)
    spec.geom("table").material = TABLE_MATERIALS[0]
    for slot in range(SLOTS):
        _add_object_slot(spec, slot)
    _add_bowl(spec)
    return spec.compile()


def slot_geom(slot: int, shape: str) -> str:
    """Return the name of the geom that gives slot `slot` the shape `shape`."""
    return f"object{slot}_{shape}"


def _add_object_slot(spec: mujoco.MjSpec, slot: int) -> None:
    body = spec.worldbody.add_body(name=f"object{slot}", pos=[-1.0 - 0.2 * slot, 0.0, -2.0])
    body.add_freejoint(name=f"object{slot}")
    body.explicitinertial = True  # the shapes share it: whichever is shown, the others must not weigh
    body.mass = OBJECT_MASS_KG
    body.ipos = [0.0, 0.0, 0.0]
    body.iquat = [1.0, 0.0, 0.0, 0.0]
    body.inertia = [OBJECT_INERTIA_KG_M2] * 3
    default = spec.find_default("object")
    for name, shape in SHAPES.items():
        size = np.zeros(3)
        size[: len(shape.half_size_m)] = shape.half_size_m
        geom = body.add_geom(default, name=slot_geom(slot, name), type=shape.geom, size=size)
        geom.rgba = [0, 0, 0, 0]


def _add_bowl(spec: mujoco.MjSpec, segments: int = 16) -> None:
    """Add a fixed bowl: a disc and a ring of slabs leaning outwards."""
    body = spec.worldbody.add_body(name="bowl", pos=[-1.0, 0.5, -2.0])
    default = spec.find_default("furniture")
    body.add_geom(
        default,
        name="bowl",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[0.043, 0.003, 0],
        pos=[0, 0, 0.003],
        material="bowl",
    )
    lean = np.deg2rad(30.0)
    middle = (0.042 + BOWL_RADIUS_M) / 2
    half_width = BOWL_RADIUS_M * np.tan(np.pi / segments)
    for i in range(segments):
        angle = 2 * np.pi * i / segments
        about_z = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        outwards = np.array([np.cos(lean / 2), 0, np.sin(lean / 2), 0])
        quat = np.zeros(4)
        mujoco.mju_mulQuat(quat, about_z, outwards)
        body.add_geom(
            default,
            name=f"bowl_wall{i}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[0.002, half_width, BOWL_HEIGHT_M / 2 / np.cos(lean)],
            pos=[middle * np.cos(angle), middle * np.sin(angle), BOWL_HEIGHT_M / 2],
            quat=quat,
            material="bowl",
        )


def _add_table_materials(spec: mujoco.MjSpec) -> None:
    for name in TABLE_MATERIALS:
        pixels = _table_texture(name)
        height, width, channels = pixels.shape
        texture = spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=width, height=height, nchannel=channels
        )
        texture.data = pixels.tobytes()
        material = spec.add_material(name=name, texrepeat=[2, 2], specular=0.1)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def _table_texture(name: str, size: int = 512) -> NDArray[np.uint8]:
    """Compute a tileable table top [size, size, 3] uint8: the package ships no pictures."""
    rng = np.random.default_rng(sum(map(ord, name)))
    y, x = np.mgrid[0:size, 0:size] * (2 * np.pi / size)
    wave = sum(
        rng.uniform(0.4, 1.0) / k * np.sin(rng.integers(1, 4) * y + k * x + rng.uniform(0, 2 * np.pi))
        for k in (1, 2, 3, 5)
    )
    grain = rng.normal(0.0, 1.0, (size, size))
    if name in ("oak", "walnut"):
        light, dark = (
            ((0.76, 0.66, 0.52), (0.66, 0.55, 0.41)) if name == "oak" else ((0.47, 0.33, 0.23), (0.36, 0.24, 0.16))
        )
        streaks = np.repeat(rng.normal(0.0, 1.0, (size, 1)), size, axis=1)
        level = 0.5 + 0.22 * np.sin(14 * y + 1.1 * wave) + 0.12 * streaks + 0.05 * grain
        planks = np.abs((8 * y / (2 * np.pi)) % 1.0 - 0.5) > 0.488
        level = np.where(planks, 1.5, level)
    elif name == "marble":
        light, dark = (0.72, 0.72, 0.74), (0.48, 0.49, 0.54)
        level = np.abs(np.sin(3 * x + 2 * y + 1.6 * wave)) ** 0.35
        level = 1.0 - level + 0.03 * grain
    elif name == "cloth":
        light, dark = (0.36, 0.44, 0.50), (0.27, 0.34, 0.40)
        level = 0.5 + 0.35 * np.sin(64 * x) * np.sin(64 * y) + 0.15 * grain
    else:  # nearly white, for any tint
        light, dark = (0.95, 0.95, 0.95), (0.85, 0.85, 0.85)
        level = 0.5 + 0.3 * np.sin(2 * x + wave) + 0.15 * grain
    colour = np.asarray(light) + np.clip(level, -0.2, 1.6)[..., None] * (np.asarray(dark) - np.asarray(light))
    return np.round(255 * np.clip(colour, 0, 1)).astype(np.uint8)
