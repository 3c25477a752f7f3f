"""Numbers on a grid: scales, rounding, and the search for where to clip.

Signed formats of b bits hold -(2^(b-1)-1) ... 2^(b-1)-1 when symmetric (4 bits: -7 ... 7), the whole two's-complement
range when they carry a zero point, and the odd numbers -(2^b-1) ... 2^b-1 when they are mid-rise (2 bits: -3 -1 1 3,
all four levels without a zero point). Values are int8 tensors here; `packing` makes them small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

CLIP_STEPS = 40  # candidates of the clipping search: 1.0, 0.98, ..., 0.22
SEARCHED_AT_ONCE = 1 << 16  # weights
TINY = 1e-12
DIGIT_BASE = 254  # of 16-bit activations in two int8 digits
LARGEST_TWO_DIGITS = 127 * DIGIT_BASE + 126  # one more would round to a high digit of 128
# x [M, K], bits, clip, rms_eps -> what `quantize_activation` gives per token: int8 [M, K] and scales [M, 1]
TokenQuantizer = Callable[[torch.Tensor, int, float, float | None], tuple[torch.Tensor, torch.Tensor]]
_OFFSET = 192  # the middle of 128...256, where bfloat16's steps are 1


def largest(bits: int, mid_rise: bool = False) -> int:
    """Return the largest magnitude of a format without a zero point: 127, 7, 3 or 1 for 8, 4, 3 and 2 bits.

    mid_rise: of the odd numbers instead, 15, 7 or 3 for 4, 3 and 2 bits.
    """
    if bits not in (2, 3, 4, 8) or (mid_rise and bits == 8):
        raise ValueError(f"bits must be 2, 3, 4 or 8 (mid-rise: 2, 3 or 4), got {bits}")
    return 2**bits - 1 if mid_rise else 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix on an integer grid, w = (values - zero_point) * scale.

    values: [N, K] int8.
    scale: [N, G] float32, G groups of K / G input channels (1: one scale per row).
    zero_point: [N, G] float32 holding integers, None when symmetric or mid-rise.
    bits: width of a value.
    """

    values: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    bits: int

    def dequantize(self) -> torch.Tensor:
        """Return the weights the integers stand for, [N, K] float32."""
        rows, columns = self.values.shape
        grouped = self.values.float().view(rows, self.scale.shape[1], -1)
        if self.zero_point is not None:
            grouped = grouped - self.zero_point[..., None]
        return (grouped * self.scale[..., None]).view(rows, columns)


