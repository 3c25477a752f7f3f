"""Memory, widths and operations in the tables of a study."""

import json

from sqap_vla_ros.evaluation.closed_loop.report import print_summary, write_report
from sqap_vla_ros.evaluation.closed_loop.study import EPISODES, Store
from sqap_vla_ros.evaluation.closed_loop.tables import markdown, method_results

SUITE = "visual_matching"
EPISODE = {
    "suite": SUITE,
    "family": "pick",
    "seed": 0,
    "success": True,
    "reason": "",
    "steps": 20,
    "chunks": 5,
    "path_m": 1.0,
    "jerk_m_s3": 2.0,
    "inference_ms": 9.0,
}


def test_tables_have_memory_bits_and_both_counts_of_operations(tmp_path, capsys):
    """Studies of earlier versions have the paper's count alone."""
    costs = {"weight_bytes": 2**21, "bits_per_parameter": 4.125, "bits_per_channel": 4.5}
    store = Store(tmp_path)
    for name, known in (
        ("new", {"costs": {**costs, "bops_paper": 0.614, "bops_bit_product": 0.592, "bops_paper_7b": 0.263}}),
        ("old", {"bops": 0.7254, "bops_7b": 0.4098}),
    ):
        store.append(name, EPISODES, [EPISODE])
        store.describe(name, known)
    head, _, new, old = markdown(method_results(store, ["new", "old"], SUITE)).splitlines()
    assert head.endswith("| BOPs, paper | BOPs, product | bits a weight | a row | weights, MiB |")
    assert new.endswith("| 61.4% | 59.2% | 4.12 | 4.50 | 2.00 |")
    assert old.endswith("| 72.5% |  |  |  |  |")
    write_report(store, ["new", "old"], SUITE)
    first, second = json.loads((tmp_path / f"{SUITE}.json").read_text())
    assert (first["bits_per_channel"], first["bops_paper_7b"], first["weight_bytes"]) == (4.5, 0.263, 2**21)
    assert (second["bops_paper"], second["bops_paper_7b"], second["bits_per_channel"]) == (0.7254, 0.4098, None)
    header, line, _ = (tmp_path / f"{SUITE}.csv").read_text().splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["bops_bit_product"] == "0.592"
    print_summary(store, ["new", "old"], SUITE)
    assert "59.2%" in capsys.readouterr().out
