"""Published folders and our safetensors form: faithful, lean, and clear about what is wrong."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from published_writer import random_groups, reference_features, write_folder

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.checkpoints.contents import CheckpointError
from sqap_vla_ros.policy.checkpoints.inspect import describe
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint, open_checkpoint, sha256_of
from sqap_vla_ros.policy.checkpoints.one_file import FORMAT, save_checkpoint
from sqap_vla_ros.policy.checkpoints.published import save_published
from sqap_vla_ros.policy.checkpoints.published_names import head_config
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import COGACT_BASE, HEAD_SIZES, MICRO
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.preprocessing import ImageTransform

OBSERVATION = Observation(
    np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), 0, "put the red block on the plate"
)


@pytest.fixture(scope="module")
def groups():
    return random_groups(MICRO)


@pytest.fixture
def folder(tmp_path: Path, groups) -> Path:
    """A small published-format folder with a tokenizer beside it."""
    write_folder(tmp_path / "cogact", groups)
    name, data = micro_policy().tokenize.file
    (tmp_path / "cogact" / name).write_bytes(data)
    return tmp_path / "cogact"


def weights_of(folder: Path) -> Path:
    return next((folder / "checkpoints").glob("*.pt"))


@torch.inference_mode()
def test_towers_compute_what_timm_would(folder, groups):
    """From timm-style names to features, against plain torch on the stored tensors."""
    vision = load_checkpoint(folder, config=MICRO).model.vision
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8))
    got = vision(image)[0].split([MICRO.vision.dino.width, MICRO.vision.siglip.width], dim=-1)
    statistics = (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    towers = (("dino_featurizer.", MICRO.vision.dino), ("siglip_featurizer.", MICRO.vision.siglip))
    for features, (mean, std), (prefix, tower) in zip(got, statistics, towers, strict=True):
        pixels = (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected = reference_features(groups["vision_backbone"], prefix, tower, pixels, MICRO.vision.patch_size)
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_decoder_projector_and_head_take_the_stored_tensors(folder, groups):
    model = load_checkpoint(folder, config=MICRO).model
    pairs = {
        "projector.2.bias": groups["projector"]["projector.2.bias"],
        "decoder.embed_tokens.weight": groups["llm_backbone"]["llm.model.embed_tokens.weight"],
        "decoder.layers.3.mlp.down_proj.weight": groups["llm_backbone"]["llm.model.layers.3.mlp.down_proj.weight"],
        "action_head.z_embedder.uncondition": groups["action_model"]["net.z_embedder.uncondition"],
        "action_head.blocks.1.attn.qkv.weight": groups["action_model"]["net.blocks.1.attn.qkv.weight"],
    }
    state = model.state_dict()
    for name, stored in pairs.items():
        assert torch.equal(state[name], stored), name


def test_a_model_survives_the_published_format_and_ours(tmp_path):
    policy = micro_policy(seed=4)
    policy.transform = ImageTransform(crop="deployment")
    expected = policy.predict(OBSERVATION, seed=2)
    save_published(policy, tmp_path / "folder")
    save_checkpoint(policy, tmp_path / "one.safetensors")
    official = load_checkpoint(tmp_path / "folder", config=MICRO, crop="deployment")
    ours = load_checkpoint(tmp_path / "one.safetensors")
    np.testing.assert_allclose(official.predict(OBSERVATION, seed=2).normalized, expected.normalized, atol=1e-6)
    np.testing.assert_array_equal(ours.predict(OBSERVATION, seed=2).deltas, expected.deltas)
    assert ours.info.checkpoint_sha256 == sha256_of(tmp_path / "one.safetensors")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["one.safetensors"]
    assert (ours.info.dt_s, ours.info.unnorm_key) == (policy.info.dt_s, "micro")


def test_the_published_code_would_find_every_key(tmp_path, groups):
    """What we write has exactly the keys and shapes of the published format, the unused ones too."""
    written = torch.load(save_published(micro_policy(), tmp_path / "folder"), weights_only=True)["model"]
    for name, part in groups.items():
        for key, tensor in part.items():
            assert written[name][key].shape == tensor.shape, key
        extra = set(written[name]) - set(part)
        assert all(key.startswith("siglip_featurizer.attn_pool.") for key in extra), extra


def test_dtype_is_chosen_but_the_head_stays_fp32(folder):
    model = load_checkpoint(folder, config=MICRO, dtype=torch.bfloat16).model
    assert {p.dtype for part in (model.vision, model.projector, model.decoder) for p in part.parameters()} == {
        torch.bfloat16
    }
    assert {p.dtype for p in model.action_head.parameters()} == {torch.float32}


def test_bfloat16_predicts_nearly_the_same(tmp_path):
    save_checkpoint(micro_policy(), tmp_path / "micro.safetensors")
    full = load_checkpoint(tmp_path / "micro.safetensors").predict(OBSERVATION)
    low = load_checkpoint(tmp_path / "micro.safetensors", dtype=torch.bfloat16).predict(OBSERVATION)
    assert np.abs(full.normalized - low.normalized).max() < 0.1


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_head_size_is_read_from_the_shapes(size):
    config = HEAD_SIZES[size]
    part = {"net.positional_embedding": torch.empty(17, config.width, device="meta")}
    part |= {f"net.blocks.{i}.attn.qkv.weight": torch.empty(0) for i in range(config.depth)}
    assert head_config(part) == config


def test_a_foreign_head_size_is_named(folder):
    with pytest.raises(CheckpointError, match=r"3 blocks and positional_embedding \[17, 96\]: none of the published"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("vision_backbone", "siglip_featurizer.blocks.1.attn.qkv.bias"),
        ("llm_backbone", "llm.model.layers.5.self_attn.o_proj.weight"),
        ("action_model", "net.x_embedder.linear.weight"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(tmp_path, folder, groups, group, key):
    tokenizer = folder / "tokenizer.json"
    broken = {name: dict(part) for name, part in groups.items()}
    stored = broken[group].pop(key)
    write_folder(tmp_path / "missing", broken)
    with pytest.raises(CheckpointError, match=f"lacks .* of .* tensors, the first is '{group}/{key}'"):
        load_checkpoint(tmp_path / "missing", config=MICRO, tokenizer=tokenizer)
    broken[group][key] = torch.cat((stored, stored))
    write_folder(tmp_path / "shape", broken)
    with pytest.raises(CheckpointError, match=rf"'{group}/{key}' has shape .* the micro geometry needs"):
        load_checkpoint(tmp_path / "shape", config=MICRO, tokenizer=tokenizer)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_truncated_files_are_named(folder, tmp_path, keep):
    save_checkpoint(micro_policy(), tmp_path / "micro.safetensors")
    for path, opened in ((weights_of(folder), folder), (tmp_path / "micro.safetensors",) * 2):
        data = path.read_bytes()
        path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
        with pytest.raises(
            CheckpointError, match=f"{path.name}.* ?(truncated|more than tensors|not a whole|is empty: copy)"
        ):
            open_checkpoint(opened, MICRO)


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self):
        return print, ("executed",)


def test_foreign_content_is_refused_and_never_executed(folder, tmp_path, capsys):
    torch.save({"model": Harmful()}, weights_of(folder))
    with pytest.raises(CheckpointError, match="more than tensors"):
        open_checkpoint(folder, MICRO)
    assert "executed" not in capsys.readouterr().out
    torch.save({"state_dict": {}}, weights_of(folder))
    with pytest.raises(CheckpointError, match="no 'model' entry"):
        open_checkpoint(folder, MICRO)
    torch.save({"model": {"projector": {}}}, weights_of(folder))
    with pytest.raises(CheckpointError, match="lacks the part 'vision_backbone'"):
        open_checkpoint(folder, MICRO)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a full-precision CogACT checkpoint: its format is None"):
        open_checkpoint(tmp_path / "other.safetensors")


def test_statistics_that_are_no_mapping_are_a_damaged_header(tmp_path):
    from safetensors.torch import save_file

    header = {"format": FORMAT, "config": json.dumps(MICRO.to_dict()), "statistics": "7"}
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors", header)
    with pytest.raises(CheckpointError, match="damaged header: statistics must be a mapping of data sets, got int"):
        open_checkpoint(tmp_path / "one.safetensors")


def test_wrong_folders_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"must hold exactly one \.pt file, found none"):
        open_checkpoint(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a checkpoint"):
        open_checkpoint(tmp_path / "notes.txt")
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "siglip-224px+7b"}}))
    with pytest.raises(CheckpointError, match="names base_vlm 'siglip-224px\\+7b'"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_checkpoint(folder)


def test_tokenizer_beside_named_or_missing(folder, tmp_path):
    beside = load_checkpoint(folder, config=MICRO)
    shutil.move(folder / "tokenizer.json", tmp_path / "elsewhere.json")
    named = load_checkpoint(folder, config=MICRO, tokenizer=tmp_path / "elsewhere.json")
    assert beside.tokenize("lift") == named.tokenize("lift")
    with pytest.raises(CheckpointError, match=r"no tokenizer came with .* put Llama-2's tokenizer\.json"):
        load_checkpoint(folder, config=MICRO)


def test_several_datasets_need_a_choice(tmp_path, folder, groups):
    write_folder(tmp_path / "two", groups, datasets=("bridge_orig", "fractal20220817_data"))
    tokenizer = folder / "tokenizer.json"
    with pytest.raises(ValueError, match="statistics for bridge_orig, fractal20220817_data; no unnorm_key"):
        load_checkpoint(tmp_path / "two", config=MICRO, tokenizer=tokenizer)
    chosen = load_checkpoint(tmp_path / "two", config=MICRO, tokenizer=tokenizer, unnorm_key="fractal20220817_data")
    assert chosen.info.dt_s == pytest.approx(1 / 3)


def test_description_names_what_is_there(folder):
    facts = describe(open_checkpoint(folder, MICRO))
    assert facts["format"] == "published CogACT"
    assert facts["parameters"] == micro_policy().info.parameters
    assert facts["dtype"] == ["float32"]
    assert facts["datasets (unnorm_key)"] == ["bridge_orig"]
    assert "missing tensors" not in facts


def test_the_published_geometry_has_the_published_size():
    with torch.device("meta"):
        model = CogACT(COGACT_BASE)
    # 6.738 B Llama-2 (32000 ids) with 64 more ids and no language head
    assert sum(p.numel() for p in model.decoder.parameters()) == 6_738_415_616 + 64 * 4096 - 32000 * 4096


LOAD_AND_MEASURE = """
import sys, torch
from pathlib import Path
from sqap_vla_ros.policy.checkpoints.load import assemble, open_checkpoint
from sqap_vla_ros.policy.config import MICRO
import dataclasses

def resident(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024

config = MICRO.replace(decoder=dataclasses.replace(MICRO.decoder, **{decoder!r}))
contents = open_checkpoint(sys.argv[1], config)
before = resident("VmRSS")
model = assemble(contents, device="cpu", dtype=torch.bfloat16)
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((resident("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc (Linux)")
@pytest.mark.parametrize("form", ["published", "safetensors"])
def test_loading_never_holds_two_copies(tmp_path, form):
    """The fp32 file is twice the bf16 model: kept in memory, it would make the peak three times the model.

    Libraries that are read from the disk meanwhile count as well, and make up to 1.65 times of so small a model.
    """
    decoder = {"width": 512, "mlp_width": 1408}
    policy = micro_policy()
    config = MICRO.replace(decoder=dataclasses.replace(MICRO.decoder, **decoder))
    large = CogACTPolicy(CogACT(config), policy.tokenize, policy.statistics)
    if form == "published":
        save_published(large, tmp_path / "checkpoint")
    else:
        save_checkpoint(large, tmp_path / "checkpoint.safetensors")
    path = next(tmp_path.glob("checkpoint*"))
    command = [sys.executable, "-c", LOAD_AND_MEASURE.format(decoder=decoder), str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(output) < 2
