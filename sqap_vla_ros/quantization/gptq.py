"""GPTQ: round a weight matrix column by column, pushing each column's error into the columns still to come.

Frantar et al. 2023, arXiv:2210.17323: the objective is tr((W - Q) H (W - Q)^T) with H = 2/n sum x x^T over the
calibration inputs; the updates come from the upper Cholesky factor of H^-1.
"""

from __future__ import annotations

import torch

from sqap_vla_ros.quantization.quantizers import QuantizedWeight, quantize_weight, to_grid

BLOCK = 128
DAMPING = 0.01  # share of the mean diagonal added to H
PLAIN_SHARE = 0.1  # of the unweighted inputs in a gradient-weighted Hessian


class Hessian:
    """The second moment H = 2/n sum x x^T, accumulated over calibration inputs in float32."""

    def __init__(self, channels: int) -> None:
        self.sum = torch.zeros(channels, channels)
        self.tokens = 0

    def add(self, x: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Take in more inputs [..., K] of the linear, each times the square root of its weight [...]."""
        x = x.reshape(-1, x.shape[-1]).float()
        if weights is not None:
            x = x * weights.reshape(-1, 1).float().sqrt()
        self.sum.addmm_(x.t(), x)
        self.tokens += x.shape[0]

    @property
    def matrix(self) -> torch.Tensor:
        """Return H [K, K]. Raises ValueError when nothing was seen."""
        if not self.tokens:
            raise ValueError("the Hessian saw no calibration input: give at least one observation")
        return self.sum * (2.0 / self.tokens)


def blended_hessian(weighted: torch.Tensor, plain: torch.Tensor, plain_share: float = PLAIN_SHARE) -> torch.Tensor:
    """Return weighted / tr(weighted) + plain_share * plain / tr(plain), [K, K].

    weighted: second moment of the inputs, each token weighted by the squared gradient of the action at the linear's
        output there: its errors are the ones that reach the action.
    plain: the unweighted one, which keeps directions that few weighted tokens have from being neglected.
    Where `weighted` is zero, `plain` is all there is: a linear that the action does not depend on, as in a layer whose
    output was zeroed to take it out, is rounded on its inputs. Raises ValueError for what is not finite.
    """
    traces = weighted.trace(), plain.trace()
    if not all(torch.isfinite(trace) for trace in traces):
        raise ValueError(
            f"the traces of its weighted and its plain Hessian must be finite, got {traces[0]:.3g} and {traces[1]:.3g}"
        )
    if not traces[0]:
        return plain / traces[1] if traces[1] else plain
    return weighted / traces[0] + plain_share * (plain / traces[1])


def quantization_objective(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return each row's error (w - q) H (w - q)^T, [N]: twice the mean squared error of its output."""
    error = weight.float() - quantized
    return ((error @ hessian) * error).sum(-1)


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    *,
    group: int = 0,
    symmetric: bool = True,
    mid_rise: bool = False,
    clip_search: bool = False,
    factor: torch.Tensor | None = None,
) -> QuantizedWeight:
    """Quantise a weight [N, K] for inputs with second moment `hessian` [K, K].

    Rows for which plain rounding to the same grid happens to score better keep it, so the result is never worse than
    rounding on the objective. Parameters as in `quantizers.weight_grid`.

    factor: `inverse_factor(hessian)` where several weights share it; it takes longer than the rounding.
    """
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(f"hessian must be [{columns}, {columns}] for this weight, got {tuple(hessian.shape)}")
    nearest = quantize_weight(
        weight,
        bits,
        group=group,
        symmetric=symmetric,
        mid_rise=mid_rise,
        clip_search=clip_search,
        importance=hessian.diagonal(),
    )
    factor = inverse_factor(hessian) if factor is None else factor
    work = weight.float().t().contiguous()  # [K, N]: a column of the weight is a row here, in one piece
    values = torch.empty_like(work)
    size = group or columns
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, block_factor = work[start:stop], factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for column in range(stop - start):
            index = (start + column) // size
            scale = nearest.scale[:, index]
            zero = None if nearest.zero_point is None else nearest.zero_point[:, index]
            rounded = to_grid(block[column], scale, zero, bits, mid_rise)
            values[start + column] = rounded
            restored = (rounded if zero is None else rounded - zero) * scale
            error = (block[column] - restored) / block_factor[column, column]
            block[column + 1 :].addr_(block_factor[column, column + 1 :], error, alpha=-1.0)
            errors[column] = error
        work[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1.0)
    result = QuantizedWeight(values.t().to(torch.int8).contiguous(), nearest.scale, nearest.zero_point, bits)
    worse = quantization_objective(weight, result.dequantize(), hessian) > quantization_objective(
        weight, nearest.dequantize(), hessian
    )
    result.values[worse] = nearest.values[worse]
    return result


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped inverse. Channels that never fire get a unit diagonal."""
    damped = hessian.float().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    damping = DAMPING * diagonal.mean()
    for _ in range(4):
        diagonal += damping
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        damping *= 10
    raise ValueError("the calibration inputs are not finite or too degenerate for GPTQ; use rounding: nearest")
