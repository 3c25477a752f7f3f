"""Values from messages in the words of the people who read refusals, who need not know Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
