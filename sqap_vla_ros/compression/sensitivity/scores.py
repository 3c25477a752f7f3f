"""Metrics estimate the damage of rounding a row to some width. Each is one class and one row of `METRICS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from sqap_vla_ros.compression.sensitivity.backward import LinearMoments
from sqap_vla_ros.compression.sensitivity.objectives import OBJECTIVES, Objective
from sqap_vla_ros.quantization.gptq import DAMPING

RowScores = dict[int, Tensor]  # bits -> [N]


class Metric(ABC):
    """objective: the output that is differentiated; None for a metric that looks at inputs alone."""

    objective: Objective | None = None
    second_moments: ClassVar[bool] = False  # it looks at the second moments of the inputs

    @abstractmethod
    def score(self, moments: LinearMoments, deltas: Mapping[int, Tensor]) -> RowScores:
        """Return the expected damage of every row by width; its unit is the metric's own. deltas: bits -> [N, K]."""


class JacobianVector(Metric):
    """|J dW x|^2, signs kept: Eq. 4 to first order."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def score(self, moments: LinearMoments, deltas: Mapping[int, Tensor]) -> RowScores:
        return {bits: moments.change[bits] for bits in deltas}


class ProductOfNorms(Metric):
    """Eq. 6 as written, squared: |J|^2 |dW x|^2. Tokens and signs are averaged away."""

    objective = OBJECTIVES["action"]
    second_moments = True

    def score(self, moments: LinearMoments, deltas: Mapping[int, Tensor]) -> RowScores:
        assert moments.plain is not None
        second = moments.plain.sum / moments.observations
        return {bits: moments.gain * ((delta @ second) * delta).sum(1) for bits, delta in deltas.items()}


class ReleasedProxy(Metric):
    """The method's public code: sum_j dw_j^2 / d_j^2 with d the diagonal of chol(H^-1), no gradient at all."""

    second_moments = True

    def score(self, moments: LinearMoments, deltas: Mapping[int, Tensor]) -> RowScores:
        assert moments.plain is not None
        hessian = moments.plain.matrix.double()
        diagonal = hessian.diagonal()
        diagonal[diagonal == 0] = 1.0
        diagonal += DAMPING * diagonal.mean()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        weights = torch.linalg.cholesky(inverse, upper=True).diagonal().square().float()
        return {bits: (delta.square() / weights).sum(1) for bits, delta in deltas.items()}


METRICS: Mapping[str, Metric] = {
    **{name: JacobianVector(objective) for name, objective in OBJECTIVES.items()},
    "eq6": ProductOfNorms(),
    "released": ReleasedProxy(),
}
