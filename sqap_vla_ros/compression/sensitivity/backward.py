"""Moments of every linear's inputs and output gradients, gathered layer by layer from the last to the first.

A layer is computed anew from its stored input, so no more than one layer's graph is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sqap_vla_ros.compression.layer_work import Rotary
from sqap_vla_ros.compression.sensitivity.objectives import FrozenHead, Objective, Reference
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.quantization.gptq import Hessian

EVERY_TOKEN = ("k_proj", "v_proj")  # of the last layer, which computes the cognition token alone in all other linears
Deltas = Mapping[str, Mapping[int, Tensor]]  # linear -> bits -> [N, K] change of its weight


@dataclass
class LinearMoments:
    """Sums over a linear's inputs x and output gradients g, over observations, probes and tokens.

    plain: sum x x^T. weighted: sum |g|^2 x x^T. Both are None where they were not asked for.
    gain: [N] mean over observations and probes of sum g^2, the squared Frobenius norm of the Jacobian.
    change: bits -> [N] mean of the squared change of the objective.
    """

    plain: Hessian | None
    weighted: Hessian | None
    gain: Tensor
    observations: int
    change: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FloatDecoder:
    """A decoder whose layers compute in float32 and need no gradients of their weights.

    layers: by index; they may be made anew on every access. norm: the final one. rotary: makes position tables.
    """

    layers: Sequence[LlamaDecoderLayer] | nn.ModuleList
    norm: nn.Module
    rotary: Rotary


def make_references(
    decoder: FloatDecoder, hidden: Sequence[Tensor], head: FrozenHead, *, seed: int = 0
) -> list[Reference]:
    """Compute the unquantised policy's layer inputs, cognition features and chunks.

    hidden: the decoder's inputs [1, S, D] float32, one per observation, whose chunks have seeds `seed`, `seed` + 1, ...
    """
    states, inputs = list(hidden), [[] for _ in hidden]  # type: tuple[list[Tensor], list[list[Tensor]]]
    references = []
    with torch.no_grad():
        for layer in decoder.layers:
            for index, state in enumerate(states):
                inputs[index].append(state)
                states[index] = layer(state, position_embeddings=decoder.rotary(state))
        for index, state in enumerate(states):
            cognition = decoder.norm(state[:, -1:]).squeeze(1).float()
            noise = head.noise(seed + index)
            references.append(Reference(inputs[index], cognition, head.chunk(cognition, noise), noise))
    return references


def make_cotangents(
    decoder: FloatDecoder,
    references: Sequence[Reference],
    head: FrozenHead,
    objective: Objective,
    *,
    probes: int,
    seed: int = 0,
) -> list[list[Tensor]]:
    """Return `probes` random cotangents [1, 1, D] per observation, at the last layer's cognition token."""
    generator = torch.Generator().manual_seed(seed)
    last = decoder.layers[-1]
    made = []
    for reference in references:
        with torch.no_grad():
            inputs = reference.hidden[-1]
            output = last(inputs, position_embeddings=decoder.rotary(inputs))[:, -1:]
        output.requires_grad_(True)
        cognition = decoder.norm(output).squeeze(1).float()
        made.append(
            [
                torch.autograd.grad(
                    cognition, output, objective.cotangent(head, reference, generator), retain_graph=True
                )[0]
                for _ in range(probes)
            ]
        )
    return made


def layer_moments(
    layer: LlamaDecoderLayer,
    hidden: Sequence[Tensor],
    cotangents: Sequence[Sequence[Tensor]],
    rotary: Rotary,
    *,
    final: bool = False,
    deltas: Deltas | None = None,
    second: bool = True,
) -> tuple[dict[str, LinearMoments], list[list[Tensor]]]:
    """Gather the moments of a layer's linears and carry the cotangents through it.

    hidden: the layer's inputs [1, S, D]. cotangents: by observation and probe, at its outputs: [1, S, D], or [1, 1, D]
        for the `final` layer, of which only the cognition token goes on.
    deltas: changes of weights whose effect is wanted in `LinearMoments.change`.
    second: gather `LinearMoments.plain` and `.weighted` too, 1.8 GB of the published geometry.
    Returns the moments by linear, and the cotangents [1, S, D] at the layer's inputs.
    """
    linears = {name: COGACT.linear(layer, name) for name in COGACT.linears}

    def run(x: Tensor) -> Tensor:
        output: Tensor = layer(x, position_embeddings=rotary(x))
        return output

    return block_moments(linears, run, hidden, cotangents, final=final, deltas=deltas, second=second)


def block_moments(
    linears: Mapping[str, nn.Linear],
    run: Callable[[Tensor], Tensor],
    hidden: Sequence[Tensor],
    cotangents: Sequence[Sequence[Tensor]],
    *,
    final: bool = False,
    deltas: Deltas | None = None,
    second: bool = True,
) -> tuple[dict[str, LinearMoments], list[list[Tensor]]]:
    """Gather the moments of the linears of any block, see `layer_moments`. run: inputs [1, S, D] -> outputs."""
    deltas = deltas or {}
    moments = {
        name: LinearMoments(
            Hessian(linear.in_features) if second else None,
            Hessian(linear.in_features) if second else None,
            torch.zeros(linear.out_features),
            len(hidden),
            {bits: torch.zeros(linear.out_features) for bits in deltas.get(name, {})},
        )
        for name, linear in linears.items()
    }
    carried: list[list[Tensor]] = []
    for inputs, probes in zip(hidden, cotangents, strict=True):
        leaf = inputs.detach().requires_grad_(True)
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        with ExitStack() as stack, torch.enable_grad():
            for name, linear in linears.items():
                stack.callback(linear.register_forward_hook(_keep(seen, name)).remove)
            output = run(leaf)
        output = output[:, -1:] if final else output
        tokens = {
            name: x.detach()[:, -1:] if final and name not in EVERY_TOKEN else x.detach()
            for name, (x, _) in seen.items()
        }
        for name, x in tokens.items():
            if (plain := moments[name].plain) is not None:
                plain.add(x)
        targets = [leaf, *(seen[name][1] for name in linears)]
        passed = []
        for probe in probes:
            upstream, *gradients = torch.autograd.grad(output, targets, probe, retain_graph=True)
            passed.append(upstream)
            share = 1.0 / (len(hidden) * len(probes))
            for name, gradient in zip(linears, gradients, strict=True):
                found, x = moments[name], tokens[name]
                gradient = gradient[:, -x.shape[1] :]
                if found.weighted is not None:
                    found.weighted.add(x, gradient.square().sum(-1))
                found.gain += gradient.square().sum((0, 1)) * share
                if name in deltas:
                    slope = gradient[0].t() @ x[0]  # [N, K], by weight
                    for bits, delta in deltas[name].items():
                        found.change[bits] += (slope * delta).sum(1).square() * share
        carried.append(passed)
    return moments, carried


def _keep(seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = inputs[0], output

    return hook
