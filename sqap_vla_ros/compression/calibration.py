"""Observations to calibrate on: a folder of images, the simulator, or made-up scenes.

Recordings come through `nodes.bag_observations`.

A folder holds images (png, jpg) and `instructions.txt`: one line for all images, or lines of
`file name<TAB>instruction`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sqap_vla_ros.contracts import Observation

if TYPE_CHECKING:
    from sqap_vla_ros.simulation.environment import TabletopEnv

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
INSTRUCTIONS_FILE = "instructions.txt"
SYNTHETIC = "synthetic"
SIMULATOR = "simulator"
SIMULATOR_SEED = 900_000  # layouts that neither training nor evaluation uses
PER_EPISODE = 8  # observations of one episode
_INSTRUCTIONS = (
    "pick up the red can",
    "put the blue cube on the green plate",
    "move the yellow spoon near the white cup",
    "lift the orange ball to the right",
    "stack the green block on top of the yellow block",
    "open the top drawer and close the bottom drawer",
)


class CalibrationError(ValueError):
    """Calibration data that cannot be used; the message says what is expected."""


def synthetic_observations(count: int, *, seed: int = 0, size: int = 224) -> list[Observation]:
    """Seeded scenes of soft shading and coloured shapes; enough to exercise a policy, not to represent a task."""
    generator = np.random.default_rng(seed)
    observations = []
    for index in range(count):
        coarse = generator.integers(60, 200, (6, 6, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        for _ in range(5):
            x, y = (int(v) for v in generator.integers(0, size, 2))
            half = int(generator.integers(size // 28, size // 8))
            colour = tuple(int(c) for c in generator.integers(0, 256, 3))
            if generator.random() < 0.5:
                cv2.rectangle(image, (x - half, y - half), (x + half, y + half), colour, -1)
            else:
                cv2.circle(image, (x, y), half, colour, -1)
        gripper = (float(generator.uniform(0, size)), float(generator.uniform(0, size)))
        instruction = _INSTRUCTIONS[int(generator.integers(len(_INSTRUCTIONS)))]
        observations.append(Observation(image, index, instruction, gripper_pixel=gripper))
    return observations


def simulator_observations(count: int, *, seed: int = SIMULATOR_SEED) -> list[Observation]:
    """What the camera of the simulated arm sees while the scripted expert works, all task families in turn.

    Plain pictures of 640x480 as simulator_node renders them; the same for a seed. Episode e has the layout of seed
    `seed` + e and gives up to `PER_EPISODE` observations, spread evenly over it.
    """
    from sqap_vla_ros.simulation.environment import TabletopEnv
    from sqap_vla_ros.simulation.vocabulary import TaskFamily

    families = list(TaskFamily)
    share = min(PER_EPISODE, max(1, count // len(families)))
    observations: list[Observation] = []
    with TabletopEnv(shadows=False, antialiasing=False) as env:
        for episode in itertools.count():
            if len(observations) >= count:
                break
            env.reset(seed + episode, families[episode % len(families)])
            observations += _episode_observations(env, min(share, count - len(observations)))
    return observations


def _episode_observations(env: TabletopEnv, wanted: int) -> list[Observation]:
    """`wanted` observations from the start of an episode to its end, fewer where it is shorter than that."""
    from sqap_vla_ros.simulation.environment import CONTROL_NS
    from sqap_vla_ros.simulation.experts import expert

    instruction, seen = env.task.instruction, []
    while True:
        stamp_ns = env.steps * CONTROL_NS
        pose = env.world.base_from_tool
        seen.append(Observation(env.render(), stamp_ns, instruction, env.gripper_pixel, pose))
        result = env.step(expert(env.task, env.state))
        if result.terminated or result.truncated:
            break
    return [seen[i] for i in np.unique(np.linspace(0, len(seen) - 1, min(wanted, len(seen))).astype(int))]


def folder_observations(folder: Path, limit: int) -> list[Observation]:
    """At most `limit` images of a folder, spread evenly over their sorted names, with their instructions."""
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise CalibrationError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    instructions = _read_instructions(folder / INSTRUCTIONS_FILE)
    chosen = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).astype(int))]
    observations = []
    for index, path in enumerate(chosen):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise CalibrationError(f"{path} is not an image that can be read")
        instruction = instructions.get(path.name, instructions.get(""))
        if instruction is None:
            raise CalibrationError(f"{folder / INSTRUCTIONS_FILE} has no instruction for {path.name}")
        observations.append(Observation(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), index, instruction))
    return observations


def _read_instructions(path: Path) -> dict[str, str]:
    """File name -> instruction; the empty name holds the one for all."""
    if not path.is_file():
        raise CalibrationError(
            f"{path} is missing: write one instruction for all images, or lines of `file name<TAB>instruction`"
        )
    instructions: dict[str, str] = {}
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        name, tab, instruction = line.partition("\t")
        instructions[name if tab else ""] = (instruction if tab else name).strip()
    return instructions


def load_observations(source: str, limit: int) -> list[Observation]:
    """Calibration observations from `synthetic`, `simulator`, or a folder of images.

    `simulator:64` asks for 64 of them whatever the limit.
    """
    kind, colon, number = source.partition(":")
    if colon and kind in (SYNTHETIC, SIMULATOR):
        if not number.isdecimal():
            raise CalibrationError(f"{source!r}: a whole number of observations is expected after {kind}:")
        limit = int(number)
    if limit < 1:
        raise CalibrationError(f"at least one calibration observation is needed, got a limit of {limit}")
    if kind == SYNTHETIC:
        return synthetic_observations(limit)
    if kind == SIMULATOR:
        return simulator_observations(limit)
    path = Path(source).expanduser()
    if not path.is_dir():
        raise CalibrationError(
            f"calibration data {path} is not a folder of images; give one, a bag, `{SIMULATOR}` or `{SYNTHETIC}`"
        )
    return folder_observations(path, limit)
