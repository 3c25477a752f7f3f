"""QVLA's scores against measured Eq. 4, and the error of mixed-width rows against uniform ones, on the shipped policy.

    python benchmarks/sensitivity.py proxies [--rows 42] [--observations 24]
    python benchmarks/sensitivity.py rollouts [--rows 42] [--observations 24]
    python benchmarks/sensitivity.py schemes [--observations 24]

`proxies` rounds random rows at 0, 2, 4 and 8 bits, one at a time, and measures the squared deviation of the action
(Eq. 4). It prints Spearman's rank correlation with it, pooled and within a width, of every metric, of two proxies that
no recipe offers, and of Eq. 4 on half of the observations with Eq. 4 on the other half. `rollouts` does the same with
Eq. 5, the deviation cumulated over short episodes in the simulator, at 0 and 2 bits. `schemes` compresses the policy in
memory and prints its errors on held-out scenes. All go to results/sensitivity.json.
Calibration and held-out scenes are the simulator's, with the seeds of `quantization_error.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sqap_vla_ros.compression.compress import compress, prepare_stream
from sqap_vla_ros.compression.layer_work import rotary_of
from sqap_vla_ros.compression.load import load_uncompressed
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RowBits, load_recipe
from sqap_vla_ros.compression.sensitivity.allocation import Linear
from sqap_vla_ros.compression.sensitivity.backward import (
    FloatDecoder,
    LinearMoments,
    layer_moments,
    make_cotangents,
    make_references,
)
from sqap_vla_ros.compression.sensitivity.measured import action_deviation, held_out_errors, spearman
from sqap_vla_ros.compression.sensitivity.objectives import OBJECTIVES, FrozenHead, Objective, Reference
from sqap_vla_ros.compression.sensitivity.plan import TurnedLayers
from sqap_vla_ros.compression.sensitivity.rounding import rounding_changes, rounding_hessian
from sqap_vla_ros.compression.sensitivity.scores import METRICS, Metric, RowScores
from sqap_vla_ros.contracts import TRAINED_POLICY, ActionChunk
from sqap_vla_ros.evaluation.action_metrics import chunk_distance
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.observations import expert_observations
from sqap_vla_ros.simulation.vocabulary import TaskFamily

RESULT = Path(__file__).resolve().parent / "results" / "sensitivity.json"
HELD_OUT_SEED = 950_000
ROLLOUT_SEED, CHUNKS = 0, 4  # of eight executed actions each
ROLLOUT_BITS, ROLLOUT_METRICS = (0, 2), ("epsilon", "action", "eq6", "released")
PROBES = 4
ROTATED = {"rotation": "hadamard", "rounding": "gptq", "weight_clip": True, "activation_clip": None}


class WeightError(Metric):
    """|dW|^2: neither inputs nor the action are looked at."""

    def score(self, moments: LinearMoments, deltas: Mapping[int, torch.Tensor]) -> RowScores:
        return {bits: delta.square().sum(1) for bits, delta in deltas.items()}


class OutputError(Metric):
    """E |dW x|^2, which GPTQ makes small."""

    second_moments = True

    def score(self, moments: LinearMoments, deltas: Mapping[int, torch.Tensor]) -> RowScores:
        assert moments.plain is not None
        second = moments.plain.sum / moments.observations
        return {bits: ((delta @ second) * delta).sum(1) for bits, delta in deltas.items()}


PROXIES: dict[str, Metric] = {**METRICS, "weight_error": WeightError(), "output_error": OutputError()}


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


@dataclass(frozen=True)
class Scored:
    """The shipped policy, turned but not quantised, with the change and the scores of every row at every width.

    decoder: the policy's own layers. judged: observations that the rounding was not fitted to. changes: linear -> bits
    -> [N, K]. scores: metric -> linear -> bits -> [N].
    """

    policy: CogACTPolicy
    decoder: FloatDecoder
    head: FrozenHead
    judged: list[Reference]
    changes: dict[Linear, dict[int, torch.Tensor]]
    scores: dict[str, dict[Linear, RowScores]]
    seconds: float

    def draw(self, rows: int) -> Iterator[tuple[Linear, torch.Tensor]]:
        """Draw linears and, in each, one row [1], always the same ones."""
        generator = torch.Generator().manual_seed(0)
        linears = list(self.changes)
        for _ in range(rows):
            linear = linears[int(torch.randint(0, len(linears), (1,), generator=generator))]
            yield linear, torch.randint(0, len(self.weight(linear)), (1,), generator=generator)

    def weight(self, linear: Linear) -> torch.Tensor:
        """The weight of a linear, [N, K]."""
        return COGACT.linear(self.decoder.layers[linear[0]], linear[1]).weight.data


def score(observations: int, metrics: Sequence[str]) -> Scored:
    """Score every row at 0, 2, 4 and 8 bits; as many observations to fit the rounding as to judge it."""
    scheme = spec(16, hessian="weighted", row_bits=RowBits(4.0, widths=(0, 2, 4, 8)))
    policy = load_uncompressed(TRAINED_POLICY, load_recipe("fp32"), shipped=SHIPPED)
    policy.model.requires_grad_(False)
    hidden, _ = prepare_stream(policy, scheme, expert_observations(2 * observations))
    assert hidden is not None
    source = policy.model.decoder
    layers = list(TurnedLayers(source, scheme))
    for index, layer in enumerate(layers):
        source.layers[index] = layer
    decoder, head = FloatDecoder(layers, source.norm, rotary_of(source)), FrozenHead(policy)
    references = make_references(decoder, hidden, head)
    fitted, judged = references[::2], references[1::2]
    started = time.monotonic()
    changes: dict[Linear, dict[int, torch.Tensor]] = {}
    cotangents = make_cotangents(decoder, fitted, head, OBJECTIVES["epsilon"], probes=PROBES)
    for index in reversed(range(len(layers))):
        final = index == len(layers) - 1
        inputs = [each.hidden[index] for each in fitted]
        moments, cotangents = layer_moments(layers[index], inputs, cotangents, decoder.rotary, final=final)
        for name, found in moments.items():
            changes[index, name] = rounding_changes(
                COGACT.linear(layers[index], name).weight.data, rounding_hessian(found, scheme), scheme
            )
    scores: dict[str, dict[Linear, RowScores]] = {key: {} for key in metrics}
    by_objective: dict[Objective, list[str]] = {}
    for key in metrics:
        by_objective.setdefault(PROXIES[key].objective or OBJECTIVES["epsilon"], []).append(key)
    for objective, keys in by_objective.items():
        cotangents = make_cotangents(decoder, judged, head, objective, probes=PROBES, seed=1)
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
            for key in keys:
                scores[key] |= {(index, name): PROXIES[key].score(moments[name], mine[name]) for name in mine}
    return Scored(policy, decoder, head, judged, changes, scores, time.monotonic() - started)


def correlations(predicted: dict[int, list[float]], measured: dict[int, list[float]]) -> dict[str, float]:
    """Spearman's rank correlation of two lists by width: pooled, and within each width."""
    within = {str(bits): spearman(torch.tensor(predicted[bits]), torch.tensor(measured[bits])) for bits in measured}
    every = [torch.tensor([value for some in by.values() for value in some]) for by in (predicted, measured)]
    return {"pooled": spearman(*every), **within}


