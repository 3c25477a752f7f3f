"""Widths of a compressed policy and what they cost: numbers and a picture, from the report in a compressed file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqap_vla_ros.compression.bops import FULL_BITS, QUANTIZABLE_MODULES, KnownWidths, operation_shares
from sqap_vla_ros.compression.recipe import Recipe
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.config import PolicyConfig

_NAMED = 3  # linears that are named as the most sensitive ones
_COLOURS = {0: "0.85", 2: "#66ccee", 3: "#88ccaa", 4: "#4477aa", 8: "#ee6677", 16: "#aa3377"}


@dataclass(frozen=True)
class LinearWidths:
    """The widths of one linear of the decoder.

    columns: input channels. rows: bits -> how many rows have them. stored_bytes: as packed, scales included.
    damage: bits -> expected squared change of the action with all rows at that width, in the unit of the recipe's
        metric; empty where the recipe did not look.
    """

    layer: int
    name: str
    columns: int
    rows: Mapping[int, int]
    stored_bytes: int
    damage: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Return the mean width of the rows."""
        return _mean(self.rows)


def linear_widths(report: Sequence[Mapping[str, Any]], config: PolicyConfig) -> list[LinearWidths]:
    """Return the widths of the decoder's quantised linears. report: that of a compressed file's header."""
    found = []
    for row in report:
        if not row["name"].startswith("decoder."):
            continue
        _, _, layer, name = row["name"].split(".")
        columns = config.decoder.mlp_width if name == "down_proj" else config.decoder.width
        count = config.decoder.mlp_width if name in ("gate_proj", "up_proj") else config.decoder.width
        rows, damage = row.get("row_counts", {row["weight_bits"]: count}), row.get("damage", {})
        found.append(
            LinearWidths(
                int(layer),
                name,
                columns,
                {int(bits): many for bits, many in rows.items()},
                row["stored_bytes"],
                {int(bits): value for bits, value in damage.items()},
            )
        )
    return found


def known_widths(linears: Sequence[LinearWidths], parts: Mapping[str, Mapping[int, int]] = {}) -> KnownWidths:
    """Return what operations are counted with. parts: module of `bops.macs` -> bits -> how many weights."""
    return KnownWidths({(each.layer, each.name): each.rows for each in linears}, parts)


def weights_by_module(report: Sequence[Mapping[str, Any]]) -> dict[str, Counter[int]]:
    """Return, by module of `bops.macs`, bits -> how many weights of the quantised linears beside the decoder."""
    found: dict[str, Counter[int]] = {}
    for linear in report:
        module = next((name for name in QUANTIZABLE_MODULES if linear["name"].startswith(f"{name}.")), None)
        if module is not None and "shape" in linear:
            count, columns = linear["shape"]
            for bits, many in linear.get("row_counts", {linear["weight_bits"]: count}).items():
                found.setdefault(module, Counter())[int(bits)] += many * columns
    return found


def averages(linears: Sequence[LinearWidths]) -> tuple[float, float]:
    """Return the mean bits of a weight, and of a row."""
    rows = [(each, sum(each.rows.values())) for each in linears]
    weights, channels = sum(count * each.columns for each, count in rows), sum(count for _, count in rows)
    return (
        sum(each.mean * count * each.columns for each, count in rows) / weights,
        sum(each.mean * count for each, count in rows) / channels,
    )


def width_summary(
    linears: Sequence[LinearWidths],
    recipe: Recipe,
    config: PolicyConfig,
    parts: Mapping[str, Mapping[int, int]] = {},
) -> dict[str, Any]:
    """Return averages, operations and sizes in plain containers; empty where nothing was quantised.

    The operations are shares of the uncompressed policy's, pruning included (see `bops.Definition`).
    parts: as in `known_widths`.
    """
    if not linears:
        return {}
    by_weight, by_row = averages(linears)
    counts: dict[int, int] = {}
    for each in linears:
        for bits, many in each.rows.items():
            counts[bits] = counts.get(bits, 0) + many
    return {
        "average_bits_per_parameter": by_weight,
        "average_bits_per_channel": by_row,
        "rows": {str(bits): counts[bits] for bits in sorted(counts)},
        "bops": operation_shares(recipe, config, known=known_widths(linears, parts)),
        "bytes_by_module": {
            name: {
                "at_16_bits": sum(sum(e.rows.values()) * e.columns for e in linears if e.name == name) * FULL_BITS // 8,
                "stored": sum(e.stored_bytes for e in linears if e.name == name),
            }
            for name in COGACT.linears
        },
    }


