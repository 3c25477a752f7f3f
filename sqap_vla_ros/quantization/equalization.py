"""Move per-channel scales between neighbouring layers without changing the function: SmoothQuant and AWQ.

A scale s > 0 for every input channel turns W into W diag(s) and whatever feeds it into diag(1/s) times itself. The
feeder is an RMSNorm's weight, or the rows of the linear before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from sqap_vla_ros.quantization.quantizers import QuantizedWeight, largest, quantize_weight, to_grid

AWQ_RATIOS = 20  # exponents 0, 0.05 ... 0.95
AWQ_CLIPS = 10  # range times 1, 0.95 ... 0.55


def smoothing_scale(absmax: torch.Tensor, linears: Sequence[nn.Linear], alpha: float) -> torch.Tensor:
    """Return SmoothQuant's scales s_j = max|X_j|^a / max|W_j|^(1-a), [K] (Xiao et al. 2023, arXiv:2211.10438, Eq. 4).

    absmax: [K] largest input magnitude of every channel.
    linears: share this input; the maximum of the weights goes over all of them.
    alpha: the exponent a, which says how much of the difficulty moves from activations to weights.
    """
    weight_max = torch.stack([linear.weight.detach().float().abs().amax(0) for linear in linears]).amax(0)
    return (absmax.clamp_min(1e-5) ** alpha / weight_max.clamp_min(1e-5) ** (1 - alpha)).clamp_min(1e-5)


def move_scale(scale: torch.Tensor, source: nn.Module, linears: Sequence[nn.Linear]) -> None:
    """Divide the outputs of `source` (a norm or a linear) by `scale` [K], multiply the inputs of `linears` by it."""
    inverse = scale.double().reciprocal()
    for name, parameter in source.named_parameters():
        factor = inverse[:, None] if name == "weight" and parameter.dim() == 2 else inverse
        parameter.data = (parameter.data.double() * factor).to(parameter.dtype)
    for linear in linears:
        linear.weight.data = (linear.weight.data.double() * scale.double()).to(linear.weight.dtype)


def awq_scale(
    mean_abs: torch.Tensor,
    linears: Sequence[nn.Linear],
    block: Callable[[], torch.Tensor],
    bits: int,
    *,
    group: int = 0,
    symmetric: bool = False,
) -> torch.Tensor:
    """Return AWQ's scales s = mean|X|^r [K], with the r of a grid whose block errs least.

    Lin et al. 2024, arXiv:2306.00978, Eq. 5; s is normalised by sqrt(max * min). The linears' weights are restored.

    mean_abs: [K] mean input magnitude of the linears.
    block: computes the output that is compared, from the linears' present weights.
    """
    originals = [linear.weight.data for linear in linears]
    expected = block()
    best, best_error = torch.ones_like(mean_abs), torch.inf
    try:
        for step in range(AWQ_RATIOS):
            scale = mean_abs.clamp_min(1e-4) ** (step / AWQ_RATIOS)
            scale = scale / (scale.max() * scale.min()).sqrt()
            for linear, original in zip(linears, originals, strict=True):
                quantized = quantize_weight(original.float() * scale, bits, group=group, symmetric=symmetric)
                linear.weight.data = (quantized.dequantize() / scale).to(original.dtype)
            error = (block().float() - expected).square().mean().item()
            if error < best_error:
                best, best_error = scale, error
    finally:
        for linear, original in zip(linears, originals, strict=True):
            linear.weight.data = original
    return best


def awq_clipped_weight(
    weight: torch.Tensor, hessian: torch.Tensor, bits: int, *, group: int = 0, symmetric: bool = False
) -> QuantizedWeight:
    """Round a weight [N, K], shrinking every row's and group's range by the 1, 0.95 ... 0.55 that errs least.

    hessian: [K, K] second moment of the inputs; a group's error is (w - q) H_g (w - q)^T over its own channels.
    """
    rows, columns = weight.shape
    group = group or columns
    grouped = weight.float().view(rows, -1, group)
    blocks = torch.stack([hessian[i : i + group, i : i + group] for i in range(0, columns, group)])
    best = torch.full(grouped.shape[:2], torch.inf)
    values = torch.empty_like(grouped)
    scale, zero_point = torch.empty(grouped.shape[:2]), None if symmetric else torch.empty(grouped.shape[:2])
    for step in range(AWQ_CLIPS):
        factor = 1 - step / 20
        limit = grouped.abs().amax(-1, keepdim=True) * factor
        clipped = grouped.clamp(-limit, limit)
        candidate = quantize_weight(clipped.view(rows, columns), bits, group=group, symmetric=symmetric)
        difference = candidate.dequantize().view_as(grouped) - grouped
        error = (torch.einsum("ngk,gkj->ngj", difference, blocks) * difference).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scale[better] = candidate.scale[better]
        values[better] = candidate.values.view_as(grouped)[better].float()
        if zero_point is not None and candidate.zero_point is not None:
            zero_point[better] = candidate.zero_point[better]
    return QuantizedWeight(values.view(rows, columns).to(torch.int8), scale, zero_point, bits)


def clipped_grid(weight: torch.Tensor, clip: torch.Tensor, bits: int) -> QuantizedWeight:
    """Round a weight [N, K] symmetrically with row i's range shrunk by clip[i] (OmniQuant's learned clipping)."""
    scale = (weight.float().abs().amax(-1, keepdim=True) * clip.view(-1, 1) / largest(bits)).clamp_min(1e-12)
    return QuantizedWeight(to_grid(weight.float(), scale, None, bits).to(torch.int8), scale, None, bits)
