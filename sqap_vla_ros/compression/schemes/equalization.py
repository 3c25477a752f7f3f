"""Per-channel scales that are moved between neighbouring modules before rounding, without changing the function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from sqap_vla_ros.policy.architecture import COGACT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sqap_vla_ros.compression.layer_work import LayerWork
    from sqap_vla_ros.quantization.quantizers import QuantizedWeight

ATTENTION_IN, ATTENTION_OUT, MLP_IN, MLP_OUT = (group.names for group in COGACT.groups)


class Equalization:
    """No equalisation; a base for those that move scales.

    needs_calibration, needs_hessian: it looks at a layer's inputs, and at their second moment when rounding.
    """

    needs_calibration: ClassVar[bool] = True
    needs_hessian: ClassVar[bool] = False

    def balance(self, work: LayerWork) -> None:
        """Move scales inside the layer."""

    def rounded(self, work: LayerWork, name: str, weight: Tensor, hessian: Tensor | None) -> QuantizedWeight | None:
        """Round a weight [N, K] its own way; None leaves it to the recipe's rounding.

        hessian: [K, K] second moment of the inputs, None without calibration.
        """
        return None


class NoEqualization(Equalization):
    """Move nothing and look at nothing."""

    needs_calibration = False


class SmoothQuant(Equalization):
    """Move activation outliers into the weights, through the two norms (Xiao et al. 2023, arXiv:2211.10438)."""

    def balance(self, work: LayerWork) -> None:
        from sqap_vla_ros.quantization.equalization import move_scale, smoothing_scale

        statistics = work.collect()
        for norm, names in (
            (work.layer.input_layernorm, ATTENTION_IN),
            (work.layer.post_attention_layernorm, MLP_IN),
        ):
            linears = work.linears(names)
            scale = smoothing_scale(statistics[names[0]].absmax, linears, work.settings.smooth_alpha)
            move_scale(scale, norm, linears)


class Awq(Equalization):
    """Search scales for the norms, and for v -> o and up -> down as well (Lin et al. 2024, arXiv:2306.00978)."""

    needs_hessian = True
    unclipped: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj")  # clipping their range costs more than it saves

    def balance(self, work: LayerWork) -> None:
        from sqap_vla_ros.compression.layer_work import concatenated
        from sqap_vla_ros.quantization.equalization import awq_scale, move_scale

        layer = work.layer
        steps: tuple[tuple[nn.Module, tuple[str, ...]], ...] = (
            (layer.input_layernorm, ATTENTION_IN),
            (layer.self_attn.v_proj, ATTENTION_OUT),
            (layer.post_attention_layernorm, MLP_IN),
            (layer.mlp.up_proj, MLP_OUT),
        )
        for source, names in steps:
            linears = work.linears(names)
            scale = awq_scale(
                work.collect()[names[0]].mean_abs,
                linears,
                lambda: concatenated(work.run()),
                work.settings.bits(names[0])[0],
                group=work.group_size(linears[0].in_features),
                symmetric=work.settings.weight_symmetric,
            )
            move_scale(scale, source, linears)

    def rounded(self, work: LayerWork, name: str, weight: Tensor, hessian: Tensor | None) -> QuantizedWeight | None:
        from sqap_vla_ros.quantization.equalization import awq_clipped_weight

        if hessian is None or name in self.unclipped:
            return None
        return awq_clipped_weight(
            weight,
            hessian,
            work.settings.bits(name)[0],
            group=work.group_size(weight.shape[1]),
            symmetric=work.settings.weight_symmetric,
        )


class OmniQuant(Equalization):
    """Learn every row's clipping and the norms' scales, layer by layer (Shao et al. 2024, arXiv:2308.13137)."""

    learned_from: ClassVar[int] = 8  # observations, spread over all: it computes them many times

    def balance(self, work: LayerWork) -> None:
        from sqap_vla_ros.quantization.omniquant import learn_layer

        few = work.hidden[:: max(1, len(work.hidden) // self.learned_from)][: self.learned_from]
        work.row_clips = learn_layer(
            work.layer,
            lambda: work.run_on(few),
            work.run_on(few),
            work.settings.bits,
            [group.names for group in COGACT.groups],
            work.settings.smooth_alpha,
        )

    def rounded(self, work: LayerWork, name: str, weight: Tensor, hessian: Tensor | None) -> QuantizedWeight | None:
        from sqap_vla_ros.quantization.equalization import clipped_grid

        return clipped_grid(weight, work.row_clips[name], work.settings.bits(name)[0])


EQUALIZATIONS: Mapping[str, Equalization] = {
    "none": NoEqualization(),
    "smoothquant": SmoothQuant(),
    "awq": Awq(),
    "omniquant": OmniQuant(),
}
