"""What a command line can be refused for is said before torch, transformers or MuJoCo are imported."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

_RUN = """
import io, json, sys
from contextlib import redirect_stderr
from sqap_vla_ros import cli

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "mujoco"):
            raise SystemError(f"{name} is imported")

sys.meta_path.insert(0, Refused())
answers = []
for command in json.load(sys.stdin):
    with redirect_stderr(io.StringIO()) as said:
        status = cli.main(command)
    answers.append((status, said.getvalue()))
json.dump(answers, sys.stdout)
"""
_PREDICT = ["predict", "--image", "view.png", "--instruction", "pick"]
_COMPRESS = ["compress", "--checkpoint", "micro", "--out", "c.safetensors"]
_REPLAY = ["replay", "bag", "--instruction", "pick"]
_CASES = [
    ([*_PREDICT, "--ddim-steps", "37"], "--ddim-steps"),
    ([*_PREDICT, "--gripper-point", "0", "0", "1"], "give both"),
    ([*_PREDICT, "--camera-info", "view.png"], "give both"),
    ([*_PREDICT, "--tokenizer", "./nope"], "does not exist"),
    ([*_PREDICT, "--tokenizer", "/dev/zero"], "is a device"),
    ([*_PREDICT, "--recipe", "/dev/null"], "is a device"),
    ([*_PREDICT, "--recipe", "/tmp"], "is a folder"),
    ([*_PREDICT, "--gripper-pixel", "-1", "5"], "outside the image"),
    ([*_PREDICT, "--checkpoint", "nowhere"], "does not exist"),
    ([*_PREDICT, "--checkpoint", "."], "checkpoints"),
    ([*_PREDICT, "--checkpoint", "tabletop", "--unnorm-key", "other"], "--unnorm-key"),
    (["predict", "--image", "fifo", "--instruction", "pick"], "fifo is no file"),
    (["inspect-tokens", "--image", "view.png", "--recipe", "nope"], "no recipe named"),
    (["inspect-tokens", "--image", "view.png", "--out", "view.png"], "view.png is the picture that is read"),
    (["inspect-tokens", "--image", "fifo"], "fifo is no file"),
    ([*_COMPRESS, "--calibration", "synthetic:99999999999"], "at most"),
    ([*_COMPRESS, "--calibration", "nowhere"], "is not a folder of images"),
    ([*_COMPRESS, "--observations", "99999"], "at most"),
    ([*_COMPRESS, "--recipe", "nope"], "no recipe named"),
    ([*_REPLAY, "--unnorm-key", "other"], "has statistics for micro"),
    (["serve", "--checkpoint", "micro", "--unnorm-key", "other"], "has statistics for micro"),
    ([*_REPLAY, "--ddim-steps", "37"], "--ddim-steps"),
    ([*_REPLAY, "--recipes", "fp32,nope"], "no recipe named"),
    ([*_REPLAY, "--tokenizer", "./nope"], "does not exist"),
    (["evaluate", "--recipes", "nope"], "no recipe named"),
    (["evaluate", "--checkpoint", "."], "checkpoints"),
    (["demo", "--checkpoint", "."], "checkpoints"),
    (["demo", "--instruction", " "], "the instruction is empty"),
    (["evaluate", "--checkpoint", "nowhere"], "does not exist"),
    (["serve", "--checkpoint", "micro", "--ddim-steps", "37"], "--ddim-steps"),
    (["serve", "--checkpoint", "micro", "--tokenizer", "./nope"], "does not exist"),
    (["convert", "micro", "m.safetensors"], "nothing to convert"),
    (["convert", "nowhere", "m.safetensors"], "does not exist"),
    (["convert", "tabletop", "m.safetensors", "--tokenizer", "./nope"], "does not exist"),
    (["convert", "tabletop", "m.pt"], "or a file NAME.safetensors, but no .pt"),
    (["convert", "tabletop", "m.SAFETENSORS"], "or a file NAME.safetensors, but no .SAFETENSORS"),
    (["convert", "tabletop", ".safetensors"], "or a file NAME.safetensors, but no .safetensors"),
    (["inspect", "nowhere"], "does not exist"),
    (["inspect", "CogACT/CogACT-Base"], "`hf download CogACT/CogACT-Base --local-dir CogACT-Base`"),
    (["inspect", "https://huggingface.co/CogACT/CogACT-Base"], "`hf download CogACT/CogACT-Base --local-dir"),
    (["inspect", "https://example.org/a.pt"], "https://example.org/a.pt is an address: download it"),
    (["bops", "--recipe", "nope"], "no recipe named"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):

    folder = tmp_path_factory.mktemp("early")
    Image.new("RGB", (64, 48)).save(folder / "view.png")
    (folder / "bag").mkdir()
    os.mkfifo(folder / "fifo")
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps([command for command, _ in _CASES]),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("index", range(len(_CASES)), ids=[" ".join(command)[:60] for command, _ in _CASES])
def test_the_sentence_comes_before_anything_heavy_is_imported(answers, index):
    status, said = answers[index]
    assert status == 2, said
    assert _CASES[index][1] in said
    assert said.startswith("sqap-vla: error: ")
    assert said.count("\n") == 1
