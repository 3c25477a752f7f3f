"""Tells what a policy costs in memory and operations, in the words of reports."""

from __future__ import annotations

from collections.abc import Mapping


def costs_in_words(costs: Mapping[str, float]) -> dict[str, str]:
    """Return costs as a user reads them, by subject; what is not known is left out."""
    words = {}
    if "weight_bytes" in costs:
        words["weights"] = size_in_words(costs["weight_bytes"])
    widths = [
        f"{costs[name]:.2f} {unit}"
        for name, unit in (("bits_per_parameter", "bits a weight"), ("bits_per_channel", "a row"))
        if name in costs
    ]
    if widths:
        words["decoder"] = ", ".join(widths)
    counted = [
        f"{costs[name]:.1%} ({name.removeprefix('bops_').replace('_', ' ')})"
        for name in ("bops_paper", "bops_bit_product")
        if name in costs
    ]
    if counted:
        words["operations"] = f"{', '.join(counted)} of the uncompressed policy's"
    return words


def size_in_words(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    if count >= 2**20 / 10:
        return f"{count / 2**20:.2f} MiB"
    return f"{count / 2**10:.1f} KiB" if count else "nothing"
