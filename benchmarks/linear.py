"""One decoder linear: float32, bfloat16, torch._int_mm, torchao's dynamic int8, and this package's W4A4, side by side.

bfloat16 is torch's linear, which reorders the weight in every call; "prepacked" has that done beforehand
(`quantization.reordered_weights`). torchao's row is there where torchao can be imported (`pip install torchao`).

The W4A4 time is the whole layer: online rotation where the recipe `w4a4` has one (o_proj across heads, down_proj over
all channels), activation quantisation, integer product, rescaling, on the backend that `auto` takes here; "w4a4,
onednn" is the same layer on that backend. "rows of 2/4/8 bits" are matrices whose rows have widths of their own, four
bits on average, with activations of 8 and of 16 bits. Contenders take turns, so that a busy machine slows all of them;
medians and ratios are printed, raw results go to results/linear_BACKEND_N_threads.json. With one thread the clock is
the process's CPU time, which other processes hardly change; with more it is the wall clock.

    python benchmarks/linear.py [--repeats 15] [--threads N]
    python benchmarks/linear.py --device cuda [--repeats 15]

On a GPU: torch's bf16 linear and `_int_mm` against the layer on the backend that `auto` takes, launched one by one
("eager") and as CUDA graphs, timed by events, each from a cold cache. Where `humming` can be imported (`pip install
humming-kernels`), its kernels for weights of four bits take part, as long as they compute the same linear. A contender
that cannot run here is left out, and a line says why. There are no results of that: it has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Container
from pathlib import Path

import torch
from processor import processor
from torch import nn

from sqap_vla_ros.policy.devices import device_problem
from sqap_vla_ros.quantization.backends.compiled import compilation_unavailable
from sqap_vla_ros.quantization.backends.table import BACKENDS, find_backend
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, use_backend
from sqap_vla_ros.quantization.mixed import MixedLinear, MixedWeight, MixedWeightOnlyLinear, PackedMixedWeight
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import QuantizedWeight
from sqap_vla_ros.quantization.reordered_weights import reorder_weights
from sqap_vla_ros.quantization.rotations import OrthogonalMix

RESULTS = Path(__file__).parent / "results"
HEADS, HEAD_WIDTH = 32, 128
HUMMING = {"humming, w4a16": "bfloat16", "humming, w4a8": "int8", "humming, w4a4": "int4"}
ROUNDED = 0.5  # relative error: twice and more what rounding to four bits makes of normal weights and activations
SHARES = (0.27, 0.6, 0.13)  # of rows at 2, 4 and 8 bits
# linear of the 7B decoder -> (inputs, outputs, online rotation)
SHAPES: dict[str, tuple[int, int, OrthogonalMix | None]] = {
    "q_proj 4096->4096": (4096, 4096, None),
    "o_proj 4096->4096": (4096, 4096, OrthogonalMix(HEADS, stride=HEAD_WIDTH)),
    "gate_proj 4096->11008": (4096, 11008, None),
    "down_proj 11008->4096": (11008, 4096, OrthogonalMix(11008)),
}
TOKENS = (175, 277, 300)  # 154 kept + 21 of text, nothing pruned, a longer instruction


def random_w4a4(
    inputs: int, outputs: int, rotation: OrthogonalMix | None, backend: str = "auto", device: str = "cpu"
) -> QuantizedLinear:
    """A W4A4 layer with random weights on its grid."""
    values = torch.randint(-7, 8, (outputs, inputs), dtype=torch.int8)
    weight = PackedWeight.of(QuantizedWeight(values, torch.full((outputs, 1), 0.004), None, 4))
    layer = QuantizedLinear(weight, ActivationQuantizer(4, clip=0.9, rotation=rotation)).to(device)
    use_backend(layer, backend)
    return layer


def random_mixed(inputs: int, outputs: int, device: str = "cpu") -> tuple[MixedLinear, MixedWeightOnlyLinear]:
    """Layers with 8- and 16-bit activations whose rows have 2, 4 or 8 bits, about four on average."""
    widths = torch.tensor([2, 4, 8])[torch.multinomial(torch.tensor(SHARES), outputs, replacement=True)]
    values = torch.empty(outputs, inputs, dtype=torch.int8)
    for width, levels in ((2, torch.arange(-3, 4, 2)), (4, torch.arange(-7, 8)), (8, torch.arange(-127, 128))):
        rows = widths == width
        values[rows] = levels[torch.randint(0, len(levels), (int(rows.sum()), inputs))].to(torch.int8)
    wide = torch.empty(0, inputs, dtype=torch.bfloat16)
    scale = torch.full((outputs, 1), 0.004)
    weight = PackedMixedWeight.of(MixedWeight(values, scale, widths.to(torch.uint8), wide))
    layers = MixedLinear(weight, ActivationQuantizer(8, clip=0.9)), MixedWeightOnlyLinear(weight)
    for layer in layers:
        use_backend(layer.to(device))
    return layers


def slower_backends() -> list[str]:
    """Return the other CPU backends that run here, without the one that unpacks the weights in every call."""
    cpu = torch.device("cpu")
    fastest = find_backend("auto", cpu)
    return [b.name for b in BACKENDS if b != fastest and not b.keeps_packed and not b.unsupported(cpu)]


def torchao_linear(inputs: int, outputs: int) -> nn.Module | None:
    """torchao's dynamically quantised int8 linear; None where torchao is not installed."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        return None
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=False).bfloat16())
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def humming_linear(weight: torch.Tensor, activations: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return humming's linear of this weight [N, K] rounded to int4, activations rounded to `activations` inside.

    None where humming is not installed. Raises RuntimeError where what it computes is not this linear.
    """
    try:
        from humming.layer import HummingLayer  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    outputs, inputs = weight.shape
    layer = HummingLayer(
        shape_n=outputs,
        shape_k=inputs,
        weight_config={"dtype": "int4"},
        input_config={"dtype": activations},
        torch_dtype=weight.dtype,
    ).to(weight.device)
    layer.load_from_unquantized(weight)
    layer.transform()
    layer.prepare_default_kernel_configs()

    def multiply(x: torch.Tensor) -> torch.Tensor:
        return layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    x = torch.randn(1, 64, inputs, device=weight.device, dtype=weight.dtype)
    expected = nn.functional.linear(x, weight).float()
    error = float((multiply(x).float() - expected).norm() / expected.norm())
    if not error < ROUNDED:  # also where it is not a number
        raise RuntimeError(f"its result is {error:.2f} away from the linear's")
    return multiply


def left_out(name: str, error: Exception) -> None:
    """Say why a contender does not take part."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"{name} is left out: {first}", flush=True)


def captured_each(works: dict[str, Callable[[], object]], needed: Container[str]) -> dict[str, Callable[[], object]]:
    """Return the works as CUDA graphs, without those that cannot be captured; raises where one of `needed` cannot."""
    graphs: dict[str, Callable[[], object]] = {}
    for name, work in works.items():
        try:
            graphs[name] = captured(work)
        except Exception as error:  # whatever a library raises
            if name in needed:
                raise
            left_out(name, error)
    return graphs


def interleaved(
    contenders: dict[str, Callable[[int], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of every contender; in each round everyone takes a turn: layer 0, then layer 1, which counts.

    That is what a decoder does to a linear: its input has just been written, its weights were last read a round of
    other layers ago (some 400 MB here) and come from memory.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(-1, repeats):
        for name, contender in contenders.items():
            contender(0)
            start = clock()
            contender(1)
            if repeat >= 0:
                times[name].append((clock() - start) * 1e3)
    return times


@torch.inference_mode()
def measure(repeats: int, clock: Callable[[], float]) -> list[dict[str, object]]:
    """Every shape at every token count."""
    rows: list[dict[str, object]] = []
    for name, (inputs, outputs, rotation) in SHAPES.items():
        wide = [nn.Linear(inputs, outputs, bias=False) for _ in range(2)]
        half = [nn.Linear(inputs, outputs, bias=False).bfloat16() for _ in range(2)]
        packed = [nn.Sequential(nn.Linear(inputs, outputs, bias=False).bfloat16()) for _ in range(2)]
        for layer in packed:
            reorder_weights(layer)
        ours = [random_w4a4(inputs, outputs, rotation) for _ in range(2)]
        others = {name: [random_w4a4(inputs, outputs, rotation, name) for _ in range(2)] for name in slower_backends()}
        mixed = [random_mixed(inputs, outputs) for _ in range(2)]
        integers = [torch.randint(-7, 8, (outputs, inputs), dtype=torch.int8).t() for _ in range(2)]
        dynamic = [torchao_linear(inputs, outputs) for _ in range(2)]
        for tokens in TOKENS:
            x = torch.randn(1, tokens, inputs).bfloat16()
            x_wide, x_integer = x.float(), torch.randint(-7, 8, (tokens, inputs), dtype=torch.int8)
            shared = ours[0].activation(x)
            contenders: dict[str, Callable[[int], object]] = {
                "float32": lambda i, layers=wide, x=x_wide: layers[i](x),
                "bfloat16": lambda i, layers=half, x=x: layers[i](x),
                "bfloat16, prepacked": lambda i, layers=packed, x=x: layers[i](x),
                "_int_mm (product only)": lambda i, weights=integers, x=x_integer: torch._int_mm(x, weights[i]),
                "w4a4": lambda i, layers=ours, x=x: layers[i](x),
                "w4a4, input shared": lambda i, layers=ours, quantized=shared: layers[i].product(*quantized),
            }
            for index, bits in enumerate((8, 16)):
                contenders[f"rows of 2/4/8 bits, a{bits}"] = lambda i, pairs=mixed, x=x, at=index: pairs[i][at](x)
            contenders |= {
                f"w4a4, {backend}": lambda i, layers=layers, x=x: layers[i](x) for backend, layers in others.items()
            }
            if dynamic[0] is not None:
                contenders["torchao int8 dynamic"] = lambda i, layers=dynamic, x=x: layers[i](x)
            times = interleaved(contenders, repeats, clock)
            rows.append(summary(name, tokens, times))
    return rows


def summary(name: str, tokens: int, times: dict[str, list[float]]) -> dict[str, object]:
    """Medians, and the median ratio of neighbours in time; printed."""
    medians = {key: statistics.median(value) for key, value in times.items()}
    ratio = statistics.median(b / o for b, o in zip(times["bfloat16"], times["w4a4"], strict=True))
    print(
        f"{name}, {tokens} tokens: bf16/w4a4 = {ratio:.2f}   "
        + "  ".join(f"{key} {value:.{2 if value > 0.5 else 4}f}" for key, value in medians.items()),
        flush=True,
    )
    return {"linear": name, "tokens": tokens, "median_ms": medians, "bf16_over_w4a4": ratio, "ms": times}


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """The same as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are compiled and tiles chosen
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@torch.inference_mode()
def measure_cuda(repeats: int, save: Callable[[list[dict[str, object]]], None]) -> None:
    """Every shape at every token count on a GPU; each of the `repeats` is a median of its own.

    save: called with all rows so far after each.
    """
    from sqap_vla_ros.quantization.backends.triton import tiles
    from sqap_vla_ros.quantization.backends.triton.tiles import milliseconds

    rows: list[dict[str, object]] = []
    for name, (inputs, outputs, rotation) in SHAPES.items():
        half = nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.bfloat16)
        ours, plain = (random_w4a4(inputs, outputs, rotation, device="cuda") for _ in range(2))
        use_backend(plain, fused=False)
        mixed = random_mixed(inputs, outputs, "cuda")
        integers = torch.randint(-7, 8, (outputs, inputs), dtype=torch.int8, device="cuda").t()
        peers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        for key, activations in HUMMING.items():
            try:
                if (peer := humming_linear(half.weight.detach(), activations)) is not None:
                    peers[key] = peer
            except Exception as error:  # whatever a library raises
                left_out(key, error)
        for tokens in TOKENS:
            x = torch.randn(1, tokens, inputs, device="cuda").bfloat16()
            x_integer = torch.randint(-7, 8, (tokens, inputs), dtype=torch.int8, device="cuda")
            shared = ours.activation(x)
            works: dict[str, Callable[[], object]] = {
                "bfloat16": lambda layer=half, x=x: layer(x),
                "w4a4": lambda layer=ours, x=x: layer(x),
                "w4a4, quantised in PyTorch": lambda layer=plain, x=x: layer(x),
                "w4a4, input shared": lambda layer=ours, quantized=shared: layer.product(*quantized),
                "rows of 2/4/8 bits, a8": lambda layer=mixed[0], x=x: layer(x),
                "rows of 2/4/8 bits, a16": lambda layer=mixed[1], x=x: layer(x),
                "_int_mm (product only)": lambda weight=integers, x=x_integer: torch._int_mm(x, weight),
            }
            works |= {key: lambda layer=layer, x=x: layer(x) for key, layer in peers.items()}
            contenders = captured_each(works, needed=("bfloat16", "w4a4"))
            contenders |= {f"{key}, eager": works[key] for key in ("bfloat16", "w4a4")}
            times: dict[str, list[float]] = {key: [] for key in contenders}
            for _ in range(repeats):
                for key, contender in contenders.items():
                    times[key].append(milliseconds(contender))
            rows.append(summary(name, tokens, times))
            save(rows)
        print("tiles:", *(f"{key}: {tile}" for key, tile in tiles._chosen.items()), sep="\n  ", flush=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device == "cuda":
        if problem := device_problem("cuda"):
            parser.error(f"--device cuda: {problem}")
        machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        out = args.out or RESULTS / "linear_cuda.json"
        measure_cuda(args.repeats, lambda rows: write(out, machine, rows))
        return
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    rows = measure(args.repeats, clock)
    machine = {
        "cpu": processor(),
        "threads": args.threads,
        "clock": clock.__name__,
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
        "backends": {backend.name: backend.unsupported(torch.device("cpu")) or "yes" for backend in BACKENDS},
        "compiled_quantiser": compilation_unavailable() or "yes",
    }
    name = f"linear_{find_backend('auto', torch.device('cpu')).name}_{args.threads}_threads.json"
    write(args.out or RESULTS / name, machine, rows)


def write(out: Path, machine: dict[str, object], rows: list[dict[str, object]]) -> None:
    """The raw results."""
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.with_name(f"{out.name}.new")  # whoever ends this meanwhile leaves the rows before
    whole.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    whole.replace(out)


if __name__ == "__main__":
    main()
