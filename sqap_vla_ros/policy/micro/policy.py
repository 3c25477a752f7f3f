"""A CogACT of the true architecture, small enough for a laptop, with seeded random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sqap_vla_ros.contracts import TokenSelector
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy, Provenance
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer

MICRO_DATASET = MICRO.name
_STEP_M = 0.02
_STEP_RAD = 0.1
_ATTENTION = 1.7  # gain of the decoder's q, k and v: attention that tells tokens apart
_CARRIER = 4.0  # how far the constant channels of a token stand out of the rest
_PULL = 1.5  # read-out gain: sampling shrinks the noise instead of copying it into the chunk
_SPREAD = 0.2  # standard deviation of the predicted noise over observations: how far chunks differ


def micro_policy(seed: int = 0, selector: TokenSelector | None = None) -> CogACTPolicy:
    """Make a policy in fp32 on the CPU whose chunks stay within 2 cm and 0.1 rad a step, at 5 Hz.

    The weights are random: its actions depend on image, prompt and kept tokens as a trained policy's do, but mean
    nothing.
    """
    # the global generator is what initialisers draw from; it is put back afterwards
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = CogACT(MICRO).eval()
        _draw_weights(model)
        _make_head_denoise(model)
    bound = np.array([_STEP_M] * 3 + [_STEP_RAD] * 3 + [1.0])
    statistics = ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)
    return CogACTPolicy(
        model,
        micro_tokenizer(),
        {MICRO_DATASET: statistics},
        selector=selector,
        provenance=Provenance(f"micro (random weights, seed {seed})"),
    )


def _draw_weights(model: CogACT) -> None:
    """Draw weights that preserve variance: at the published 0.02 a model this narrow forgets its image."""
    for part in (model.vision, model.projector, model.decoder):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    layers: list[Any] = list(model.decoder.layers)
    for layer in layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight *= _ATTENTION
    nn.init.normal_(model.decoder.embed_tokens.weight, std=1.0)
    nn.init.normal_(model.vision.dino.embeddings.position_embeddings, std=0.3)
    nn.init.normal_(model.vision.siglip.embeddings.position_embedding.weight, std=0.3)


def _make_head_denoise(model: CogACT) -> None:
    """Make an untrained head denoise, so that its chunks are smooth instead of clipped noise.

    The action tokens carry x in their first channels past the blocks, which see only condition and position; two
    constant channels dominate those tokens' norm, so the layer norm is nearly linear in x. The read-out multiplies x by
    `_PULL` and adds what the blocks say, shifted and scaled to be centred over random observations.
    """
    head = model.action_head
    width, channels = head.config.width, head.config.channels
    reserved = [*range(channels), width - 2, width - 1]
    nn.init.normal_(head.z_embedder.linear.weight, std=head.z_embedder.linear.in_features**-0.5)
    head.x_embedder.linear.weight[:] = torch.eye(width, channels)
    head.positional_embedding[:] = 0.0
    head.positional_embedding[1:, channels] = torch.linspace(-1.0, 1.0, head.config.horizon)
    head.positional_embedding[1:, -1] = _CARRIER * width**0.5
    head.positional_embedding[1:, -2] = -_CARRIER * width**0.5
    blocks: list[Any] = list(head.blocks)
    for block in blocks:
        for reads in (block.attn.qkv, block.mlp.fc1):
            reads.weight[:, reserved] = 0.0
        for writes in (block.attn.proj, block.mlp.fc2):
            writes.weight[reserved] = 0.0
    # untrained attention spreads evenly: the condition is one token among T + 1
    blocks[0].attn.proj.weight *= head.config.horizon + 1
    readout = head.final_layer.linear
    nn.init.normal_(readout.weight)
    readout.weight[:, reserved] = 0.0

    observations, side = 12, MICRO.vision.image_size
    coarse = torch.randint(0, 256, (observations, 3, 8, 8)).float()
    image = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").byte()
    prompts = torch.randint(5, MICRO.decoder.vocabulary, (observations, 20))
    prompts[:, -1] = MICRO.prompt.suffix[-1]
    cognition = model.decode(model.projector(model.vision(image)[0]), prompts, None).cognition
    said = head(torch.zeros(observations, head.config.horizon, channels), torch.full((observations,), 50), cognition)
    scale = _SPREAD / said.std(dim=0).mean(dim=0)  # [7]
    readout.weight *= scale[:, None]
    readout.bias.copy_(-said.mean(dim=(0, 1)) * scale)
    # a token's standard deviation is its carrier's: undo the layer norm for what passes straight through
    readout.weight[:, :channels] = _PULL * 2.0**0.5 * _CARRIER * torch.eye(channels)
