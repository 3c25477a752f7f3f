"""The layers in llama.cpp, a peer of `peers.py`: `llama_decode` of one batch, loaded with llama.cpp's defaults.

The weights are a GGUF file of Llama's architecture with a vocabulary of a few words, quantised by llama.cpp itself. A
batch of embeddings goes in and every token is an output: otherwise llama.cpp leaves most of the last layer out. A pass
holds the final norm and the head as well, which together are less than a thousandth of a layer's operations.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from peer_layers.stack import (
    HEAD_WIDTH,
    HEADS,
    LAYERS,
    MLP_WIDTH,
    MOST_TOKENS,
    RMS_EPS,
    ROPE_THETA,
    WIDTH,
    Contender,
    Floats,
    serve,
    weights,
)

WORDS = 32
FILE_TYPES = {
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S,
}
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # linear -> GGUF's name for it
log: list[str] = []


@llama_cpp.llama_log_callback
def keep_log(level: int, text: bytes, data: Any) -> None:
    """Keep what llama.cpp says."""
    log.append(text.decode(errors="replace"))


def interleaved(weight: Floats) -> Floats:
    """Return the rows of a query or key projection in the order that llama.cpp's rotary positions expect."""
    return np.ascontiguousarray(weight.reshape(HEADS, 2, HEAD_WIDTH // 2, WIDTH).swapaxes(1, 2)).reshape(WIDTH, WIDTH)


def write_float32(path: Path) -> None:
    """Write the layers as a GGUF file in float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(MOST_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("none")
    norm = np.ones(WIDTH, np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((WORDS, WIDTH), np.float32))
    writer.add_tensor("output_norm.weight", norm)
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", norm)
    for name, weight in weights():
        layer, linear = name.split(".", 1)
        turned = linear in ("self_attn.q_proj", "self_attn.k_proj")
        writer.add_tensor(f"blk.{layer}.{TENSORS[linear]}.weight", interleaved(weight) if turned else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_file(kind: str, cache: Path) -> Path:
    """Return the GGUF file of a format, made where it is missing. Raises RuntimeError."""
    path = cache / f"{kind}.gguf"
    if not path.is_file():
        source, unfinished = cache / "float32.gguf", path.with_suffix(".part")
        write_float32(source)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.pure = FILE_TYPES[kind], True
        status = llama_cpp.llama_model_quantize(bytes(source), bytes(unfinished), params)
        source.unlink()
        if status:
            raise RuntimeError(f"llama_model_quantize answers {status}: {log[-1].strip()}")
        unfinished.rename(path)
    return path


class Layers:
    """The layers in memory.

    notes: the buffers of the weights by llama.cpp's log. Those in a layout of its own are in CPU_REPACK or in AMX.
    """

    def __init__(self, path: Path) -> None:
        log.clear()
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}: {log[-1].strip()}")
        buffers = re.findall(r"(\S+) model buffer size = +(\S+) MiB", "".join(log))
        self.notes = ", ".join(f"{name} {size} MiB" for name, size in buffers)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.embeddings = MOST_TOKENS, True
        params.n_threads = params.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context: {log[-1].strip()}")

    def bind(self, x: Floats) -> Callable[[], Any]:
        """Return the call that computes the layers for tokens x [S, WIDTH]; its result is what `read` takes."""
        given = np.ascontiguousarray(x)
        batch = llama_cpp.llama_batch(n_tokens=len(x), embd=given.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
        memory = llama_cpp.llama_get_memory(self._context)

        def run() -> Any:
            llama_cpp.llama_memory_clear(memory, False)
            if status := llama_cpp.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode answers {status}: {log[-1].strip()}")
            llama_cpp.llama_synchronize(self._context)
            return given.shape

        return run

    def read(self, shape: tuple[int, int]) -> Floats:
        """Return the last result, behind the final norm, as an array [S, WIDTH]."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(self._context), shape).copy()


def load(kind: str, cache: Path) -> Contender:
    """Return the layers in a format."""
    layers = Layers(model_file(kind, cache))
    return Contender(layers.bind, layers.read, layers.notes)


if __name__ == "__main__":
    llama_cpp.llama_log_set(keep_log, None)
    llama_cpp.llama_backend_init()
    serve({kind: partial(load, kind) for kind in FILE_TYPES}, {"llama-cpp-python": llama_cpp.__version__})
