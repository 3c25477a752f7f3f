"""The two vision towers and the projector: image to visual tokens in the decoder's space.

The towers are transformers' DINOv2-with-registers and SigLIP. CogACT reads the raw output of the last but one block of
each (no final norm), so the last block, the norms and SigLIP's pooling head are never built.

transformers 5 or later is needed: version 4 names the towers' parameters otherwise, and those names are what our
checkpoints are written with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from sqap_vla_ros.policy.config import VisionConfig
from sqap_vla_ros.policy.constants import constant

# per-channel mean and standard deviation of each tower's training images
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_LAYER_NORM_EPS = 1e-6


def normalised(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Return the image [B, 3, H, W], values 0 to 1, less a tower's mean and over its standard deviation by channel."""
    mean_, std_ = (constant(v, image.device).view(3, 1, 1) for v in (mean, std))
    return ((image - mean_) / std_).to(dtype)


class FlatAttention(nn.Module):
    """DINOv2's attention with its linears at the names that transformers 5.23 gives them.

    nested: that of earlier versions (5.17), whose linears are two modules further down; they are the same parameters.
    """

    def __init__(self, nested: Any, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = nested.attention.query, nested.attention.key, nested.attention.value
        self.o_proj = nested.output.dense

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the attention's output [B, S, D] for hidden states [B, S, D]."""
        q, k, v = (
            linear(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        output: Tensor = self.o_proj(attended)
        return output


class VisionTowers(nn.Module):
    """Computes fused features [B, N, dino + siglip], row-major in the patch grid, from images [B, 3, H, W] uint8."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        dino, siglip = config.dino, config.siglip
        if dino.mlp_width % dino.width:
            raise ValueError(f"DINOv2's MLP must be a whole multiple of its width, got {dino.mlp_width}/{dino.width}")
        self.dino = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=dino.width,
                num_hidden_layers=dino.depth - 1,
                num_attention_heads=dino.heads,
                mlp_ratio=dino.mlp_width // dino.width,
                hidden_act="gelu",
                layer_norm_eps=_LAYER_NORM_EPS,
                image_size=config.image_size,
                patch_size=config.patch_size,
                num_register_tokens=dino.registers,
                attn_implementation="sdpa",
            )
        )
        for layer in self.dino.encoder.layer:
            if not hasattr(layer.attention, "q_proj"):
                layer.attention = FlatAttention(layer.attention, dino.heads)
        self.siglip = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=siglip.width,
                intermediate_size=siglip.mlp_width,
                num_hidden_layers=siglip.depth - 1,
                num_attention_heads=siglip.heads,
                hidden_act="gelu",
                layer_norm_eps=_LAYER_NORM_EPS,
                image_size=config.image_size,
                patch_size=config.patch_size,
                vision_use_head=False,
                attn_implementation="sdpa",
            )
        )
        self.dino.layernorm = nn.Identity()
        self.siglip.post_layernorm = nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        return self.siglip.embeddings.patch_embedding.weight.dtype

    def forward(self, image: Tensor, *, with_saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the features and, if asked, DINOv2's CLS attention to the patches [B, N] fp32 (mean over heads).

        image: [B, 3, image_size, image_size] uint8.
        """
        unit = image.float() / 255.0
        hidden = self.dino.embeddings(normalised(unit, DINO_MEAN, DINO_STD, self.dtype))
        prefix = 1 + self.config.dino.registers
        saliency = None
        last = len(self.dino.encoder.layer) - 1
        for index, layer in enumerate(self.dino.encoder.layer):
            if with_saliency and index == last:
                saliency = self._cls_attention(layer, hidden)[:, prefix:]
            hidden = layer(hidden)
        dino = hidden[:, prefix:]

        hidden = self.siglip.embeddings(normalised(unit, SIGLIP_MEAN, SIGLIP_STD, self.dtype))
        for layer in self.siglip.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        return torch.cat((dino, hidden), dim=-1), saliency

    def _cls_attention(self, layer: Any, hidden: Tensor) -> Tensor:
        """Return one block's attention of CLS to all tokens, [B, 1 + registers + N] fp32, mean over heads."""
        heads = self.config.dino.heads
        normed = layer.norm1(hidden)
        query = layer.attention.q_proj(normed[:, :1]).unflatten(-1, (heads, -1)).transpose(1, 2).float()
        key = layer.attention.k_proj(normed).unflatten(-1, (heads, -1)).transpose(1, 2).float()
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # [B, heads, 1, S]
        return scores.softmax(dim=-1).mean(dim=1).squeeze(1)


class Projector(nn.Sequential):
    """Maps fused features [B, N, dino + siglip] to visual tokens [B, N, D]."""

    def __init__(self, features: int, hidden: int, width: int) -> None:
        super().__init__(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, width)
        )
