"""Gaussian diffusion over action chunks: the squared-cosine schedule, DDIM and DDPM.

Sources: Nichol and Dhariwal, "Improved DDPM" (2021), Eq. 17, for the schedule; Song et al., "DDIM" (2021), Eq. 12 with
eta = 0; Ho et al., "DDPM" (2020), Eq. 6-7, with the posterior variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqap_vla_ros.policy.config import DiffusionConfig

_MAX_BETA = 0.999
Noise = Callable[[Tensor, int], Tensor]  # (x [B, T, C], timestep) -> predicted noise [B, T, C]


def squared_cosine_alphas(steps: int) -> NDArray[np.float64]:
    """Return the cumulative alphas [steps] of the squared-cosine schedule, in float64."""

    def f(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(steps, dtype=np.float64)
    betas = np.minimum(1.0 - f(t + 1) / f(t), _MAX_BETA)
    return np.cumprod(1.0 - betas, dtype=np.float64)


class Sampler:
    """Turns noise [B, T, C] into a chunk with a noise-predicting network."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.alphas = squared_cosine_alphas(config.train_steps)
        self.timesteps: tuple[int, ...] = tuple(range(0, config.train_steps, config.stride or 1))[::-1]

    def ddim_steps(self) -> Iterator[tuple[int, float, float]]:
        """Yield each timestep with its cumulative alpha and that of the next one, 1 behind the last."""
        for timestep, following in zip(self.timesteps, (*self.timesteps[1:], None), strict=True):
            yield timestep, float(self.alphas[timestep]), 1.0 if following is None else float(self.alphas[following])

    def sample(self, predict: Noise, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Turn `noise` into chunks [B, T, C].

        noise: [B, T, C], standard normal; generators: one CPU generator a row, drawn from only by DDPM.
        """
        x = noise
        for index, timestep in enumerate(self.timesteps):
            following = self.timesteps[index + 1] if index + 1 < len(self.timesteps) else None
            alpha = self.alphas[timestep]
            alpha_next = 1.0 if following is None else self.alphas[following]
            epsilon = predict(x, timestep)
            x0 = float((1.0 / alpha) ** 0.5) * x - float((1.0 / alpha - 1.0) ** 0.5) * epsilon
            if self.config.sampler == "ddim":
                x = float(alpha_next**0.5) * x0 + float((1.0 - alpha_next) ** 0.5) * epsilon
                continue
            beta = 1.0 - alpha / alpha_next
            mean = float(beta * alpha_next**0.5 / (1.0 - alpha)) * x0
            mean = mean + float((1.0 - alpha_next) * (1.0 - beta) ** 0.5 / (1.0 - alpha)) * x
            if following is None:
                return mean
            variance = beta * (1.0 - alpha_next) / (1.0 - alpha)
            x = mean + float(variance**0.5) * draw_noise(generators, x)
        return x

    def add_noise(self, x0: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Sample q(x_t | x_0) for training: sqrt(alpha) x0 + sqrt(1 - alpha) noise. timestep: [B]."""
        alpha = torch.as_tensor(self.alphas, device=x0.device)[timestep].view(-1, 1, 1)
        return (alpha.sqrt() * x0 + (1.0 - alpha).sqrt() * noise).to(x0.dtype)


def draw_noise(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Draw standard normal noise of `like`'s shape [B, T, C], row b from generator b, always on the CPU."""
    rows = [torch.randn(like.shape[1:], generator=generator, dtype=torch.float32) for generator in generators]
    return torch.stack(rows).to(like)
