"""`sqap-vla convert` and the writing of checkpoints: nothing is lost unsaid, nothing half-written stays."""

import io
import json
import os
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_writer import random_groups, write_folder

from sqap_vla_ros.cli import main
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.contracts import Observation
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


def test_a_checkpoint_is_not_replaced_by_what_is_made_of_it(file, tmp_path, capsys):
    """--overwrite is for what an earlier run has made."""
    before, link = file.read_bytes(), tmp_path / "link.safetensors"
    link.symlink_to(file)
    for out in (file, link):
        command = ["compress", "--checkpoint", str(file), "--recipe", "rtn_w8a16", "--out", str(out), "--overwrite"]
        assert main(command) == 2
        assert f"{out} is the checkpoint that is to be compressed: choose another --out" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_report_and_a_copy_have_places_of_their_own(file, tmp_path, capsys):
    out = str(tmp_path / "out.safetensors")
    assert main(["compress", "--checkpoint", str(file), "--recipe", "rtn_w8a16", "--out", out, "--report", out]) == 2
    assert f"--report {out} is the file of --out" in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / "own")]) == 0
    assert main(["convert", str(tmp_path / "own"), str(tmp_path / "own" / "sub")]) == 2
    assert "lies in the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "own" / "sub").exists()


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path):
    """safetensors writes for the owner alone, and a node may run as another user."""
    before = os.umask(0o027)
    try:
        save_checkpoint(micro_policy(), tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


def test_a_name_that_is_no_utf_8_is_printed(file, tmp_path, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict"))
    assert main(["convert", str(file), f"{tmp_path}/caf\udce9.safetensors"]) == 0
    sys.stdout.flush()
    assert b"caf\\udce9.safetensors" in printed.getvalue()


def test_a_dry_run_checks_everything_and_writes_nothing(file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.safetensors"
    command = ["compress", "--checkpoint", str(file), "--recipe", "w4a4", "--out", str(out), "--dry-run"]
    command += ["--calibration", "synthetic:4"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "recipe              w4a4: " in shown
    assert "4 observations from synthetic:4" in shown
    assert "nothing was written" in shown
    promised = float(shown.split(", about ")[1].split()[0])
    assert main(command[:-3] + command[-2:]) == 0
    assert out.stat().st_size / 2**20 == pytest.approx(promised, rel=0.2)
    bad = tmp_path / "bad.yaml"
    needs = "needs about .* GiB of memory here"
    for text, message in (
        ("extends: w4a4\nquantization: {smooth_alpha: half}", "smooth_alpha must be a finite number, got 'half'"),
        (
            "extends: qvla_w3a8\nquantization: {row_bits: {average: 0.3, widths: [0, 2], zero_share: 0.9}}",
            "recipe 'bad': quantization.row_bits: an average of 0.3 bits cannot be met: 0.327 is the least",
        ),
        ("pruning: {selector: [sqap]}", "selector must be text"),
        ("pruning: {selector: sqap, parameters: {prune_layer: 40}}", "drops tokens before decoder layer 40"),
    ):
        bad.write_text(text)
        assert main([*command[:3], "--recipe", str(bad), "--out", str(tmp_path / "x.safetensors"), "--dry-run"]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("sqap_vla_ros.compression.files.estimate.available_memory", lambda: 1000)
    other = [*command[:5], "--out", str(tmp_path / "y.safetensors"), *command[-2:]]
    assert main(other) == 2
    assert re.search(needs, capsys.readouterr().err)
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert main(other) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_predict_keeps_what_it_calibrated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (80, 60), (90, 20, 200)).save(tmp_path / "view.png")
    command = ["predict", "--checkpoint", "micro", "--recipe", "w4a4", "--image", str(tmp_path / "view.png")]
    command += ["--instruction", "lift", "--json"]
    said = []
    for extra in ([], [], ["--crop", "deployment"]):
        assert main([*command, *extra]) == 0
        shown = capsys.readouterr()
        said.append((json.loads(shown.out)["actions"], "quantising decoder layers" in shown.err))
    assert said[0][0] == said[1][0] != said[2][0]
    assert [made for _, made in said] == [True, False, True]  # another crop is another calibration
    assert len(list((tmp_path / "cache" / "sqap_vla_ros" / "calibrated").iterdir())) == 2
    expected = load_policy("micro", "w4a4").predict(Observation(np.asarray(Image.open(command[6])), 0, "lift"))
    np.testing.assert_array_equal(said[0][0], expected.deltas)
