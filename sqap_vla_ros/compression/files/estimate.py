"""The disk and memory that a compression needs, computed from shapes alone, before anything is loaded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sqap_vla_ros.compression.files.skeleton import empty_model, quantize_structure
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RecipeError
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.config import PolicyConfig

GIB = 2**30
_LAYERS = "decoder.layers."
_PROMPT = 32  # tokens of a usual prompt
_FP32 = 4


@dataclass(frozen=True)
class Estimate:
    """Bytes. file: of the compressed file. work: of the unfinished work beside it. memory: a lower bound."""

    file: int
    work: int
    memory: int


def estimate(config: PolicyConfig, recipe: Recipe, observations: int, *, layers_in_file: bool) -> Estimate:
    """Return what compressing a model of this geometry needs.

    observations: number to calibrate on. layers_in_file: see `load_checkpoint`; otherwise the whole model is loaded.
    """
    spec = recipe.quantization
    model = empty_model(config)
    width, head_width = (torch.finfo(getattr(torch, name)).bits // 8 for name in (recipe.dtype, recipe.head_dtype))
    whole = _bytes(model, width, head_width)
    layer = sum(parameter.numel() for parameter in model.decoder.layers[0].parameters()) * _FP32
    if spec is None:
        return Estimate(whole, 0, whole)
    linears = sum(COGACT.linear(one, name).weight.numel() for one in model.decoder.layers for name in COGACT.linears)
    inputs = [COGACT.linear(model.decoder.layers[0], group.first).in_features for group in COGACT.groups]
    quantize_structure(model, spec, {})
    packed = _bytes(model, width, only=_LAYERS)
    if spec.row_bits is not None:  # `quantize_structure` took the width of rows that differ as uniform
        packed = int(linears * spec.row_bits.average / 8) + config.decoder.depth * sum(inputs) * _FP32
    file = _bytes(model, width, head_width) - _bytes(model, width, only=_LAYERS) + packed
    states = observations * (config.vision.tokens + _PROMPT) * config.decoder.width * _FP32
    hidden = 2 * states
    hessians = sum(size * size for size in inputs) * _FP32
    work = packed + hidden + (config.decoder.depth * hessians if spec.hessian == "weighted" else 0)
    resident = whole - config.decoder.depth * layer // _FP32 * width if layers_in_file else whole
    memory = 2 * layer + hidden + (hessians if spec.needs_hessian and observations else 0)
    if spec.looks_at_the_action:
        memory = max(memory, _scoring(config, spec, layer, states))
    return Estimate(file, work, resident + memory)


def _scoring(config: PolicyConfig, spec: QuantizationSpec, layer: int, states: int) -> int:
    """Return the bytes that scoring a layer needs.

    They are its weights, the inputs of all layers, cotangents, and the larger of two second moments of every linear's
    inputs and the changes at every width.

    layer: bytes of a layer in float32. states: of its inputs, of all observations.
    """
    from sqap_vla_ros.compression.sensitivity.plan import probes_of

    one = empty_model(config).decoder.layers[0]
    moments = 2 * sum(COGACT.linear(one, name).in_features ** 2 for name in COGACT.linears) * _FP32
    changes = layer * sum(width < 16 for width in spec.row_bits.widths) if spec.row_bits is not None else 0
    return layer + states * (config.decoder.depth + probes_of(spec)) + max(moments, changes)


def require_room(needs: Estimate, recipe: Recipe, out: Path) -> None:
    """Raise `RecipeError` where disk or memory cannot hold the work; better before minutes of it than after."""
    free = shutil.disk_usage(out.absolute().parent).free
    if needs.file + needs.work > free:
        raise RecipeError(
            f"recipe {recipe.name!r} needs about {_size(needs.file + needs.work)} beside {out} while it works "
            f"({_size(needs.file)} in the end), {_size(free)} are free: choose another --out"
        )
    available = available_memory()
    if available is not None and needs.memory > available:
        raise RecipeError(
            f"recipe {recipe.name!r} needs at least {needs.memory / GIB:.1f} GiB of memory here, "
            f"{available / GIB:.1f} GiB are available: compress on a larger machine"
        )


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def available_memory() -> int | None:
    """Return the bytes that can be had without swapping; None where that cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _bytes(model: nn.Module, width: int, head_width: int = _FP32, *, only: str = "") -> int:
    """Return the size of the model's tensors, floating-point parameters counted with `width` bytes.

    head_width: of the action head's. only: count the names that begin so.
    """
    parameters = {name for name, _ in model.named_parameters()}
    total = 0
    for name, tensor in model.state_dict().items():
        if name.startswith(only):
            stored = head_width if name.startswith("action_head.") else width
            total += tensor.numel() * (stored if name in parameters else tensor.element_size())
    return total
