"""`make gpu` without a GPU: its parts replaced by tiny ones."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
# what a machine with torch, transformers and triton may lack
ABSENT = (
    "cv2",
    "PIL",
    "scipy",
    "sentencepiece",
    "matplotlib",
    "mujoco",
    "gymnasium",
    "pytest",
    "hypothesis",
    "imageio",
    "rclpy",
    "pandas",
)
LINEAR = {
    "machine": {"device": "a GPU"},
    "rows": [{"linear": "q", "tokens": 277, "median_ms": {"bfloat16": 0.2, "w4a8": 0.1}}],
}
GEOMETRY = {
    "machine": {"device": "a GPU"},
    "variants": {
        "bf16": {"total_ms": [30.0, 20.0, 10.0], "peak_gib": 14.0, "stages_ms": {"decoder": 15.0}},
        "w4a8": {"total_ms": [10.0], "peak_gib": 5.0, "stages_ms": {"decoder": 5.0}},
        "broken": {"error": "out of memory"},
    },
}


@pytest.fixture
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


def script(folder, name, text):
    path = folder / f"{name}.py"
    path.write_text("import pathlib, sys, time\n" + text)
    return (str(path),)


def test_every_part_is_kept_whatever_becomes_of_the_others(gpu, tmp_path, capsys):
    save = "pathlib.Path(sys.argv[sys.argv.index('--out') + 1]).write_text({!r})\n"
    parts = (
        gpu.Part("exact", script(tmp_path, "exact", "print('a kernel differs'); sys.exit(3)"), 1.0),
        gpu.Part("linear", script(tmp_path, "linear", save.format(json.dumps(LINEAR))), 1.0, "linear_cuda.json"),
        gpu.Part(
            "geometry",
            script(tmp_path, "geometry", save.format(json.dumps(GEOMETRY)) + "time.sleep(600)"),
            0.02,
            "full_geometry_cuda.json",
        ),
        gpu.Part("later", script(tmp_path, "later", "print('after all')"), 1.0),
    )
    out = tmp_path / "out"
    ended = gpu.run(parts, out, 60.0)
    status = {name: each["status"] for name, each in ended.items()}
    assert status["exact"] == "failed with status 3, see exact.log"
    assert "a kernel differs" in (out / "exact.log").read_text()
    assert status["linear"] == status["later"] == "done"
    assert status["geometry"].startswith("ended after 1 s")
    assert json.loads((out / "summary.json").read_text()) == ended
    table = (out / "table.md").read_text()
    assert "| q | 277 | 0.2000 | 0.1000 |" in table
    assert "| w4a8 | 10.00 | 2.00 |  | 5.0 | decoder 5.00 |" in table
    assert "| broken | failed |" in table
    assert "later: done" in capsys.readouterr().out


def test_a_result_that_is_cut_off_and_one_of_an_earlier_run_are_not_taken_for_results(gpu, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "linear_cuda.json").write_text(json.dumps(LINEAR))
    cut = "pathlib.Path(sys.argv[sys.argv.index('--out') + 1]).write_text('{\"rows\": [')\nsys.exit(1)"
    parts = (
        gpu.Part("linear", script(tmp_path, "linear", "sys.exit(1)"), 0.5, "linear_cuda.json"),
        gpu.Part("geometry", script(tmp_path, "geometry", cut), 0.5, "full_geometry_cuda.json"),
        gpu.Part("later", script(tmp_path, "later", ""), 1.0),
    )
    assert gpu.run(parts, out, 60.0)["later"]["status"] == "done"
    table = (out / "table.md").read_text()
    assert "| q | 277 |" not in table
    assert "geometry: full_geometry_cuda.json is cut off" in table
    assert json.loads((out / "linear_cuda.json.earlier").read_text()) == LINEAR


def test_the_table_is_printed_where_nothing_can_be_written(gpu, tmp_path, monkeypatch, capsys):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gpu, "PARTS", (gpu.Part("exact", script(tmp_path, "exact", ""), 1.0),))
    monkeypatch.setattr(gpu, "gpu_problem", lambda: "")
    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert gpu.main() == 0
    said = capsys.readouterr().out
    assert "table.md is not written: [Errno 28] No space left on device" in said
    assert "| exact | done |" in said


def test_a_variant_that_hangs_does_not_keep_the_next_one_from_being_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import full_geometry

    def child(what):
        if what == "cuda:bf16":
            raise subprocess.TimeoutExpired("full_geometry.py", 120.0)
        return {"total_ms": [10.0], "peak_gib": 5.0, "stages_ms": {"decoder": 5.0}}

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    full_geometry.run_cuda(child, tmp_path / "results.json", ["bf16", "w4a8"])
    variants = json.loads((tmp_path / "results.json").read_text())["variants"]
    assert "timed out after 120.0 seconds" in variants["bf16"]["error"]
    assert variants["w4a8"]["total_ms"] == [10.0]
    assert "bf16                 failed: " in capsys.readouterr().out


class Humming(torch.nn.Module):
    """What the package's class does, in PyTorch. right: it computes the linear it was given."""

    right = True

    def __init__(self, *, shape_n, shape_k, weight_config, input_config, torch_dtype):
        super().__init__()
        assert weight_config == {"dtype": "int4"}
        assert input_config["dtype"] in ("bfloat16", "int8", "int4")
        self.shape, self.ready = (shape_n, shape_k), False

    def load_from_unquantized(self, weight):
        assert weight.shape == self.shape
        self.weight = weight

    def transform(self):
        pass

    def prepare_default_kernel_configs(self):
        self.ready = True

    def forward(self, x):
        assert self.ready
        assert x.ndim == 2
        return x @ (self.weight if self.right else -self.weight).t()


