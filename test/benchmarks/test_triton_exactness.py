"""The kernels as compiled for the GPU at hand, against the definitions on the CPU.

A process of its own, since the tests' process has Triton interpret its kernels. Without a GPU the same script runs
under the interpreter on fewer shapes, so that it is right when a GPU comes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "triton_exactness.py"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_equal_the_definitions(device):
    pytest.importorskip("triton", reason="backend triton: triton is not installed")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device here")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    run = subprocess.run([sys.executable, str(SCRIPT), device], env=environment, capture_output=True, text=True)
    assert not run.returncode, run.stderr[-3000:]
    assert "tiles" in run.stdout
