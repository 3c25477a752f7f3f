"""Scores that nothing can be chosen by, and gradients that nothing can be scored with: refused, naming the linear.

A linear whose scores are all zero is sound: a layer that was taken out of a checkpoint by zeroing its output does
nothing to the action. A whole decoder that does nothing is not, and neither is a score that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sqap_vla_ros.compression.sensitivity.allocation import VISION, Linear
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACTPolicy


class ScoringError(ValueError):
    """A checkpoint, or observations, of which no rows can be scored; the message names the linear and the remedy."""


def path_of(linear: Linear) -> str:
    """Return a linear's path, as the report of a compression has it."""
    layer, name = linear
    return name if layer == VISION else f"decoder.layers.{layer}.{name}"


@contextmanager
def about(linear: Linear, policy: CogACTPolicy) -> Iterator[None]:
    """Turn a ValueError into a `ScoringError` that names the linear."""
    try:
        yield
    except ScoringError:
        raise
    except ValueError as error:
        raise _error(policy, f"{path_of(linear)}: {error}") from error


def require_finite(linear: Linear, scores: Mapping[int, Tensor], policy: CogACTPolicy) -> None:
    """Raise `ScoringError` where the score of a row is infinite or not a number."""
    for bits, each in scores.items():
        wrong = each[~torch.isfinite(each)]
        if len(wrong):
            raise _error(
                policy,
                f"{path_of(linear)}: the damage of rounding a row to {bits} bits is {float(wrong[0])} for {len(wrong)} "
                f"of {len(each)} rows",
            )


def require_damage(scores: Mapping[Linear, Mapping[int, Tensor]], policy: CogACTPolicy) -> None:
    """Raise `ScoringError` where rounding the decoder does nothing to the action, whatever is rounded and how far."""
    if not any(bool(each.any()) for by_bits in scores.values() for each in by_bits.values()):
        raise _error(policy, "every row of the decoder has a score of 0, as if rounding it did nothing to the action")


def require_gradient(cotangents: Sequence[Sequence[Tensor]], policy: CogACTPolicy) -> None:
    """Raise `ScoringError` where the action has no finite gradient at the decoder's output, or always none.

    cotangents: by observation and probe, see `backward.make_cotangents`.
    """
    every = [each for probes in cotangents for each in probes]
    if not all(bool(torch.isfinite(each).all()) for each in every):
        raise _error(policy, "the action's gradient at the decoder's output is not finite")
    if any(bool(each.any()) for each in every):
        return
    empty = [
        f"action_head.{path}"
        for path, module in policy.model.action_head.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.any()
    ]
    said = "the action does not depend on the decoder's output: its gradient there is 0"
    if empty:
        raise ScoringError(f"{said}, as the weights of {', '.join(empty)} are all 0; train the head, {_OTHERWISE}")
    raise _error(policy, said)


_OTHERWISE = "or take a recipe without row_bits and with hessian: plain, which does not look at the action"


def _error(policy: CogACTPolicy, said: str) -> ScoringError:
    """Make the error; where the model is at fault it mostly is one linear with weights beyond all others."""
    path, size = _largest_weight(policy)
    return ScoringError(
        f"{said}; look at the weights of {path}, of which one is {size:.3g}, the largest of this checkpoint, and at "
        f"the calibration images, {_OTHERWISE}"
    )


def _largest_weight(policy: CogACTPolicy) -> tuple[str, float]:
    """Return the path of the linear of decoder or action head with the largest weight, and that; nan is largest."""
    decoder, sizes = policy.model.decoder, {}
    for index in range(len(decoder.layers)):
        layer = decoder.layer_in_memory(index)  # one at a time
        for name in COGACT.linears:
            sizes[path_of((index, name))] = _largest(COGACT.linear(layer, name))
    for path, module in policy.model.action_head.named_modules():
        if isinstance(module, nn.Linear):
            sizes[f"action_head.{path}"] = _largest(module)
    return max(sizes.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def _largest(linear: nn.Linear) -> float:
    return float(linear.weight.detach().abs().max())
