"""The report of a compression: numbers (report.json) and pictures (report.png; bits.png where something was quantised).

Sizes by part and module, bits and operations, error by decoder layer, the spread of the activations before and after
(the SQAP paper's Figure 3), the cognition token's attention before and after (its Figure 2), and the error of the
actions on held-out observations or, where there are none, on those that calibrated.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sqap_vla_ros.compression.bits import LinearWidths, draw_widths, part_widths
from sqap_vla_ros.contracts import Observation, Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.policy.checkpoints.writing import write_text, written_aside
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.pruning.base import Selector, keep_same

PROBED_LAYER = 2  # where the SQAP selector reads the attention
HELD_OUT, CALIBRATED_ON = "held_out", "calibrated_on"  # names of the actions' errors in report.json
_ON = {True: "actions on held-out observations", False: "actions on the calibration's own observations"}


@dataclass(frozen=True)
class Probe:
    """A policy's behaviour on the observations of a report.

    chunks: [n, T, 7] normalised actions. attention: [rows, cols] of the first observation, at `PROBED_LAYER`.
    activations: [S, D] input of that layer's query projection, first observation.
    """

    chunks: NDArray[np.float64]
    attention: NDArray[np.float32]
    activations: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _AttentionProbe(Selector):
    """Keeps every token and appends the attention it is shown, [B, N], to `seen`."""

    name: str = "probe"
    ratio: float = 0.0
    prune_layer: int = PROBED_LAYER + 1
    needs: frozenset[str] = frozenset({"attention"})
    seen: list[Tensor] = field(default_factory=list)

    def select(self, context: SelectionContext) -> SelectedTokens:
        assert context.attention is not None
        self.seen.append(context.attention.clone())
        return keep_same(np.arange(context.attention.shape[1]), Reason.ALL, context)


def probe(policy: CogACTPolicy, observations: Sequence[Observation]) -> Probe:
    """Predict the observations, every token kept, and look inside for the first."""
    selector, watching = policy.selector, _AttentionProbe()
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0][0].float()
        eps = getattr(getattr(query, "activation", None), "rms_eps", None)  # the norm is part of a fused layer's q
        seen.append(x.clone() if eps is None else x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))

    query = policy.model.decoder.get_submodule(f"layers.{PROBED_LAYER}.self_attn.q_proj")
    handle = query.register_forward_pre_hook(hook)
    try:
        policy.selector = watching
        policy.predict(observations[0])
    finally:
        handle.remove()
        policy.selector = selector
    grid = policy.model.config.vision.grid
    return Probe(
        chunks=np.stack([policy.predict(observation).normalized for observation in observations]),
        attention=watching.seen[0][0].float().view(grid).numpy(),
        activations=seen[0].numpy(),
    )


def attention_overlap(before: Probe, after: Probe, kept: int) -> float:
    """Return the share of the `kept` most attended tokens that are the same in both."""
    top = [set(np.argsort(-p.attention.ravel(), kind="stable")[:kept].tolist()) for p in (before, after)]
    return len(top[0] & top[1]) / kept


def peak_to_rms(activations: NDArray[np.float32]) -> float:
    """Return the largest over the root mean square magnitude of a token, averaged: the range a quantiser must span."""
    peaks = np.abs(activations).max(axis=-1) / np.sqrt(np.square(activations).mean(axis=-1)).clip(1e-12)
    return float(peaks.mean())


def summarize(
    before: Probe,
    after: Probe,
    sizes: dict[str, dict[str, int]],
    report: Sequence[dict[str, Any]],
    *,
    held_out: bool = True,
) -> dict[str, Any]:
    """Return the numbers of the report. The actions' errors are called `held_out` or else `calibrated_on`.

    sizes: {"before": ..., "after": ...} of `costs.weight_bytes`.
    """
    difference = after.chunks - before.chunks
    tokens = before.attention.size
    return {
        "bytes": sizes,
        "total_bytes": {key: sum(value.values()) for key, value in sizes.items()},
        HELD_OUT if held_out else CALIBRATED_ON: {
            "observations": len(before.chunks),
            "rms_action_error": float(np.sqrt(np.square(difference).mean())),
            "rms_by_channel": np.sqrt(np.square(difference).mean(axis=(0, 1))).tolist(),
            "rms_action": float(np.sqrt(np.square(before.chunks).mean())),
        },
        "attention": {
            "layer": PROBED_LAYER,
            "correlation": float(np.corrcoef(before.attention.ravel(), after.attention.ravel())[0, 1]),
            "top_30_percent_overlap": attention_overlap(before, after, round(0.3 * tokens)),
        },
        "activation_peak_to_rms": {"before": peak_to_rms(before.activations), "after": peak_to_rms(after.activations)},
        "linears": list(report),
    }


def layer_errors(report: Sequence[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Return decoder layer -> (mean relative weight error, relative error of its output; NaN without calibration)."""
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in report:
        if row["name"].startswith("decoder."):
            rows[int(row["name"].split(".")[2])].append(row)
    return {
        layer: (
            float(np.mean([row["weight_error"] for row in linears])),
            float("nan") if linears[0]["output_error"] is None else linears[0]["output_error"],
        )
        for layer, linears in sorted(rows.items())
    }


