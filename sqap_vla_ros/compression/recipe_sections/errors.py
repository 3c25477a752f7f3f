"""Errors of recipes, each one sentence that begins with the recipe's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class RecipeError(ValueError):
    """A recipe that does not exist or does not make sense; the message says which and what to do."""


def require_one_of(owner: str, name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `RecipeError` for a value that is none of the allowed ones."""
    if value not in allowed:
        raise RecipeError(f"{owner}.{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


@contextmanager
def errors_name(recipe: str) -> Iterator[None]:
    """Make each `RecipeError` begin with the recipe's name."""
    try:
        yield
    except RecipeError as error:
        said = str(error)
        raise RecipeError(said if said.startswith("recipe ") else f"recipe {recipe!r}: {said}") from error
