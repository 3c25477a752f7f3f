"""The decoder layers that every peer of `peers.py` computes, and the side of its protocol that runs beside a peer.

They are Llama's, of the 7B geometry, with the same random weights everywhere. A peer runs in a process of its
own, in an environment that may lack this package, so this file needs numpy only (and torch where a peer has it).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

LAYERS, WIDTH, HEADS, MLP_WIDTH = 1, 4096, 32, 11008  # the weights of one are more than a cache holds
HEAD_WIDTH = WIDTH // HEADS
RMS_EPS, ROPE_THETA = 1e-5, 10000.0
MOST_TOKENS = 1024
DRAWN = 4_194_301  # a prime: rows of a matrix do not repeat each other
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (MLP_WIDTH, WIDTH),
    "mlp.up_proj": (MLP_WIDTH, WIDTH),
    "mlp.down_proj": (WIDTH, MLP_WIDTH),
}  # linear -> outputs, inputs
Floats = NDArray[np.float32]


def weights() -> Iterator[tuple[str, Floats]]:
    """Yield the linears of all layers, "0.self_attn.q_proj" and so on, [outputs, inputs].

    All are cut from one row of normal numbers, each from a place of its own: drawing them anew would take a minute.
    """
    row = np.random.default_rng(0).standard_normal(DRAWN, dtype=np.float32)
    for layer in range(LAYERS):
        for index, (name, (outputs, inputs)) in enumerate(SHAPES.items()):
            start = 100_003 * (len(SHAPES) * layer + index)
            yield f"{layer}.{name}", np.resize(np.roll(row, -start) * np.float32(inputs**-0.5), (outputs, inputs))


def tokens(count: int) -> Floats:
    """Return input embeddings [count, WIDTH], small beside what the layers add to them."""
    return 0.1 * np.random.default_rng(7).standard_normal((count, WIDTH), dtype=np.float32)


def rotary() -> tuple[Floats, Floats]:
    """Return cos and sin [MOST_TOKENS, HEAD_WIDTH] of Llama's half-split layout."""
    frequency = 1.0 / ROPE_THETA ** (np.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
    angle = np.arange(MOST_TOKENS)[:, None] * frequency
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def normed(hidden: Floats) -> Floats:
    """Apply an RMSNorm to each token: not every peer can give what comes before the last one."""
    return hidden / np.sqrt(np.mean(np.square(hidden), axis=1, keepdims=True) + RMS_EPS)


def torch_stack(dtype: str) -> nn.Module:
    """Return the layers in plain PyTorch, [1, S, WIDTH] to [1, S, WIDTH]."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            q, k, v = (
                linear(x).unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)
                for linear in (self.q_proj, self.k_proj, self.v_proj)
            )
            q, k = (each * cos + turned(each) * sin for each in (q, k))
            return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = (nn.Linear(WIDTH, MLP_WIDTH, bias=False) for _ in range(2))
            self.down_proj = nn.Linear(MLP_WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn, self.mlp = Attention(), Mlp()
            self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(WIDTH, eps=RMS_EPS) for _ in range(2))

        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            x = x + self.self_attn(self.input_layernorm(x), cos, sin)
            return x + self.mlp(self.post_attention_layernorm(x))

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            for name, table in zip(("cos", "sin"), rotary(), strict=True):
                self.register_buffer(name, torch.from_numpy(table).to(getattr(torch, dtype)))

        def forward(self, x: Tensor) -> Tensor:
            cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
            for layer in self.layers:
                x = layer(x, cos, sin)
            return x

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    with torch.device("meta"):
        stack = Stack()
    stack = stack.to(getattr(torch, dtype)).to_empty(device="cpu").eval().requires_grad_(False)
    for name, table in zip(("cos", "sin"), rotary(), strict=True):
        getattr(stack, name).copy_(torch.from_numpy(table))
    for module in stack.modules():
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    for name, weight in weights():
        stack.get_submodule(f"layers.{name}").weight.copy_(torch.from_numpy(weight))
    return stack


@dataclass(frozen=True)
class Contender:
    """A loaded variant.

    bind: tokens [S, WIDTH] to the call that is timed. read: the call's result as [S, WIDTH]. notes: on how it was
    loaded, for the table.
    """

    bind: Callable[[Floats], Callable[[], Any]]
    read: Callable[[Any], Floats]
    notes: str = ""


def torch_contender(module: Callable[[Any], Any]) -> Contender:
    """Return the contender of a module that maps bfloat16 [1, S, WIDTH] to the same."""
    import torch

    def bind(x: Floats) -> Callable[[], Any]:
        given = torch.from_numpy(x)[None].bfloat16()

        def run() -> Any:
            with torch.inference_mode():
                return module(given)

        return run

    return Contender(bind, lambda y: y[0].float().numpy())


def serve(variants: Mapping[str, Callable[[Path], Contender]], versions: Mapping[str, str]) -> None:
    """Answer the requests of `peers.py`, one JSON object a line on standard input, until that ends.

    variants: name -> how it is loaded, given a folder of its own for what it keeps between runs.
    The answer to {"load": variant} is {"notes": …} or {"error": why}; to {"run": variant, "tokens": n, "passes": k} the
    milliseconds of k passes; to {"compare": variant, "tokens": n, "with": file} the relative error from that array.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    cache, loaded = Path(sys.argv[1]), {}
    print(json.dumps({"variants": list(variants), "versions": dict(versions)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if name := request.get("load"):
                cache.mkdir(parents=True, exist_ok=True)
                loaded[name] = variants[name](cache)
                answer: dict[str, Any] = {"notes": loaded[name].notes}
            elif name := request.get("run"):
                answer = {"ms": timed(loaded[name], request["tokens"], request["passes"])}
            else:
                contender = loaded[request["compare"]]
                got = normed(contender.read(contender.bind(tokens(request["tokens"]))()))
                expected = normed(np.load(request["with"]))
                answer = {"relative_error": float(np.linalg.norm(got - expected) / np.linalg.norm(expected))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


def timed(contender: Contender, count: int, passes: int) -> list[float]:
    """Return the milliseconds of `passes` calls; one before them wakes the threads."""
    run, times = contender.bind(tokens(count)), []
    for index in range(passes + 1):
        started = time.perf_counter()
        run()
        if index:
            times.append((time.perf_counter() - started) * 1e3)
    return times
