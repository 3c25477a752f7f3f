"""The layers in PyTorch with torchao's quantised linears: a peer of `peers.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchao
from peer_layers.stack import Contender, serve, torch_contender, torch_stack
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, IntxWeightOnlyConfig, PerGroup, quantize_


def load(config: Callable[[], Any], _: Path, compiled: bool = False) -> Contender:
    """Return the layers under a configuration."""
    stack = torch_stack("bfloat16")
    quantize_(stack, config())
    return torch_contender(torch.compile(stack, dynamic=False) if compiled else stack)


def int4() -> Any:
    """Return 4-bit weights in groups of 128. Its packed layouts are for GPUs; on a CPU the weights are dequantised."""
    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(128))


if __name__ == "__main__":
    variants: dict[str, Callable[[Path], Contender]] = {
        "int8 dynamic": partial(load, Int8DynamicActivationInt8WeightConfig),
        "int8 dynamic, compiled": partial(load, Int8DynamicActivationInt8WeightConfig, compiled=True),
        "int4 weights, compiled": partial(load, int4, compiled=True),
    }
    serve(variants, {"torchao": torchao.__version__, "torch": torch.__version__})
