"""Parameter files that people write are checked before a node starts with them.

ROS ignores a parameter whose name no node declares, and where two files give one parameter values of different
types, the earlier one can win. A misspelt `speed_scale`, or a limit in quotes, would leave the default in force.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqap_vla_ros.nodes.parameter_table import EVERY_NODE, unknown
from sqap_vla_ros.yaml_files import read_yaml

_KEY = "ros__parameters"
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # a number in ROS, a text in YAML 1.1
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list of numbers"}


def check_params_file(path: Path, node: str, shipped: Path) -> None:
    """Compare a file with the node's shipped parameter file, which has every parameter with a value of its type.

    Raises ValueError naming the file and every parameter that the node does not have or whose value is of another type,
    and where no section is for this node.
    """
    ((_, own),) = _sections(read_yaml(shipped))
    known = {**EVERY_NODE, **own}
    found, sections = [], 0
    for name, given in _sections(read_yaml(path)):
        if _is_for(name, node):
            sections += 1
            found += [text for key, value in given.items() if (text := _problem(str(key), value, known)) is not None]
    if not sections:
        raise ValueError(f"{path} has no parameters for {node}: they stand under '/**' or '/{node}', then '{_KEY}'")
    if found:
        raise ValueError(f"{path}: " + "; ".join(found))


def values_for(path: Path, node: str) -> dict[str, Any]:
    """Return the parameters that a file has for a node."""
    found: dict[str, Any] = {}
    for name, given in _sections(read_yaml(path)):
        if _is_for(name, node):
            found |= {str(key): value for key, value in given.items()}
    return found


def _is_for(section: str, node: str) -> bool:
    return section.rpartition("/")[2] in ("**", "*", node)


def _sections(content: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the sections of a file by the names of their nodes; namespaces may be nested."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if key == _KEY:
            if isinstance(value, Mapping):
                yield prefix, value
        else:
            yield from _sections(value, f"{prefix}/{str(key).strip('/')}")


def _problem(name: str, value: Any, known: Mapping[str, Any]) -> str | None:
    if name not in known:
        return unknown(name, known)
    kind = type(known[name])
    if kind is list:
        if not isinstance(value, list):
            return f"{name} must be {_KINDS[list]}, got {value!r}"
        return next((text for one in value if (text := _scalar_problem(name, one, float)) is not None), None)
    return _scalar_problem(name, value, kind)


def _scalar_problem(name: str, value: Any, kind: type) -> str | None:
    if type(value) is kind or (kind is float and isinstance(value, str) and _EXPONENT.fullmatch(value)):
        return None
    if kind is float and type(value) is int:
        return f"{name} must be written with a decimal point, {value}.0, got {value}"
    return f"{name} must be {_KINDS[kind]}, got {value!r}"
