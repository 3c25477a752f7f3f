"""Checkpoints that people train themselves: what they vary is read, and what is no CogACT is named."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from published_writer import random_groups, write_folder
from safetensors.torch import save_file

from sqap_vla_ros.cli import main
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.checkpoints import published, published_names
from sqap_vla_ros.policy.checkpoints.contents import CheckpointError
from sqap_vla_ros.policy.checkpoints.inspect import describe
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint, open_checkpoint
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.robot.gripper.hysteresis import GripperHysteresis

OBSERVATION = Observation(np.zeros((60, 80, 3), np.uint8), 0, "put the red block on the plate")
TOKENIZER = micro_policy().tokenize.file


@pytest.fixture(scope="module")
def groups():
    return random_groups(MICRO)


@pytest.fixture
def small_sizes(monkeypatch):
    """The micro geometry takes the place of the published one, whose files have 30 GB."""
    head = dataclasses.replace(MICRO.head, horizon=16)
    monkeypatch.setattr(published_names, "HEAD_SIZES", {"tiny": head})
    monkeypatch.setattr(published, "_PUBLISHED", (MICRO,))


def write(folder: Path, groups) -> Path:
    write_folder(folder, groups)
    (folder / TOKENIZER[0]).write_bytes(TOKENIZER[1])
    return folder


def weights_of(folder: Path) -> Path:
    return next((folder / "checkpoints").glob("*.pt"))


def edit(folder: Path, change) -> None:
    """Change the dictionary in the .pt file."""
    stored = torch.load(weights_of(folder), weights_only=True)
    torch.save(change(stored) or stored, weights_of(folder))


@pytest.mark.parametrize(("horizon", "channels"), [(8, 7), (31, 7), (16, 14), (5, 8)])
def test_any_chunk_and_any_number_of_channels_is_read_from_the_shapes(tmp_path, small_sizes, horizon, channels, capsys):
    head = dataclasses.replace(MICRO.head, horizon=horizon, channels=channels)
    folder = write(tmp_path / "mine", random_groups(MICRO.replace(head=head)))
    assert main(["inspect", str(folder)]) == 0
    assert f"{horizon} actions of {channels} channels" in capsys.readouterr().out
    chunk = load_checkpoint(folder).predict(OBSERVATION)
    assert chunk.deltas.shape == (horizon, channels)
    if channels != 7:  # scaled, and nothing is made a gripper
        scaled = 0.5 * (np.clip(chunk.normalized, -1, 1) + 1) * 0.05 - 0.02
        np.testing.assert_allclose(chunk.deltas[:, :-1], scaled[:, :-1], atol=1e-12)
        np.testing.assert_allclose(chunk.deltas[:, -1], np.clip(chunk.normalized[:, -1], -1, 1), atol=1e-12)


def test_other_channels_are_shown_raw_and_refused_by_the_node(tmp_path, small_sizes, capsys):
    from PIL import Image

    from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
    from sqap_vla_ros.serving.worker import WorkerConfig
    from sqap_vla_ros.serving.worker_process import _load

    head = dataclasses.replace(MICRO.head, channels=14)
    folder = write(tmp_path / "two_arms", random_groups(MICRO.replace(head=head)))
    save_checkpoint(load_checkpoint(folder), tmp_path / "two.safetensors")
    Image.new("RGB", (80, 60)).save(tmp_path / "view.png")
    command = ["predict", "--checkpoint", str(tmp_path / "two.safetensors"), "--image", str(tmp_path / "view.png")]
    assert main([*command, "--instruction", "lift"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[2:] == [f"a{i}" for i in range(14)]

    class Quiet:
        def send(self, packet):
            pass

    assert main(["replay", "no_bag", "--checkpoint", str(tmp_path / "two.safetensors"), "--out", str(tmp_path)]) == 2
    assert "actions of 14 channels; an arm is moved by 7" in capsys.readouterr().err
    with pytest.raises(ValueError, match="actions of 14 channels; an arm is moved by 7"):
        _load(WorkerConfig(str(tmp_path / "two.safetensors"), "fp32"), Quiet())


def test_statistics_of_another_robot_are_refused(tmp_path, groups):
    folder = write(tmp_path / "mine", groups)
    file = folder / "dataset_statistics.json"
    entry = json.loads(file.read_text())
    for name in ("q01", "q99", "mask"):
        entry["bridge_orig"]["action"][name] *= 2
    file.write_text(json.dumps(entry))
    with pytest.raises(ValueError, match="'bridge_orig' have 14 values, the action head has 7 channels"):
        load_checkpoint(folder, config=MICRO)


@pytest.mark.parametrize("mask", [None, [True] * 7, [True] * 6 + [False]])
def test_a_gripper_closes_whatever_the_mask_says(mask):
    action = {"q01": [-0.03] * 6 + [0.0], "q99": [0.03] * 6 + [1.0]} | ({} if mask is None else {"mask": mask})
    statistics = ActionStatistics.from_dataset("bridge_orig", {"action": action})
    gripper = GripperHysteresis(open_above=0.6, close_below=0.4)
    openings = [statistics.unnormalize(np.array([0.0] * 6 + [said]))[6] for said in (0.0, 1.0, 0.0)]
    assert openings == [0.0, 1.0, 0.0]
    decided = [gripper.update(opening) for opening in openings]
    assert decided[0] == decided[2] != decided[1]


def test_what_is_assumed_is_said(tmp_path, groups, caplog):
    folder = write(tmp_path / "mine", groups)
    file = folder / "dataset_statistics.json"
    action = {"min": [-0.02] * 7, "max": [0.03] * 7}
    file.write_text(json.dumps({"bridge_orig": {"action": action}}))
    with caplog.at_level(logging.WARNING):
        policy = load_checkpoint(folder, config=MICRO)
    assert policy.statistics["bridge_orig"].q99[0] == 0.03
    assert "have no q01/q99: actions are scaled to min/max" in caplog.text
    assert "have no mask: scaled, a gripper that closes would never read as closed" in caplog.text
    assert len(describe(open_checkpoint(folder, MICRO))["notes"]) == 2


def test_the_averaged_head_is_taken_when_it_is_asked_for(tmp_path, groups):
    averaged = {key: value + 1 for key, value in groups["action_model"].items()}
    folder = write(tmp_path / "mine", {**groups, "ema_diffusion": averaged})
    plain, ema = (load_checkpoint(folder, config=MICRO, ema=ema).model.state_dict() for ema in (False, True))
    key = "final_layer.linear.bias"
    assert torch.equal(plain[f"action_head.{key}"], groups["action_model"][f"net.{key}"])
    assert torch.equal(ema[f"action_head.{key}"], averaged[f"net.{key}"])
    assert "--ema takes it" in describe(open_checkpoint(folder, MICRO))["notes"][0]
    without = write(tmp_path / "without", groups)
    with pytest.raises(CheckpointError, match=r"no averaged action head .*: leave out --ema"):
        load_checkpoint(without, config=MICRO, ema=True)


def test_one_of_several_files_is_named(tmp_path, groups):
    folder = write(tmp_path / "mine", groups)
    other = folder / "checkpoints" / "step-030000-epoch-06-loss=0.0123.pt"
    other.write_bytes(weights_of(folder).read_bytes())
    with pytest.raises(CheckpointError, match=r"holds 2 \.pt files \(checkpoints/step-000100.*: name one of them"):
        open_checkpoint(folder, MICRO)
    assert load_checkpoint(other, config=MICRO).info.horizon == 16


def test_heads_beside_another_model_are_not_offered(tmp_path):
    """OpenVLA-OFT keeps its action head and its projector as .pt files beside the model's shards."""
    for name in ("action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"):
        (tmp_path / name).write_bytes(b"PK")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    with pytest.raises(CheckpointError, match="holds an OpenVLA model"):
        open_checkpoint(tmp_path)


