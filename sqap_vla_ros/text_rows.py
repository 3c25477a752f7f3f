"""The number of text rows in the sequence being computed.

Activation quantisers may give text more bits than image patches, but a linear sees a matrix and not a prompt. So the
policy announces, for the duration of a forward pass, how many of the last rows are text, and the quantisers look it up.
The number belongs to the thread that computes. Dropping visual tokens does not change it, and where the cognition
token alone is computed, that row is text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_count: ContextVar[int] = ContextVar("text_rows")


@contextmanager
def text_rows(count: int) -> Iterator[None]:
    """Announce that the last `count` rows of every sequence computed inside this block are text (0: none is)."""
    token = _count.set(count)
    try:
        yield
    finally:
        _count.reset(token)


def text_row_count() -> int:
    """Return the number announced by the enclosing `text_rows`; raise LookupError when there is none."""
    return _count.get()
