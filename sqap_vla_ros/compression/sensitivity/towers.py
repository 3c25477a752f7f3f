"""Scores for the rows of the vision towers: cotangents carried on from the decoder through projector and blocks."""

from __future__ import annotations

import copy
import functools
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sqap_vla_ros.compression.recipe import QuantizationSpec
from sqap_vla_ros.compression.sensitivity.allocation import VISION, Linear
from sqap_vla_ros.compression.sensitivity.backward import block_moments
from sqap_vla_ros.compression.sensitivity.rounding import rounding_changes, rounding_hessian
from sqap_vla_ros.compression.sensitivity.scores import Metric, RowScores
from sqap_vla_ros.compression.sensitivity.soundness import about, require_finite
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.decoder import VISUAL_START

Probed = tuple[Sequence[Tensor], Sequence[Sequence[Tensor]]]  # images, and cotangents at the decoder's inputs


def score_towers(
    policy: CogACTPolicy,
    spec: QuantizationSpec,
    metric: Metric,
    fitted: Probed,
    judged: Probed,
    hessians: MutableMapping[Linear, Tensor],
) -> dict[Linear, RowScores]:
    """Return the damage of every row of the towers' blocks by width, and put what they are rounded on into `hessians`.

    fitted, judged: images [1, 3, H, W] uint8, and by image and probe a cotangent [1, S, D]; the rounding is fitted to
        the first and its damage scored on the second.
    """
    towers = _FloatTowers(policy)
    found: dict[Linear, RowScores] = {}
    to_fit, to_judge = (towers.seen(*each) for each in (fitted, judged))
    for layout in COGACT.parts["vision"].layouts:
        fit, judge = to_fit[layout.blocks], to_judge[layout.blocks]
        for index, block in reversed([*enumerate(towers.parts.get_submodule(layout.blocks).children())]):
            linears: dict[str, Any] = {
                f"{layout.blocks}.{index}.{name}": block.get_submodule(name)
                for group in layout.groups
                for name in group
            }
            run = functools.partial(block, **fit.options)
            moments, fit.cotangents = block_moments(linears, run, fit.inputs[index], fit.cotangents)
            deltas = {}
            for path, linear in linears.items():
                with about((VISION, path), policy):
                    hessian = rounding_hessian(moments[path], spec)
                    deltas[path] = rounding_changes(linear.weight.data, hessian, spec)
                if spec.rounding_scheme.needs_hessian:
                    hessians[VISION, path] = hessian
            moments, judge.cotangents = block_moments(
                linears,
                run,
                judge.inputs[index],
                judge.cotangents,
                deltas=deltas,
                second=metric.second_moments,
            )
            for path, changes in deltas.items():
                with about((VISION, path), policy):
                    found[VISION, path] = metric.score(moments[path], changes)
                require_finite((VISION, path), found[VISION, path], policy)
    return found


@dataclass
class _Seen:
    """A tower under some images.

    inputs: by block and image. cotangents: by image and probe, at the last block's output. options: what a block is
    called with beside its input.
    """

    inputs: list[list[Tensor]]
    cotangents: list[list[Tensor]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


class _FloatTowers:
    """Towers and projector in float32, without gradients of their weights."""

    def __init__(self, policy: CogACTPolicy) -> None:
        kept = {"vision": policy.model.vision, "projector": policy.model.projector}
        self.parts = nn.ModuleDict({name: copy.deepcopy(part).float() for name, part in kept.items()})
        self.parts.requires_grad_(False)

    def seen(self, images: Sequence[Tensor], cotangents: Sequence[Sequence[Tensor]]) -> dict[str, _Seen]:
        """Compute the towers on images; return, by the path of a tower's blocks, what its blocks saw."""
        paths = [layout.blocks for layout in COGACT.parts["vision"].layouts]
        blocks = {path: [*self.parts.get_submodule(path).children()] for path in paths}
        found = {path: _Seen([[] for _ in blocks[path]]) for path in paths}
        for image, probes in zip(images, cotangents, strict=True):
            ends: dict[str, Tensor] = {}

            def keep(path: str, index: int, _: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
                found[path].inputs[index].append(inputs[0].detach())
                found[path].options = options

            def cut(path: str, ends: dict[str, Tensor], _: nn.Module, __: object, output: Tensor) -> Tensor:
                ends[path] = output.detach().requires_grad_(True)
                return ends[path]

            with ExitStack() as stack, torch.enable_grad():
                for path in paths:
                    for index, block in enumerate(blocks[path]):
                        hook = functools.partial(keep, path, index)
                        stack.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
                    last = blocks[path][-1].register_forward_hook(functools.partial(cut, path, ends))
                    stack.callback(last.remove)
                visual = self.parts["projector"](self.parts["vision"](image)[0])
            of_image: list[list[Tensor]] = [[] for _ in paths]
            for probe in probes:
                upstream = probe[:, VISUAL_START : VISUAL_START + visual.shape[1]]
                gradients = torch.autograd.grad(visual, [ends[path] for path in paths], upstream, retain_graph=True)
                for collected, gradient in zip(of_image, gradients, strict=True):
                    collected.append(gradient)
            for path, collected in zip(paths, of_image, strict=True):
                found[path].cotangents.append(collected)
        return found
