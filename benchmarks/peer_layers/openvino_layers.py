"""The layers in OpenVINO, weights compressed by NNCF, activations as its CPU plugin chooses: a peer of `peers.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from peer_layers.stack import WIDTH, Contender, Floats, serve, torch_stack


def converted(compression: str) -> Any:
    """Return the layers as an OpenVINO model, [1, S, WIDTH] float32."""
    stack = torch_stack("float32")
    example = torch.zeros(1, 16, WIDTH)
    with torch.inference_mode(False), torch.no_grad():
        model = openvino.convert_model(stack, example_input=example, input=[(openvino.PartialShape([1, -1, WIDTH]))])
    if compression == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    if compression == "int4":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, all_layers=True)
    return model


def load(compression: str, cache: Path) -> Contender:
    """Return the compiled layers; the model is kept as a file."""
    path = cache / f"{compression}.xml"
    if not path.is_file():
        openvino.save_model(converted(compression), path, compress_to_fp16=True)
    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"]),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",  # as many activations share a scale; by default 32, which is slower
    }
    request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()

    def bind(x: Floats) -> Callable[[], Any]:
        given = np.ascontiguousarray(x[None])
        return lambda: request.infer([given], share_inputs=True, share_outputs=True)

    return Contender(bind, lambda result: np.array(result[0][0], dtype=np.float32))


if __name__ == "__main__":
    variants = {"bf16": "bf16", "int8 weights": "int8", "int4 weights": "int4"}
    serve(
        {name: partial(load, compression) for name, compression in variants.items()},
        {"openvino": openvino.__version__, "nncf": nncf.__version__},
    )
