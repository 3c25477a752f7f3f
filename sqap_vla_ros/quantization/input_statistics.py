"""Statistics that calibration keeps of a linear's inputs, in bounded memory however many observations stream by."""

from __future__ import annotations

import torch

from sqap_vla_ros.quantization.gptq import Hessian

SAMPLES = 512  # rows kept for searches that need inputs rather than moments


class InputStatistics:
    """Streaming statistics of the inputs [..., K] of one linear, or of several that share them.

    hessian: second moment (None unless asked for; K x K float32).
    absmax, mean_abs: [K] largest and mean magnitude of every channel.
    """

    def __init__(self, channels: int, *, hessian: bool = False) -> None:
        self.channels = channels
        self.hessian = Hessian(channels) if hessian else None
        self.absmax = torch.zeros(channels)
        self._abs_sum = torch.zeros(channels, dtype=torch.float64)
        self.tokens = 0
        self._samples: list[torch.Tensor] = []
        self._stride = 1

    def add(self, x: torch.Tensor) -> None:
        """Take in more inputs [..., K]. Raises ValueError for another width, NaN or infinity."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if rows.shape[-1] != self.channels:
            raise ValueError(f"expected {self.channels} channels, got {rows.shape[-1]}")
        if not torch.isfinite(rows).all():
            raise ValueError("calibration inputs hold NaN or infinity: check the checkpoint and the observations")
        if self.hessian is not None:
            self.hessian.add(rows)
        magnitude = rows.abs()
        self.absmax = torch.maximum(self.absmax, magnitude.amax(0))
        self._abs_sum += magnitude.sum(0, dtype=torch.float64)
        # every stride-th row of the stream is kept; when there are too many, every second one is dropped
        first = -self.tokens % self._stride
        self._samples.append(rows[first :: self._stride].clone())
        self.tokens += rows.shape[0]
        while sum(map(len, self._samples)) > SAMPLES:
            self._samples = [torch.cat(self._samples)[::2].clone()]
            self._stride *= 2

    @property
    def mean_abs(self) -> torch.Tensor:
        """Return the mean magnitude of every channel, [K]. Raises ValueError when nothing was seen."""
        if not self.tokens:
            raise ValueError("no calibration input was seen: give at least one observation")
        return (self._abs_sum / self.tokens).float()

    @property
    def samples(self) -> torch.Tensor:
        """Return at most 512 rows spread evenly over all that was seen, [n, K]."""
        return torch.cat(self._samples)
