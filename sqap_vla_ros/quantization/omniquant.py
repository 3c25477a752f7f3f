"""OmniQuant: learn how far to clip each weight row and which scales to move, block by block.

Shao et al. 2024, arXiv:2308.13137. Learnable weight clipping: a row's range is sigma(gamma) times its largest
magnitude, gamma starting at 4. Learnable equivalent transformation: the per-channel scales between a norm and the
linears after it, starting from SmoothQuant's. Both are trained with AdamW on the mean squared error of the block's
output against the unquantised block, activations quantised per token, rounding passed through by the straight-through
estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sqap_vla_ros.quantization.equalization import smoothing_scale
from sqap_vla_ros.quantization.quantizers import largest, quantize_activation

EPOCHS = 20
CLIP_RATE, SCALE_RATE = 1e-2, 5e-3
GAMMA = 4.0


def _straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    return exact + (rounded - exact).detach()


class _FakeWeight(nn.Module):
    """Replace a weight by the value its scaled, clipped and quantised form stands for, differentiable in both."""

    def __init__(self, gamma: Tensor, log_scale: Tensor | None, bits: int) -> None:
        super().__init__()
        self.gamma, self.log_scale, self.bits = gamma, log_scale, bits

    def forward(self, weight: Tensor) -> Tensor:
        if self.log_scale is not None:
            weight = weight * self.log_scale.exp()
        top = largest(self.bits)
        step = (weight.abs().amax(-1, keepdim=True) * self.gamma.sigmoid()[:, None] / top).clamp_min(1e-12)
        ratio = weight / step
        return _straight_through(ratio, ratio.round()).clamp(-top, top) * step


def learn_layer(
    layer: nn.Module,
    run: Callable[[], list[Tensor]],
    expected: Sequence[Tensor],
    bits: Callable[[str], tuple[int, int]],
    groups: Sequence[Sequence[str]],
    alpha: float,
) -> dict[str, Tensor]:
    """Train clipping and scales of one Llama decoder layer and fold the scales into it.

    run: computes the layer's outputs on the calibration inputs. expected: those of the unquantised layer.
    bits: linear name -> (weight, activation) bits. groups: names of the linears that share an input.
    Returns the clipping of every linear's rows, name -> [N] within 0..1, for `equalization.clipped_grid`.
    """
    linears = {
        name.rpartition(".")[2]: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)
    }
    norms = {
        groups[0][0]: layer.get_submodule("input_layernorm"),
        groups[2][0]: layer.get_submodule("post_attention_layernorm"),
    }
    absmax = _absmax(linears, [group[0] for group in groups], run)
    gammas = {name: torch.full((linear.out_features,), GAMMA, requires_grad=True) for name, linear in linears.items()}
    log_scales = {
        group[0]: smoothing_scale(absmax[group[0]], [linears[name] for name in group], alpha).log().requires_grad_()
        for group in groups
        if group[0] in norms
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": list(gammas.values()), "lr": CLIP_RATE},
            {"params": list(log_scales.values()), "lr": SCALE_RATE},
        ],
        weight_decay=0.0,
    )
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    target = torch.cat([output[0] for output in expected])
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad():
        for group in groups:
            log_scale = log_scales.get(group[0])
            for name in group:
                # registering would compute the parametrised weight to check it: it has the same shape
                parametrize.register_parametrization(
                    linears[name], "weight", _FakeWeight(gammas[name], log_scale, bits(name)[0]), unsafe=True
                )
                handle = linears[name].register_forward_pre_hook(_fake_input(log_scale, bits(name)[1]))
                stack.callback(handle.remove)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss = (torch.cat([output[0] for output in run()]) - target).square().mean()
            if not torch.isfinite(loss):
                raise ValueError("OmniQuant's training diverged; check the calibration observations")
            loss.backward()
            optimizer.step()
    for linear in linears.values():
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    with torch.no_grad():
        for group in groups:
            if group[0] in log_scales:
                scale = log_scales[group[0]].detach().exp()
                norms[group[0]].get_parameter("weight").div_(scale)
                for name in group:
                    linears[name].weight.data = linears[name].weight.data * scale
    return {name: gamma.detach().sigmoid() for name, gamma in gammas.items()}


def _fake_input(log_scale: Tensor | None, bits: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        if log_scale is not None:
            x = x * (-log_scale).exp()
        if bits == 16:
            return (x,)
        values, scale = quantize_activation(x.detach(), bits)
        return (_straight_through(x, values * scale),)

    return hook


def _absmax(linears: dict[str, nn.Linear], names: Sequence[str], run: Callable[[], object]) -> dict[str, Tensor]:
    found = {name: torch.zeros(linears[name].in_features) for name in names}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            found[name] = torch.maximum(found[name], inputs[0].detach().float().abs().flatten(0, -2).amax(0))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name in names:
            stack.callback(linears[name].register_forward_pre_hook(watch(name)).remove)
        run()
    return found
