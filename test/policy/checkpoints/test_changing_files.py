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
from sqap_vla_ros.policy.checkpoints.torch_archive import TorchArchive
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


def pack_anew(weights, how, drop=()):
    """Write an archive as other programs do: without what torch.save puts between and behind the entries."""
    packed = weights.with_suffix(".packed")
    with zipfile.ZipFile(weights) as source, zipfile.ZipFile(packed, "w", how) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(drop):
                target.writestr(entry.filename, source.read(entry))
    packed.replace(weights)


def test_an_archive_that_another_program_compressed_is_refused(tmp_path):
    path, weights = written("published", tmp_path)
    pack_anew(weights, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="was compressed by another program"):
        open_checkpoint(path, MICRO)


@pytest.mark.parametrize("drop", [(), (".data/serialization_id",), (".storage_alignment", ".format_version")])
def test_an_archive_that_was_written_anew_holds_the_same_tensors(tmp_path, drop):
    """`torch.load` on the meta device calculates the places of tensors, and finds others here."""
    path, weights = written("published", tmp_path)
    expected = assemble(open_checkpoint(path, MICRO), device="cpu", dtype=torch.float32).state_dict()
    pack_anew(weights, zipfile.ZIP_STORED, drop)
    loaded = assemble(open_checkpoint(path, MICRO), device="cpu", dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_damaged_numbers_are_refused_by_the_archives_checksums_where_it_has_some(tmp_path):
    path, weights = written("published", tmp_path)
    with zipfile.ZipFile(weights) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    at = largest.header_offset + 200 + largest.file_size // 2
    data = bytearray(weights.read_bytes())
    data[at : at + 64] = bytes(64)
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged at 'llm_backbone/.*': copy or download it again"):
        assemble(open_checkpoint(path, MICRO), device="cpu", dtype=torch.float32)
    stored = torch.load(weights, weights_only=True)  # which does not look at them
    checked = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(stored, weights)
    finally:
        torch.serialization.set_crc32_options(checked)
    assert assemble(open_checkpoint(path, MICRO), device="cpu", dtype=torch.float32)


def test_tensors_are_read_as_torch_reads_them(tmp_path):
    """Transposed, sharing memory with others, every second number, negated without a copy."""
    whole = torch.arange(24.0).reshape(4, 6)
    parts = [whole, whole.t(), whole[1:3, ::2], whole.to(torch.bfloat16), torch.tensor(3.0), torch.zeros(0, 3)]
    parts.append(torch.view_as_complex(torch.stack((whole, whole), -1)).conj().imag)
    torch.save(parts, tmp_path / "parts.pt")
    archive = TorchArchive(tmp_path / "parts.pt")
    for number, (part, form) in enumerate(zip(parts, archive.content, strict=True)):
        read = archive.read(form, f"part {number}")
        assert form.is_meta
        assert torch.equal(read, part)
        assert read.dtype == part.dtype
