"""QVLA's scores against measured Eq. 4, and the error of mixed-width rows against uniform ones, on the shipped policy.

    python benchmarks/sensitivity.py proxies [--rows 42] [--observations 24]
    python benchmarks/sensitivity.py schemes [--observations 24]

`proxies` rounds random rows at 0, 2, 4 and 8 bits, one at a time, and measures the squared deviation of the action
(Eq. 4). It prints Spearman's rank correlation of every metric with it, pooled and within a width. `schemes` compresses
the policy in memory and prints its errors on held-out scenes. Both go to results/sensitivity.json.
Calibration and held-out scenes are the simulator's, with the seeds of `quantization_error.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from sqap_vla_ros.compression.compress import compress, prepare_stream
from sqap_vla_ros.compression.layer_work import rotary_of
from sqap_vla_ros.compression.load import load_uncompressed
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RowBits, load_recipe
from sqap_vla_ros.compression.sensitivity.backward import FloatDecoder, layer_moments, make_cotangents, make_references
from sqap_vla_ros.compression.sensitivity.measured import action_deviation, held_out_errors, spearman
from sqap_vla_ros.compression.sensitivity.objectives import OBJECTIVES, FrozenHead
from sqap_vla_ros.compression.sensitivity.plan import TurnedLayers, rounding_changes, rounding_hessian
from sqap_vla_ros.compression.sensitivity.scores import METRICS
from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.observations import expert_observations

RESULT = Path(__file__).resolve().parent / "results" / "sensitivity.json"
HELD_OUT_SEED = 950_000
PROBES = 4
ROTATED = {"rotation": "hadamard", "rounding": "gptq", "weight_clip": True, "activation_clip": None}


def spec(activation_bits: int, **more: Any) -> QuantizationSpec:
    """A rotated scheme with GPTQ on clipped rows."""
    return QuantizationSpec(activation_bits=activation_bits, **ROTATED, **more)


SCHEMES = {
    "w4a16 GPTQ": spec(16),
    "w4a16 GPTQ, weighted": spec(16, hessian="weighted"),
    "qvla 4.0 a16": spec(16, hessian="weighted", row_bits=RowBits(4.0)),
    "w3a16 GPTQ": spec(16, weight_bits=3),
    "w3a16 GPTQ, weighted": spec(16, weight_bits=3, hessian="weighted"),
    "qvla 3.0 a16": spec(16, hessian="weighted", row_bits=RowBits(3.0)),
    "qvla 3.0 a16, tied": spec(16, hessian="weighted", row_bits=RowBits(3.0, ties="layout")),
    "qvla 2.5 a16": spec(16, hessian="weighted", row_bits=RowBits(2.5)),
    "w4a4": load_recipe("w4a4").quantization,
    "w4a8": load_recipe("w4a8").quantization,
    "qvla 4.0 a8": load_recipe("qvla_w4a8").quantization,
    "qvla 3.0 a8": load_recipe("qvla_w3a8").quantization,
}


def proxies(rows: int, observations: int) -> dict[str, Any]:
    """Spearman of every metric with measured Eq. 4: pooled, and within each width."""
    scheme = spec(16, hessian="weighted", row_bits=RowBits(4.0, widths=(0, 2, 4, 8)))
    policy = load_uncompressed(TRAINED_POLICY, load_recipe("fp32"), shipped=SHIPPED)
    policy.model.requires_grad_(False)
    hidden = prepare_stream(policy, scheme, expert_observations(2 * observations))
    assert hidden is not None
    source = policy.model.decoder
    layers = list(TurnedLayers(source, scheme))
    decoder, head = FloatDecoder(layers, source.norm, rotary_of(source)), FrozenHead(policy)
    references = make_references(decoder, hidden, head)
    fitted, judged = references[::2], references[1::2]
    started = time.monotonic()
    changes = {}
    cotangents = make_cotangents(decoder, fitted, head, OBJECTIVES["epsilon"], probes=PROBES)
    for index in reversed(range(len(layers))):
        final = index == len(layers) - 1
        inputs = [each.hidden[index] for each in fitted]
        moments, cotangents = layer_moments(layers[index], inputs, cotangents, decoder.rotary, final=final)
        for name, found in moments.items():
            changes[index, name] = rounding_changes(layers[index], name, rounding_hessian(found, scheme), scheme)
    scores: dict[str, dict[tuple[int, str], dict[int, torch.Tensor]]] = {}
    for key, metric in METRICS.items():
        objective = metric.objective or OBJECTIVES["epsilon"]
        cotangents = make_cotangents(decoder, judged, head, objective, probes=PROBES, seed=1)
        scores[key] = {}
        for index in reversed(range(len(layers))):
            mine = {name: deltas for (at, name), deltas in changes.items() if at == index}
            moments, cotangents = layer_moments(
                layers[index],
                [each.hidden[index] for each in judged],
                cotangents,
                decoder.rotary,
                final=index == len(layers) - 1,
                deltas=mine,
            )
            scores[key] |= {(index, name): metric.score(moments[name], mine[name]) for name in mine}
    scored_s = time.monotonic() - started
    generator = torch.Generator().manual_seed(0)
    linears = list(changes)
    measured: dict[int, list[float]] = {}
    predicted: dict[str, dict[int, list[float]]] = {key: {} for key in METRICS}
    for _ in range(rows):
        linear = linears[int(torch.randint(0, len(linears), (1,), generator=generator))]
        weight = COGACT.linear(layers[linear[0]], linear[1]).weight
        row = torch.randint(0, len(weight), (1,), generator=generator)
        for bits, delta in changes[linear].items():
            deviation = action_deviation(decoder, judged, head, *linear, row, weight[row] + delta[row])
            measured.setdefault(bits, []).append(deviation)
            for key in METRICS:
                predicted[key].setdefault(bits, []).append(float(scores[key][linear][bits][row]))
    table = {}
    for key, by_bits in predicted.items():
        within = {str(bits): spearman(torch.tensor(by_bits[bits]), torch.tensor(measured[bits])) for bits in measured}
        every = [torch.tensor([value for some in values.values() for value in some]) for values in (by_bits, measured)]
        table[key] = {"pooled": spearman(*every), **within}
        print(f"{key:10s}" + "".join(f"{name:>8s} {value:.3f}" for name, value in table[key].items()), flush=True)
    return {"rows": rows, "observations": observations, "probes": PROBES, "scored_s": scored_s, "spearman": table}


def schemes(observations: int) -> dict[str, Any]:
    """Relative errors of every scheme on held-out scenes, and the size of its packed linears."""
    calibration = SHIPPED[TRAINED_POLICY].observations(SHIPPED[TRAINED_POLICY].calibration_count)
    held_out = expert_observations(observations, seed=HELD_OUT_SEED)
    before = load_uncompressed(TRAINED_POLICY, load_recipe("fp32"), shipped=SHIPPED)
    table = {}
    for name, scheme in SCHEMES.items():
        after = load_uncompressed(TRAINED_POLICY, load_recipe("fp32"), shipped=SHIPPED)
        started = time.monotonic()
        report = compress(after, Recipe(name, quantization=scheme), calibration)
        seconds = time.monotonic() - started
        size = sum(linear.stored_bytes for linear in report)
        table[name] = {**held_out_errors(before, after, held_out), "packed_bytes": size, "seconds": seconds}
        print(
            f"{name:24s}"
            + "".join(f"{key:>11s} {value:.4f}" for key, value in list(table[name].items())[:3])
            + f"{size / 2**20:8.2f} MiB {seconds:6.1f} s",
            flush=True,
        )
    return {
        "observations": observations,
        "schemes": table,
        "specs": {n: dataclasses.asdict(s) for n, s in SCHEMES.items() if s},
    }


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("proxies", "schemes"))
    parser.add_argument("--rows", type=int, default=42)
    parser.add_argument("--observations", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = proxies(args.rows, args.observations) if args.what == "proxies" else schemes(args.observations)
    stored = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(stored | {args.what: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
