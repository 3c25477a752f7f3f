"""The disk and memory that a compression needs, computed from shapes alone, before anything is loaded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from sqap_vla_ros.compression.bops import FULL_BITS
from sqap_vla_ros.compression.costs import expected_bytes, stored_bytes
from sqap_vla_ros.compression.files.skeleton import empty_model
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RecipeError
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.config import PolicyConfig
from sqap_vla_ros.policy.costs import size_in_words

GIB = 2**30
PROGRAM = 450 * 2**20  # bytes of Python and the libraries, before any weight
_PROMPT = 32  # tokens of a usual prompt
_FP32, _FP64 = 4, 8


@dataclass(frozen=True)
class Estimate:
    """Bytes. file: of the compressed file. work: of the unfinished work beside it. memory: of the process at its peak.

    The memory is within a fifth of what was measured (test/compression/files/test_estimate.py).
    """

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
    whole = stored_bytes(model, width, head_width)
    if spec is None:
        return Estimate(whole, 0, PROGRAM + whole)
    file, packed = expected_bytes(recipe, config)
    sizes = _Sizes.of(model, config, observations)
    hessians = config.decoder.depth * sum(sizes.hessians.values()) if spec.hessian == "weighted" else 0
    resident = whole - config.decoder.depth * sizes.layer // _FP32 * width if layers_in_file else whole
    memory = _rounding(sizes, spec)
    if spec.looks_at_the_action:
        memory = max(memory, _scoring(sizes, spec, config.decoder.depth))
    return Estimate(file, packed + 2 * sizes.states + hessians, PROGRAM + resident + memory)


@dataclass(frozen=True)
class _Sizes:
    """Bytes in float32: a decoder layer, its largest weight, the second moment of each linear's inputs by name.

    states: a layer's inputs for all observations. graph: what one observation's pass through a layer keeps for its
    gradients.
    """

    layer: int
    weight: int
    hessians: dict[str, int]
    states: int
    graph: int

    @classmethod
    def of(cls, model: CogACT, config: PolicyConfig, observations: int) -> _Sizes:
        layer, tokens = model.decoder.layers[0], config.vision.tokens + _PROMPT
        linears = {name: COGACT.linear(layer, name) for name in COGACT.linears}
        return cls(
            sum(parameter.numel() for parameter in layer.parameters()) * _FP32,
            max(linear.weight.numel() for linear in linears.values()) * _FP32,
            {name: linear.in_features**2 * _FP32 for name, linear in linears.items()},
            observations * tokens * config.decoder.width * _FP32,
            tokens * (20 * config.decoder.width + 8 * config.decoder.mlp_width) * _FP32,
        )

    @property
    def hessian(self) -> int:
        """Return the largest second moment."""
        return max(self.hessians.values())

    def turned(self, spec: QuantizationSpec) -> int:
        """Return what a layer takes while it is rotated in float64: four copies of one weight beside it."""
        return self.layer + (4 * self.weight // _FP32 * _FP64 if spec.rotation != "none" else 0)

    def rounded(self, spec: QuantizationSpec, kept: int = 0) -> int:
        """Return what rounding the largest weight takes: its second moment, factored in four more, or six weights.

        kept: bytes of what the weight was rounded to at other widths.
        """
        if not spec.rounding_scheme.needs_hessian:
            return kept + 6 * self.weight
        return self.hessian + max(4 * self.hessian, self.hessian + kept + 6 * self.weight)


def _rounding(sizes: _Sizes, spec: QuantizationSpec) -> int:
    """Return the bytes that rounding a layer needs."""
    groups = sum(sizes.hessians[group.first] for group in COGACT.groups) if spec.needs_hessian and sizes.states else 0
    planned = sizes.hessian if spec.hessian == "weighted" else 0
    return 2 * sizes.states + max(sizes.turned(spec), sizes.layer + groups + planned + sizes.rounded(spec))


def _scoring(sizes: _Sizes, spec: QuantizationSpec, depth: int) -> int:
    """Return the bytes that scoring the rows of a layer needs.

    Beside the inputs of all layers and cotangents these are, whichever is most: two layers of which one is being
    turned; one layer and two second moments of every linear's inputs, or the largest being blended; one layer, its
    changes at every width, and the last of its weights being rounded.
    """
    from sqap_vla_ros.compression.sensitivity.plan import probes_of

    moments = sum(sizes.hessians.values())
    blended = moments - sizes.hessian + 5 * sizes.hessian
    steps = [sizes.turned(spec), max(2 * moments, blended)]
    if spec.row_bits is not None:
        widths = sum(width < FULL_BITS for width in spec.row_bits.widths)
        others = widths * (sizes.layer - sizes.weight)
        steps.append(others + sizes.rounded(spec, (widths - 1) * sizes.weight))
    inputs = sizes.states * (depth + 3 * probes_of(spec) // 2)
    return inputs + sizes.layer + 2 * sizes.graph + max(steps)


def require_room(needs: Estimate, recipe: Recipe, out: Path) -> None:
    """Raise `RecipeError` where disk or memory cannot hold the work; better before minutes of it than after."""
    free = shutil.disk_usage(out.absolute().parent).free
    if needs.file + needs.work > free:
        raise RecipeError(
            f"recipe {recipe.name!r} needs about {size_in_words(needs.file + needs.work)} beside {out} while it works "
            f"({size_in_words(needs.file)} in the end), {size_in_words(free)} are free: choose another --out"
        )
    available = available_memory()
    if available is not None and needs.memory - PROGRAM > available:
        raise RecipeError(
            f"recipe {recipe.name!r} needs about {needs.memory / GIB:.1f} GiB of memory here, "
            f"{available / GIB:.1f} GiB are available: compress on a larger machine"
        )


def available_memory() -> int | None:
    """Return the bytes that can be had without swapping; None where that cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