def test_layers_that_were_wrapped_one_by_one_load(tmp_path, groups):
    folder = write(tmp_path / "mine", groups)
    edit(folder, lambda stored: stored["model"].update(llm_backbone=wrapped_layers(groups["llm_backbone"])))
    assert load_checkpoint(folder, config=MICRO).info.horizon == 16


def wrapped_layers(part):
    return {re.sub(r"layers\.(\d+)\.", r"layers.\1._checkpoint_wrapped_module.", name): t for name, t in part.items()}


@pytest.mark.parametrize("form", ["flat", "groups", "module.", "_fsdp_wrapped_module.", "module._orig_mod."])
def test_other_wrappings_of_the_same_tensors_load(tmp_path, groups, form):
    folder = write(tmp_path / "mine", groups)
    bare = {group: dict(part) for group, part in groups.items()}
    flat = {
        name if group == "projector" else f"{group}.{name}": t for group, p in bare.items() for name, t in p.items()
    }
    wrapped = {"model": {group: {f"{form}{name}": t for name, t in part.items()} for group, part in bare.items()}}
    torch.save({"flat": flat, "groups": bare}.get(form, wrapped), weights_of(folder))
    state = load_checkpoint(folder, config=MICRO).model.state_dict()
    assert torch.equal(state["projector.2.bias"], groups["projector"]["projector.2.bias"])


