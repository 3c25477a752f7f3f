"""The parameter table of a node: one row declares, checks and documents a parameter.

A default stands in one place. A parameter that fills a field of a configuration dataclass takes its default from there
(`Parameter.of`); any other states its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

EVERY_NODE: Mapping[str, bool] = {"use_sim_time": False, "start_type_description_service": True}  # declared by rclpy
_QOS = "qos_overrides"
Value = bool | int | float | str | list[float]
Config = TypeVar("Config")


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    minimum, maximum: inclusive bounds; above: an exclusive lower bound. Of every number of a list.
    choices: the only values allowed; empty allows all.
    length: number of values of a list.
    is_frame: the value names a frame of TF, which never begins with a slash.
    config, field: the dataclass and its field that the value fills; None when the node reads the value itself.
    """

    name: str
    default: Value
    description: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None
    is_frame: bool = False
    config: type | None = None
    field: str = ""

    @classmethod
    def of(cls, config: type, name: str, description: str, *, field: str = "", **rules: Any) -> Parameter:
        """Make the parameter that fills `field` (`name` where empty) of `config`, and take its default from there."""
        field = field or name
        defaults = {entry.name: entry.default for entry in dataclasses.fields(config)}
        default = defaults[field]
        if default is dataclasses.MISSING:
            raise ValueError(f"{config.__name__}.{field} has no default: state it in the table")
        value = list(default) if isinstance(default, tuple) else default
        return cls(name, value, description, config=config, field=field, **rules)

    def clean(self, value: Any) -> Any:
        """Return the value as it is used: the name of a frame without the leading slash that ROS 1 wrote."""
        return value.removeprefix("/") if self.is_frame else value

    def problem(self, value: Any) -> str | None:
        """Return why this value is refused, or None."""
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(map(repr, self.choices))}, got {value!r}"
        if self.is_frame and not self.clean(value):
            return f"{self.name} must name a frame of TF, got {value!r}"
        if self.length is not None and len(value) != self.length:
            return f"{self.name} must have {self.length} values, got {list(value)}"
        numbers = [] if isinstance(value, (bool, str)) else [value] if isinstance(value, (int, float)) else list(value)
        for number in numbers:
            if not math.isfinite(number):
                return f"{self.name} must be finite, got {number}"
            if self.minimum is not None and number < self.minimum:
                return f"{self.name} must be at least {self.minimum:g}, got {number:g}"
            if self.maximum is not None and number > self.maximum:
                return f"{self.name} must be at most {self.maximum:g}, got {number:g}"
            if self.above is not None and number <= self.above:
                return f"{self.name} must be above {self.above:g}, got {number:g}"
        return None


def configured(config: type[Config], table: Iterable[Parameter], values: Mapping[str, Any], **others: Any) -> Config:
    """Make the configuration that rows of `table` fill. others: fields that no parameter fills."""
    filled = {p.field: values[p.name] for p in table if p.config is config}
    return config(**{f: tuple(v) if isinstance(v, (list, tuple)) else v for f, v in filled.items()}, **others)


def declare(
    node: Any, table: Iterable[Parameter], *, read_only: bool = False, beside: Collection[str] | None = ()
) -> None:
    """Declare every parameter on a rclpy node, with its description and range; warn of those that it does not have.

    read_only: none may change later. beside: names of parameters that the node declares besides; None where
    they were compared before.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    table = tuple(table)
    for p in table:
        descriptor = ParameterDescriptor(name=p.name, description=p.description, read_only=read_only)
        if p.choices:
            descriptor.additional_constraints = "one of " + ", ".join(map(repr, p.choices))
        # Ranges state what the message can say; `problem` has the last word, also on exclusive and open bounds.
        if read_only:
            pass  # a range would refuse the value at start, in rclpy's words
        elif isinstance(p.default, float) and p.minimum is not None and p.maximum is not None:
            descriptor.floating_point_range = [FloatingPointRange(from_value=p.minimum, to_value=p.maximum)]
        elif isinstance(p.default, int) and not isinstance(p.default, bool) and p.minimum is not None:
            highest = 2**31 - 1 if p.maximum is None else int(p.maximum)
            descriptor.integer_range = [IntegerRange(from_value=int(p.minimum), to_value=highest)]
        node.declare_parameter(p.name, p.default, descriptor)
    if beside is None:
        return
    # Private to rclpy, which has no other way to tell; without it nothing is compared.
    given: Iterable[str] = getattr(node, "_parameter_overrides", ())
    known = [*(p.name for p in table), *beside]
    if found := [text for name in given if (text := unknown(name, known)) is not None]:
        node.get_logger().warning("; ".join(found))


def unknown(name: str, known: Collection[str]) -> str | None:
    """Return that a name is none of these parameters, nor one that every node has; None where it is one."""
    if name in known or name in EVERY_NODE or name.partition(".")[0] == _QOS:
        return None
    near = difflib.get_close_matches(name, known, n=1)
    return f"there is no parameter {name}" + (f", did you mean {near[0]}?" if near else "")


def problems(table: Iterable[Parameter], values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with each value by itself."""
    return [text for p in table if (text := p.problem(values[p.name])) is not None]


def as_yaml(table: Iterable[Parameter], heading: str, sections: Mapping[str, str] | None = None) -> str:
    """Return the annotated parameter file. sections: name of the first parameter of a section -> its title."""
    lines = [*(f"# {line}" for line in heading.splitlines()), "/**:", "  ros__parameters:"]
    for p in table:
        if sections and p.name in sections:
            lines += ["", f"    # ---- {sections[p.name]}"]
        lines.append("")
        lines += [f"    # {line}" for line in textwrap.wrap(p.description + _rules(p), 110)]
        lines.append(f"    {p.name}: {_literal(p.default)}")
    return "\n".join(lines) + "\n"


def _rules(p: Parameter) -> str:
    rules = [
        *([f"one of {', '.join(map(repr, p.choices))}"] if p.choices else []),
        *([f"at least {p.minimum:g}"] if p.minimum is not None else []),
        *([f"above {p.above:g}"] if p.above is not None else []),
        *([f"at most {p.maximum:g}"] if p.maximum is not None else []),
    ]
    return f" [{', '.join(rules)}]" if rules else ""


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
