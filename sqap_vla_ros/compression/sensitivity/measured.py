"""Damage measured with forward passes: of single rows (Eq. 4), of many together, and of a whole compressed policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sqap_vla_ros.compression.sensitivity.backward import FloatDecoder
from sqap_vla_ros.compression.sensitivity.objectives import TIMESTEPS, FrozenHead, Reference
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACTPolicy

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
        for timestep in _timesteps(head):
            found, expected = (
                head.epsilon(z, reference.chunk, timestep, reference.noise) for z in (cognition, reference.cognition)
            )
            total += float((found - expected).double().square().sum()) / len(TIMESTEPS)
    return total / len(references)


def harmful_zeros(
    bits: Mapping[tuple[int, str], Tensor],
    scores: Mapping[tuple[int, str], Mapping[int, Tensor]],
    decoder: FloatDecoder,
    references: Sequence[Reference],
    head: FrozenHead,
) -> set[tuple[int, str]]:
    """Return the linears whose zeroed rows together do more than their scores add up to.

    Scores must be those of the teacher-forced noise.
    """
    found = set()
    for (layer, name), widths in bits.items():
        rows = torch.nonzero(widths == 0)[:, 0]
        if not len(rows):
            continue
        nothing = torch.zeros(len(rows), COGACT.linear(decoder.layers[layer], name).in_features)
        together = epsilon_deviation(decoder, references, head, layer, name, rows, nothing)
        if not together <= JOINT_LIMIT * float(scores[layer, name][0][rows].sum()):  # nor where it is not a number
            found.add((layer, name))
    return found


def held_out_errors(
    before: CogACTPolicy, after: CogACTPolicy, observations: Sequence[Observation], *, seed: int = 0
) -> dict[str, float]:
    """Compare a compressed policy with the one it was made from, on observations it was not calibrated on.

    Returns relative errors: `cognition` of the feature, `epsilon` of the teacher-forced noise over `TIMESTEPS`, `noise`
    of the same with each policy's own head, and `action` of the normalised chunk. `epsilon` varies least from scene to
    scene; steer by it, and by `noise` where the head is compressed as well.
    """
    head, own = FrozenHead(before), after.model.action_head
    dtype = own.positional_embedding.dtype
    errors, sizes = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for index, observation in enumerate(observations):
        (expected, chunk), (found, other) = (_predict(p, observation, seed + index) for p in (before, after))
        noise, noises = head.noise(seed + index), []
        with torch.no_grad():
            for cognition in (expected, found):
                noises.append(torch.cat([head.epsilon(cognition, chunk, at, noise) for at in _timesteps(head)]))
            noised = [(head.sampler.add_noise(chunk, at, noise).to(dtype), at) for at in _timesteps(head)]
            noises.append(torch.cat([own(x, at, found.to(dtype)).float() for x, at in noised]))
        right, moved, moved_more = noises
        for place, (one, two) in enumerate(((expected, found), (right, moved), (right, moved_more), (chunk, other))):
            errors[place] += (two - one).double().square().sum()
            sizes[place] += one.double().square().sum()
    return dict(zip(("cognition", "epsilon", "noise", "action"), (errors / sizes).sqrt().tolist(), strict=True))


def _predict(policy: CogACTPolicy, observation: Observation, seed: int) -> tuple[Tensor, Tensor]:
    """Return the cognition feature [1, D] and the normalised chunk [1, T, 7], both float32."""
    seen: list[Tensor] = []
    handle = policy.model.decoder.register_forward_hook(lambda _, __, output: seen.append(output.cognition))
    try:
        chunk = policy.predict(observation, seed=seed)
    finally:
        handle.remove()
    return seen[0].float().clone(), torch.from_numpy(chunk.normalized).float()[None]


def _timesteps(head: FrozenHead) -> list[Tensor]:
    return [torch.tensor([step * len(head.sampler.alphas) // 100]) for step in TIMESTEPS]


def spearman(one: Tensor, other: Tensor) -> float:
    """Return the rank correlation of two vectors; equals share their mean rank."""
    first, second = (_ranks(values.double()) for values in (one, other))
    return float(torch.corrcoef(torch.stack((first, second)))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place] - 1
