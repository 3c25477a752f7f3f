"""CogACT's action head: a diffusion transformer conditioned by one extra token.

Plain pre-norm blocks without adaLN; the timestep and the cognition feature are summed into token 0.
Source: Li et al., "CogACT" (2024), Sec. 3.3; parameter names follow the published checkpoints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqap_vla_ros.policy.config import ActionHeadConfig
from sqap_vla_ros.policy.constants import constant

_EPS = 1e-6
_TIME_FEATURES = 256
_MAX_PERIOD = 10000.0


class TimeEmbedder(nn.Module):
    """Embeds the diffusion timestep, [B] to [B, H]: cosines then sines of 128 frequencies, then two linears."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        half = _TIME_FEATURES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angle = timestep[:, None].float() * torch.exp(-math.log(_MAX_PERIOD) * exponent)
        features = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class ConditionEmbedder(nn.Module):
    """Embeds the cognition feature, [B, D] to [B, H]; `uncondition` is its substitute for guidance."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)
        self.uncondition = nn.Parameter(torch.zeros(1, features))

    def forward(self, cognition: Tensor) -> Tensor:
        return self.linear(cognition)


class ActionEmbedder(nn.Module):
    """Embeds noisy actions, [B, T, 7] to tokens [B, T, H]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width)

    def forward(self, actions: Tensor) -> Tensor:
        return self.linear(actions)


class Attention(nn.Module):
    """Self-attention over the condition and the chunk, [B, T + 1, H]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linears with a tanh GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm attention and MLP, norms without affine parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Norm and read-out to the noise of each action."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm_final(x))


class DiffusionTransformer(nn.Module):
    """Predicts the noise in a chunk [B, T, 7] from the timestep and the cognition feature.

    features: width of the cognition feature.
    """

    def __init__(self, config: ActionHeadConfig, features: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = ActionEmbedder(config.channels, width)
        self.t_embedder = TimeEmbedder(width)
        self.z_embedder = ConditionEmbedder(features, width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.horizon + 1, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: Xavier linears, small embeddings, a zero read-out."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        time = [module for module in self.t_embedder.mlp if isinstance(module, nn.Linear)]
        for linear in (self.x_embedder.linear, self.z_embedder.linear, *time):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(self.z_embedder.uncondition, std=0.02)
        nn.init.normal_(self.positional_embedding, std=self.config.width**-0.5)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, timestep: Tensor, cognition: Tensor) -> Tensor:
        """Predict the noise [B, T, 7] in x [B, T, 7] at timestep [B], given cognition [B, D]."""
        return self.denoise(x, self.t_embedder(timestep) + self.z_embedder(cognition))

    def denoise(self, x: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise from x and a condition [B, H], the sum of timestep and cognition embeddings."""
        x = torch.cat((condition.unsqueeze(1), self.x_embedder(x)), dim=1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.final_layer(x)[:, 1:]

    def guided(self, cognition: Tensor, timesteps: tuple[int, ...], guidance: float) -> GuidedNoise:
        """Make the noise predictor of one chunk; what does not change between steps is computed here, once.

        cognition: [B, D]. With `guidance` above 1: e = u + guidance * (c - u), both halves in one batch
        (Ho and Salimans, "Classifier-free diffusion guidance", 2022).
        """
        return GuidedNoise(self, cognition, timesteps, guidance)


class GuidedNoise:
    """Predicts the noise [B, T, 7] in x [B, T, 7], in x's dtype, for one batch of cognition features."""

    def __init__(
        self, head: DiffusionTransformer, cognition: Tensor, timesteps: tuple[int, ...], guidance: float
    ) -> None:
        self._head = head
        self._guidance = guidance
        if guidance > 1.0:
            uncondition = head.z_embedder.uncondition.expand(len(cognition), -1)
            cognition = torch.cat((cognition, uncondition.to(cognition)), dim=0)
        self._condition = head.z_embedder(cognition)  # [B or 2B, H]
        embedded = head.t_embedder(constant(timesteps, cognition.device))
        self._time = dict(zip(timesteps, embedded, strict=True))

    def __call__(self, x: Tensor, timestep: int) -> Tensor:
        condition = self._condition + self._time[timestep]
        actions = x.to(condition.dtype)
        if self._guidance <= 1.0:
            return self._head.denoise(actions, condition).to(x.dtype)
        both = self._head.denoise(torch.cat((actions, actions), dim=0), condition).to(x.dtype)
        conditioned, unconditioned = both.chunk(2, dim=0)
        return unconditioned + self._guidance * (conditioned - unconditioned)
