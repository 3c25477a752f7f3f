"""YAML files that people write: plain values, or one ValueError that names the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES = 2**22
_MOST_CONTENT = 2**21  # values and characters, aliases written out
_MOST_BITS = 1000  # of a whole number; a larger one has no floating-point value
_MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that gives a key twice, of which the parser would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:  # before `<<` merges others into it, whose keys it may give again
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_yaml(path: Path, *, first_of_several: bool = False) -> Any:
    """Return the document of a YAML or JSON file, None where it is empty.

    first_of_several: take the first of several documents, as `ros2 topic echo` prints them.
    Raises ValueError for text that is not YAML, for a key that a mapping gives twice, and where aliases stand for more
    than `_MOST_CONTENT`, as those that contain themselves do. Raises OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES // 1024} KiB: it is not a file that people write")
    try:
        if first_of_several:
            value = next(iter(yaml.load_all(text, Loader=_Loader)), None)
        else:
            value = yaml.load(text, Loader=_Loader)
    except Exception as error:  # values that do not fit their tag (`!!bool maybe`) make the parser raise anything
        reason = str(error) if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not valid YAML: {' '.join(reason.split())}") from error
    if (problem := _problem(value)) is not None:
        raise ValueError(f"{path} {problem}")
    return value


def _problem(value: Any) -> str | None:
    """Say what makes a value unusable whoever reads it; None for a sound one."""
    content, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        content += 1
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set)):
            waiting += one
        elif isinstance(one, (str, bytes)):
            content += len(one)
        elif isinstance(one, int) and one.bit_length() > _MOST_BITS:
            return f"has a whole number of more than {_MOST_BITS} bits"
        if content + len(waiting) > _MOST_CONTENT:
            return f"stands for more than {_MOST_CONTENT} values, because an alias contains itself or many others"
    return None


def merged(parent: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `parent` with the keys of `own`; mappings inside are merged likewise."""
    result = dict(parent)
    for key, value in own.items():
        nested = isinstance(value, Mapping) and isinstance(parent.get(key), Mapping)
        result[key] = merged(parent[key], value) if nested else value
    return result
