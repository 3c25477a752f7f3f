import dataclasses
import json
import struct

import numpy as np
import pytest
import torch

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import compress
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.files.storage import CompressedFile, CompressedFileError
from sqap_vla_ros.compression.load import applied_recipe, checkpoint_digest, equip, load_policy, load_uncompressed
from sqap_vla_ros.compression.parts import fuse_parts
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RecipeError, load_recipe
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.quantization.layer_fusion import prepare_inference

# calibrated (clipping of the activations is searched) and quick
QUICK = Recipe("quick", dtype="bfloat16", quantization=QuantizationSpec(rotation="hadamard", activation_clip=None))
OBSERVATIONS = synthetic_observations(2)
HELD_OUT = synthetic_observations(1, seed=7)[0]


def micro(recipe: str):
    return load_uncompressed("micro", load_recipe(recipe))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("compressed") / "policy.safetensors"
    compress_to_file(micro("w4a4"), load_recipe("w4a4"), OBSERVATIONS, path, calibration={"kind": "synthetic"})
    return path


def test_the_file_predicts_what_compression_in_memory_predicts(file):
    in_memory = micro("w4a4")
    compress(in_memory, load_recipe("w4a4"), OBSERVATIONS)
    prepare_inference(in_memory.model)
    fuse_parts(in_memory.model)
    expected = in_memory.predict(HELD_OUT).normalized
    np.testing.assert_array_equal(load_policy(str(file)).predict(HELD_OUT).normalized, expected)


def test_header_tells_where_it_comes_from(file):
    header = CompressedFile(file).header
    assert header.recipe == load_recipe("w4a4")
    assert len(header.source["sha256"]) == 64
    assert header.calibration["observations"] == 2
    assert header.calibration["kind"] == "synthetic"
    assert len(header.report) == 7 * len(micro_policy().model.decoder.layers)
    assert not file.with_name(file.name + ".partial").exists()


def test_four_bits_on_disk(file):
    decoder = sum(row["stored_bytes"] for row in CompressedFile(file).header.report)
    weights = sum(p.numel() for n, p in micro_policy().model.decoder.named_parameters() if n.endswith("proj.weight"))
    assert weights / 2 < decoder < weights / 2 * 1.1


@pytest.mark.parametrize("recipe", ["rtn_w4a16", "sqap_paper", "w4a4_down8", "sqap_pruning"])
def test_other_schemes_round_trip(recipe, tmp_path):
    path = tmp_path / "policy.safetensors"
    observations = OBSERVATIONS[:1]
    compress_to_file(micro(recipe), load_recipe(recipe), observations, path)
    in_memory = micro(recipe)
    compress(in_memory, load_recipe(recipe), observations)
    prepare_inference(in_memory.model)
    fuse_parts(in_memory.model)
    loaded = load_policy(str(path))
    equip(in_memory, load_recipe(recipe))
    expected = in_memory.predict(HELD_OUT).normalized
    np.testing.assert_allclose(loaded.predict(HELD_OUT).normalized, expected, atol=1e-5)  # weights reordered or not
    assert loaded.info.recipe == recipe
    assert loaded.info.parameters == pytest.approx(micro(recipe).info.parameters, rel=0.01)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [0, 5])
def test_an_interruption_loses_nothing(tmp_path, stop):
    whole = tmp_path / "whole.safetensors"
    compress_to_file(micro("w4a4"), QUICK, OBSERVATIONS, whole)
    path = tmp_path / "policy.safetensors"
    done: list[int] = []

    def interrupt(layer: int) -> None:
        done.append(layer)
        if layer == stop:
            raise Interrupted

    def run(after_layer):
        compress_to_file(micro("w4a4"), QUICK, OBSERVATIONS, path, after_layer=after_layer)

    with pytest.raises(Interrupted):
        run(interrupt)
    assert not path.exists()
    run(done.append)
    assert done == list(range(6))  # every layer once
    one, other = CompressedFile(whole), CompressedFile(path)
    assert one.names == other.names
    for name in one.names:
        assert torch.equal(one.tensor(name), other.tensor(name)), name