def proxies(rows: int, observations: int) -> dict[str, Any]:
    """Spearman of every proxy with measured Eq. 4: pooled, and within each width."""
    scored = score(observations, list(PROXIES))
    halves = scored.judged[::2], scored.judged[1::2]
    measured: dict[int, list[float]] = {}
    of_half: tuple[dict[int, list[float]], ...] = ({}, {})
    predicted: dict[str, dict[int, list[float]]] = {key: {} for key in PROXIES}
    for linear, row in scored.draw(rows):
        weight = scored.weight(linear)
        for bits, delta in scored.changes[linear].items():
            total = 0.0
            for half, found in zip(halves, of_half, strict=True):
                deviation = action_deviation(scored.decoder, half, scored.head, *linear, row, weight[row] + delta[row])
                found.setdefault(bits, []).append(deviation)
                total += len(half) * deviation
            measured.setdefault(bits, []).append(total / len(scored.judged))
            for key in PROXIES:
                predicted[key].setdefault(bits, []).append(float(scored.scores[key][linear][bits][row]))
    table = {"halves": correlations(*of_half)}
    for key, by_bits in predicted.items():
        table[key] = correlations(by_bits, measured)
    for key in table:
        print(f"{key:10s}" + "".join(f"{name:>8s} {value:.3f}" for name, value in table[key].items()), flush=True)
    return {
        "rows": rows,
        "observations": observations,
        "probes": PROBES,
        "scored_s": scored.seconds,
        "spearman": table,
    }


def rollouts(rows: int, observations: int) -> dict[str, Any]:
    """Spearman of the scores with measured Eq. 5: actions that part from the unchanged policy's over short episodes.

    The changed policy acts on what it sees itself, so errors may accumulate: `CHUNKS` predictions of one episode of
    each family.
    """
    scored = score(observations, ROLLOUT_METRICS)
    env = TabletopEnv(shadows=False, antialiasing=False)
    expected = {family: rollout(scored.policy, env, family) for family in TaskFamily}
    measured: dict[int, list[float]] = {}
    predicted: dict[str, dict[int, list[float]]] = {key: {} for key in ROLLOUT_METRICS}
    for linear, row in scored.draw(rows):
        weight = scored.weight(linear)
        kept = weight[row].clone()
        for bits, delta in scored.changes[linear].items():
            if bits not in ROLLOUT_BITS:
                continue
            weight[row] = kept + delta[row]
            total = 0.0
            for family, chunks in expected.items():
                pairs = zip(rollout(scored.policy, env, family), chunks, strict=False)
                total += sum(chunk_distance(ours.normalized, theirs.normalized) for ours, theirs in pairs)
            weight[row] = kept
            measured.setdefault(bits, []).append(total / len(expected))
            for key in ROLLOUT_METRICS:
                predicted[key].setdefault(bits, []).append(float(scored.scores[key][linear][bits][row]))
    env.close()
    table = {key: correlations(by_bits, measured) for key, by_bits in predicted.items()}
    for key, found in table.items():
        print(f"{key:10s}" + "".join(f"{name:>8s} {value:.3f}" for name, value in found.items()), flush=True)
    return {"rows": rows, "chunks": CHUNKS, "observations": observations, "spearman": table}


def rollout(policy: CogACTPolicy, env: TabletopEnv, family: TaskFamily) -> list[ActionChunk]:
    """The first chunks of one episode, each predicted on what the ones before it led to."""
    episode = EpisodeRun(env, "visual_matching", family, ROLLOUT_SEED, Execution())
    chunks: list[ActionChunk] = []
    while len(chunks) < CHUNKS and not episode.finished:
        chunks.append(policy.predict(episode.observe(), seed=episode.noise_seed))
        episode.act(chunks[-1])
    return chunks


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
    parser.add_argument("what", choices=("proxies", "rollouts", "schemes"))
    parser.add_argument("--rows", type=int, default=42)
    parser.add_argument("--observations", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "schemes":
        found = schemes(args.observations)
    else:
        found = (proxies if args.what == "proxies" else rollouts)(args.rows, args.observations)
    stored = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(stored | {args.what: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