def parts_in_words(report: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the average widths of the quantised parts beside the decoder, as a user reads them."""
    return {part.replace("_", " "): _means(widths.to_dict()) for part, widths in part_widths(report).items()}


def sensitivity_in_words(linears: Sequence[LinearWidths]) -> dict[str, str]:
    """Return the decoder's most and least sensitive linears, as a user reads them; empty where none were scored."""
    compared = _compared_width(linears)
    if compared is None:
        return {}
    ranked = sorted(linears, key=lambda each: each.damage[compared], reverse=True)
    most, least = (
        ", ".join(f"layer {each.layer} {each.name} {each.damage[compared]:.2g}" for each in some)
        for some in (ranked[:_NAMED], ranked[: -_NAMED - 1 : -1])
    )
    return {
        "most sensitive": f"{most} (expected squared change with all rows at {compared} bits)",
        "least sensitive": least,
        "all of them": "drawn in bits.png by `sqap-vla compress --report DIR`",
    }


def _means(found: Mapping[str, Any]) -> str:
    return f"{found['average_bits_per_parameter']:.2f} bits a weight, {found['average_bits_per_channel']:.2f} a row"


@dataclass(frozen=True)
class PartWidths:
    """The widths of a part's quantised linears: the vision towers, the projector or the action head.

    rows, weights: bits -> how many rows or weights have them. stored_bytes: as packed, scales included.
    """

    rows: Mapping[int, int]
    weights: Mapping[int, int]
    stored_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return averages, rows and size in plain containers."""
        return {
            "average_bits_per_parameter": _mean(self.weights),
            "average_bits_per_channel": _mean(self.rows),
            "rows": {str(bits): self.rows[bits] for bits in sorted(self.rows)},
            "bytes": {"at_16_bits": sum(self.weights.values()) * FULL_BITS // 8, "stored": self.stored_bytes},
        }


def part_widths(report: Sequence[Mapping[str, Any]]) -> dict[str, PartWidths]:
    """Return the widths of each quantised part beside the decoder; of files that older versions wrote, none."""
    rows: dict[str, Counter[int]] = {}
    weights: dict[str, Counter[int]] = {}
    stored: Counter[str] = Counter()
    for linear in report:
        if "shape" not in linear:
            continue
        part, (count, columns) = linear["name"].split(".")[0], linear["shape"]
        for bits, many in linear.get("row_counts", {linear["weight_bits"]: count}).items():
            rows.setdefault(part, Counter())[int(bits)] += many
            weights.setdefault(part, Counter())[int(bits)] += many * columns
        stored[part] += linear["stored_bytes"]
    return {part: PartWidths(rows[part], weights[part], stored[part]) for part in rows}


def _mean(counts: Mapping[int, int]) -> float:
    return sum(bits * many for bits, many in counts.items()) / sum(counts.values())


def draw_widths(path: Path, linears: Sequence[LinearWidths], title: str, parts: Mapping[str, PartWidths]) -> None:
    """Draw mean width, share of widths and size, and sensitivity by layer and module (QVLA, Figure 1) where known.

    parts: what else is quantised; its shares and sizes are drawn below those of the decoder's modules.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm

    layers = sorted({each.layer for each in linears})
    at = {(each.layer, each.name): each for each in linears}
    compared = _compared_width(linears)
    panels = 3 if compared is None else 5
    height = 3.2 + 0.22 * max(len(layers), 7)
    figure, axes = plt.subplots(1, panels, figsize=(4.6 * panels, height), layout="constrained")
    figure.suptitle(title)
    means = np.array([[at[layer, name].mean for name in COGACT.linears] for layer in layers])
    _grid(figure, axes[0], means, layers, "mean bits of the rows", annotate=len(layers) <= 8)
    _shares(axes[1], linears, parts)
    _sizes(axes[2], linears, parts)
    if compared is not None:
        damage = np.array([[at[layer, name].damage[compared] for name in COGACT.linears] for layer in layers])
        words = f"sensitivity: all rows of a linear at {compared} bits"
        _grid(figure, axes[3], damage, layers, words, norm=LogNorm(damage[damage > 0].min(), damage.max()))
        for name, column in zip(COGACT.linears, damage.T, strict=True):
            axes[4].plot(layers, column, "o-", markersize=3, label=name)
        axes[4].plot(layers, damage.sum(1), "k--", linewidth=1, label="all seven, summed")
        axes[4].set(title=f"expected squared change at {compared} bits", xlabel="decoder layer", yscale="log")
        axes[4].set_xticks(layers if len(layers) <= 12 else layers[::4])
        axes[4].legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize="small", ncols=4)
        axes[4].grid(alpha=0.3)
    with written_aside(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def _compared_width(linears: Sequence[LinearWidths]) -> int | None:
    """Return the width nearest to four bits that all linears were scored at, and where a damage can be drawn.

    None where there is none.
    """
    common = set.intersection(*({*each.damage} for each in linears)) - {0, FULL_BITS} if linears else set()
    drawn = [bits for bits in common if any(0 < each.damage[bits] < np.inf for each in linears)]
    return min(drawn, key=lambda bits: (abs(bits - 4), bits), default=None)


def _grid(figure: Any, axis: Any, values: Any, layers: Sequence[int], title: str, **how: Any) -> None:
    annotate = how.pop("annotate", False)
    image = axis.imshow(values, cmap="viridis", aspect="auto", **how)
    axis.set_xticks(range(len(COGACT.linears)), [name.removesuffix("_proj") for name in COGACT.linears])
    step = 1 if len(layers) <= 12 else 4
    axis.set_yticks(range(0, len(layers), step), layers[::step])
    axis.set(title=title, ylabel="decoder layer")
    figure.colorbar(image, ax=axis, shrink=0.8)
    if annotate:
        middle = (values.min() + values.max()) / 2
        for row, col in np.ndindex(values.shape):
            colour = "white" if values[row, col] < middle else "black"
            axis.text(col, row, f"{values[row, col]:.1f}", ha="center", va="center", color=colour, fontsize="small")


def _sizes(axis: Any, linears: Sequence[LinearWidths], parts: Mapping[str, PartWidths]) -> None:
    before: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for each in linears:
        before[each.name] += sum(each.rows.values()) * each.columns * FULL_BITS // 8
        stored[each.name] += each.stored_bytes
    for part, widths in parts.items():
        before[part], stored[part] = sum(widths.weights.values()) * FULL_BITS // 8, widths.stored_bytes
    unit, divisor = ("GiB", 2**30) if max(before.values()) > 2**30 else ("MiB", 2**20)
    words = [name.removesuffix("_proj").replace("_", " ") for name in before]
    axis.barh(words, [before[name] / divisor for name in before], color="0.85", label="at 16 bits")
    axis.barh(words, [stored[name] / divisor for name in before], color="#4477aa", label="stored, with scales")
    axis.invert_yaxis()
    axis.set(title=f"size by module, {unit}")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, fontsize="small")


def _shares(axis: Any, linears: Sequence[LinearWidths], parts: Mapping[str, PartWidths]) -> None:
    bars: dict[str, Counter[int]] = {name: Counter() for name in COGACT.linears}
    for each in linears:
        bars[each.name].update(each.rows)
    bars |= {part: Counter(widths.rows) for part, widths in parts.items()}
    words = [name.removesuffix("_proj").replace("_", " ") for name in bars]
    widths = sorted({bits for counts in bars.values() for bits in counts})
    left = np.zeros(len(bars))
    for bits in widths:
        share = np.array([counts[bits] / counts.total() for counts in bars.values()])
        axis.barh(words, share, left=left, color=_COLOURS[bits], label=bits)
        left += share
    axis.invert_yaxis()
    axis.set(title="share of the rows by width", xlim=(0, 1))
    axis.legend(title="bits", loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=len(widths), fontsize="small")