def test_unfinished_work_of_another_compression_is_not_mixed_in(tmp_path):
    path = tmp_path / "policy.safetensors"

    def interrupt(layer: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        compress_to_file(micro("w4a4"), QUICK, OBSERVATIONS, path, after_layer=interrupt)
    other_policy, other_recipe = load_uncompressed("micro", load_recipe("w4a4"), seed=1), load_recipe("w4a4")
    cropped = micro("w4a4")
    cropped.transform = dataclasses.replace(cropped.transform, crop="deployment")
    for given, differs in (
        ((micro("w4a4"), QUICK, OBSERVATIONS[:1]), "set of calibration observations"),
        ((micro("w4a4"), other_recipe, OBSERVATIONS), "recipe"),
        ((other_policy, QUICK, OBSERVATIONS), "checkpoint"),
        ((cropped, QUICK, OBSERVATIONS), r"setting of the checkpoint \(--ddim-steps and the like\)"),
        ((other_policy, other_recipe, OBSERVATIONS), "checkpoint and another recipe"),
    ):
        with pytest.raises(
            CompressedFileError,
            match=f"unfinished compression with another {differs}; remove that folder or choose another --out",
        ):
            compress_to_file(*given, path)


@pytest.mark.parametrize("name", ["layer_000.safetensors", "inputs_001.safetensors", "plan.json"])
def test_damaged_unfinished_work_is_not_gone_on_with(tmp_path, name):
    """As a power cut leaves it: some bytes are zero."""
    path = tmp_path / "policy.safetensors"

    def interrupt(layer: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        compress_to_file(micro("w4a4"), QUICK, OBSERVATIONS, path, after_layer=interrupt)
    file = tmp_path / "policy.safetensors.partial" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    file.write_bytes(data)
    with pytest.raises(CompressedFileError, match=r"partial/\S+ is damaged.*; remove \S+partial and start again"):
        compress_to_file(micro("w4a4"), QUICK, OBSERVATIONS, path)


def test_a_file_in_the_place_of_unfinished_work_is_named(tmp_path):
    (tmp_path / "policy.safetensors.partial").write_text("mine")
    with pytest.raises(CompressedFileError, match="is a file where a folder"):
        compress_to_file(micro("w4a4"), QUICK, OBSERVATIONS, tmp_path / "policy.safetensors")


def test_truncated_and_corrupted_files_are_refused(file, tmp_path):
    data = file.read_bytes()
    path = tmp_path / "policy.safetensors"
    for length in (0, 5, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CompressedFileError, match="truncated"):
            load_policy(str(path))
    (header_size,) = struct.unpack("<Q", data[:8])
    damaged = bytearray(data)
    damaged[8 + header_size + (len(data) - header_size) // 2] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(CompressedFileError, match=r"is damaged at .*; copy it again"):
        load_policy(str(path))


def with_metadata(file, path, *, sealed=False, **changes) -> None:
    """Write a copy with another header, without its checksum, as files of the first versions are."""
    changes |= {} if sealed else {"header_crc32": None}
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {k: v for k, v in {**header["__metadata__"], **changes}.items() if v is not None}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": "99"}, "format version '99', this package reads 1"),
        ({"version": "0"}, "format version '0', this package reads 1; compress anew"),
        ({"version": None}, "format version None, this package reads 1; compress anew"),
        ({"recipe": "{"}, "damaged header"),
        ({"policy": None}, "damaged header"),
        ({"crc32": "{}"}, "lacks tensors its header promises"),
        ({"recipe": json.dumps({"name": "x", "quantisation": 4})}, "unknown 'quantisation'"),
    ],
)
def test_damaged_headers_are_named(file, tmp_path, changes, match):
    path = tmp_path / "policy.safetensors"
    with_metadata(file, path, **changes)
    with pytest.raises(CompressedFileError, match=match):
        load_policy(str(path))


def test_a_header_that_was_damaged_is_refused_though_it_reads_well(file, tmp_path):
    """Its report holds the clips of the activations: another digit is another policy."""
    path = tmp_path / "policy.safetensors"
    report = json.dumps([{**row, "activation_clip": 0.5} for row in CompressedFile(file).header.report])
    with_metadata(file, path, report=report)
    assert set(CompressedFile(path).header.clips.values()) == {0.5}
    with_metadata(file, path, sealed=True, report=report)
    with pytest.raises(CompressedFileError, match="its header has changed; copy it again or compress anew"):
        CompressedFile(path)


def test_recipes_on_a_compressed_file(file):
    assert load_policy(str(file)).info.selector == "none"
    pruned = load_policy(str(file), "sqap")
    assert pruned.info.selector == "sqap"
    assert len(pruned.predict(HELD_OUT).selection.indices) == 154
    other = load_policy(str(file), "fastv")
    assert (other.info.selector, other.info.recipe) == ("fastv", "w4a4+fastv")
    assert load_policy(str(file), "bf16").info.recipe == "w4a4"
    with pytest.raises(RecipeError, match="compressed with recipe 'w4a4', which quantises otherwise than 'rtn_w8a8'"):
        load_policy(str(file), "rtn_w8a8")


def test_a_compressed_file_is_known_by_its_source_and_by_all_that_was_done(file):
    assert applied_recipe(str(file), "bf16") == load_recipe("w4a4")
    assert applied_recipe(str(file), "fastv").quantization == load_recipe("w4a4").quantization
    assert applied_recipe(str(file), "fastv").digest != load_recipe("fastv").digest
    assert checkpoint_digest(str(file)) == CompressedFile(file).header.source["sha256"]


def test_missing_calibration_and_files(tmp_path):
    with pytest.raises(RecipeError, match="needs calibration observations: give --calibration"):
        compress_to_file(micro("w4a4"), load_recipe("w4a4"), [], tmp_path / "p.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        load_policy(str(tmp_path / "nothing"))
    with pytest.raises(CompressedFileError, match=r"is a \.safetensors file"):
        compress_to_file(micro("w4a4"), load_recipe("w4a4"), OBSERVATIONS, tmp_path / "policy.bin")
    with pytest.raises(CompressedFileError, match=r"folder .* does not exist"):
        compress_to_file(micro("w4a4"), load_recipe("w4a4"), OBSERVATIONS, tmp_path / "no" / "p.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["rtn_w4a4", "w4a4_rotated"])
def test_layers_left_in_the_checkpoint_give_the_same_file(recipe, dtype, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    source = micro_policy()
    source.model.to(dtype)
    with torch.no_grad():
        for layer in source.model.decoder.layers:
            layer.input_layernorm.weight.mul_(2.0)  # a norm that is folded, not one that happens to be unity
    save_checkpoint(source, checkpoint)
    before = checkpoint.read_bytes()
    chosen = load_recipe(recipe)
    for name, in_file in (("whole", False), ("in_file", True)):
        policy = load_uncompressed(str(checkpoint), chosen, layers_in_file=in_file)
        compress_to_file(policy, chosen, [], tmp_path / f"{name}.safetensors")
    assert (tmp_path / "in_file.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert checkpoint.read_bytes() == before
