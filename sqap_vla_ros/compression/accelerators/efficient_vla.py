"""EfficientVLA (Yang et al., NeurIPS 2025): fewer decoder layers, fewer visual tokens, a cache in the action head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqap_vla_ros.compression.accelerators.base import Accelerator, Savings
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.action_head import DiffusionTransformer, GuidedNoise
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.pruning.relevance_diversity import RelevanceDiversitySelector


@dataclass(frozen=True)
class EfficientVla(Accelerator):
    """The method's three parts; the defaults are the paper's row of 28 layers and 112 tokens.

    remove: number of decoder layers left out, those that change their input least on the calibration observations.
    removed_layers: which ones, where that is known; no calibration is needed then.
    selector: the token selection; None keeps all tokens.
    head_interval: the action head's attention and MLP outputs are computed every so many denoising steps and reused in
        between (N = 5); 1 turns the cache off.
    """

    name: ClassVar[str] = "efficient_vla"
    remove: int = 4
    removed_layers: Sequence[int] | None = None
    selector: RelevanceDiversitySelector | None = field(
        default_factory=lambda: RelevanceDiversitySelector(name="efficient_vla")
    )
    head_interval: int = 5

    def __post_init__(self) -> None:
        if self.remove < 0 or self.head_interval < 1:
            raise ValueError(
                "efficient_vla: remove must be at least 0 and head_interval at least 1, "
                f"got {self.remove} and {self.head_interval}"
            )

    @property
    def needs_calibration(self) -> bool:
        """Return True where layers are ranked: they are not named, and some are left out."""
        return self.removed_layers is None and self.remove > 0

    @property
    def savings(self) -> Savings:
        removed = self.remove if self.removed_layers is None else len(self.removed_layers)
        return Savings(self.selector, removed, self.head_interval)

    def depth_problem(self, depth: int) -> str:
        return _removal_problem(self.removed_layers or (), depth)

    def install(self, policy: CogACTPolicy, calibration: Sequence[Observation] = ()) -> CogACTPolicy:
        """Change `policy` in place and return it."""
        depth = len(policy.model.decoder.layers)
        removed = self.removed_layers
        if removed is None:
            removed = least_important(layer_importance(policy, calibration), self.remove) if self.remove else ()
        remove_layers(policy.model, removed)
        if self.selector is not None and self.selector.prune_layer >= len(policy.model.decoder.layers):
            raise ValueError(
                f"efficient_vla: tokens are dropped before layer {self.selector.prune_layer}, but only "
                f"{len(policy.model.decoder.layers)} of {depth} layers are left"
            )
        policy.selector = self.selector
        if self.head_interval > 1:
            policy.model.action_head = CachedDiffusionTransformer(policy.model.action_head, self.head_interval)
        return policy


@torch.inference_mode()
def layer_importance(policy: CogACTPolicy, observations: Sequence[Observation]) -> list[float]:
    """Return 1 - the mean cosine between each decoder layer's input and output (Eq. 1), over tokens and observations.

    The last layer computes the cognition token alone, so it is judged on that one.
    """
    if not observations:
        raise ValueError("layer_importance needs at least one observation, got none")
    layers = policy.model.decoder.layers
    similarity = [0.0] * len(layers)
    inputs: dict[int, Tensor] = {}

    def remember(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: inputs.__setitem__(index, args[0])

    norms: list[Any] = [layer.input_layernorm for layer in layers]
    norms.append(policy.model.decoder.norm)
    hooks = [norm.register_forward_pre_hook(remember(index)) for index, norm in enumerate(norms)]
    kept, policy.selector = policy.selector, None
    try:
        for observation in observations:
            policy.predict(observation)
            for index in range(len(layers)):
                one, other = inputs[index].float(), inputs[index + 1].float()
                one = one[:, -other.shape[1] :]
                similarity[index] += float(F.cosine_similarity(one, other, dim=-1).mean()) / len(observations)
    finally:
        policy.selector = kept
        for hook in hooks:
            hook.remove()
    return [1.0 - value for value in similarity]


def least_important(importance: Sequence[float], count: int) -> list[int]:
    """Return the `count` layers of least importance in ascending order; equals go by index."""
    if not 0 <= count < len(importance):
        raise ValueError(f"efficient_vla: cannot remove {count} of {len(importance)} decoder layers")
    return sorted(sorted(range(len(importance)), key=lambda layer: (importance[layer], layer))[:count])


def remove_layers(model: CogACT, removed: Sequence[int]) -> None:
    """Take decoder layers out of `model`. Raises ValueError for layers it does not have, or for all of them."""
    depth = len(model.decoder.layers)
    if problem := _removal_problem(removed, depth):
        raise ValueError(problem)
    model.decoder.layers = nn.ModuleList(
        layer for index, layer in enumerate(model.decoder.layers) if index not in set(removed)
    )


def _removal_problem(removed: Sequence[int], depth: int) -> str:
    if all(layer in range(depth) for layer in removed) and len(set(removed)) < depth:
        return ""
    return f"efficient_vla: cannot remove layers {list(removed)} of a decoder with {depth}"


class CachedDiffusionTransformer(DiffusionTransformer):
    """The action head with the outputs of its blocks' attention and MLPs reused between denoising steps.

    All of them are added to the same residual, so their sum is what has to be remembered.
    """

    def __init__(self, head: DiffusionTransformer, interval: int) -> None:
        super().__init__(head.config, head.z_embedder.linear.in_features)
        for name, module in head.named_children():
            setattr(self, name, module)
        self.positional_embedding = head.positional_embedding
        self.interval = interval
        self._step = 0
        self._added: Tensor | None = None

    def guided(self, cognition: Tensor, timesteps: tuple[int, ...], guidance: float) -> GuidedNoise:
        """Start a chunk with an empty cache; otherwise as in the base class."""
        self._step, self._added = 0, None
        return super().guided(cognition, timesteps, guidance)

    def denoise(self, x: Tensor, condition: Tensor) -> Tensor:
        """Compute the blocks in every `interval`-th call of a chunk; otherwise as in the base class."""
        x = torch.cat((condition.unsqueeze(1), self.x_embedder(x)), dim=1) + self.positional_embedding
        if self._added is None or self._step % self.interval == 0:
            entered = x
            for block in self.blocks:
                x = block(x)
            self._added = x - entered
        else:
            x = x + self._added
        self._step += 1
        return self.final_layer(x)[:, 1:]
