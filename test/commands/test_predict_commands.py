"""`sqap-vla predict`, `inspect`, `convert` as a user types them."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sqap_vla_ros.cli import main
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.shipped import SHIPPED


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "view.png")
    return tmp_path / "view.png"


def predict(picture, *extra: str) -> int:
    return main(["predict", "--image", str(picture), "--instruction", "pick up the red block", *extra])


def test_table_has_a_line_for_each_action(picture, capsys):
    assert predict(picture) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[2:] == ["dx_m", "dy_m", "dz_m", "droll_rad", "dpitch_rad", "dyaw_rad", "gripper"]
    assert [float(line.split()[0]) for line in lines[1:17]] == pytest.approx([0.2 * (i + 1) for i in range(16)])
    assert "256 tokens kept (none)" in lines[17]


def test_json_is_seeded_and_complete(picture, capsys):
    outputs = []
    for seed in ("3", "3", "4"):
        assert predict(picture, "--json", "--seed", seed) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0]["actions"] == outputs[1]["actions"]
    assert outputs[0]["normalized"] != outputs[2]["normalized"]
    assert np.shape(outputs[0]["actions"]) == (16, 7)
    assert outputs[0]["seed"] == 3


def test_recipe_and_gripper_reach_the_selection(picture, capsys):
    assert predict(picture, "--json", "--recipe", "sqap_pruning", "--gripper-pixel", "40", "30") == 0
    selection = json.loads(capsys.readouterr().out)["selection"]
    assert len(selection["indices"]) == 154
    assert selection["gripper_patch"] == [8, 8]


def test_a_gripper_that_the_recipe_does_not_look_at_and_a_busy_machine_are_noted(picture, capsys, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.processes.busy_share", lambda: 0.82)
    assert predict(picture, "--gripper-pixel", "40", "30") == 0
    said = capsys.readouterr().err
    assert "note: --gripper-pixel is ignored: no tokens are kept for being near the gripper" in said
    assert "note: other programs used 82% of this machine's processor time: the milliseconds are longer" in said
    monkeypatch.setattr("sqap_vla_ros.processes.busy_share", lambda: 0.1)
    assert predict(picture, "--recipe", "sqap_pruning", "--gripper-pixel", "40", "30") == 0
    assert "note:" not in capsys.readouterr().err


def test_gripper_point_goes_through_the_calibration(picture, tmp_path, capsys):
    info = {"width": 80, "height": 60, "distortion_model": "plumb_bob", "d": [0.0] * 5}
    info["k"] = [50.0, 0.0, 39.5, 0.0, 50.0, 29.5, 0.0, 0.0, 1.0]
    (tmp_path / "camera.yaml").write_text(yaml.safe_dump(info) + "---\n")
    camera = ["--camera-info", str(tmp_path / "camera.yaml")]
    assert predict(picture, "--json", *camera, "--gripper-point", "0.2", "0.0", "0.5") == 0
    # u = 50 * 0.2 / 0.5 + 39.5 = 59.5 of 80 pixels: column 12 of 16
    assert json.loads(capsys.readouterr().out)["selection"]["gripper_patch"] == [8, 12]
    assert predict(picture, *camera, "--gripper-point", "0", "0", "-1") == 0
    assert "no gripper in the image: behind the camera" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--gripper-point", "nan", "0", "1"], "--gripper-point: needs a finite number, got 'nan'"),
        (["--gripper-point", "0", "0", "1"], "projected through --camera-info: give both"),
        (["--checkpoint", "/nowhere"], "/nowhere does not exist"),
        (["--recipe", "nonsense"], "nonsense"),
        (["--instruction", "\u200b"], "--instruction: the instruction has no visible character"),
    ],
)
def test_bad_requests_are_one_sentence(picture, capsys, extra, message):
    assert predict(picture, *extra) == 2
    error = capsys.readouterr().err
    assert error.startswith("sqap-vla: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("value", "said"), [("nan", "holds values that are not finite"), ("3e38", "predicts actions that are not finite")]
)
def test_damaged_weights_give_no_chunk(picture, tmp_path, capsys, value, said):
    policy = micro_policy()
    with torch.no_grad():
        for weights in policy.model.parameters():
            weights.fill_(float(value))
    save_checkpoint(policy, tmp_path / "damaged.safetensors")
    assert predict(picture, "--checkpoint", str(tmp_path / "damaged.safetensors")) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert not shown.out


def test_not_a_picture(tmp_path, capsys):
    (tmp_path / "view.png").write_text("no")
    assert predict(tmp_path / "view.png") == 2
    assert "cannot identify image file" in capsys.readouterr().err


def test_convert_there_and_back_and_inspect(tmp_path, capsys):
    save_checkpoint(micro_policy(), tmp_path / "a.safetensors")
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "folder"), "--dtype", "float32"]) == 0
    assert (tmp_path / "folder" / "dataset_statistics.json").is_file()
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "b.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == "micro"
    assert facts["dtype"] == ["bfloat16", "float32"]
    assert main(["inspect", str(tmp_path / "b.safetensors")]) == 0
    assert "16 x 16 tokens" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHIPPED)
def test_inspect_knows_the_policies_that_ship(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == name
    assert facts["parameters"] > 0
    assert (facts["file"] == "none") == (SHIPPED[name].weights is None)


def test_inspect_lists_the_names_it_knows(capsys):
    assert main(["inspect", "tabletpo"]) == 2
    error = capsys.readouterr().err
    assert "tabletpo does not exist" in error
    assert all(name in error for name in SHIPPED)


def test_inspect_knows_compressed_files(tmp_path, capsys):
    packed = str(tmp_path / "packed.safetensors")
    assert main(["compress", "--checkpoint", "micro", "--recipe", "rtn_w8a16", "--out", packed]) == 0
    capsys.readouterr()
    assert main(["inspect", packed, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["recipe"], facts["model"]) == ("sqap_vla_ros, compressed", "rtn_w8a16", "micro")