def old_pickle(folder: Path) -> Path:
    stored = torch.load(weights_of(folder), weights_only=True)
    torch.save(stored, weights_of(folder), _use_new_zipfile_serialization=False)
    return folder


def with_lora(folder: Path) -> Path:
    def change(stored):
        part = stored["model"]["llm_backbone"]
        name = "llm.model.layers.0.self_attn.q_proj"
        part[f"{name}.base_layer.weight"] = part.pop(f"{name}.weight")

    edit(folder, change)
    return folder


def config_says(value):
    def change(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(value))
        return folder

    return change


def hugging_face(architecture: str, file: str = ""):
    def change(folder: Path) -> Path:
        other = folder.parent / "hf"
        other.mkdir()
        model_type = architecture.partition("For")[0].lower()
        (other / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": model_type}))
        (other / "model.safetensors.index.json").write_text("{}")
        save_file({"language_model.model.layers.0.w": torch.zeros(1)}, other / "model-00001-of-00003.safetensors")
        return other / file if file else other

    return change


def adapter(folder: Path) -> Path:
    other = folder.parent / "adapter"
    other.mkdir()
    (other / "adapter_config.json").write_text("{}")
    return other


def cached(folder: Path) -> Path:
    (folder.parent / "models--a--b" / "snapshots" / "abc").mkdir(parents=True)
    return folder.parent / "models--a--b"


def star_vla(folder: Path) -> Path:
    (folder / "config.json").unlink()
    (folder / "config.yaml").write_text("run_id: x\nframework:\n  name: QwenGR00T\n")
    weights_of(folder).unlink()
    return folder


def safetensors_with(*names: str):
    def change(folder: Path) -> Path:
        save_file({name: torch.zeros(2) for name in names}, folder.parent / "model.safetensors")
        return folder.parent / "model.safetensors"

    return change


def pointer(folder: Path) -> Path:
    weights_of(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 30500000000\n")
    return folder


def pointer_safetensors(folder: Path) -> Path:
    file = folder.parent / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 30500000000\n")
    return file


def bare_tensors(folder: Path) -> Path:
    torch.save({"layer.weight": torch.zeros(2), "layer.bias": torch.zeros(2)}, weights_of(folder))
    return folder


FOREIGN = {
    "Git LFS pointer": (pointer, r"Git LFS pointer, not the file itself: run `git lfs pull`"),
    "pointer.safetensors": (pointer_safetensors, r"Git LFS pointer"),
    "PyTorch before 1.6": (old_pickle, r"format before version 1\.6.*save it again with `torch\.save"),
    "unmerged LoRA": (with_lora, r"LoRA layers that are not merged: merge"),
    "vla: null": (config_says({"vla": None}), r'says "vla": null, where CogACT\'s training writes'),
    "vla: a string": (config_says({"vla": "siglip-224px"}), r'says "vla": "siglip-224px", where CogACT'),
    "vla: a list": (config_says({"vla": [1]}), r'says "vla": \[1\]'),
    "config without vla": (config_says({}), r'says "vla": null'),
    "OpenVLA": (hugging_face("OpenVLAForActionPrediction"), r"OpenVLA model, which writes its actions as text tokens"),
    "shard": (hugging_face("OpenVLAForActionPrediction", "model-00001-of-00003.safetensors"), r"OpenVLA model"),
    "index": (hugging_face("OpenVLAForActionPrediction", "model.safetensors.index.json"), r"OpenVLA model"),
    "Dexbotic": (hugging_face("dexbotic_cogactForCausalLM"), r"a Dexbotic model, built on another vision tower"),
    "another HF model": (hugging_face("LlamaForCausalLM"), r"a Hugging Face model of type 'llama'"),
    "LoRA adapter": (adapter, r"is a LoRA adapter, which holds only changes.*merge_and_unload"),
    "starVLA": (star_vla, r"is a starVLA run, whose model is built on Qwen-VL"),
    "CogACT by transformers": (hugging_face("CogACTForAction"), r"a CogACT model in the form of Hugging"),
    "cache": (cached, r"Hugging Face's cache: give the folder .*/snapshots/abc in it"),
    "starVLA file": (safetensors_with("qwen_vl_interface.model.x"), r"a starVLA model"),
    "Dexbotic file": (safetensors_with("model.mm_projector.0.weight"), r"a Dexbotic model"),
    "LoRA file": (safetensors_with("base_model.model.q_proj.lora_A.weight"), r"LoRA layers that are not merged"),
    "bare safetensors": (safetensors_with("a.weight"), r"bare tensors of another model \(names: 'a\.weight'"),
    "bare tensors": (bare_tensors, r"bare tensors of another model \(names: 'layer\.bias', 'layer\.weight'"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_cogact_is_named_in_one_sentence(case, tmp_path, groups, capsys):
    change, message = FOREIGN[case]
    path = change(write(tmp_path / "mine", groups))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path, MICRO if case in ("unmerged LoRA", "bare tensors") else None)
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sqap-vla: error: ")
    assert error.count("\n") == 1


def test_inspect_fails_where_tensors_are_missing_and_counts_what_is_there(tmp_path, small_sizes, groups, capsys):
    whole = describe(open_checkpoint(write(tmp_path / "whole", groups)))["parameters"]
    taken = groups["llm_backbone"]["llm.model.layers.0.self_attn.q_proj.weight"].numel()
    folder = write(tmp_path / "mine", groups)
    edit(folder, lambda s: s["model"]["llm_backbone"].__delitem__("llm.model.layers.0.self_attn.q_proj.weight"))
    assert main(["inspect", str(folder), "--json"]) == 1
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert facts["parameters"] == whole - taken
    assert facts["missing tensors"].startswith("1 of ")
    assert "error: missing tensors: 1 of" in shown.err
    edit(folder, lambda s: s["model"]["projector"].update({"projector.0.bias": torch.zeros(3)}))
    assert main(["inspect", str(folder)]) == 1
    assert "tensors of another shape: 1 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight.to(torch.int8), "holds int8 numbers, not plain floating-point ones"),
        (lambda weight: weight.to(torch.int64), "holds int64 numbers"),
        (lambda weight: weight > 0, "holds bool numbers"),
        (lambda weight: weight.to(torch.complex64), "holds complex64 numbers"),
        (lambda weight: weight.to_sparse(), "holds sparse_coo float32 numbers"),
        (lambda weight: weight.fill_(float("nan")), "holds values that are not finite in float32"),
        (lambda weight: weight.index_fill_(0, torch.tensor([1]), float("-inf")), "not finite in float32"),
    ],
    ids=["int8", "int64", "bool", "complex", "sparse", "nan", "inf"],
)
def test_weights_that_are_no_finite_floats_are_refused_by_name(tmp_path, groups, small_sizes, change, said):
    name = next(name for name, weight in groups["projector"].items() if weight.dim() == 2)
    spoilt = {**groups, "projector": {**groups["projector"], name: change(groups["projector"][name].clone())}}
    folder = write(tmp_path / "spoilt", spoilt)
    with pytest.raises(CheckpointError, match=said) as error:
        load_checkpoint(folder)
    assert name in str(error.value)


def test_weights_beyond_half_precision_are_refused_for_it_alone(tmp_path, groups, small_sizes):
    name = next(name for name, weight in groups["projector"].items() if weight.dim() == 2)
    large = {**groups["projector"], name: groups["projector"][name].clone().fill_(1e5)}
    folder = write(tmp_path / "large", {**groups, "projector": large})
    load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="not finite in float16"):
        load_checkpoint(folder, dtype=torch.float16)