def write_report(
    folder: Path, before: Probe, after: Probe, summary: dict[str, Any], title: str, widths: Sequence[LinearWidths] = ()
) -> None:
    """Write report.json, report.png and, with widths, bits.png in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", json.dumps(summary, indent=1) + "\n")
    if widths:
        draw_widths(folder / "bits.png", widths, title, part_widths(summary["linears"]))
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(19, 8.6), layout="constrained")
    figure.suptitle(title)
    for axis, probe_, name in zip(axes[0, :2], (before, after), ("before", "after"), strict=True):
        _activations(axis, probe_, f"activations {name}, peak / rms {peak_to_rms(probe_.activations):.1f}")
    for axis, probe_, name in zip(axes[1, :2], (before, after), ("before", "after"), strict=True):
        image = axis.imshow(probe_.attention, cmap="viridis")
        axis.set(title=f"attention of the cognition token, layer {PROBED_LAYER}, {name}", xticks=[], yticks=[])
        figure.colorbar(image, ax=axis, shrink=0.8)
    _sizes(axes[0, 2], summary["bytes"])
    _errors(axes[0, 3], summary["linears"])
    held_out = HELD_OUT in summary
    errors = summary[HELD_OUT if held_out else CALIBRATED_ON]
    _scatter(axes[1, 2], before, after, f"{_ON[held_out]}, rms error {errors['rms_action_error']:.3f}")
    channels = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    axes[1, 3].bar(channels, errors["rms_by_channel"], color="#4477aa")
    axes[1, 3].set(title="error by action channel, normalised units, rms")
    with written_aside(folder / "report.png") as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def _activations(axis: Any, probe_: Probe, title: str) -> None:
    magnitude = np.sort(np.abs(probe_.activations), axis=0)
    channels = np.arange(magnitude.shape[1])
    for share, colour in ((1.0, "#cc3311"), (0.99, "#ee7733"), (0.75, "#4477aa")):
        row = magnitude[min(len(magnitude) - 1, int(share * len(magnitude)))]
        axis.plot(channels, row, linewidth=0.7, color=colour, label=f"{share:.0%} of tokens below")
    axis.set(title=title, xlabel="channel", ylabel="magnitude")
    axis.legend(loc="upper right", fontsize="small")


def _sizes(axis: Any, sizes: dict[str, dict[str, int]]) -> None:
    parts = sorted({part for column in sizes.values() for part in column})
    bottom = np.zeros(len(sizes))
    for part, colour in zip(parts, ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"), strict=False):
        heights = np.array([column.get(part, 0) / 2**20 for column in sizes.values()])
        axis.bar(list(sizes), heights, bottom=bottom, label=part, color=colour)
        bottom += heights
    axis.set(title="size, MiB")
    axis.legend(fontsize="small")


def _errors(axis: Any, report: Sequence[dict[str, Any]]) -> None:
    errors = layer_errors(report)
    if not errors:
        axis.set(title="no layer was quantised", xticks=[], yticks=[])
        return
    weight, output = np.array(list(errors.values())).T
    axis.plot(list(errors), weight, "o-", color="#4477aa", label="weights")
    if np.isfinite(output).all():
        axis.plot(list(errors), output, "s-", color="#ee6677", label="layer output")
    axis.set(title="relative error by decoder layer", xlabel="layer", ylim=(0, None))
    axis.legend()


def _scatter(axis: Any, before: Probe, after: Probe, title: str) -> None:
    axis.plot([-1, 1], [-1, 1], color="0.7", linewidth=1)
    axis.plot(before.chunks.ravel(), after.chunks.ravel(), ".", markersize=2, color="#4477aa")
    axis.set(title=title, xlabel="before", ylabel="after")
