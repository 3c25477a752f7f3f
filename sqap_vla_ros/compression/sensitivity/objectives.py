"""Outputs of a policy whose change is to stay small, differentiated back to the cognition feature."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.sampling.diffusion import draw_noise

TIMESTEPS = (5, 25, 50, 75, 95)  # of 100, at which the teacher-forced noise is compared


@dataclass(frozen=True)
class Reference:
    """The unquantised policy's computation for one observation.

    hidden: input of every decoder layer, [1, S, D] float32. cognition: [1, D]. chunk: [1, T, 7], normalised.
    noise: [1, T, 7], the diffusion noise that the chunk was denoised from.
    """

    hidden: list[Tensor]
    cognition: Tensor
    chunk: Tensor
    noise: Tensor


class FrozenHead:
    """A policy's action head in float32, without gradients for its weights."""

    def __init__(self, policy: CogACTPolicy) -> None:
        self.network = copy.deepcopy(policy.model.action_head).float().requires_grad_(False)
        self.sampler = policy.sampler
        self.shape = (1, policy.model.config.head.horizon, policy.model.config.head.channels)

    def noise(self, seed: int) -> Tensor:
        """Draw the noise [1, T, 7] that a prediction with this seed starts from."""
        return draw_noise([torch.Generator().manual_seed(seed)], torch.empty(self.shape))

    def chunk(self, cognition: Tensor, noise: Tensor) -> Tensor:
        """Sample normalised chunks [B, T, 7] from cognition features [B, D] and noise [B, T, 7]."""
        predict = self.network.guided(cognition, self.sampler.timesteps, self.sampler.config.guidance)
        return self.sampler.sample(predict, noise, [])

    def epsilon(self, cognition: Tensor, chunk: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Predict the noise [B, T, 7] in a noised chunk: teacher-forced, so smooth in the cognition feature."""
        noised: Tensor = self.network(self.sampler.add_noise(chunk, timestep, noise), timestep, cognition)
        return noised


class Objective(ABC):
    """An output f of the policy. Its Jacobian J is sampled: E (v^T J d)^2 over random v is |J d|^2."""

    @abstractmethod
    def cotangent(self, head: FrozenHead, reference: Reference, generator: torch.Generator) -> Tensor:
        """Return v^T df/dz, [1, D], for a random normal v; z is the cognition feature."""


class Epsilon(Objective):
    """The head's noise prediction on the way to the reference's own chunk, at a random timestep."""

    def cotangent(self, head: FrozenHead, reference: Reference, generator: torch.Generator) -> Tensor:
        timestep = torch.randint(0, len(head.sampler.alphas), (1,), generator=generator)
        noise, direction = (torch.randn(head.shape, generator=generator) for _ in range(2))
        cognition = reference.cognition.detach().requires_grad_(True)
        epsilon = head.epsilon(cognition, reference.chunk, timestep, noise)
        return torch.autograd.grad((epsilon * direction).sum(), cognition)[0]


class Cognition(Objective):
    """The cognition feature itself."""

    def cotangent(self, head: FrozenHead, reference: Reference, generator: torch.Generator) -> Tensor:
        return torch.randn(reference.cognition.shape, generator=generator)


class Action(Objective):
    """The chunk, through all denoising steps."""

    def cotangent(self, head: FrozenHead, reference: Reference, generator: torch.Generator) -> Tensor:
        direction = torch.randn(head.shape, generator=generator)
        cognition = reference.cognition.detach().requires_grad_(True)
        chunk = head.chunk(cognition, reference.noise)
        return torch.autograd.grad((chunk * direction).sum(), cognition)[0]


OBJECTIVES: Mapping[str, Objective] = {"epsilon": Epsilon(), "cognition": Cognition(), "action": Action()}
