"""Orthogonal mixes that spread outliers over all channels, applied as two small matrix products.

A mix of size n is A (x) B, the Kronecker product of two small symmetric orthogonal matrices, so it is its own inverse.
For a power of two it is the normalised Sylvester-Hadamard matrix; for other sizes n = m * 2^k with m odd, the factor m
is a Hartley matrix cas(2 pi i j / m) / sqrt(m), cas = cos + sin, which exists for every m and needs no table.
"""

from __future__ import annotations

import math

import torch


def sylvester(size: int) -> torch.Tensor:
    """Return the normalised Sylvester-Hadamard matrix [size, size] float64, symmetric and orthogonal."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Sylvester matrix needs a power of two, got {size}")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    block = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    while matrix.shape[0] < size:
        matrix = torch.kron(block, matrix)
    return matrix


def hartley(size: int) -> torch.Tensor:
    """Return the normalised Hartley matrix [size, size] float64: symmetric and orthogonal for every size."""
    if size < 1:
        raise ValueError(f"a Hartley matrix needs a positive size, got {size}")
    index = torch.arange(size, dtype=torch.float64)
    # the product is reduced modulo size while it is still an exact integer
    angle = (torch.outer(index, index) % size) * (2 * math.pi / size)
    return (torch.cos(angle) + torch.sin(angle)) / math.sqrt(size)


def mix_factors(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B (float64), both near sqrt(size) wide, whose Kronecker product is the orthogonal mix of `size`."""
    if size < 1:
        raise ValueError(f"an orthogonal mix needs a positive size, got {size}")
    odd, twos = size, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    # powers of two may move between the factors: Sylvester(2^k) is a Kronecker power
    left_twos = min(range(twos + 1), key=lambda k: abs(math.log(odd * 2**k) - math.log(2 ** (twos - k))))
    left = torch.kron(hartley(odd), sylvester(2**left_twos))
    return left, sylvester(2 ** (twos - left_twos))


class OrthogonalMix:
    """Map x to x D (A (x) B) along the last axis, or along the slower part of it.

    size: channels that are mixed.
    stride: 1 mixes neighbouring channels; more mixes channels that lie `stride` apart (across attention heads when
        `stride` is a head's width). The channel axis is size * stride long.
    signs: [size * stride] of +-1, the diagonal D; None for none.
    """

    def __init__(self, size: int, *, stride: int = 1, signs: torch.Tensor | None = None) -> None:
        self.size, self.stride, self.signs = size, stride, signs
        self._left, self._right = (
            mix_factors(size)
            if stride == 1
            else (torch.kron(*mix_factors(size)), torch.ones(1, 1, dtype=torch.float64))
        )
        # by dtype and device: left factor, right factor, signs
        self._cache: dict[tuple[torch.dtype, torch.device], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Mix x [..., size * stride]; shape and dtype stay."""
        signs = self._tables(x)[2]
        return self._mix(x if signs is None else x * signs)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Undo `__call__`."""
        signs = self._tables(x)[2]
        x = self._mix(x)
        return x if signs is None else x * signs

    def _tables(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        key = (like.dtype, like.device)
        if key not in self._cache:
            signs = None if self.signs is None else self.signs.to(like)
            self._cache[key] = (self._left.to(like), self._right.to(like), signs)
        return self._cache[key]

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        if shape[-1] != self.size * self.stride:
            raise ValueError(f"expected {self.size * self.stride} channels, got {shape[-1]}")
        left, right, _ = self._tables(x)
        if right.shape[0] > 1:
            x = x.reshape(-1, right.shape[0]) @ right
        if left.shape[0] > 1:
            x = left @ x.reshape(-1, left.shape[0], right.shape[0] * self.stride)
        return x.view(shape)


def random_signs(size: int, seed: int) -> torch.Tensor:
    """Return random +-1, [size] float64, the same for a seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (size,), generator=generator, dtype=torch.int64).double() * 2 - 1
