"""The layers as a model of llama.cpp, from a GGUF file through its Python binding: a peer of `peers.py`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from stack import HEADS, LAYERS, MLP_WIDTH, MOST_TOKENS, RMS_EPS, ROPE_THETA, WIDTH, Contender, Floats, serve, weights

VOCABULARY = 32  # the smallest it takes: no token is read or written
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_model(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write both layers, every linear in one format, between embeddings and a read-out of a few words."""
    partial_path = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial_path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(MOST_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    ones, words = np.ones(WIDTH, np.float32), np.full((VOCABULARY, WIDTH), 0.01, np.float32)
    writer.add_tensor("token_embd.weight", words)
    writer.add_tensor("output.weight", words)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
    for name, weight in weights():
        layer, _, linear = name.partition(".")
        if linear.endswith(("q_proj", "k_proj")):  # neighbouring channels are turned together here
            weight = weight.reshape(HEADS, 2, -1, WIDTH).swapaxes(1, 2).reshape(weight.shape)
        packed = gguf.quants.quantize(weight, kind)
        writer.add_tensor(f"blk.{layer}.{NAMES[linear]}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial_path.rename(path)


def load(kind: gguf.GGMLQuantizationType, cache: Path) -> Contender:
    """Return the layers in one of llama.cpp's formats; the model is kept as a file."""
    path = cache / f"{kind.name}.gguf"
    if not path.is_file():
        write_model(path, kind)
    threads = int(os.environ["OMP_NUM_THREADS"])
    model_options = llama_cpp.llama_model_default_params()
    model_options.use_mmap = False  # so that it may lay the weights out anew
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
    if not model:
        raise RuntimeError(f"llama.cpp does not load {path}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = MOST_TOKENS
    options.n_threads = options.n_threads_batch = threads
    options.embeddings = True
    options.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp makes no context")

    def bind(x: Floats) -> Callable[[], Any]:
        count = len(x)
        batch = llama_cpp.llama_batch_init(count, WIDTH, 1)
        batch.n_tokens = count
        ctypes.memmove(batch.embd, np.ascontiguousarray(x).ctypes.data, x.nbytes)
        for index in range(count):
            batch.pos[index], batch.n_seq_id[index], batch.seq_id[index][0] = index, 1, 0
            batch.logits[index] = 1  # so that the last layer, too, computes every token

        def run() -> int:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
            if status := llama_cpp.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode answers {status}")
            llama_cpp.llama_synchronize(context)
            return count

        return run

    def read(count: int) -> Floats:
        rows = llama_cpp.llama_get_embeddings(context)
        return np.ctypeslib.as_array(rows, (count, WIDTH)).astype(np.float32)

    return Contender(bind, read)


if __name__ == "__main__":
    kinds = {"bf16": "BF16", "Q8_0": "Q8_0", "Q4_0": "Q4_0"}
    serve(
        {name: partial(load, gguf.GGMLQuantizationType[kind]) for name, kind in kinds.items()},
        {"llama-cpp-python": llama_cpp.__version__},
    )
