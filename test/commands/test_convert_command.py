"""`sqap-vla convert` and the writing of checkpoints: nothing is lost unsaid, nothing half-written stays."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_writer import random_groups, write_folder

from sqap_vla_ros.cli import main
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.preprocessing import ImageTransform


@pytest.fixture
def file(tmp_path) -> Path:
    policy = micro_policy()
    policy.transform = ImageTransform(crop="deployment")
    save_checkpoint(policy, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_a_small_geometry_goes_through_a_folder_and_every_command_reads_it(file, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert main(["convert", str(file), str(folder), "--dtype", "float32"]) == 0
    Image.new("RGB", (80, 60), (90, 20, 200)).save(tmp_path / "view.png")
    view = ["--image", str(tmp_path / "view.png"), "--instruction", "lift", "--json"]
    said = []
    for checkpoint in (file, folder, folder / "checkpoints" / "model.pt"):
        assert main(["inspect", str(checkpoint)]) == 0
        capsys.readouterr()
        assert main(["predict", "--checkpoint", str(checkpoint), *view]) == 0
        said.append(json.loads(capsys.readouterr().out)["actions"])
    np.testing.assert_allclose(said[1], said[0], atol=1e-6)  # the crop came along
    packed = tmp_path / "packed.safetensors"
    assert main(["compress", "--checkpoint", str(folder), "--recipe", "rtn_w8a16", "--out", str(packed)]) == 0
    assert main(["convert", str(folder), str(tmp_path / "back.safetensors"), "--dtype", "float32"]) == 0
    back, original = (load_checkpoint(p).model.state_dict() for p in (tmp_path / "back.safetensors", file))
    same = [name for name in original if torch.equal(back[name], original[name])]
    assert set(original) - set(same) <= {n for n in original if n.startswith("vision.dino.embeddings.")}
    assert main(["convert", str(packed), str(tmp_path / "no.safetensors")]) == 2
    assert "is compressed, which cannot be undone" in capsys.readouterr().err


def test_what_is_left_out_is_said(tmp_path, capsys, monkeypatch):
    groups = random_groups(MICRO)
    write_folder(tmp_path / "mine", groups | {"ema_diffusion": groups["action_model"]}, datasets=("bridge_orig", "b"))
    own = {"config": MICRO.to_dict(), "crop": "none"}
    settings = {"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}, "sqap_vla_ros": own}
    (tmp_path / "mine" / "config.json").write_text(json.dumps(settings))
    name, data = micro_policy().tokenize.file
    (tmp_path / name).write_bytes(data)
    command = [
        "convert",
        str(tmp_path / "mine"),
        str(tmp_path / "out.safetensors"),
        "--tokenizer",
        str(tmp_path / name),
    ]
    assert main([*command, "--unnorm-key", "bridge_orig"]) == 0
    left = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert "the statistics of 1 other data sets (b); kept: bridge_orig" in left[0]
    assert "tensors that a prediction does not use (each tower's last block" in left[1]
    assert "the other action head" in left[1]
    assert "precision: towers, projector and decoder are bfloat16" in left[2]


@pytest.mark.parametrize("command", ["convert", "compress"])
def test_the_target_is_checked_before_anything_is_loaded(command, file, tmp_path, capsys, monkeypatch):
    def no_load(*args, **kwargs):
        raise AssertionError("loaded before the target was checked")

    monkeypatch.setattr("sqap_vla_ros.policy.checkpoints.load.assemble", no_load)
    (tmp_path / "there.safetensors").write_text("precious")
    targets = {"there.safetensors": "exists", "nowhere/x.safetensors": "nowhere does not exist"}
    for name, message in targets.items():
        out = str(tmp_path / name)
        arguments = ["convert", str(file), out]
        if command == "compress":
            arguments = ["compress", "--checkpoint", str(file), "--recipe", "rtn_w8a16", "--out", out]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "there.safetensors").read_text() == "precious"


def test_compress_replaces_only_when_it_is_told_to(file, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    command = ["compress", "--checkpoint", str(file), "--recipe", "rtn_w8a16", "--out", str(out)]
    assert main(command) == 2
    assert out.read_text() == "old"
    assert main([*command, "--overwrite"]) == 0
    assert out.stat().st_size > 100_000


FULL_DISK = """
import resource, sys
from sqap_vla_ros.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="limits the size of files as a full disk would")
def test_a_full_disk_leaves_nothing_behind(file, tmp_path):
    """The largest file allowed is smaller than the model, the middle one than a layer, the smallest than anything."""
    place = tmp_path / "disk"
    place.mkdir()
    out = str(place / "x.safetensors")
    runs = [
        (300_000, ["convert", str(file), out]),
        (300_000, ["convert", str(file), str(place / "folder")]),
        (300_000, ["compress", "--checkpoint", str(file), "--recipe", "rtn_w8a16", "--out", out]),
        (30_000, ["compress", "--checkpoint", str(file), "--recipe", "rtn_w8a16", "--out", out]),
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FULL_DISK, str(limit), *arguments], stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        for limit, arguments in runs
    ]
    for process, (_, arguments) in zip(processes, runs, strict=True):
        _, error = process.communicate()
        assert process.returncode == 2, (arguments, error)
        assert "cannot be written" in error
        assert "is the disk full?" in error
        assert "Traceback" not in error
    assert list(place.iterdir()) == []
