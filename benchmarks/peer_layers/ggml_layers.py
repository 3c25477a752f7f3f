"""The layers on ggml, the library that llama.cpp computes with, as llama.cpp calls it: a peer of `peers.py`.

Weights lie where llama.cpp would put them: in the first of the CPU's own layouts that can multiply them (AMX tiles,
rows interleaved for AVX512), otherwise as they are in the file. Keys and values are float16 and attention is
`flash_attn_ext`, which are llama.cpp's defaults.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ggml
import gguf
import numpy as np
from peer_layers.stack import (
    HEAD_WIDTH,
    HEADS,
    LAYERS,
    RMS_EPS,
    ROPE_THETA,
    SHAPES,
    WIDTH,
    Contender,
    Floats,
    serve,
    weights,
)

HALF_SPLIT = 2  # ggml's name for this layout of rotary positions is "neox"
CPU_DEVICE = 0
ALIGNED = 64  # mask rows


def new_context(tensors: int) -> Any:
    """Return a context that describes tensors and holds none of their numbers."""
    size = tensors * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead()
    return ggml.ggml_init(ggml.ggml_init_params(mem_size=size, mem_buffer=None, no_alloc=True))


def layouts(device: Any) -> Iterator[Any]:
    """Yield the buffer types of a CPU, those with a layout of their own first."""
    address = ggml.ggml_backend_reg_get_proc_address(
        ggml.ggml_backend_dev_backend_reg(device), b"ggml_backend_dev_get_extra_bufts"
    )
    if address:
        found = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
        index = 0
        while found and found[index]:
            yield found[index]
            index += 1
    yield ggml.ggml_backend_dev_buffer_type(device)


def layout_for(device: Any, kind: int) -> Any:
    """Return the first buffer type whose matrices of a format can be multiplied, as llama.cpp chooses it."""
    for candidate in layouts(device):
        context = new_context(8)
        weight = ggml.ggml_new_tensor_2d(context, kind, WIDTH, WIDTH)
        product = ggml.ggml_mul_mat(context, weight, ggml.ggml_new_tensor_2d(context, ggml.GGML_TYPE_F32, WIDTH, 512))
        buffer = ggml.ggml_backend_buft_alloc_buffer(candidate, 0)
        weight.contents.buffer = buffer
        works = ggml.ggml_backend_dev_supports_op(device, product)
        ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(context)
        if works:
            return candidate
    raise RuntimeError(f"no layout of this CPU multiplies format {kind}")


def packed_weights(kind: gguf.GGMLQuantizationType, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the linears in one of ggml's formats, as bytes; kept as files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{layer}.{linear}" for layer in range(LAYERS) for linear in SHAPES]
    if not (folder / f"{names[-1]}.npy").is_file():
        for name, weight in weights():
            packed = np.ascontiguousarray(gguf.quants.quantize(weight, kind))
            np.save(folder / f"{name}.npy", packed.view(np.uint8))
    for name in names:
        yield name, np.load(folder / f"{name}.npy")


class Layers:
    """The layers in memory, and a graph for every number of tokens.

    kind: format of the linears.
    """

    def __init__(self, kind: gguf.GGMLQuantizationType, folder: Path) -> None:
        self._backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self._backend, int(os.environ["OMP_NUM_THREADS"]))
        device = ggml.ggml_backend_dev_by_type(CPU_DEVICE)
        self._plain = ggml.ggml_backend_dev_buffer_type(device)
        context = new_context(LAYERS * len(SHAPES))
        self._linears = {
            f"{layer}.{name}": ggml.ggml_new_tensor_2d(context, int(kind), inputs, outputs)
            for layer in range(LAYERS)
            for name, (outputs, inputs) in SHAPES.items()
        }
        if not ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, layout_for(device, int(kind))):
            raise MemoryError("ggml has no memory for the weights")
        for name, data in packed_weights(kind, folder):
            ggml.ggml_backend_tensor_set(self._linears[name], data.ctypes.data, 0, data.nbytes)
        self._norm = self._filled({"norm": (ggml.GGML_TYPE_F32, np.ones(WIDTH, np.float32))})["norm"]

    def bind(self, x: Floats) -> Callable[[], Any]:
        """Return the call that computes the layers for tokens x [S, WIDTH]; its result is what `read` takes."""
        count = len(x)
        visible = -(-count // ALIGNED) * ALIGNED
        mask = np.full((visible, count), -np.inf, np.float16)
        mask[:count] = np.where(np.tri(count, dtype=bool), 0.0, -np.inf)
        given = self._filled(
            {
                "x": (ggml.GGML_TYPE_F32, x),
                "places": (ggml.GGML_TYPE_I32, np.arange(count, dtype=np.int32)),
                "mask": (ggml.GGML_TYPE_F16, mask),
            }
        )
        context = new_context(4096)
        result = given["x"]
        for layer in range(LAYERS):
            result = self._layer(context, layer, result, given)
        ggml.ggml_set_output(result)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, result)
        memory = ggml.ggml_gallocr_new(self._plain)
        if not ggml.ggml_gallocr_alloc_graph(memory, graph):
            raise MemoryError("ggml has no memory for the activations")

        def run() -> Any:
            if status := ggml.ggml_backend_graph_compute(self._backend, graph):
                raise RuntimeError(f"ggml_backend_graph_compute answers {status}")
            return result

        return run

    @staticmethod
    def read(result: Any) -> Floats:
        """Return a result as an array [S, WIDTH]."""
        values = np.empty((result.contents.ne[1], result.contents.ne[0]), np.float32)
        ggml.ggml_backend_tensor_get(result, values.ctypes.data, 0, values.nbytes)
        return values

    def _filled(self, arrays: Mapping[str, tuple[int, Any]]) -> dict[str, Any]:
        """Return tensors of types with the numbers of arrays of at most two axes."""
        context, made = new_context(len(arrays)), {}
        for name, (kind, array) in arrays.items():
            rows = 1 if array.ndim == 1 else array.shape[0]
            made[name] = ggml.ggml_new_tensor_2d(context, kind, array.shape[-1], rows)
        ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, self._plain)
        for name, (_, array) in arrays.items():
            data = np.ascontiguousarray(array)
            ggml.ggml_backend_tensor_set(made[name], data.ctypes.data, 0, data.nbytes)
        return made

    def _layer(self, context: Any, layer: int, x: Any, given: Mapping[str, Any]) -> Any:
        count = x.contents.ne[1]

        def linear(name: str, inputs: Any) -> Any:
            return ggml.ggml_mul_mat(context, self._linears[f"{layer}.{name}"], inputs)

        def normed(inputs: Any) -> Any:
            return ggml.ggml_mul(context, ggml.ggml_rms_norm(context, inputs, RMS_EPS), self._norm)

        def heads(name: str, inputs: Any, turned: bool) -> Any:
            split = ggml.ggml_reshape_3d(context, linear(name, inputs), HEAD_WIDTH, HEADS, count)
            if turned:
                split = ggml.ggml_rope_ext(
                    context, split, given["places"], None, HEAD_WIDTH, HALF_SPLIT, 0, ROPE_THETA, 1, 0, 1, 0, 0
                )
            return ggml.ggml_permute(context, split, 0, 2, 1, 3)  # [HEAD_WIDTH, S, HEADS]

        inputs = normed(x)
        query = heads("self_attn.q_proj", inputs, True)
        key, value = (
            ggml.ggml_cast(context, heads(f"self_attn.{name}_proj", inputs, name == "k"), ggml.GGML_TYPE_F16)
            for name in ("k", "v")
        )
        mixed = ggml.ggml_flash_attn_ext(context, query, key, value, given["mask"], HEAD_WIDTH**-0.5, 0.0, 0.0)
        mixed = ggml.ggml_reshape_2d(context, mixed, WIDTH, count)
        x = ggml.ggml_add(context, linear("self_attn.o_proj", mixed), x)
        inputs = normed(x)
        inner = ggml.ggml_swiglu_split(context, linear("mlp.gate_proj", inputs), linear("mlp.up_proj", inputs))
        return ggml.ggml_add(context, linear("mlp.down_proj", inner), x)


def load(kind: str, cache: Path) -> Contender:
    """Return the layers in a format."""
    layers = Layers(gguf.GGMLQuantizationType[kind], cache / kind)
    return Contender(layers.bind, layers.read)


if __name__ == "__main__":
    kinds = {"bf16": "BF16", "Q8_0": "Q8_0", "Q4_0": "Q4_0"}
    serve({name: partial(load, kind) for name, kind in kinds.items()}, {"ggml-python": ggml.__version__})
