"""Chunks that agree with what the arm will have done by the time they take effect.

Real-Time Chunking (Black, Galliker and Levine 2025, arXiv 2506.07339) treats this as inpainting: the actions that will
have been executed are given, those that an earlier chunk still plans draw the new ones towards them, and the rest is
free. Here it is adapted from flow matching to DDIM with classifier-free guidance. `BestOfNoises` is the backward
coherence of bidirectional decoding (Liu et al. 2024, arXiv 2408.17355).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqap_vla_ros.contracts import Commitment
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.sampling.diffusion import Noise, Sampler, draw_noise

_NOISE_STRIDE = 1_000_003  # between the seeds of the noises of one chunk


def overlap_weights(executed: int, planned: int) -> NDArray[np.float64]:
    """Return the weights [planned] of an earlier chunk's actions (Eq. 5): 1 for the first `executed`, then falling."""
    c = np.clip((planned - np.arange(planned)) / (planned - executed + 1), 0.0, 1.0)
    return np.where(np.arange(planned) < executed, 1.0, c * np.expm1(c) / np.expm1(1.0))


@dataclass(frozen=True)
class Past:
    """Commitments of a batch as the sampler sees them. target: [B, T, C] normalised; weight: [B, T, 1]."""

    target: Tensor
    weight: Tensor

    @property
    def fixed(self) -> Tensor:
        """Return which actions are given, [B, T, 1] bool."""
        return self.weight >= 1.0

    @classmethod
    def of(cls, commitments: Sequence[Commitment | None], statistics: ActionStatistics, like: Tensor) -> Past:
        """Return the commitments of each row of `like` [B, T, C]; a row without one is free."""
        target, weight = torch.zeros_like(like), torch.zeros_like(like[..., :1])
        for row, commitment in enumerate(commitments):
            if commitment is not None:
                count = min(len(commitment.actions), like.shape[1])
                normalized = statistics.normalize(commitment.actions[:count])
                target[row, :count] = torch.as_tensor(normalized).to(like)
                weights = overlap_weights(commitment.executed, len(commitment.actions))
                weight[row, :count, 0] = torch.as_tensor(weights[:count]).to(like)
        return cls(target, weight)


class Continuation(ABC):
    """A way to sample chunks that agree with a past.

    keeps_executed: the result repeats the executed actions, so that its others follow from where they lead.
    differentiates: the predictor must have a gradient.
    """

    keeps_executed: bool = True
    differentiates: bool = False

    @abstractmethod
    def sample(
        self, sampler: Sampler, predict: Noise, noise: Tensor, generators: Sequence[torch.Generator], past: Past
    ) -> Tensor:
        """Turn noise [B, T, C] into chunks [B, T, C]. A row whose weights are 0 is what the sampler alone gives."""


class Replace(Continuation):
    """Put the executed actions, at the noise level of each step, into x_t; the network makes the others fit.

    The same noise is added at every step, which is a DDIM path that ends at the actions.
    """

    def sample(
        self, sampler: Sampler, predict: Noise, noise: Tensor, generators: Sequence[torch.Generator], past: Past
    ) -> Tensor:
        x = noise
        for timestep, alpha, alpha_next in sampler.ddim_steps():
            x = torch.where(past.fixed, self.shown(past, alpha, noise), x)
            x0, epsilon = self.estimate(predict, x, timestep, alpha, past)
            x = alpha_next**0.5 * x0 + (1.0 - alpha_next) ** 0.5 * epsilon
        return torch.where(past.fixed, past.target, x)

    def shown(self, past: Past, alpha: float, noise: Tensor) -> Tensor:
        """Return what the network sees of the executed actions at a noise level."""
        return alpha**0.5 * past.target + (1.0 - alpha) ** 0.5 * noise

    def estimate(self, predict: Noise, x: Tensor, timestep: int, alpha: float, past: Past) -> tuple[Tensor, Tensor]:
        """Return x_0 and the noise, estimated from x_t."""
        epsilon = predict(x, timestep)
        return (x - (1.0 - alpha) ** 0.5 * epsilon) / alpha**0.5, epsilon


@dataclass(frozen=True)
class Guided(Replace):
    """`Replace`, and draw x_0 towards the weighted target (pseudo-inverse guidance, Eq. 2 to 4):

        x_0 += min(beta, 1 / sqrt(alpha_t)) * J^T W (Y - x_0),  J = d x_0 / d x_t through the network

    beta: the largest factor.
    """

    beta: float = 5.0
    differentiates = True

    def estimate(self, predict: Noise, x: Tensor, timestep: int, alpha: float, past: Past) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, _ = super().estimate(predict, x, timestep, alpha, past)
            error = (past.weight * (past.target - x0)).detach()
            pull = torch.autograd.grad((error * x0).sum(), x)[0]
        x, x0 = x.detach(), x0.detach() + min(self.beta, alpha**-0.5) * pull
        return x0, (x - alpha**0.5 * x0) / (1.0 - alpha) ** 0.5


@dataclass(frozen=True)
class BestOfNoises(Continuation):
    """Sample from several noises, the first of them the usual one, and keep the chunk nearest to the past.

    Its distance is that of the motion summed up to each action, normalised and weighted.
    """

    noises: int = 8
    keeps_executed = False

    def sample(
        self, sampler: Sampler, predict: Noise, noise: Tensor, generators: Sequence[torch.Generator], past: Past
    ) -> Tensor:
        chunks = []
        for index in range(self.noises):
            again = [torch.Generator().manual_seed(g.initial_seed() + _NOISE_STRIDE * index) for g in generators]
            chunks.append(sampler.sample(predict, draw_noise(again, noise), again))
        every = torch.stack(chunks)  # [N, B, T, C]
        apart = (every - past.target)[..., :6].cumsum(2).norm(dim=-1)
        best = (apart * past.weight[..., 0]).sum(-1).argmin(0)
        return every[best, torch.arange(len(best))]


CONTINUATIONS: Mapping[str, Continuation] = {"replace": Replace(), "guided": Guided(), "best_of_8": BestOfNoises()}


def find_continuation(name: str) -> Continuation:
    """Return the continuation of a name. Raises ValueError for a name that is not in `CONTINUATIONS`."""
    if name not in CONTINUATIONS:
        raise ValueError(f"continuation must be one of {', '.join(CONTINUATIONS)}, got {name!r}")
    return CONTINUATIONS[name]


def sample_on(
    name: str,
    sampler: Sampler,
    predict: Noise,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    past: Past,
) -> Tensor:
    """Sample by a name of `CONTINUATIONS`. Raises ValueError for another name and for a sampler other than DDIM."""
    continuation = find_continuation(name)
    if sampler.config.sampler != "ddim":
        raise ValueError(f"chunks are continued with the ddim sampler only, this policy has {sampler.config.sampler!r}")
    return continuation.sample(sampler, predict, noise, generators, past)
