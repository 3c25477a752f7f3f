"""The report of `sqap-vla evaluate`: a table for the terminal, Markdown, CSV and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sqap_vla_ros.evaluation.closed_loop.study import Store
from sqap_vla_ros.evaluation.closed_loop.tables import COSTS, markdown, method_results, write_csv, write_json
from sqap_vla_ros.policy.checkpoints.writing import write_text


def print_summary(store: Store, methods: Sequence[str], suite: str) -> None:
    """Print success in percent and the comparison with the first method, then what each costs."""
    table = Table("method", title=f"Closed loop, {suite}")
    for heading in ("n", "success", "95 %", "diff.", "p", "jerk", "CPU ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    costs = Table("method", title="Costs")
    for column in COSTS:
        costs.add_column(column.words, justify="right")
    for row in method_results(store, methods, suite):
        costs.add_row(row.method, *row.cost_texts())
        table.add_row(
            row.method,
            str(row.episodes),
            f"{100 * row.success.value:.1f}",
            f"{100 * row.success.low:.0f}–{100 * row.success.high:.0f}",
            "" if row.against is None else f"{100 * row.against.value:+.1f}",
            "" if row.p_value is None else f"{row.p_value:.3g}",
            "" if row.jerk_m_s3 is None else f"{row.jerk_m_s3:.2f}",
            f"{row.inference_ms:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(costs)


def write_report(store: Store, methods: Sequence[str], suite: str) -> Path:
    """Write `<suite>.md`, .csv, .json and the pictures into the store's folder; return the Markdown file."""
    from sqap_vla_ros.evaluation.closed_loop.figures import deviation_figure, success_figure  # plotting imports slowly

    rows = method_results(store, methods, suite)
    out = store.out
    write_csv(out / f"{suite}.csv", rows)
    write_json(out / f"{suite}.json", rows)
    pictures = [f"{suite}_success.png"]
    if rows:
        success_figure(out / pictures[0], rows, f"Success by method, {suite}")
    deviations = {m: [d for d in store.deviations(m) if d["suite"] == suite] for m in methods[1:]}
    if any(deviations.values()):
        pictures.append(f"{suite}_deviation.png")
        deviation_figure(out / pictures[1], deviations, f"Cumulative action deviation from {methods[0]}, {suite}")
    text = [
        f"# Closed loop, {suite}\n",
        markdown(rows),
        f"Reference: {methods[0]}. Success in % with Wilson intervals; differences are paired by episode, p is the "
        "exact McNemar test; jerk in m/s³; deviation: sum of ||A' − A*|| over the reference's episodes. Operations "
        "are shares of the uncompressed policy's with its own geometry, by the paper's count and as products of "
        "widths; bits are means over the decoder's linears.\n",
        *(f"![{picture}]({picture})\n" for picture in pictures),
    ]
    path = out / f"{suite}.md"
    write_text(path, "\n".join(text))
    return path
