"""Accelerators that change how a policy runs its layers, beyond choosing tokens: VLA-Cache, EfficientVLA, ToMe.

A recipe names them where it names a selector; `with_pruning` puts either on a loaded (and possibly quantised) policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqap_vla_ros.compression.recipe import PruningSpec
    from sqap_vla_ros.contracts import Observation, Policy
    from sqap_vla_ros.policy.cogact import CogACTPolicy

ACCELERATORS = ("efficient_vla", "tome", "vla_cache")


def with_pruning(policy: CogACTPolicy, pruning: PruningSpec | None, calibration: Sequence[Observation] = ()) -> Policy:
    """What a recipe's `pruning` asks for, put on `policy`: nothing, a token selector, or an accelerator.

    Returns what predicts; `policy` itself is changed. See `accelerate` for calibration and errors.
    """
    policy.selector = None
    if pruning is None:
        return policy
    if pruning.selector in ACCELERATORS:
        return accelerate(policy, pruning.selector, pruning.parameters, calibration)
    from sqap_vla_ros.pruning import make_selector

    policy.selector = make_selector(pruning.selector, **pruning.parameters)
    return policy


def accelerate(
    policy: CogACTPolicy, name: str, parameters: Mapping[str, Any], calibration: Sequence[Observation] = ()
) -> Policy:
    """Put the accelerator `name` on `policy`, which is changed, and return what predicts.

    parameters: see `EfficientVla`, `tome.install` and `VlaCacheSettings`.
    calibration: observations that EfficientVLA ranks the decoder layers on; not needed where its parameters name the
        layers.
    Raises ValueError for an unknown name or parameter, and for combinations that make no sense.
    """
    installers: dict[str, Callable[..., Policy]] = {
        "efficient_vla": _efficient_vla,
        "tome": _tome,
        "vla_cache": _vla_cache,
    }
    if name not in installers:
        raise ValueError(f"unknown accelerator {name!r}: choose one of {', '.join(ACCELERATORS)}")
    if policy.selector is not None:
        raise ValueError(
            f"{name} brings its own choice of tokens: it cannot be combined with the selector "
            f"{policy.selector.name!r}; set policy.selector = None first"
        )
    try:
        return installers[name](policy, calibration, **parameters)
    except TypeError as error:
        raise ValueError(f"accelerator {name!r}: {error}") from error


def _efficient_vla(policy: CogACTPolicy, calibration: Sequence[Observation], **parameters: Any) -> Policy:
    from sqap_vla_ros.compression.accelerators.efficient_vla import EfficientVla

    return EfficientVla(**parameters).install(policy, calibration)


def _tome(policy: CogACTPolicy, calibration: Sequence[Observation], **parameters: Any) -> Policy:
    from sqap_vla_ros.compression.accelerators.tome import install

    return install(policy, **parameters)


def _vla_cache(policy: CogACTPolicy, calibration: Sequence[Observation], **parameters: Any) -> Policy:
    from sqap_vla_ros.compression.accelerators.vla_cache import VlaCachePolicy, VlaCacheSettings

    return VlaCachePolicy(policy, VlaCacheSettings(**parameters))
