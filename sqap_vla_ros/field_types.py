"""Values from files, checked against the declared types of the dataclass that they are to fill."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}


def build(cls: type[T], owner: str, values: Any, error: type[ValueError] = ValueError) -> T:
    """Make a dataclass from a mapping out of a file. Raises `error` naming the owner and the value at fault."""
    if not isinstance(values, Mapping):
        raise error(f"{owner} must be a mapping, got {repr(values)[:60]}")
    if problem := name_problem(cls, values):
        raise error(f"{owner}: {problem}")
    if problem := field_problem(cls, values):
        raise error(f"{owner}.{problem}")
    return cls(**values)


def field_problem(cls: type, values: Mapping[str, Any]) -> str | None:
    """Say which of `values` does not have the type that the dataclass declares; None where all fit.

    Numbers must be finite, true is no number, and what is declared as `Any` must be a plain value or a list of them.
    """
    hints = _hints(cls)
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            return f"{name} must be {_words(hints[name])}, got {shown}"
    return None


def name_problem(make: Callable[..., object], names: Collection[str]) -> str | None:
    """Say which of `names` are no parameters of `make`, or which it lacks; None where it can be called with them."""
    known = inspect.signature(make).parameters
    if unknown := sorted(set(map(str, names)) - set(known)):
        return f"unknown {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known)) or 'none'}"
    lacking = [name for name, each in known.items() if each.default is each.empty and name not in names]
    return f"lacks {', '.join(map(repr, lacking))}" if lacking else None


@cache
def _hints(cls: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: hint for name, hint in get_type_hints(cls).items() if name in names and hint is not ClassVar}


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return _plain(value) or (isinstance(value, (list, tuple)) and all(map(_plain, value)))
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(one, arguments[0]) for one in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(one, arguments[0]) for one in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond floating point
        return False


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return "a plain value or a list of them"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list with {_words(arguments[0])} in each place"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping to {_words(arguments[1])}"
    return _WORDS.get(hint, "a mapping")
