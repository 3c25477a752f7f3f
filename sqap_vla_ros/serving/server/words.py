"""Values from messages in the words of the people who read refusals, who need not know Python."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from sqap_vla_ros.contracts import printable

MOST_LISTED, LONGEST_LISTED = 8, 60  # names in a sentence; characters of one
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "nothing"),
    (bool, "a truth value"),
    ((int, float), "a number"),
    (str, "a text"),
    (bytes, "bytes"),
    (np.ndarray, "an array"),
    (Mapping, "a map"),
    ((list, tuple), "a list"),
)


def kind_of(value: Any) -> str:
    """Return what a value is."""
    return next((words for kinds, words in _KINDS if isinstance(value, kinds)), "something else")


def quoted(value: Any, most: int = 40) -> str:
    """Return a text in quotes, its first `most` characters, with escapes; of anything else the kind."""
    return repr(value[:most]) if isinstance(value, str) else kind_of(value)


def listed(names: Collection[Any]) -> str:
    """Return the first names, cut where they are long and with escapes, and how many more there are; or "none"."""
    first = [_name(name) for name, _ in zip(names, range(MOST_LISTED), strict=False)]
    more = len(names) - len(first)
    return (", ".join(first) or "none") + (f" and {more} more" if more else "")


def _name(name: Any) -> str:
    if not isinstance(name, str):
        return f"one named by {kind_of(name)}"
    return printable(name, LONGEST_LISTED) or "one without a name"
