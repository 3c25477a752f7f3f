"""A CogACT policy some of whose linears hold integers."""

from __future__ import annotations

import dataclasses
from typing import Self

from sqap_vla_ros.contracts import PolicyInfo
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.quantization.linear import PackedLinear


def count_parameters(model: CogACT) -> int:
    """Weights of the model, packed ones counted one by one."""
    packed = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, PackedLinear))
    return packed + sum(parameter.numel() for parameter in model.parameters())


class CompressedPolicy(CogACTPolicy):
    """Predicts as `CogACTPolicy` does; its info counts the packed weights too."""

    @property
    def info(self) -> PolicyInfo:
        return dataclasses.replace(super().info, parameters=count_parameters(self.model))

    @classmethod
    def of(cls, policy: CogACTPolicy) -> Self:
        """The same model, tokenizer, statistics and settings."""
        made = cls(
            policy.model,
            policy.tokenize,
            policy.statistics,
            unnorm_key=policy.unnorm_key,
            selector=policy.selector,
            crop=policy.transform.crop,
            provenance=policy.provenance,
        )
        made.diffusion = policy.diffusion
        return made
