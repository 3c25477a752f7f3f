"""Robot files (config/robots/*.yaml): the parameters of policy_node for one arm, and the topics of its drivers.

A robot file is a ROS parameter file. Its section `/**` holds parameters of policy_node; its section `/launch` names
launch arguments, such as the topic of the arm's controller: they are defaults of `policy.launch.py robot:=NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqap_vla_ros.resources import share_path
from sqap_vla_ros.yaml_files import read_yaml

FOLDER = "config/robots"


@dataclass(frozen=True)
class RobotFile:
    """One robot file. parameters: of policy_node; arguments: launch arguments as text."""

    path: Path
    parameters: dict[str, Any]
    arguments: dict[str, str]


def robot_names() -> list[str]:
    """Return the robots that ship."""
    return sorted(path.stem for path in share_path(FOLDER).glob("*.yaml"))


def read_robot(robot: str) -> RobotFile:
    """Return a robot file. robot: one of `robot_names`, or the path of a file.

    Raises:
        FileNotFoundError: there is no such robot or file; the message names those that there are.
        ValueError: the file is no robot file.
    """
    path = Path(robot).expanduser()
    if robot in robot_names():
        path = share_path(f"{FOLDER}/{robot}.yaml")
    elif path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise FileNotFoundError(f"robot:={robot}: there is no such file, and the robots that ship are {robot_names()}")
    content = read_yaml(path)
    try:
        parameters = content["/**"]["ros__parameters"]
        arguments = content.get("/launch", {"ros__parameters": {}})["ros__parameters"]
        texts = {str(name): _text(path, str(name), value) for name, value in arguments.items()}
        return RobotFile(path, {str(name): value for name, value in parameters.items()}, texts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no robot file: it needs the section '/**' with 'ros__parameters', and may have '/launch' with "
            f"'ros__parameters' ({type(error).__name__}: {error})"
        ) from error


def _text(path: Path, name: str, value: Any) -> str:
    """Return a launch argument as it is typed. Raises ValueError for what cannot be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float, str)):
        return str(value)
    raise ValueError(f"{path}: {name} of '/launch' must be text, a number, true or false, got {value!r}")
