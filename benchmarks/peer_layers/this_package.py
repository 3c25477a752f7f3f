"""The layers as this package computes them: one of the peers of `peers.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peer_layers.stack import HEADS, LAYERS, MLP_WIDTH, WIDTH, Contender, rotary, serve, torch_contender, weights
from torch import Tensor, nn

from sqap_vla_ros.compression.folding import residual_rotation
from sqap_vla_ros.compression.layers import compress_layer
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.policy.config import DecoderConfig
from sqap_vla_ros.policy.decoder import Decoder
from sqap_vla_ros.quantization.block_fusion import causal_attention
from sqap_vla_ros.quantization.layer_fusion import prepare_inference
from sqap_vla_ros.quantization.reordered_weights import reorder_weights

CONFIG = DecoderConfig(WIDTH, LAYERS, HEADS, MLP_WIDTH, 8)


def plain_decoder() -> Decoder:
    """Return the decoder with the weights of the stack, in bfloat16."""
    with torch.device("meta"):
        decoder = Decoder(CONFIG).bfloat16()
    decoder.to_empty(device="cpu").eval().requires_grad_(False)
    for module in decoder.modules():
        if "RMSNorm" in type(module).__name__:
            nn.init.ones_(module.weight)
    for name, weight in weights():
        decoder.get_submodule(f"layers.{name}").weight.copy_(torch.from_numpy(weight))
    return decoder


def compressed_layers(activation_bits: int, path: Path | None = None) -> nn.ModuleList:
    """Return the layers under the recipe `w4a4_rotated`, with other activation bits; kept as a file, if one is named.

    The clipping of rows is not searched: that takes a minute and changes no time.
    """
    if path is not None and path.is_file():
        return torch.load(path, weights_only=False)
    recipe = load_recipe("w4a4_rotated")
    assert recipe.quantization is not None
    spec = dataclasses.replace(recipe.quantization, activation_bits=activation_bits, weight_clip=False)
    decoder = plain_decoder()
    for layer in decoder.layers:
        compress_layer(layer, spec, CONFIG)
    if path is not None:
        torch.save(decoder.layers, path)
    return decoder.layers


def contender(decoder: Decoder, turn: Callable[[Tensor], Tensor], turn_back: Callable[[Tensor], Tensor]) -> Contender:
    """Return the decoder's layers as they run in the policy; its stream may be a rotated one."""
    cos, sin = (torch.from_numpy(table)[None].bfloat16() for table in rotary())

    def forward(hidden: Tensor) -> Tensor:
        count = hidden.shape[1]
        for layer in decoder.layers:
            hidden, _ = decoder._layer(
                layer, hidden, cos[:, :count], sin[:, :count], None, final=False, query_start=None
            )
        return hidden

    plain = torch_contender(forward)
    return Contender(
        lambda x: plain.bind(turn(torch.from_numpy(x)).numpy()),
        lambda y: turn_back(torch.from_numpy(plain.read(y))).numpy(),
    )


def bf16(_: Path, reordered: bool = False) -> Contender:
    """Return the layers in bfloat16; with reordered weights, as `load_policy` prepares them."""
    decoder = plain_decoder()
    if reordered:
        reorder_weights(decoder)
    return contender(decoder, lambda x: x, lambda y: y)


def integer(activation_bits: int, cache: Path) -> Contender:
    """Return the layers with four-bit weights, on the backend that `auto` takes."""
    with torch.device("meta"):
        decoder = Decoder(CONFIG)
    decoder.layers = compressed_layers(activation_bits, cache / f"w4a{activation_bits}.pt")
    prepare_inference(decoder)
    decoder.attend = causal_attention(decoder)
    rotation = residual_rotation(WIDTH)
    return contender(decoder, rotation, rotation.inverse)


if __name__ == "__main__":
    variants: dict[str, Callable[[Path], Contender]] = {
        "bf16": bf16,
        "bf16, reordered weights": partial(bf16, reordered=True),
        "w4a8": partial(integer, 8),
        "w4a4": partial(integer, 4),
    }
    serve(variants, {"torch": torch.__version__})