def test_humming_takes_part_where_it_is_installed_and_computes_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import linear

    weight = torch.randn(8, 16)
    monkeypatch.setitem(sys.modules, "humming", None)
    assert linear.humming_linear(weight, "int8") is None
    layer = types.ModuleType("humming.layer")
    layer.HummingLayer = Humming
    monkeypatch.setitem(sys.modules, "humming", types.ModuleType("humming"))
    monkeypatch.setitem(sys.modules, "humming.layer", layer)
    x = torch.randn(1, 5, 16)
    for activations in linear.HUMMING.values():
        torch.testing.assert_close(linear.humming_linear(weight, activations)(x), x @ weight.t())
    monkeypatch.setattr(Humming, "right", False)
    with pytest.raises(RuntimeError, match=r"its result is 2.00 away from the linear's"):
        linear.humming_linear(weight, "int8")


def test_a_contender_that_cannot_run_is_left_out_and_one_that_must_run_is_not(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import linear

    def broken():
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(linear, "captured", lambda work: work() or work)
    assert list(linear.captured_each({"w4a4": int, "peer": broken}, needed=("w4a4",))) == ["w4a4"]
    assert capsys.readouterr().out == "peer is left out: no kernel image\n"
    with pytest.raises(RuntimeError):
        linear.captured_each({"w4a4": broken}, needed=("w4a4",))


def test_a_contender_that_some_rows_lack_has_an_empty_cell(gpu):
    rows = [*LINEAR["rows"], {"linear": "o", "tokens": 175, "median_ms": {"bfloat16": 0.2, "humming": 0.3}}]
    lines = gpu.linear_rows({"rows": rows})
    assert lines[2:] == ["| q | 277 | 0.2000 | 0.1000 |  |", "| o | 175 | 0.2000 |  | 0.3000 |"]


def test_parts_for_which_no_time_is_left_are_named(gpu, tmp_path):
    ended = gpu.run((gpu.Part("exact", script(tmp_path, "exact", ""), 1.0),), tmp_path / "out", 1.0)
    assert ended["exact"]["status"] == "left out, no time"
    assert "| exact | left out, no time | 0 |" in (tmp_path / "out" / "table.md").read_text()


def test_the_parts_are_scripts_and_variants_that_exist(gpu):
    for part in gpu.PARTS:
        assert (SCRIPT.parent / part.command[0]).is_file()
    assert sum(part.share for part in gpu.PARTS[:-1]) < 1 == gpu.PARTS[-1].share


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_ends_with_a_sentence(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert gpu.main() == 1
    assert capsys.readouterr().out == "PyTorch sees no CUDA device here, so there is nothing to measure.\n"
    assert not (tmp_path / "out").exists()


NO_LIBRARY = 'raise OSError("libcudart.so.12: cannot open shared object file: No such file or directory")'
ERROR_804 = """
class cuda:
    @staticmethod
    def is_available():
        raise RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility\\nwas tried")
"""
USELESS = """
class cuda:
    is_available = staticmethod(lambda: True)
def zeros(*_, **__):
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\\nCompile with ...")
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ImportError(\"No module named 'torch._C'\")", "which cannot be imported: No module named 'torch._C';"),
        (NO_LIBRARY, "which cannot be imported: libcudart.so.12: cannot open shared object file: No such file or dir"),
        (
            "raise ValueError('libcublas.so.*[0-9] not found')",
            "which cannot be imported: libcublas.so.*[0-9] not found",
        ),
        (ERROR_804, "cannot use the GPU here: Unexpected error from cudaGetDeviceCount(). Error 804: forward compati"),
        (USELESS, "cannot use the GPU here: CUDA error: no kernel image is available for execution on the device;"),
    ],
)
def test_a_torch_or_a_driver_that_is_broken_is_one_sentence(text, said, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(text)
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (run.returncode, run.stderr) == (1, "")
    (line,) = run.stdout.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_the_parts_need_no_more_than_torch_and_transformers(gpu):
    block = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    use = f"""
import full_geometry, linear, triton_exactness
for name in {gpu.VARIANTS!r}:
    full_geometry.VARIANTS[name].weights
from sqap_vla_ros.policy.preprocessing import ImageTransform
assert ImageTransform().apply(full_geometry.pictures(1)[0].image).shape == (224, 224, 3)
"""
    run = subprocess.run([sys.executable, "-c", block + use], capture_output=True, text=True)
    assert not run.returncode, run.stderr[-2000:]


@pytest.mark.parametrize(
    ("made", "given", "python"),
    [(True, (), ".venv/bin/python"), (False, (), "python3"), (False, ("PYTHON=mine",), "mine")],
)
def test_the_target_takes_the_environment_where_there_is_one(tmp_path, made, given, python):
    (tmp_path / "Makefile").symlink_to(Path(__file__).resolve().parents[2] / "Makefile")
    if made:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/python").touch()
    env = {"PATH": os.environ["PATH"]}
    shown = subprocess.run(
        ["make", "-n", "gpu", *given], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert shown.split(" benchmarks/gpu.py")[0].strip('"\n').endswith(python)
