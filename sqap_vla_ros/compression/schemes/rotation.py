"""Rotations that spread outlier channels over all channels before weights and activations are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqap_vla_ros.policy.architecture import COGACT

if TYPE_CHECKING:
    from torch import nn
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from sqap_vla_ros.policy.config import DecoderConfig
    from sqap_vla_ros.policy.decoder import Decoder
    from sqap_vla_ros.quantization.rotations import OrthogonalMix


class Rotation:
    """No rotation, and a base for those that turn something. None of them changes the policy's function."""

    def turn_stream_ends(self, decoder: Decoder, projector: nn.Module) -> None:
        """Turn what enters the residual stream, and turn back what leaves it."""

    def replace_norm(self, decoder: Decoder) -> None:
        """Give a decoder on the meta device the modules that `turn_stream_ends` leaves behind."""

    def turn_layer(self, layer: LlamaDecoderLayer, heads: int) -> None:
        """Turn the weights of a decoder layer, and the inputs that are turned at run time."""

    def online(self, linear: str, config: DecoderConfig) -> OrthogonalMix | None:
        """Return the rotation of the input of `linear` at run time; None for none."""
        return None


class Hadamard(Rotation):
    """QuaRot (arXiv:2404.00456): stream and heads turned in the weights, online before o_proj and down_proj."""

    def turn_stream_ends(self, decoder: Decoder, projector: nn.Module) -> None:
        from sqap_vla_ros.compression.folding import rotate_stream_ends

        rotate_stream_ends(decoder, projector)

    def replace_norm(self, decoder: Decoder) -> None:
        import torch

        from sqap_vla_ros.compression.folding import UnrotatedNorm, residual_rotation

        rotation = residual_rotation(decoder.config.width)  # its signs are stored nowhere, so they are made here
        with torch.device("meta"):
            decoder.norm = UnrotatedNorm(decoder.norm, rotation)

    def turn_layer(self, layer: LlamaDecoderLayer, heads: int) -> None:
        from sqap_vla_ros.compression.folding import rotate_layer

        rotate_layer(layer, layer.self_attn.q_proj.in_features // heads)

    def online(self, linear: str, config: DecoderConfig) -> OrthogonalMix | None:
        from sqap_vla_ros.compression.folding import online_rotation

        return online_rotation(linear, config.heads, config.width // config.heads, config.mlp_width)


class QueryKey(Rotation):
    """SQAP-VLA, Eq. 5 to 7: online before q_proj and k_proj; v_proj shares their input."""

    turned = COGACT.groups[0].names

    def turn_layer(self, layer: LlamaDecoderLayer, heads: int) -> None:
        from sqap_vla_ros.compression.folding import turn_input_online
        from sqap_vla_ros.quantization.rotations import OrthogonalMix

        for name in self.turned:
            linear = COGACT.linear(layer, name)
            turn_input_online(linear, OrthogonalMix(linear.in_features))

    def online(self, linear: str, config: DecoderConfig) -> OrthogonalMix | None:
        from sqap_vla_ros.quantization.rotations import OrthogonalMix

        return OrthogonalMix(config.width) if linear in self.turned else None


ROTATIONS: Mapping[str, Rotation] = {"none": Rotation(), "hadamard": Hadamard(), "query_key": QueryKey()}
