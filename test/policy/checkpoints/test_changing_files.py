"""Files that are cut off, rewritten or replaced while they are read, or while the policy from them is in use."""

import zipfile

import pytest
import torch
from published_writer import random_groups, write_folder

from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.files.kind import CompressedFileError
from sqap_vla_ros.compression.files.storage import CompressedFile, load_compressed
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.policy.checkpoints.contents import CheckpointError
from sqap_vla_ros.policy.checkpoints.load import assemble, open_checkpoint
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.policy import micro_policy


def written(form, folder):
    """Return a checkpoint to open, and the file in it that holds the weights."""
    if form == "published":
        write_folder(folder / "cogact", random_groups(MICRO))
        return folder / "cogact", next((folder / "cogact" / "checkpoints").glob("*.pt"))
    path = folder / "policy.safetensors"
    save_checkpoint(micro_policy(), path)
    return path, path


def cut(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 3)


def overwrite(path):
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


@pytest.mark.parametrize("form", ["published", "safetensors"])
@pytest.mark.parametrize(("change", "said"), [(cut, "was cut off while"), (overwrite, "was written to while")])
def test_a_file_that_changes_while_it_is_read_is_refused_in_a_sentence(form, change, said, tmp_path):
    """Mapped memory would end the process by a bus error, or give other weights without a word."""
    path, weights = written(form, tmp_path)
    contents = open_checkpoint(path, MICRO)
    change(weights)
    with pytest.raises(CheckpointError, match=f"{weights.name} {said} it was read: wait until it is whole"):
        assemble(contents, device="cpu", dtype=torch.float32)


def test_layers_that_are_still_in_a_file_that_is_cut_off_are_refused(tmp_path):
    path, weights = written("published", tmp_path)
    model = assemble(open_checkpoint(path, MICRO), device="cpu", dtype=torch.float32, layers_in_file=True)
    assert all(parameter.is_meta for parameter in model.decoder.layers.parameters())
    assert not any(parameter.is_meta for parameter in model.decoder.layer_in_memory(1).parameters())
    cut(weights)
    with pytest.raises(CheckpointError, match="was cut off while it was read"):
        model.decoder.layer_in_memory(1)


@pytest.mark.parametrize("form", ["published", "safetensors"])
def test_another_file_of_the_same_name_is_not_seen(form, tmp_path):
    """Downloads and compilers write beside a file and rename."""
    path, weights = written(form, tmp_path)
    contents = open_checkpoint(path, MICRO)
    expected = assemble(open_checkpoint(path, MICRO), device="cpu", dtype=torch.float32).state_dict()
    other = weights.with_suffix(".new")
    other.write_bytes(b"something else")
    other.replace(weights)
    loaded = assemble(contents, device="cpu", dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_a_compressed_policy_is_its_own_while_its_file_is_rewritten(tmp_path):
    path = tmp_path / "policy.safetensors"
    compress_to_file(micro_policy(), load_recipe("rtn_w4a4"), [], path)
    policy, file = load_compressed(path), CompressedFile(path)
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    overwrite(path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())
    with pytest.raises(CompressedFileError, match="was written to while it was read"):
        file.tensor(file.names[0])
    cut(path)
    with pytest.raises(CompressedFileError, match="was cut off while it was read"):
        file.tensor(file.names[-1])


def test_an_archive_that_another_program_compressed_is_refused(tmp_path):
    path, weights = written("published", tmp_path)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(weights) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    packed.replace(weights)
    with pytest.raises(CheckpointError, match="was compressed by another program"):
        open_checkpoint(path, MICRO)
