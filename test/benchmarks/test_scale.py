"""The cost model's measurements say where and beside what they were made."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scale")


def test_a_run_is_shown_with_its_processor_and_load_and_an_old_one_without(scale, capsys):
    report = json.loads((BENCHMARKS / "results" / "scale.json").read_text())
    report["runs"][0].pop("machine", None)
    report["runs"][1]["machine"] = {"cpu": "A CPU", "load_average": [0.25, 1.5], "torch": "2"}
    scale.show(report, None)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1 threads (process_time), machine and load not recorded: ") for line in lines)
    assert any(line.startswith("2 threads (perf_counter), A CPU, load 0.2 to 1.5: ") for line in lines)


def test_the_processor_is_named_as_the_kernel_names_it(scale):
    text = Path("/proc/cpuinfo").read_text()
    assert scale.processor()
    assert scale.processor() in text or "model name" not in text


def test_results_that_are_not_there_are_named(scale, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["scale", "show", "--out", str(tmp_path / "missing.json")])
    with pytest.raises(SystemExit):
        scale.main()
    assert "missing.json: no such file" in capsys.readouterr().err
