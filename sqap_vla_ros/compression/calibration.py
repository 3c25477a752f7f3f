"""Observations to calibrate on: a folder of images, or made-up scenes.

The simulator's come from `simulation.observations` and a recording's from `nodes.bags.observations`: this room knows
neither. A folder holds images (png, jpg) and `instructions.txt`: one line for all images, or lines of
`file name<TAB>instruction`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sqap_vla_ros.contracts import Observation, unreadable
from sqap_vla_ros.pictures import PictureError, read_picture

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
INSTRUCTIONS_FILE = "instructions.txt"
SYNTHETIC = "synthetic"
MOST_OBSERVATIONS = 4096  # held in memory at once: 0.6 GB of pictures of 224 pixels
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
    """Draw seeded scenes of soft shading and coloured shapes: enough to exercise a policy, not to represent a task."""
    import cv2

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


def folder_observations(folder: Path, limit: int) -> list[Observation]:
    """Read at most `limit` images of a folder, spread evenly over their sorted names, with their instructions.

    Raises `CalibrationError` for images or instructions that are missing or cannot be read.
    """
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise CalibrationError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    instructions = _read_instructions(folder / INSTRUCTIONS_FILE)
    chosen = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).astype(int))]
    observations = []
    for index, path in enumerate(chosen):
        try:
            image = read_picture(path)
        except PictureError as error:
            raise CalibrationError(str(error)) from error
        instruction = instructions.get(path.name, instructions.get(""))
        if instruction is None:
            raise CalibrationError(f"{folder / INSTRUCTIONS_FILE} has no instruction for {path.name}")
        if problem := unreadable(instruction):
            raise CalibrationError(f"{folder / INSTRUCTIONS_FILE}, {path.name}: {problem}")
        observations.append(Observation(image, index, instruction))
    return observations


def _read_instructions(path: Path) -> dict[str, str]:
    """Return file name -> instruction; the empty name holds the one for all."""
    if not path.is_file():
        raise CalibrationError(
            f"{path} is missing: write one instruction for all images, or lines of `file name<TAB>instruction`"
        )
    instructions: dict[str, str] = {}
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        name, tab, instruction = line.partition("\t")
        instructions[name if tab else ""] = (instruction if tab else name).strip()
    return instructions


ObservationSource = Callable[[int], list[Observation]]  # how many -> observations
SOURCES: Mapping[str, ObservationSource] = {SYNTHETIC: synthetic_observations}


def load_observations(source: str, limit: int, sources: Mapping[str, ObservationSource] = SOURCES) -> list[Observation]:
    """Return calibration observations from a source by name, or from a folder of images.

    sources: name -> function of a count. `synthetic:64` asks for 64 of them whatever the limit.
    Raises `CalibrationError` for a count or a folder that cannot be used.
    """
    limit = require_source(source, limit, sources)
    kind = source.partition(":")[0]
    return sources[kind](limit) if kind in sources else folder_observations(Path(source).expanduser(), limit)


def require_source(source: str, limit: int, sources: Mapping[str, ObservationSource] = SOURCES) -> int:
    """Return how many observations `load_observations` is asked for. Raises `CalibrationError` as it does."""
    kind, colon, number = source.partition(":")
    if colon and kind in sources:
        if not number.isdecimal():
            raise CalibrationError(f"{source!r}: a whole number of observations is expected after {kind}:")
        if len(number) > len(str(MOST_OBSERVATIONS)) or int(number) > MOST_OBSERVATIONS:
            raise CalibrationError(f"{source[:40]!r}: at most {MOST_OBSERVATIONS} observations")
        limit = int(number)
    if limit < 1:
        raise CalibrationError(f"at least one calibration observation is needed, got a limit of {limit}")
    path = Path(source).expanduser()
    if kind not in sources and not path.is_dir():
        named = " or ".join(f"`{name}`" for name in sources)
        raise CalibrationError(
            f"calibration data {path} is not a folder of images; give one, a bag, or {named}; the folder of a LeRobot "
            "dataset is read too"
        )
    return limit


@dataclass(frozen=True)
class ReportObservations:
    """The observations that a report compares a policy on, before and after. held_out: none of them calibrated it."""

    observations: Sequence[Observation]
    held_out: bool

    @property
    def words(self) -> str:
        """Return what they are, as a report says it."""
        count = len(self.observations)
        one = "observation" if count == 1 else "observations"
        return f"{count} held-out {one}" if self.held_out else f"the calibration's own {one} ({count})"


def report_observations(
    calibrated: Sequence[Observation], found: Sequence[Observation], count: int
) -> ReportObservations:
    """Return about `count` of `found` whose pictures did not calibrate; where there are none, the calibration's own.

    Both are spread over the whole. Calibration comes first: a compressed file does not depend on its report.
    """
    seen = set(map(_picture, calibrated))
    others = [observation for observation in found if _picture(observation) not in seen]
    pool = others or calibrated
    chosen = np.unique(np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int))
    return ReportObservations([pool[index] for index in chosen], bool(others))


def _picture(observation: Observation) -> tuple[tuple[int, ...], bytes]:
    return observation.image.shape, hashlib.sha256(observation.image.tobytes()).digest()
