"""The table of accelerators, by the name that recipes give them. A new accelerator is one row here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqap_vla_ros.compression.accelerators.base import Accelerator
from sqap_vla_ros.compression.accelerators.efficient_vla import EfficientVla
from sqap_vla_ros.compression.accelerators.tome import Tome
from sqap_vla_ros.compression.accelerators.vla_cache import VlaCache
from sqap_vla_ros.contracts import Observation, Policy
from sqap_vla_ros.field_types import name_problem
from sqap_vla_ros.policy.cogact import CogACTPolicy

ACCELERATORS: dict[str, type[Accelerator]] = {kind.name: kind for kind in (EfficientVla, Tome, VlaCache)}


def make_accelerator(name: str, **parameters: Any) -> Accelerator:
    """Make the accelerator `name` with its published defaults, changed by `parameters`.

    Raises ValueError for an unknown name, an unknown parameter or a bad value.
    """
    if name not in ACCELERATORS:
        raise ValueError(f"unknown accelerator {name!r}: choose one of {', '.join(ACCELERATORS)}")
    if problem := name_problem(ACCELERATORS[name], parameters):
        raise ValueError(f"accelerator {name!r}: {problem}")
    try:
        return ACCELERATORS[name](**parameters)
    except TypeError as error:
        raise ValueError(f"accelerator {name!r}: {error}") from error


def accelerate(policy: CogACTPolicy, accelerator: Accelerator, calibration: Sequence[Observation] = ()) -> Policy:
    """Install an accelerator on `policy`, which is changed, and return what predicts.

    calibration: observations, for an accelerator that needs them.
    Raises ValueError where the policy has a token selector or the accelerator refuses.
    """
    if policy.selector is not None:
        raise ValueError(
            f"{accelerator.name} brings its own choice of tokens: it cannot be combined with the selector "
            f"{policy.selector.name!r}; set policy.selector = None first"
        )
    if accelerator.needs_calibration and not calibration:
        raise ValueError(
            f"{accelerator.name} looks at calibration observations and got none: give some, or the parameters that "
            "make it look at none"
        )
    return accelerator.install(policy, calibration)
