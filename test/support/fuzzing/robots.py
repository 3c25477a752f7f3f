"""Files about an arm: robot files, parameter files, and clicks with the pictures that they belong to."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from fuzzing.mutation import as_yaml, damage_file, damaged, distorted, fresh

from sqap_vla_ros.nodes.check.hand_eye.clicks import COLUMNS, read_clicks, stamp_text
from sqap_vla_ros.nodes.check.hand_eye.command import _matched, pair_up
from sqap_vla_ros.nodes.check.hand_eye.judgement import judge
from sqap_vla_ros.nodes.check.hand_eye.on_hand import judge_on_hand
from sqap_vla_ros.nodes.check.hand_eye.policy_view import assumed_view
from sqap_vla_ros.nodes.check.hand_eye.sights import Sight, Survey
from sqap_vla_ros.nodes.check.hand_eye.store import CLICKS, SIGHTS, read_folder, write_folder
from sqap_vla_ros.nodes.launch.params_files import values_for
from sqap_vla_ros.nodes.launch.robots import robot_names
from sqap_vla_ros.nodes.launch.table import BRINGUPS, resolve
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.parameters import defaults
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.hand_eye.on_hand import sees_the_room

_WORDS = ("", ".inf", "-.inf", ".nan", "1e400", "-1.0", "0.0", "[0.0, 1.0]", "[.nan, 0.0, 0.0]", "a/../b", "joint")
_FRAMES = ("base_link", "tool0", "camera_optical")


def fuzz_robot_file(folder: Path, seed: int) -> None:
    """Distort a robot file that ships, or the parameter file, and configure the node with it."""
    rng = Random(f"robot_file {seed}")
    robot = rng.random() < 0.6
    name = f"config/robots/{rng.choice(robot_names())}.yaml" if robot else "config/policy.yaml"
    data = yaml.safe_load(share_path(name).read_text())
    path = fresh(folder / "robot_file") / "mine.yaml"
    if rng.random() < 0.5:
        section = data["/**"]["ros__parameters"]
        for key in rng.sample(sorted(section), min(len(section), rng.choice((1, 1, 2)))):
            section[key] = yaml.safe_load(rng.choice(_WORDS))
    else:
        data = distorted(rng, data)
    text = as_yaml(data).encode()
    path.write_bytes(damaged(rng, text) if rng.random() < 0.2 else text)
    commands = resolve(BRINGUPS["policy"], {"robot" if robot else "params_file": str(path), "checkpoint": "micro"})
    files = commands[0].params_files
    values = defaults()
    for file in files:
        for key, value in values_for(file, commands[0].executable).items():
            if key in values:  # ROS reads 1e400 as a number, YAML 1.1 as a text
                number = isinstance(values[key], float) and isinstance(value, str)
                values[key] = float(value) if number else value
    if found := configuration.problems(values):
        raise ValueError("; ".join(found))
    for configured in (
        *(configuration.worker_config, configuration.executive_config, configuration.motion_config),
        *(configuration.safety_limits, configuration.gripper_config, configuration.image_gate_config),
    ):
        configured(values)


def fuzz_clicks(folder: Path, seed: int) -> None:
    """Distort a table of clicks, or the folder of pictures that it belongs to, and judge the camera with them."""
    rng = Random(f"clicks {seed}")
    copy = fresh(folder / "clicks") / "pictures"
    shutil.copytree(_pictures(folder / "good_clicks"), copy)
    table = copy / rng.choice((CLICKS, "clicks.json"))
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice((table, table, copy / SIGHTS, copy / SIGHTS, rng.choice(sorted(copy.glob("*.png")))))
        if path.suffix == ".csv" and rng.random() < 0.7:
            path.write_text(_other_cell(rng, path.read_text()))
        else:
            damage_file(rng, path)
    clicks, survey = read_clicks(table), read_folder(copy)
    seen, findings = _matched(clicks, survey)
    assert all(str(finding) for finding in findings)
    sights = [sight for sight in survey.sights if sight.stamp_ns in seen]
    if sights:
        pairs = pair_up(sights, seen, np.zeros(3))
        judgement = (judge_on_hand if sees_the_room(pairs) else judge)(survey, pairs, assumed_view())
        assert judgement.rows


def _other_cell(rng: Random, text: str) -> str:
    rows = [line.split(",") for line in text.splitlines()]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(
        ("", "nan", "-inf", "1e999", "1e99999999", "x", '"', "é", "9" * 5000, "0")
    )
    return "\n".join(",".join(row) for row in rows)


@cache
def _pictures(folder: Path) -> Path:
    """Write the pictures of a survey, and clicks on the tool in them as CSV and as JSON."""
    from hand_eye.scene import BASE_FROM_OPTICAL, CAMERA, START_NS, STEP_NS, pixels, tool_poses

    from sqap_vla_ros.robot.conventions import invert_pose

    survey = Survey("a robot", *_FRAMES)
    poses = tool_poses(12)
    image = np.full((CAMERA.height, CAMERA.width, 3), 90, np.uint8)
    survey.sights = [
        Sight(START_NS + number * STEP_NS, image, CAMERA, pose, invert_pose(BASE_FROM_OPTICAL))
        for number, pose in enumerate(poses)
    ]
    write_folder(folder, survey)
    rows: list[dict[str, Any]] = [
        dict(zip(COLUMNS, (stamp_text(sight.stamp_ns), *pixel.round(1).tolist()), strict=True))
        for sight, pixel in zip(survey.sights, pixels(poses), strict=True)
    ]
    (folder / CLICKS).write_text("\n".join([",".join(COLUMNS), *(",".join(map(str, r.values())) for r in rows)]))
    (folder / "clicks.json").write_text(str(rows).replace("'", '"'))
    return folder