def _grid(
    grouped: torch.Tensor, bits: int, symmetric: bool, mid_rise: bool, clip: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scale and zero point, each [N, G, 1], of weights [N, G, K/G] whose range is shrunk by `clip`."""
    if symmetric or mid_rise:
        return (grouped.abs().amax(-1, keepdim=True) * (clip / largest(bits, mid_rise))).clamp_min(TINY), None
    low = grouped.amin(-1, keepdim=True).clamp_max(0) * clip
    high = grouped.amax(-1, keepdim=True).clamp_min(0) * clip
    scale = ((high - low) / (2**bits - 1)).clamp_min(TINY)
    return scale, -(2 ** (bits - 1)) - torch.round(low / scale)


def to_grid(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, bits: int, mid_rise: bool = False
) -> torch.Tensor:
    """Round x to the nearest integers of the grid (ties to even) and saturate; return them as floats."""
    if mid_rise:
        top = largest(bits, mid_rise)
        return torch.floor(x / (2 * scale)).mul_(2).add_(1).clamp_(-top, top)
    if zero_point is None:
        top = largest(bits)
        return torch.round(x / scale).clamp_(-top, top)
    half = 2 ** (bits - 1)
    return (torch.round(x / scale) + zero_point).clamp_(-half, half - 1)


def weight_grid(
    weight: torch.Tensor,
    bits: int,
    *,
    group: int = 0,
    symmetric: bool = True,
    mid_rise: bool = False,
    clip_search: bool = False,
    importance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scale and zero point, [N, G] float32 each, of a weight matrix [N, K].

    group: input channels per scale; 0 for one scale per row. Must divide K.
    mid_rise: odd levels, see the module's docstring; `symmetric` then says nothing.
    clip_search: for every row and group take the clipping in 1.0, 0.98 ... 0.22 with the least squared error.
    importance: [K] non-negative weights of that error, usually the mean squared input of each channel.
    """
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(f"weight must be a non-empty [N, K] matrix, got shape {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinity: the checkpoint is damaged")
    rows, columns = weight.shape
    group = group or columns
    if columns % group:
        raise ValueError(f"weight_group {group} does not divide the {columns} input channels; use 0 (per row)")
    grouped = weight.float().view(rows, -1, group)
    scale, zero_point = _grid(grouped, bits, symmetric, mid_rise, 1.0)
    if clip_search:
        per_channel = torch.ones(columns) if importance is None else importance.float()
        per_channel = per_channel.to(weight.device).view(1, -1, group)
        # a few rows at a time, forty candidates each: everything stays in the cache
        size = max(1, SEARCHED_AT_ONCE // columns)
        for rows_ in range(0, rows, size):
            part = slice(rows_, rows_ + size)
            found, found_zero = _search_clip(grouped[part], bits, symmetric, mid_rise, per_channel)
            scale[part] = found
            if zero_point is not None and found_zero is not None:
                zero_point[part] = found_zero
    return scale[..., 0], None if zero_point is None else zero_point[..., 0]


def _search_clip(
    grouped: torch.Tensor, bits: int, symmetric: bool, mid_rise: bool, per_channel: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the grid of least error for every row and group of weights [N, G, K/G]; see `weight_grid`."""
    scale, zero_point = _grid(grouped, bits, symmetric, mid_rise, 1.0)
    best = torch.full_like(scale, torch.inf)
    for step in range(CLIP_STEPS):
        candidate, candidate_zero = _grid(grouped, bits, symmetric, mid_rise, 1.0 - 0.02 * step)
        values = to_grid(grouped, candidate, candidate_zero, bits, mid_rise)
        if candidate_zero is not None:
            values -= candidate_zero
        error = (values.mul_(candidate).sub_(grouped).square_() * per_channel).sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, candidate, scale)
        if zero_point is not None and candidate_zero is not None:
            zero_point = torch.where(better, candidate_zero, zero_point)
    return scale, zero_point


def quantize_weight(
    weight: torch.Tensor,
    bits: int,
    *,
    group: int = 0,
    symmetric: bool = True,
    mid_rise: bool = False,
    clip_search: bool = False,
    importance: torch.Tensor | None = None,
) -> QuantizedWeight:
    """Round a weight matrix [N, K] to nearest; parameters as in `weight_grid`."""
    scale, zero_point = weight_grid(
        weight,
        bits,
        group=group,
        symmetric=symmetric,
        mid_rise=mid_rise,
        clip_search=clip_search,
        importance=importance,
    )
    rows, columns = weight.shape
    grouped = weight.float().view(rows, scale.shape[1], -1)
    zero = None if zero_point is None else zero_point[..., None]
    values = to_grid(grouped, scale[..., None], zero, bits, mid_rise)
    return QuantizedWeight(values.view(rows, columns).to(torch.int8), scale, zero_point, bits)


def quantize_activation(
    x: torch.Tensor, bits: int, *, clip: float = 1.0, granularity: str = "token", rms_eps: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise x [..., S, K] symmetrically, with scales taken from x itself.

    clip: quantised range over the largest magnitude.
    granularity: `token` (one scale for each of the S rows) or `tensor` (one for the last two axes).
    rms_eps: when given, x / sqrt(mean(x^2) + rms_eps) is quantised, row by row. The integers do not depend on a row's
        magnitude, so the norm costs one more factor in the scale.
    Returns int8 values shaped like x, values = clamp(round(x * inverse)), and the scale 1 / inverse [..., S, 1] in x's
    dtype. `inverse` = top / (clip * max|x|) is cut to bfloat16's precision, so that its product with a bfloat16 x is
    exact in float32 and every way of computing this gives the same integers.
    """
    top = largest(bits)
    magnitude = x.abs().amax(-1, keepdim=True)
    if granularity == "tensor" and x.dim() > 1:
        magnitude = magnitude.amax(-2, keepdim=True).expand_as(magnitude)
    inverse, scale = activation_scales(x, magnitude, clip_ratio(clip, bits), rms_eps)
    if x.dtype == torch.bfloat16 and bits <= 4:
        # 192 + x * inverse lies where bfloat16 holds integers only: one operation multiplies and rounds (ties to even)
        shifted = torch.addcmul(_offset(x.device), x, inverse.to(x.dtype))
        if clip < 1.0:
            shifted = shifted.clamp_(_OFFSET - top, _OFFSET + top)
        values = shifted.to(torch.uint8).sub_(_OFFSET).view(torch.int8)
    else:
        values = (x.float() * inverse).round_().clamp_(-top, top).to(torch.int8)
    return values, scale


def split_activation(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise x [M, K] per token to 16-bit integers of two digits: x = (254 high + low) * scale, |digit| <= 127.

    Returns int8 [2 M, K], the high digits of all tokens above the low ones, and their scales [2 M, 1] float32.
    """
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST_TWO_DIGITS).clamp_min(TINY)
    integers = torch.round(x / scale)
    high = torch.round(integers / DIGIT_BASE)
    low = integers - high * DIGIT_BASE
    return torch.cat((high, low)).to(torch.int8), torch.cat((scale * DIGIT_BASE, scale))


def clip_ratio(clip: float, bits: int) -> float:
    """Return clip over the largest integer, divided in float32. A captured graph could not make a tensor of it."""
    return float(np.float32(clip) / np.float32(largest(bits)))


def activation_scales(
    x: torch.Tensor, magnitude: torch.Tensor, ratio: torch.Tensor | float, rms_eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factor for x (float32) and the integers' scale (x's dtype), both shaped like `magnitude`.

    magnitude: the largest |x| a scale covers. ratio: a float32 value, clip over the largest integer.
    """
    inverse = cut_to_bfloat16((magnitude.float() * ratio).clamp_min(TINY).reciprocal())
    scale = inverse.reciprocal()
    if rms_eps is not None:
        scale = scale * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + rms_eps)
    return inverse, scale.to(x.dtype)


def cut_to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Return float32 x with the lower half of its bits cleared, in float32."""
    return (x.contiguous().view(torch.int32) & -65536).view(torch.float32)


@functools.cache
def _offset(device: torch.device) -> torch.Tensor:
    return torch.tensor(_OFFSET, dtype=torch.bfloat16, device=device)


def search_activation_clip(
    x: torch.Tensor, bits: int, *, granularity: str = "token", importance: torch.Tensor | None = None
) -> float:
    """Return the clip in 1.0, 0.95 ... 0.65 with the least squared error on calibration inputs x [M, K].

    importance: [K] weights of that error (how much the following weights care for each channel).
    """
    best, best_error = 1.0, torch.inf
    weights = 1.0 if importance is None else importance.float()
    for step in range(8):
        clip = 1.0 - 0.05 * step
        values, scale = quantize_activation(x.float(), bits, clip=clip, granularity=granularity)
        error = ((values * scale - x).square() * weights).sum().item()
        if error < best_error:
            best, best_error = clip, error
    return round(best, 2)
