"""Selectors by name, as recipes and command lines give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqap_vla_ros.contracts import TokenSelector
from sqap_vla_ros.pruning.baselines import RandomSelector, UniformGridSelector, fastv, random_drop
from sqap_vla_ros.pruning.before_decoder import DivPruneSelector, FasterVlmSelector, TomeSelector, VisionZipSelector
from sqap_vla_ros.pruning.efficient_vla import EfficientVlaSelector
from sqap_vla_ros.pruning.sqap import SqapSelector

SELECTORS: dict[str, Callable[..., TokenSelector]] = {
    "sqap": SqapSelector,
    "fastv": fastv,
    "random_drop": random_drop,
    "random_same_budget": RandomSelector,
    "uniform_grid": UniformGridSelector,
    "divprune": DivPruneSelector,
    "fastervlm": FasterVlmSelector,
    "visionzip": VisionZipSelector,
    "tome": TomeSelector,
    "efficient_vla": EfficientVlaSelector,
}


def make_selector(name: str, **params: Any) -> TokenSelector:
    """The selector `name` with its published defaults, changed by `params`.

    Raises ValueError for an unknown name, an unknown parameter or a bad value.
    """
    if name not in SELECTORS:
        raise ValueError(f"unknown token selector {name!r}: choose one of {', '.join(sorted(SELECTORS))}")
    try:
        return SELECTORS[name](**params)
    except TypeError as error:
        raise ValueError(f"token selector {name!r}: {error}") from error
