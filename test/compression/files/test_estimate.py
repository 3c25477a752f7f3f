"""The memory that a compression needs, as estimated from shapes, against what processes had."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sqap_vla_ros.compression.files.estimate import PROGRAM, estimate
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.policy.config import COGACT_BASE, MICRO, DecoderConfig

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
GIB = 2**30
SMALL = MICRO.replace(name="small", decoder=DecoderConfig(width=512, depth=2, heads=4, mlp_width=1376, vocabulary=512))
RUN = """
import json, sys
from pathlib import Path
import torch
from test_estimate import SMALL
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.load import load_uncompressed
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.compression.sensitivity import plan
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.micro.policy import micro_policy

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
name, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
micro, model = micro_policy(), CogACT(SMALL)
for parameter in model.action_head.parameters():
    torch.nn.init.normal_(parameter, std=0.05)  # its last layer begins at zero, which has no gradient
save_checkpoint(CogACTPolicy(model.bfloat16(), micro.tokenize, micro.statistics), folder / "checkpoint.safetensors")
del micro, model
recipe = load_recipe(name)
before = resident("VmRSS")
policy = load_uncompressed(str(folder / "checkpoint.safetensors"), recipe, layers_in_file=True)
compress_to_file(policy, recipe, synthetic_observations(count), folder / "policy.safetensors")
print(json.dumps({"needed": resident("VmHWM") - before}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_needs_what_was_estimated(tmp_path):
    """Freed memory goes back to the system at once here, as that of matrices as large as a 7B's always does."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([here, *sys.path])
    recipe, observations = "qvla_w4a8", 4
    command = [sys.executable, "-c", RUN, recipe, str(observations), str(tmp_path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    needed = json.loads(done.stdout.splitlines()[-1])["needed"]
    estimated = estimate(SMALL, load_recipe(recipe), observations, layers_in_file=True).memory - PROGRAM
    assert needed == pytest.approx(estimated, rel=0.2)


@pytest.mark.parametrize(
    ("file", "phase", "recipe"),
    [("compress_7b.json", "first", "w4a4"), ("compress_7b_qvla_w4a8.json", "resumed", "w4a8")],
)
def test_the_published_geometry_needed_what_is_estimated(file, phase, recipe):
    """A plan that is finished is rounded alike, whether rows have one width or several."""
    measured = json.loads((RESULTS / file).read_text())
    peak = max(row.get("peak_gib", 0) for row in measured[phase])
    config = COGACT_BASE.replace(decoder=replace(COGACT_BASE.decoder, depth=measured["decoder_layers"]))
    estimated = estimate(config, load_recipe(recipe), measured["observations"], layers_in_file=True).memory
    assert peak == pytest.approx(estimated / GIB, rel=0.2)


def test_scoring_is_part_of_the_estimate():
    """It is what compression by row needs most of, and grows with the observations."""
    by_row, uniform = load_recipe("qvla_w4a8"), load_recipe("w4a8")
    few, many, plain = (
        estimate(COGACT_BASE, recipe, count, layers_in_file=True).memory / GIB
        for recipe, count in ((by_row, 4), (by_row, 16), (uniform, 16))
    )
    assert many - few == pytest.approx(12 * 4.5 * 38 / 1024, rel=0.1)  # 4.5 MiB a layer's input: 32 layers, 6 probes
    assert plain + 1.0 < few < many < 24
