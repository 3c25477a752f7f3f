"""The table of selectors, by the name that recipes and command lines give them. A new selector is one row here."""

from __future__ import annotations

from typing import Any

from sqap_vla_ros.contracts import TokenSelector
from sqap_vla_ros.field_types import name_problem
from sqap_vla_ros.pruning.base import Selector
from sqap_vla_ros.pruning.baselines import FastvSelector, RandomDropSelector, RandomSelector, UniformGridSelector
from sqap_vla_ros.pruning.before_decoder import DivPruneSelector, FasterVlmSelector, VisionZipSelector
from sqap_vla_ros.pruning.coverage import CoverageSelector
from sqap_vla_ros.pruning.relevance_diversity import RelevanceDiversitySelector
from sqap_vla_ros.pruning.sqap import SqapSelector

SELECTORS: dict[str, type[Selector]] = {
    selector.name: selector
    for selector in (
        SqapSelector,
        CoverageSelector,
        FastvSelector,
        RandomDropSelector,
        RandomSelector,
        UniformGridSelector,
        DivPruneSelector,
        FasterVlmSelector,
        VisionZipSelector,
        RelevanceDiversitySelector,
    )
}


def make_selector(name: str, **params: Any) -> TokenSelector:
    """Make the selector `name` with its published defaults, changed by `params`.

    Raises ValueError for an unknown name, an unknown parameter or a bad value.
    """
    if name not in SELECTORS:
        raise ValueError(f"unknown token selector {name!r}: choose one of {', '.join(sorted(SELECTORS))}")
    if problem := name_problem(SELECTORS[name], params):
        raise ValueError(f"token selector {name!r}: {problem}")
    try:
        return SELECTORS[name](**params)
    except TypeError as error:
        raise ValueError(f"token selector {name!r}: {error}") from error
