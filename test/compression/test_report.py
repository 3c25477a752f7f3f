import json

import numpy as np
import pytest

from sqap_vla_ros.cli import main
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.report import Probe, attention_overlap, layer_errors, peak_to_rms, probe
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import make_selector


def test_compress_command_writes_a_policy_that_predicts_and_a_report(tmp_path, capsys):
    out, report = tmp_path / "policy.safetensors", tmp_path / "report"
    arguments = ["--checkpoint", "micro", "--recipe", "sqap", "--calibration", "synthetic", "--observations", "2"]
    assert main(["compress", *arguments, "--out", str(out), "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "packed linears" in printed
    assert "decoder: 4.00 bits a weight, 4.00 a row\noperations: " in printed
    assert main(["inspect", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["decoder"] == "4.00 bits a weight, 4.00 a row"
    assert facts["operations"].endswith("% (bit product) of the uncompressed policy's")
    assert facts["calibrated on"] == "2 observations of synthetic"
    summary = json.loads((report / "report.json").read_text())
    assert summary["total_bytes"]["after"] < summary["total_bytes"]["before"]
    assert len(summary["linears"]) == 42
    assert 0 < summary["held_out"]["rms_action_error"] < summary["held_out"]["rms_action"]
    assert 0.5 < summary["attention"]["top_30_percent_overlap"] <= 1
    assert (summary["average_bits_per_parameter"], summary["average_bits_per_channel"]) == (4.0, 4.0)
    assert all(0 < share < 1 for share in summary["bops"].values())
    down = summary["bytes_by_module"]["down_proj"]
    assert down["stored"] < 0.3 * down["at_16_bits"]
    for picture in ("report.png", "bits.png"):
        assert (report / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nothing"], "no recipe named 'nothing'; there are:"),
        (["--recipe", "w4a4"], "needs calibration observations: give --calibration"),
        (
            ["--recipe", "qvla_w4a8", "--calibration", "synthetic:3"],
            "at least 4 calibration observations, got 3; 24 to 48 are enough",
        ),
        (["--recipe", "w4a4", "--calibration", "nowhere"], "is not a folder of images"),
        (["--recipe", "rtn_w4a4", "--checkpoint", "nowhere"], "checkpoint nowhere does not exist"),
        (["--recipe", "rtn_w4a4", "--out", "policy.bin"], "is a .safetensors file"),
        (["--calibration", "synthetic", "--observations", "0"], "--observations: must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys, arguments, message):
    base = ["compress", "--checkpoint", "micro", "--out", str(tmp_path / "policy.safetensors")]
    assert main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing half-made stays behind


def test_probe_looks_without_changing_the_policy():
    policy = micro_policy(selector=make_selector("sqap"))
    observations = synthetic_observations(2)
    expected = [policy.predict(o).normalized for o in observations]
    seen = probe(policy, observations)
    np.testing.assert_array_equal(seen.chunks, expected)
    assert seen.attention.shape == (16, 16)
    assert 0 < seen.attention.sum() < 1  # the rest of the attention goes to text
    assert seen.activations.shape[1] == 128
    assert policy.selector is not None
    assert policy.selector.name == "sqap"


def test_numbers_of_the_report_by_hand():
    attention = np.arange(4, dtype=np.float32).reshape(2, 2)
    one = Probe(np.zeros((1, 16, 7)), attention, np.array([[3.0, -4.0, 0, 0]], np.float32))
    other = Probe(np.zeros((1, 16, 7)), attention[::-1].copy(), one.activations)
    assert attention_overlap(one, one, 2) == 1.0
    assert attention_overlap(one, other, 2) == 0.0
    assert peak_to_rms(one.activations) == pytest.approx(4 / 2.5)
    row = {"name": "decoder.layers.3.q_proj", "weight_error": 0.1, "output_error": 0.2}
    assert layer_errors([row, {**row, "weight_error": 0.3}]) == {3: (pytest.approx(0.2), 0.2)}
