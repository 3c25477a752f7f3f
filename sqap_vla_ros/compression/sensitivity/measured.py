"""Damage measured with forward passes: Eq. 4 for single rows, the joint effect of many, and rank correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sqap_vla_ros.compression.sensitivity.backward import FloatDecoder
from sqap_vla_ros.compression.sensitivity.objectives import TIMESTEPS, FrozenHead, Reference
from sqap_vla_ros.policy.architecture import COGACT

JOINT_LIMIT = 4.0  # times the sum of the rows' scores; beyond it first-order scores do not describe the rows together


@torch.no_grad()
def changed_cognition(
    decoder: FloatDecoder, reference: Reference, layer: int, name: str, rows: Tensor, values: Tensor
) -> Tensor:
    """Return the cognition feature [1, D] with some rows of one linear replaced by `values` [R, K]."""
    module = decoder.layers[layer]
    linear = COGACT.linear(module, name)
    kept = linear.weight.data[rows].clone()
    linear.weight.data[rows] = values
    try:
        state = reference.hidden[layer]
        for following in (module, *decoder.layers[layer + 1 :]):
            state = following(state, position_embeddings=decoder.rotary(state))
        return decoder.norm(state[:, -1:]).squeeze(1).float()
    finally:
        linear.weight.data[rows] = kept


@torch.no_grad()
def action_deviation(
    decoder: FloatDecoder,
    references: Sequence[Reference],
    head: FrozenHead,
    layer: int,
    name: str,
    rows: Tensor,
    values: Tensor,
) -> float:
    """Measure Eq. 4: E |A' - A*|^2 over observations, of normalised chunks, with these rows replaced."""
    total = 0.0
    for reference in references:
        cognition = changed_cognition(decoder, reference, layer, name, rows, values)
        total += float((head.chunk(cognition, reference.noise) - reference.chunk).double().square().sum())
    return total / len(references)


@torch.no_grad()
def epsilon_deviation(
    decoder: FloatDecoder,
    references: Sequence[Reference],
    head: FrozenHead,
    layer: int,
    name: str,
    rows: Tensor,
    values: Tensor,
) -> float:
    """Measure the same of the teacher-forced noise, the mean over `TIMESTEPS`."""
    total = 0.0
    for reference in references:
        cognition = changed_cognition(decoder, reference, layer, name, rows, values)
        for step in TIMESTEPS:
            timestep = torch.tensor([step * len(head.sampler.alphas) // 100])
            found, expected = (
                head.epsilon(z, reference.chunk, timestep, reference.noise) for z in (cognition, reference.cognition)
            )
            total += float((found - expected).double().square().sum()) / len(TIMESTEPS)
    return total / len(references)


def check_zeros(
    bits: Mapping[tuple[int, str], Tensor],
    scores: Mapping[tuple[int, str], Mapping[int, Tensor]],
    decoder: FloatDecoder,
    references: Sequence[Reference],
    head: FrozenHead,
    *,
    instead: int = 2,
) -> dict[tuple[int, str], Tensor]:
    """Take back the zeros of every linear whose zeroed rows together do more than their scores add up to.

    Rows that were to be zero get `instead` bits there. Scores must be those of the teacher-forced noise.
    """
    checked = {}
    for linear, widths in bits.items():
        rows = torch.nonzero(widths == 0)[:, 0]
        checked[linear] = widths
        if not len(rows):
            continue
        layer, name = linear
        nothing = torch.zeros(len(rows), COGACT.linear(decoder.layers[layer], name).in_features)
        together = epsilon_deviation(decoder, references, head, layer, name, rows, nothing)
        if together > JOINT_LIMIT * float(scores[linear][0][rows].sum()):
            checked[linear] = torch.where(widths == 0, instead, widths)
    return checked


def spearman(one: Tensor, other: Tensor) -> float:
    """Return the rank correlation of two vectors; equals share their mean rank."""
    first, second = (_ranks(values.double()) for values in (one, other))
    return float(torch.corrcoef(torch.stack((first, second)))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place] - 1
