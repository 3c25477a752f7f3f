"""The clients that others wrote, as PyPI has them, in an environment of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from policy_doubles import STEP_M
from workers import wait_until
from workers.served import Served

from sqap_vla_ros.serving.server.episode import ChunkUse

pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

CLIENTS = Path(__file__).parent / "clients"
INSTALL_S = 240.0
VLA_EVAL = ("vla-eval==0.8.0",)
OPENPI = ("openpi-client==0.1.2", "typing_extensions")  # which it forgets to require
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def environment_with(folder: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of a new environment that holds only these packages; the test is skipped where none can be."""
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, env=clean())
        except subprocess.TimeoutExpired:
            pytest.skip(f"{', '.join(packages)} could not be installed within {INSTALL_S:g} s")
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            pytest.skip(f"{', '.join(packages)} cannot be installed here: {last}")
    return folder / "bin" / "python"


def clean() -> dict[str, str]:
    """Environment variables without our own paths."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def served():
    with Served("policy_doubles:straight", chunk_use=ChunkUse(horizon=4)) as served:
        assert wait_until(lambda: served.engine.problem is None)
        yield served


def test_openpis_client(served, tmp_path):
    python = environment_with(tmp_path / "openpi", OPENPI)
    script = [str(python), str(CLIENTS / "ask_openpi.py"), served.url, "/", "/openpi"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, env=clean())
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    expected = np.zeros((16, 7))
    expected[:, 0], expected[:, 6] = STEP_M, 1.0
    assert len(answers) == 2
    for answer in answers:
        assert answer["metadata"] == {"recipe": "fp32", "horizon": 16}
        assert (np.array(answer["actions"]) == expected).all()
        assert "the image is missing" in answer["error"]
        assert answer["again"]
        assert answer["timings"] == ["infer_ms", "prev_total_ms"]


@pytest.fixture(scope="module")
def vla_eval(tmp_path_factory):
    return environment_with(tmp_path_factory.mktemp("vla_eval"), VLA_EVAL).parent / "vla-eval"


@pytest.mark.parametrize("path", ["/vla-eval", "/"])
def test_vla_evals_runner(served, vla_eval, tmp_path, path):
    config = tmp_path / "toy.yaml"
    benchmark = {"benchmark": "toy_world:ToyWorld", "mode": "sync", "episodes_per_task": 2, "max_steps": 15}
    config.write_text(json.dumps({"server": {"url": served.url + path}, "benchmarks": [benchmark]}))  # JSON is YAML
    done = subprocess.run(
        [str(vla_eval), "run", "--no-docker", "--render", "cpu", "--config", str(config)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        env={**clean(), "PYTHONPATH": str(CLIENTS)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100.0%" in done.stdout, done.stdout + done.stderr
    assert "errored" not in done.stdout
